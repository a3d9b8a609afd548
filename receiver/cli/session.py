"""What one call of the command line knows: which configuration, which server, how much to say."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from receiver.errors import ConfigError

if TYPE_CHECKING:
    from receiver.app import Plan
    from receiver.client import Client
    from receiver.config import Config, ServerConfig

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
URL_VARIABLE, KEY_VARIABLE = "RECEIVER_URL", "RECEIVER_API_KEY"


@dataclass
class Session:
    """One call. The configuration is read when it is first asked for: not every command needs one."""

    config_path: str | None = None
    is_verbose: bool = False
    is_quiet: bool = False
    server: str | None = None
    _config: Config | None = field(default=None, repr=False)

    @property
    def config(self) -> Config:
        """ConfigError with every mistake in it."""
        from receiver.config import find_and_load

        if self._config is None:
            try:
                self._config = find_and_load(self.config_path, os.environ)
            except ConfigError as error:
                raise with_further_mistakes(error) from None
        return self._config

    def mask(self, text: str) -> str:
        """The text without the secrets of the configuration, as far as that was read."""
        from receiver.masking import Masker

        return Masker(self._config.all_secrets() if self._config else ()).mask_text(text)

    def check(self, config: Config | None = None) -> Plan:
        """The configuration with specs and handlers loaded; ConfigError with every mistake."""
        from receiver import app

        return app.check(config or self.config)

    def set_up_logs(self, *, is_daemon: bool = False) -> None:
        """Daemons tell what they do; other commands only what is wrong."""
        from receiver.logs import NORMAL, QUIET, VERBOSE, set_up_logs
        from receiver.masking import Masker

        level = VERBOSE if self.is_verbose else NORMAL if is_daemon and not self.is_quiet else QUIET
        set_up_logs(level=level, masker=Masker(self.config.all_secrets()))

    def client(self) -> Client:
        """A client of the server: --server, else $RECEIVER_URL, else [server] of the configuration."""
        from receiver.client import Client, NotReachable

        url = self.server or os.environ.get(URL_VARIABLE) or None
        key = os.environ.get(KEY_VARIABLE) or None
        if url is None:
            url = server_address(self._server_config.host, self._server_config.port)
        if key is None:
            key = next(iter(self._server_config.api_keys), None)
        try:
            return Client(url, key)
        except NotReachable as error:  # it is no address at all
            raise click.UsageError(str(error)) from None

    @property
    def _server_config(self) -> ServerConfig:
        """Where the server is. Other mistakes are for the server to complain of: who only asks it need not have the keys of providers."""
        try:
            return self.config.server
        except ConfigError as error:
            rooms = {mistake.key.partition(".")[0] for mistake in error.mistakes if not mistake.key.startswith("server.secrets")}
            if error.rest is None or rooms & {"", "server"}:
                raise
            server: ServerConfig = error.rest.server
            return server

    def ask(self, question: Callable[[Client], Awaitable[T]]) -> T:
        """The answer of the server to something asked through a client."""

        async def go() -> T:
            async with self.client() as client:
                return await question(client)

        return run_async(go())


def server_address(host: str, port: int) -> str:
    """Where a server that listens there is called from the same machine."""
    shown = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that keeps an option in the session: the one nearest to the command counts."""

    def keep(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(Session), name, value)

    return keep


def _option(name: str, *declarations: str, **more: Any) -> Callable[[], click.Option]:
    return lambda: click.Option(declarations, expose_value=False, callback=_remember(name), **more)


COMMON = (
    _option("config_path", "--config", metavar="FILE", help="The configuration; else $RECEIVER_CONFIG, else ./receiver.toml."),
    _option("is_verbose", "-v", "--verbose", is_flag=True, help="Say more."),
    _option("is_quiet", "-q", "--quiet", is_flag=True, help="Say only what is wrong."),
)
"""Options of every command, which may also stand before it."""


def asks_server(command: F) -> F:
    """Adds --server to a command that asks a running server."""
    text = f"Where the server is, as http://HOST:PORT; else ${URL_VARIABLE}, else [server] of the configuration."
    return click.option("--server", metavar="URL", expose_value=False, callback=_remember("server"), help=text)(command)


def shows_json(command: F) -> F:
    """Adds --json, which gives the command `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def pass_session(command: Callable[..., None]) -> Callable[..., None]:
    """Calls the command with the session first."""
    decorated: Callable[..., None] = click.make_pass_decorator(Session, ensure=True)(command)
    return decorated


def with_further_mistakes(error: ConfigError) -> ConfigError:
    """The same, with those that show only when specs and handlers are loaded: nobody should have to start twice."""
    from receiver import app

    if error.rest is None:
        return error
    try:
        app.check(error.rest)
    except ConfigError as more:
        known = [mistake.key for mistake in error.mistakes]
        further = [mistake for mistake in more.mistakes if not any(are_related(mistake.key, key) for key in known)]
        return ConfigError([*error.mistakes, *(mistake for mistake in further if not mistake.key.startswith("handlers.."))], error.rest)
    return error


def are_related(key: str, other: str) -> bool:
    """Whether one is the other or stands below it."""
    return key == other or key.startswith((f"{other}.", f"{other}[")) or other.startswith((f"{key}.", f"{key}["))
