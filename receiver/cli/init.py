"""`receiver init`: writes a commented receiver.toml, after asking a person for the few things that matter."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from receiver.cli.session import KEY_VARIABLE, Session, pass_session
from receiver.errors import ConfigError, Mistake

DEFAULT = "receiver.toml"


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default=DEFAULT)
@click.option("--public-url", metavar="URL", help="Where providers reach this server; without it every job is polled.")
@click.option("--provider", "providers", multiple=True, metavar="NAME", help="A provider to use; may be given several times.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@pass_session
def init(_: Session, file: Path, public_url: str | None, providers: tuple[str, ...], force: bool) -> None:
    """Write a commented configuration to FILE (receiver.toml). It asks only on a terminal, and only what no option has said."""
    from receiver.providers.loader import load_specs, shipped_folder

    if file.exists() and not force:
        raise ConfigError([Mistake(str(file), "", "is there already; --force overwrites it")])
    specs = load_specs()
    known = sorted(specs)
    if sys.stdin.isatty() and sys.stdout.isatty():
        public_url = public_url or ask_public_url()
        providers = providers or ask_providers(known)
    wrong = [name for name in providers if name not in known]
    if wrong:
        raise click.BadParameter(f"{', '.join(wrong)}: there are {', '.join(known)}", param_hint="--provider")
    signing = frozenset(name for name in providers if (how := specs[name].signature) is not None and how.jwks is None)
    text = fill((shipped_folder().parent / DEFAULT).read_text(encoding="utf-8"), check_url(public_url), providers, signing)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([Mistake(str(file), "", f"cannot be written: {error.strerror}")]) from None
    click.echo(f"Wrote {file}.")
    for line in next_steps(file, public_url, providers, signing):
        click.echo(line)


def ask_public_url() -> str | None:
    click.echo("Providers call back where they can reach this server under a public address.")
    return click.prompt("Public URL (empty: none, every job is polled)", default="", show_default=False) or None


def ask_providers(known: list[str]) -> tuple[str, ...]:
    answer = click.prompt(f"Providers to use, of {', '.join(known)} (empty: none yet)", default="", show_default=False)
    return tuple(re.split(r"[\s,]+", answer.strip())) if answer.strip() else ()


def check_url(public_url: str | None) -> str | None:
    from receiver import config_values

    try:
        return config_values.public_url(public_url) if public_url else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--public-url") from None


def fill(text: str, public_url: str | None, providers: tuple[str, ...], signing: frozenset[str]) -> str:
    """The shipped file with what was asked for switched on; the rest stays a comment. `signing` are those that want a secret too."""
    if public_url:
        text = re.sub(r"(?m)^#public_url = .*$", lambda _: f'public_url = "{public_url}"', text, count=1)
        text = re.sub(r"(?m)^#(api_keys = .*)$", r"\1", text, count=1)
    tables = "\n".join(fill_account(name, is_signing=name in signing) for name in providers)
    return f"{text.rstrip()}\n\n\n{tables}" if tables else text


def fill_account(name: str, *, is_signing: bool) -> str:
    table = f'[providers.{name}]\napi_key = "${{{key_variable(name)}}}"\n'
    return f'{table}callback_secrets = ["${{{secret_variable(name)}}}"]\n' if is_signing else table


def key_variable(provider: str) -> str:
    return f"{provider.upper().replace('-', '_')}_API_KEY"


def secret_variable(provider: str) -> str:
    return f"{provider.upper().replace('-', '_')}_CALLBACK_SECRET"


def next_steps(file: Path, public_url: str | None, providers: tuple[str, ...], signing: frozenset[str]) -> list[str]:
    variables = [key_variable(name) for name in providers] + [secret_variable(name) for name in providers if name in signing]
    variables += [KEY_VARIABLE] if public_url else []
    option = "" if file == Path(DEFAULT) else f" --config {file}"
    steps = [f"Set {', '.join(variables)} in the environment."] if variables else []
    steps += ["`receiver keys new` makes an API key."] if public_url else []
    return [*steps, f"`receiver doctor{option}` says what is missing, `receiver serve{option}` starts the server."]
