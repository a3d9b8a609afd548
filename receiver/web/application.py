"""Puts the routes together into one application."""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.addresses import parse_networks
from receiver.services import Services
from receiver.web import callbacks, costs, deliveries, events, health, jobs, notices, pages, providers
from receiver.web.brakes import Brakes
from receiver.web.callbacks import Callbacks
from receiver.web.guard import Guard
from receiver.web.headroom import Headroom
from receiver.web.health import StoreCheck
from receiver.web.keyring import Keyring
from receiver.web.openapi import build_document
from receiver.web.operations import Operation, build_routes
from receiver.web.pages_costs import Ledger
from receiver.web.pages_errors import answer_with_page, as_page
from receiver.web.problems import EXCEPTION_HANDLERS
from receiver.web.slowing import Slowing
from receiver.web.submitting import Answered
from receiver.web.waiting import Waiting

OPERATIONS: tuple[Operation, ...] = (
    *jobs.OPERATIONS,
    *costs.OPERATIONS,
    *events.OPERATIONS,
    *deliveries.OPERATIONS,
    *notices.OPERATIONS,
    *providers.OPERATIONS,
    *callbacks.OPERATIONS,
    *health.OPERATIONS,
    *pages.OPERATIONS,
)


class Application(Starlette):
    """Callbacks go past everything that they do not need: bursts arrive there.

    Where the public URL has a path, the guard tells them apart."""

    shortcut: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.shortcut is not None and scope["type"] == "http" and scope["path"].startswith("/callbacks/"):
            await self.shortcut(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


@cache
def openapi_document() -> dict[str, Any]:
    """Made when somebody asks for it: a start need not wait."""
    return build_document(OPERATIONS)


def find_roots(prefix: str) -> set[str]:
    """What a path below the public URL's path may begin with; a page that would hide an address of the API there does not count."""
    addresses = {operation.path for operation in OPERATIONS}
    roots = {operation.path.split("/")[1] for operation in OPERATIONS}
    return roots | {root for root in (page.path.split("/")[1] for page in pages.PAGES) if f"{prefix}/{root}" not in addresses}


def create_app(services: Services, *, lifespan: Any = None) -> Starlette:
    """The whole HTTP side of one running application. `app.state.waiting.stop()` lets everything that is held answer at once."""
    server, served = services.config.server, (*OPERATIONS, *pages.PAGES)
    headroom, keyring = Headroom(services.store, services.config.store.url), Keyring(services.store, server.api_keys)
    calls = Callbacks(services, headroom)
    networks = parse_networks(server.trusted_proxies)
    slowing = Slowing(services.clock, networks, lambda: services.counters.add("receiver", "keys_slowed"))
    guard = Middleware(
        Guard,
        callbacks=calls,
        keyring=keyring,
        public_url=server.public_url,
        roots=find_roots(urlsplit(server.public_url or "").path.rstrip("/")),
        open_paths={operation.path for operation in served if operation.is_open},
        check_session=lambda value: services.tokens.sessions.check(value, services.clock.now()),
        slowing=slowing,
        as_page=as_page,
    )
    refusals = {**EXCEPTION_HANDLERS, HTTPException: answer_with_page}
    app = Application(routes=build_routes(served), middleware=[guard], exception_handlers=refusals, lifespan=lifespan)
    app.router.redirect_slashes = False
    if not urlsplit(server.public_url or "").path.strip("/"):
        app.shortcut = calls
    app.state.services = services
    app.state.headroom = headroom
    app.state.keyring = keyring
    app.state.slowing = slowing
    app.state.waiting = Waiting(services.pulse)
    app.state.answered = Answered()
    app.state.brakes = Brakes(services)
    app.state.last_callbacks = {}
    app.state.ledger = Ledger()
    app.state.store_check = StoreCheck(services.store)
    app.state.openapi = openapi_document
    return app
