"""The client for what somebody else named: an address is checked before it is connected to, an answer has bounds, a key stays at home."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx

from receiver.addresses import parse_networks
from receiver.errors import Denied
from receiver.guard import Guard, Resolve, resolve
from receiver.net import CONNECT_SECONDS, MAX_ANSWER_BYTES, USER_AGENT, origin, shared_tls, unpack
from receiver.unpacking import UnusableAnswer


class AddressDenied(Denied, httpx.ConnectError):
    """The guarded client refuses this URL, address or redirect. Caught as `HTTPError` and as `errors.Denied`; nothing was sent there."""

    def __init__(self, message: str = "", *, request: httpx.Request | None = None) -> None:
        super().__init__(message)
        if request is not None:
            self.request = request


def guarded_client(
    allow_private: Sequence[str] = (), *, user_agent: str = USER_AGENT, resolve: Resolve = resolve, tls: ssl.SSLContext | None = None
) -> httpx.AsyncClient:
    """A client for URLs that somebody else named. It reaches public addresses only, and those of the CIDRs in `allow_private`.

    Redirects of GET and HEAD are followed, five at most, each checked again, never from https to http; to another origin they take no key
    along. Bodies are decoded in bounded pieces; one that is read whole may have 16 MiB and two minutes, a streamed one is the
    caller's to bound. A refusal is an `HTTPError` that is also a `Denied`.
    """
    return _GuardedClient(
        transport=_GuardedTransport(Guard(parse_networks(allow_private), resolve), tls or shared_tls()),
        trust_env=False,
        follow_redirects=True,
        timeout=httpx.Timeout(30.0, connect=CONNECT_SECONDS),
        headers={"user-agent": user_agent, "accept-encoding": "gzip"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none is kept
    )


class _GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx has no public place for a network backend; where its private one is not as expected, nothing starts."""

    def __init__(self, guard: Guard, tls: ssl.SSLContext) -> None:
        super().__init__(verify=tls, trust_env=False)
        if type(getattr(self, "_pool", None)) is not httpcore.AsyncConnectionPool:
            raise RuntimeError("This httpx keeps its connections elsewhere: the guard against private addresses cannot be set up.")
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls, max_connections=500, max_keepalive_connections=50, keepalive_expiry=15.0, network_backend=guard
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.scheme not in ("http", "https") or not request.url.host:
            raise AddressDenied("Only http:// and https:// URLs with a host may be fetched.", request=request)
        if request.url.userinfo:
            raise AddressDenied("A URL with a user in it is not fetched.", request=request)
        try:
            response = await super().handle_async_request(request)
        except Denied as error:
            raise AddressDenied(str(error), request=request) from None
        except (OSError, ValueError) as error:  # TLS in the middle of an answer; names that cannot be names
            raise httpx.NetworkError(str(error), request=request) from None
        coding = response.headers.get("content-encoding")
        dropped = () if coding is None else (b"content-encoding", b"content-length")
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in dropped]
        body = _GuardedBody(response, request.extensions.get(WHOLE))
        extensions = {**response.extensions, ENCODED: coding is not None}
        return httpx.Response(response.status_code, headers=headers, stream=body, extensions=extensions)


WHOLE = "receiver.max_bytes"  # extension of a request whose answer is read whole
ENCODED = "receiver.is_encoded"  # extension of an answer that travelled compressed: offsets and lengths in it are not those of the file


class _GuardedBody(httpx.AsyncByteStream):
    """Decoded here, not by httpx, which knows no bounds."""

    def __init__(self, response: httpx.Response, max_bytes: int | None) -> None:
        self._response, self._max_bytes = response, max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async with contextlib.aclosing(unpack(self._response)) as pieces:
                async for piece in pieces:
                    size += len(piece)
                    if self._max_bytes is not None and size > self._max_bytes:
                        raise UnusableAnswer(f"is over {self._max_bytes} bytes")
                    yield piece
        except UnusableAnswer as error:
            raise httpx.DecodingError(f"The answer {error}.") from None
        except OSError as error:
            raise httpx.ReadError(str(error)) from None

    async def aclose(self) -> None:
        await self._response.stream.aclose()  # type: ignore[union-attr]


MAX_REDIRECTS = 5
WHOLE_SECONDS = 120.0
# What goes along to another origin. An API key may stand in a header of any name, so these are the ones that are known to hold none.
HARMLESS_HEADERS = frozenset({"accept", "accept-encoding", "accept-language", "cache-control", "connection", "host", "range", "user-agent"})


class _GuardedClient(httpx.AsyncClient):
    def build_request(self, *args: Any, **kwargs: Any) -> httpx.Request:
        try:
            return super().build_request(*args, **kwargs)
        except (httpx.InvalidURL, UnicodeError) as error:  # neither is an HTTPError
            raise AddressDenied(f"Not a URL that can be fetched: {error}") from None

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        follow = self.follow_redirects if follow_redirects is httpx.USE_CLIENT_DEFAULT else bool(follow_redirects)
        if stream:
            return await self._send_hops(request, auth, follow)
        request.extensions = {**request.extensions, WHOLE: MAX_ANSWER_BYTES}
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                response = await self._send_hops(request, auth, follow)
                try:
                    await response.aread()
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx.ReadTimeout(f"No whole answer within {WHOLE_SECONDS:g} s.", request=request) from None
        return response

    async def _send_hops(self, request: httpx.Request, auth: Any, follow: bool) -> httpx.Response:
        """httpx's own way reads the bodies of redirects whole and takes all headers but one along."""
        history: list[httpx.Response] = []
        while True:
            try:
                response = await super().send(request, stream=True, auth=auth, follow_redirects=False)
            except (httpx.InvalidURL, UnicodeError) as error:  # of a Location; neither is an HTTPError
                raise httpx.RemoteProtocolError(f"The redirect leads nowhere: {error}", request=request) from None
            response.history = list(history)
            following = response.next_request
            if not follow or following is None or request.method not in ("GET", "HEAD"):
                return response
            await response.aclose()
            if len(history) == MAX_REDIRECTS:
                raise httpx.TooManyRedirects(f"More than {MAX_REDIRECTS} redirects.", request=request)
            history.append(response)
            request, auth = _check_hop(request, following), None


def _check_hop(request: httpx.Request, following: httpx.Request) -> httpx.Request:
    if request.url.scheme == "https" and following.url.scheme != "https":
        raise AddressDenied("A redirect from https to http is not followed.", request=request)
    if origin(request.url) != origin(following.url):
        following.headers = httpx.Headers([(name, value) for name, value in following.headers.multi_items() if name in HARMLESS_HEADERS])
    return following
