"""`receiver init`: writes a commented receiver.toml, after asking a person for the few things that matter."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from receiver.cli.session import KEY_VARIABLE, Session, pass_session
from receiver.errors import ConfigError, Mistake

if TYPE_CHECKING:
    from receiver.providers.spec import Spec

DEFAULT = "receiver.toml"
SIMULATOR = "http://127.0.0.1:8090"  # where `receiver simulate` listens unless it is told otherwise
OUTPUTS = "outputs"
T = TypeVar("T")


@dataclass(frozen=True)
class Account:
    """What a provider's table is to hold; `wants` are the environment variables that it is filled from."""

    name: str
    settings: Mapping[str, Any]
    wants: tuple[str, ...] = ()
    is_told_once: bool = False  # its callbacks come to one URL, which is set at the provider

    @property
    def table(self) -> str:
        return "\n".join([f"[providers.{self.name}]", *(f"{key} = {json.dumps(value)}" for key, value in self.settings.items()), ""])


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--provider", "providers", multiple=True, metavar="NAME", help="A provider to use; may be given several times.")
@click.option("--simulated", is_flag=True, help="The simulator in place of the providers; `receiver simulate` starts it.")
@click.option("--public-url", metavar="URL", help="Where providers reach this server; without it every job is polled.")
@click.option("--outputs", metavar="FOLDER", help="Keep the files that jobs make in this folder.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@pass_session
def init(
    session: Session,
    file: Path | None,
    providers: tuple[str, ...],
    simulated: bool,
    public_url: str | None,
    outputs: str | None,
    force: bool,
) -> None:
    """Write a commented configuration to FILE, else to --config, else to receiver.toml.

    It asks only on a terminal, and only what no option has said.
    """
    from receiver.providers.loader import load_specs, shipped_folder

    file = file or Path(session.config_path or DEFAULT)
    if file.exists() and not force:
        raise ConfigError([Mistake(str(file), "", "is there already; --force overwrites it")])
    specs = load_specs()
    known = sorted(specs)
    if sys.stdin.isatty() and sys.stdout.isatty():
        providers = providers or ask_providers(known, "all" if simulated else "none yet")
        public_url = public_url or (None if simulated else ask_public_url())
        outputs = ask_outputs() if outputs is None else outputs
    providers, public_url = check_providers(providers, known), check_url(public_url)
    accounts = simulate_accounts(providers) if simulated else [make_account(name, specs[name]) for name in providers]
    text = fill((shipped_folder().parent / DEFAULT).read_text(encoding="utf-8"), public_url, accounts, outputs, is_simulated=simulated)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([Mistake(str(file), "", f"cannot be written: {error.strerror}")]) from None
    click.echo(f"Wrote {file}. Next:\n")
    for line in next_steps(file, public_url, accounts, is_simulated=simulated):
        click.echo(f"  {line}")


# Questions


def ask(text: str, check: Callable[[str], T], default: str = "") -> T:
    """The answer once it is right; what was wrong is said before it is asked for again."""
    return click.prompt(text, default=default, show_default=bool(default), value_proc=lambda answer: check(answer.strip()))


def ask_providers(known: list[str], without: str) -> tuple[str, ...]:
    """`without`: what an empty answer comes to."""
    text = f"Providers to use, of {', '.join(known)} (empty: {without})"
    return ask(text, lambda answer: check_providers(tuple(re.findall(r"[^\s,]+", answer)), known))


def ask_public_url() -> str | None:
    click.echo("\nProviders call back where they can reach this server under a public address.")
    return ask("Public URL, like https://hooks.example.com (empty: none, every job is polled)", check_url)


def ask_outputs() -> str:
    click.echo("\nProviders keep what they make for hours or days only.")
    return ask('Folder to keep it in ("-": do not)', lambda answer: "" if answer == "-" else answer, OUTPUTS)


def check_providers(names: tuple[str, ...], known: list[str]) -> tuple[str, ...]:
    wrong = [name for name in names if name not in known]
    if wrong:
        raise click.BadParameter(f"{', '.join(wrong)}: there are {', '.join(known)}", param_hint="--provider")
    return tuple(dict.fromkeys(names))


def check_url(public_url: str | None) -> str | None:
    from receiver import config_values

    try:
        return config_values.public_url(public_url) if public_url else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--public-url") from None


# What is written


def make_account(name: str, spec: Spec) -> Account:
    """Its key from the environment, and its secret too where callbacks are signed with one."""
    variable = name.upper().replace("-", "_")
    settings: dict[str, Any] = {"api_key": f"${{{variable}_API_KEY}}"}
    wants = [f"{variable}_API_KEY"]
    if spec.signature is not None and spec.signature.jwks is None:
        settings["callback_secrets"] = [f"${{{variable}_CALLBACK_SECRET}}"]
        wants.append(f"{variable}_CALLBACK_SECRET")
    return Account(name, settings, tuple(wants), spec.table.callback is not None and not spec.sends_callback_url)


def simulate_accounts(names: tuple[str, ...]) -> list[Account]:
    from receiver.simulator import Simulator

    settings = Simulator().settings(SIMULATOR)
    return [Account(name, {"api_key": "any", **settings[name]}) for name in names or sorted(settings)]


def fill(text: str, public_url: str | None, accounts: Sequence[Account], outputs: str | None, *, is_simulated: bool) -> str:
    """The shipped file with what was asked for switched on; the rest stays a comment."""
    if public_url:
        text = re.sub(r"(?m)^#public_url = .*$", lambda _: f'public_url = "{public_url}"', text, count=1)
        text = re.sub(r"(?m)^#(api_keys = .*)$", r"\1", text, count=1)
    if is_simulated:
        text = re.sub(r"(?m)^#allow_private = .*$", 'allow_private = ["127.0.0.0/8"]  # the simulator\'s files', text, count=1)
    tables = [account.table for account in accounts]
    if outputs:
        tables.append(STORAGE.format(path=json.dumps(outputs)))
    return "\n".join([f"{text.rstrip()}\n\n", *tables]) if tables else text


STORAGE = """[[handlers]]
name = "archive"
use = "storage"
events = ["job.succeeded"]
timeout = "10m"
[handlers.options]
path = {path}
"""


def next_steps(file: Path, public_url: str | None, accounts: Sequence[Account], *, is_simulated: bool) -> list[str]:
    """Commands, as they can be typed."""
    steps = [f"export {name}=…" for account in accounts for name in account.wants]
    if public_url:
        steps.append(f"export {KEY_VARIABLE}=$(receiver keys new)")
        steps += [
            f"# in your account at {each.name}: its webhook is {public_url}/callbacks/{each.name}" for each in accounts if each.is_told_once
        ]
    steps += ["receiver simulate          # in a terminal of its own"] if is_simulated else []
    option = "" if file == Path(DEFAULT) else f" --config {file}"
    return [*steps, f"receiver doctor{option}            # says what is missing", f"receiver serve{option}"]
