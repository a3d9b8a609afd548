"""Receiver inside another ASGI application: one to mount, its lifespan, and handlers that are given as functions.

receiver = create_app("receiver.toml", handlers=[tell])
app = Starlette(routes=[Mount("/receiver", receiver)], lifespan=receiver.lifespan)
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.app import ROLES, Plan, check, run
from receiver.config import Config, find_and_load, read_handler
from receiver.errors import ConfigError, Mistake, ReceiverError
from receiver.handling import HandlerPlugin, plug_in
from receiver.web.application import create_app as create_web
from receiver.web.problems import problem

FILE = "handlers of create_app"  # where mistakes in what was given are said to stand


class NotStarted(ReceiverError):
    """It was entered twice, or is not entered."""


@dataclass(frozen=True)
class Given:
    """A function or class as a handler, with the settings that its table would have."""

    target: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def plug_in(self, folder: Path) -> HandlerPlugin:
        name = getattr(self.target, "__name__", type(self.target).__name__)
        use = f"{getattr(self.target, '__module__', '')}:{getattr(self.target, '__qualname__', name)}"
        config = read_handler({"name": name.lower(), **self.settings, "use": use}, file=FILE, folder=folder)
        return plug_in(config, self.target, folder, FILE)


def handler(target: Callable[..., Any], **settings: Any) -> Given:
    """A function `(event, context)`, or a handler class, with what a table [[handlers]] may say of it: `events=["job.succeeded"]`,
    `where={"provider": "pixazo"}`, `timeout="10m"`, …; its `name` is the function's own unless one is given."""
    return Given(target, settings)


def create_app(
    config: Config | str | os.PathLike[str] | None = None,
    *,
    handlers: Sequence[Callable[..., Any] | Given] = (),
    roles: Sequence[str] = ROLES,
) -> Embedded:
    """Receiver as an ASGI application; ConfigError with every mistake. `config` is a loaded configuration or the path of its file;
    None looks where the command line does. `handlers` come beside those that it names. `roles` as for `receiver serve`."""
    loaded = config if isinstance(config, Config) else find_and_load(None if config is None else os.fspath(config), os.environ)
    return Embedded(with_handlers(check(loaded), [each if isinstance(each, Given) else Given(each) for each in handlers]), roles)


def with_handlers(plan: Plan, given: Sequence[Given]) -> Plan:
    """The plan with these handlers too; ConfigError with the mistakes of all of them."""
    plugins = list(plan.plugins)
    mistakes: list[Mistake] = []
    for each in given:
        try:
            plugin = each.plug_in(plan.config.folder)
        except ConfigError as error:
            mistakes += error.mistakes
            continue
        if plugin.name in {known.name for known in plugins}:
            mistakes.append(Mistake(FILE, f"handlers.{plugin.name}", "is the name of another handler; give it one: handler(…, name=…)"))
        plugins.append(plugin)
    if mistakes:
        raise ConfigError(mistakes)
    config = msgspec.structs.replace(plan.config, handlers=tuple(plugin.config for plugin in plugins))
    return replace(plan, config=config, plugins=plugins)


class Embedded:
    """An ASGI application that answers while its `lifespan` is entered.

    A server that runs it alone enters it; a mounted application is not told when the outer one starts: hand `lifespan` to that.
    """

    def __init__(self, plan: Plan, roles: Sequence[str] = ROLES) -> None:
        self.plan, self.roles = plan, tuple(roles)
        self._app: ASGIApp | None = None

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Runs Receiver. Fits `lifespan=` of Starlette and FastAPI, and `async with receiver.lifespan():` in one of your own."""
        if self._app is not None:
            raise NotStarted("This Receiver runs already: hand its lifespan to one application only.")
        async with run(self.plan, self.roles) as services:
            web = create_web(services)
            self._app = web
            try:
                yield
            finally:
                self._app = None
                web.state.waiting.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Router(lifespan=self.lifespan)(scope, receive, send)
        elif self._app is not None:
            await self._app(below_mount(scope), receive, send)
        elif scope["type"] == "http":
            detail = "Receiver is mounted here and does not run: hand its lifespan to the application that it is mounted in."
            await problem(503, detail, headers={"Retry-After": "5"})(scope, receive, send)
        else:
            raise NotStarted("Receiver is mounted here and does not run.")


def below_mount(scope: Scope) -> Scope:
    """As if nothing stood in front: what is served here links relatively, and the public URL says what is before it."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        return {**scope, "path": path[len(root) :] or "/", "root_path": ""}
    return scope
