"""The command `receiver`: finds commands without importing them all, and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import click

from receiver import __version__
from receiver.cli.codes import DONE, INTERRUPTED, MISUSED, NOT_REACHABLE, OUR_MISTAKE
from receiver.cli.session import COMMON, Session

COMMANDS = {
    "demo": ("demo", "Shows the whole story on this machine: no keys, no network."),
    "serve": ("service", "Runs the server: API, callbacks, polling, handlers."),
    "poll": ("service", "Runs everything but HTTP: the polling daemon beside a server."),
    "submit": ("submit", "Submits a job to a provider."),
    "jobs": ("jobs", "Lists jobs, newest first."),
    "show": ("jobs", "Shows a job with everything that happened to it."),
    "watch": ("watch", "Shows events as they happen, or forwards them to an address."),
    "cancel": ("jobs", "Cancels a job where the provider can."),
    "replay": ("deliveries", "Delivers events to handlers again."),
    "dead": ("deliveries", "Lists deliveries that were given up."),
    "providers": ("configured", "Lists providers: what they can do and how they do."),
    "handlers": ("configured", "Lists handlers and how they do."),
    "keys": ("keys", "Makes API keys, and lists those that are configured."),
    "costs": ("costs", "Adds up what jobs cost."),
    "doctor": ("doctor", "Finds what is wrong and says how to mend it."),
    "simulate": ("simulate", "Runs the simulator of the providers alone."),
    "try-spec": ("specs", "Shows what a provider spec makes of a body."),
    "init": ("init", "Writes a commented receiver.toml."),
    "migrate": ("store", "Brings the database up to date, or copies an installation."),
    "prune": ("store", "Deletes now what is past its retention."),
}
"""Command → the module in this package that holds it, and its line in the help."""


class Root(click.Group):
    """The group of all commands; each one's module is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"receiver.cli.{COMMANDS[cmd_name][0]}"), cmd_name.replace("-", "_"))
        if not any(isinstance(option, click.Option) and "--config" in option.opts for option in command.params):
            command.params += [make() for make in COMMON]  # before the command or after it: both work
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands out of the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"There is no command {name!r}.{_suggest(name)}", ctx)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with until_nobody_reads():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with until_nobody_reads():
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError, EOFError):
                raise
            except Exception as error:  # while it is known what must not be shown
                raise click.exceptions.Exit(tell(error, ctx.ensure_object(Session).mask)) from None

    def main(self, *args: Any, **extra: Any) -> Any:
        """Exits with the code, or returns it where `standalone_mode` is False."""
        is_standalone = extra.pop("standalone_mode", True)
        code = guarded(partial(super().main, *args, standalone_mode=False, **extra))
        if is_standalone:
            sys.exit(code)
        return code


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Whoever closes our output has seen enough: that is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(DONE) from None


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, no_args_is_help=True)
@click.version_option(__version__, prog_name="receiver", message="%(prog)s %(version)s")
@click.pass_context
def root(ctx: click.Context) -> None:
    """Submits AI generation jobs, brings every one of them home, and tells your handlers, once.

    Exit codes: 0 done, 1 the job failed, 2 usage or configuration, 3 not reachable.
    """
    ctx.ensure_object(Session)


root.params += [make() for make in COMMON]


def guarded(run: Callable[[], Any]) -> int:
    """Run it; what goes wrong becomes a message on stderr and an exit code, never a traceback for a user's mistake."""
    try:
        code = run()
        return code if isinstance(code, int) else DONE
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return MISUSED
    except click.ClickException as error:
        error.show()
        return MISUSED
    except (KeyboardInterrupt, click.Abort, EOFError):
        return INTERRUPTED
    except Exception as error:
        return tell(error)


def tell(error: Exception, mask: Callable[[str], str] = str) -> int:
    """Say what went wrong, a mistake of ours with its traceback; the exit code."""
    code = explain(error, mask)
    if code is None:
        click.echo(mask("".join(traceback.format_exception(error))), err=True, nl=False)
        return OUR_MISTAKE
    return code


def explain(error: Exception, mask: Callable[[str], str]) -> int | None:
    """Say what went wrong where it is known; None: it is a mistake of ours."""
    from receiver.client import ApiError, NotReachable
    from receiver.errors import ConfigError, ReceiverError, Unavailable

    if not isinstance(error, ReceiverError):
        return None
    lines = [str(mistake) for mistake in error.mistakes] if isinstance(error, ConfigError) else str(error).splitlines()
    for line in lines:
        click.echo(mask(line), err=True)
    if isinstance(error, ApiError):
        if error.status == 401:
            click.echo("The key is taken from $RECEIVER_API_KEY, else it is the first of api_keys in the configuration.", err=True)
        return NOT_REACHABLE if error.status >= 500 else MISUSED
    return NOT_REACHABLE if isinstance(error, NotReachable | Unavailable) else MISUSED


def _suggest(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, COMMANDS, 1, 0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
