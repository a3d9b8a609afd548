"""Stands in front of every route: the path of the public URL, API keys, strangers' origins, security headers, the last resort."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, unquote, urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receiver.errors import TooMany, Unavailable
from receiver.web.keyring import ANYBODY, Caller, Keyring, admit
from receiver.web.paths import is_for_programs, root_of
from receiver.web.problems import last_resort, problem, problem_of
from receiver.web.slowing import Slowing

log = structlog.get_logger("receiver.web")

SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cache-Control", "no-store"),
)
"""On every answer, unless its route has said otherwise."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_COOKIE = "receiver_session"
STATIC_FILES = "/static/"  # the same for everybody, and the page for signing in needs them
LOOPBACK_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:]+)(:[0-9]*)?")
WANTS_KEY = "This needs an API key: Authorization: Bearer KEY."
KEY_NEEDED = (
    "Without API keys only requests from this machine itself are served, and this one came by another name or through a proxy. "
    'Add a key to the configuration: api_keys = ["${RECEIVER_API_KEY}"] under [server].'
)


class Guard:
    """ASGI middleware around the router; callbacks go their own, shorter way."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        callbacks: ASGIApp,
        keyring: Keyring,
        public_url: str | None,
        roots: Collection[str],
        open_paths: Collection[str],
        check_session: Callable[[str], str | None],
        slowing: Slowing,
        as_page: Callable[[Scope, Response], Response],
    ) -> None:
        self._app, self._callbacks = app, callbacks
        self._keyring = keyring
        self._prefix = unquote(urlsplit(public_url or "").path).rstrip("/")
        self._public_host = urlsplit(public_url or "").netloc.lower()
        self._roots, self._open_paths = frozenset(roots), frozenset(open_paths)
        self._check_session, self._slowing, self._as_page = check_session, slowing, as_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sender = Sender(send)
        try:
            await self._serve(scope, receive, sender)
        except Exception as error:  # the last resort: nobody but the log sees a traceback
            log.error("request.failed", method=scope["method"], error=f"{type(error).__name__}: {error}", exc_info=True)
            if sender.has_started:
                raise
            await last_resort()(scope, receive, sender)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope, path = self._without_prefix(scope)
        if path.startswith("/callbacks/") or path == "/callbacks":
            await self._callbacks({**scope, "path": path}, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._origin_refusal(scope, headers) if self._is_open(path) else await self._refusal(scope, path, headers)
        await (self._as_page(scope, refusal) if refusal else self._app)(scope, receive, send)

    def _without_prefix(self, scope: Scope) -> tuple[Scope, str]:
        """The path below the public URL's path. Both forms are served: a proxy may cut the prefix off, or not."""
        path: str = scope["path"]
        if self._prefix and (path + "/").startswith(self._prefix + "/"):
            rest = path[len(self._prefix) :]
            if rest.split("/")[1:2] in ([root] for root in self._roots) or (not rest and path[1:] not in self._roots):
                return {**scope, "root_path": scope.get("root_path", "") + self._prefix, "path": path if rest else path + "/"}, rest or "/"
        return scope, path

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith(STATIC_FILES)

    async def _refusal(self, scope: Scope, path: str, headers: Headers) -> Response | None:
        is_session = False
        if not self._keyring.is_empty:
            try:
                caller = await self._keyring.find(bearer_of(headers))
                if caller is None:
                    caller, is_session = await self._find_session(scope, path, headers), True
                if caller is None and bearer_of(headers):
                    await self._slowing.hold(scope)
            except (Unavailable, TooMany) as error:
                return problem_of(error)
            if caller is None:
                return ask_for_key(scope, path, headers)
            admit(scope, caller, is_session=is_session)
        elif is_local(headers):
            admit(scope, ANYBODY)
        else:
            return problem(403, KEY_NEEDED)
        return self._origin_refusal(scope, headers, must_be_told=is_session)

    def _origin_refusal(self, scope: Scope, headers: Headers, *, must_be_told: bool = False) -> Response | None:
        if scope["method"] not in SAFE_METHODS and not self._is_same_origin(headers, must_be_told):
            return problem(403, "A page of another site may not do this.")
        return None

    async def _find_session(self, scope: Scope, path: str, headers: Headers) -> Caller | None:
        """Whose key a session was opened with, while it counts. A session changes things by the forms of pages only."""
        if path.startswith("/v1/") and scope["method"] not in SAFE_METHODS:
            return None
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(SESSION_COOKIE)
        except CookieError:
            return None
        key_id = self._check_session(morsel.value) if morsel else None
        return await self._keyring.find_by_id(key_id) if key_id else None

    def _is_same_origin(self, headers: Headers, must_be_told: bool) -> bool:
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in {"same-origin", "none"}
        origin = headers.get("origin")  # browsers from before Sec-Fetch-Site; programs send neither
        if origin is None:
            return not must_be_told
        return urlsplit_host(origin) in {headers.get("host", "").lower(), self._public_host} - {""}


class Sender:
    """Puts the security headers on the answer, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS:
                headers.setdefault(name, value)
        await self._send(message)


def encode_headers(*headers: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    """These and the security headers, once for all answers."""
    return [(name.lower().encode(), value.encode()) for name, value in (*headers, *SECURITY_HEADERS)]


def ask_for_key(scope: Scope, path: str, headers: Headers) -> Response:
    """A program is told what to send; a person is led to the form, and back from there."""
    root = root_of(scope)
    if "authorization" not in headers and "hx-request" in headers:
        return Response(status_code=401, headers={"HX-Redirect": root + "sign-in"})
    if "authorization" not in headers and scope["method"] in SAFE_METHODS and is_person(path, headers):
        query = scope["query_string"].decode("ascii", "replace")
        wanted = quote(path.lstrip("/") + ("?" + query if query else ""), safe="")
        return Response(status_code=303, headers={"Location": f"{root}sign-in" + (f"?next={wanted}" if wanted else "")})
    return problem(401, WANTS_KEY, headers={"WWW-Authenticate": 'Bearer realm="receiver"'})


def is_person(path: str, headers: Headers) -> bool:
    """Whether a page is what is wanted. Programs take HTML too, so of their addresses a browser has to say that it shows them."""
    wants_page = "text/html" in headers.get("accept", "")
    return wants_page and (not is_for_programs(path) or headers.get("sec-fetch-mode") == "navigate")


def bearer_of(headers: Headers) -> str:
    """The key that a request presents; nothing where it presents none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""


def urlsplit_host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def is_local(headers: Headers) -> bool:
    """Whether a request names this machine by a loopback name and came through no proxy that says so."""
    if any(name == "forwarded" or name.startswith("x-forwarded-") for name in headers):
        return False
    hosts = headers.getlist("host")
    return len(hosts) == 1 and is_loopback(hosts[0])


def is_loopback(host: str) -> bool:
    """`localhost`, a name below it, or a loopback address; with or without a port."""
    found = LOOPBACK_HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1].strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
