"""Signing in to the pages with an API key, and out again: a signed cookie that names the key by its hash."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import ReceiverError
from receiver.keys import Scope
from receiver.services import Services
from receiver.web.guard import SESSION_COOKIE
from receiver.web.keyring import Keyring
from receiver.web.operations import Answer, Operation, services_of
from receiver.web.pages_frame import GROUP, go_to, page, read_fields, read_form, show, show_error
from receiver.web.query import Query
from receiver.web.slowing import Slowing

LIFETIME = timedelta(days=7)


async def show_sign_in(request: Request, query: Query) -> Response:
    if not services_of(request).config.server.api_keys:
        return go_to(request, "/")
    return show(request, "sign_in.html", next=read_fields(request).get("next", ""), fault="")


async def sign_in(request: Request, query: Query) -> Response:
    services = services_of(request)
    keyring: Keyring = request.app.state.keyring
    slowing: Slowing = request.app.state.slowing
    try:
        form = await read_form(request)
        caller = await keyring.find(form.get("key", "").strip())
        if caller is None:
            await slowing.hold(request.scope)
    except ReceiverError as error:
        return show_error(request, error)
    if caller is None:
        return show(request, "sign_in.html", 401, next=form.get("next", ""), fault="This is no API key of this server.")
    if Scope.READ not in caller.scopes:
        return show(request, "sign_in.html", 403, next=form.get("next", ""), fault="This key may not read, and pages are for reading.")
    response = go_to(request, form.get("next", "/"))
    set_cookie(services, response, services.tokens.sessions.make(caller.key_id, services.clock.now() + LIFETIME), LIFETIME)
    return response


async def sign_out(request: Request, query: Query) -> Response:
    response = go_to(request, "/sign-in")
    set_cookie(services_of(request), response, "", timedelta(0))
    return response


def set_cookie(services: Services, response: Response, value: str, lifetime: timedelta) -> None:
    is_secure = urlsplit(services.config.server.public_url or "").scheme == "https"
    response.set_cookie(SESSION_COOKIE, value, int(lifetime.total_seconds()), secure=is_secure, httponly=True, samesite="lax")


PAGES = (
    replace(page("/sign-in", show_sign_in, "Sign in."), is_open=True),
    Operation("POST", "/sign-in", sign_in, GROUP, "Sign in.", (Answer(303, "You are in."),), None, is_open=True),
    Operation("POST", "/sign-out", sign_out, GROUP, "Sign out.", (Answer(303, "You are out."),), None, is_open=True),
)
