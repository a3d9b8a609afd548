"""The network: every HTTP call of ours starts here. The only room that knows httpx (and receiver/client.py, for users).

Three clients, by whose word the address is:

- `ProviderClient` calls providers at addresses that the operator configured. It says whether a call that failed may be repeated.
- `guarded_client` fetches what somebody else named (outputs, keys of signers, what a handler is told to fetch).
- `plain_client` is for the command line and the simulator: no guard, nothing from the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx
import msgspec
from httpx_sse import EventSource

from receiver import __version__
from receiver.addresses import parse_networks
from receiver.errors import AnswerLost, Denied, NotTaken, ProviderFault
from receiver.guard import Guard, Resolve, resolve
from receiver.lanes import Lanes
from receiver.model import Answer, Request
from receiver.unpacking import Gunzip, UnusableAnswer, choose_coding

Client = httpx.AsyncClient
HTTPError = httpx.HTTPError
AsyncClient = httpx.AsyncClient
Response = httpx.Response

USER_AGENT = f"receiver/{__version__}"
MAX_ANSWER_BYTES = 16 * 2**20
CONNECT_SECONDS = 10.0
KEEP_SECONDS = 15.0  # a connection without a call
STREAM_SILENCE_SECONDS = 60.0  # keep-alives come every 15 s

# httpx writes the whole URL of each call to its log at INFO, and a URL may hold a secret (a Slack webhook is one).
logging.getLogger("httpx").setLevel(logging.WARNING)


def plain_client() -> httpx.AsyncClient:
    """A client without a guard, for addresses that the user typed: no redirects, nothing from the environment."""
    return httpx.AsyncClient(
        verify=_tls(),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(30.0, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=200, max_keepalive_connections=50, keepalive_expiry=15.0),
        headers={"user-agent": USER_AGENT},
    )


@cache
def _tls() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes longer than a call."""
    return httpx.create_ssl_context(trust_env=False)


class ServerEvent(msgspec.Struct, frozen=True):
    """One Server-Sent Event."""

    event: str
    data: str


class StreamRefused(ProviderFault):
    """The provider did not open its event stream."""

    def __init__(self, message: str = "", provider: str = "", retry_after: float | None = None, status: int | None = None) -> None:
        self.status = status
        super().__init__(message, provider, retry_after)


class ProviderClient:
    """Calls to providers, at addresses that the operator configured. Redirects are never followed, cookies never kept."""

    def __init__(self, *, user_agent: str = USER_AGENT, tls: ssl.SSLContext | None = None) -> None:
        # Bare transports: an httpx client would keep cookies, log URLs and trip over a malformed Location. How many calls run
        # at once is the caller's to limit, so that a provider that hangs does not hold up the others.
        one = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEP_SECONDS)
        once = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._lanes = Lanes(
            lambda: httpx.AsyncHTTPTransport(verify=tls or _tls(), trust_env=False, limits=one, retries=0),
            most_idle=100,
            keep_seconds=KEEP_SECONDS,
        )
        self._once = httpx.AsyncHTTPTransport(verify=tls or _tls(), trust_env=False, limits=once, retries=0)
        self._user_agent = user_agent

    async def send(self, request: Request, *, timeout: timedelta, max_bytes: int = MAX_ANSWER_BYTES, fresh: bool = False) -> Answer:
        """The provider's answer, whatever its HTTP code. NotTaken: no byte of the request left us. AnswerLost: some may have.

        `timeout` is for the whole call, `max_bytes` for the body as decompressed. `fresh` gives the call a connection of its own.
        """
        seconds = timeout.total_seconds()
        progress = _Progress()
        headers = {"user-agent": self._user_agent, "accept-encoding": "gzip", **_lower(request.headers)}
        if fresh:
            headers["connection"] = "close"
        # For TCP and again for TLS, together less than the whole: httpcore leaks the socket of a handshake that is cancelled from outside.
        built = _build(request, headers, progress, {"connect": min(0.45 * seconds, CONNECT_SECONDS)})
        try:
            # Closed outside of the time limit: an answer that was read whole is not lost over closing its connection.
            async with self._take(built.url, fresh) as transport, contextlib.AsyncExitStack() as stack, asyncio.timeout(seconds):
                response = await transport.handle_async_request(built)
                stack.push_async_callback(_close, response)
                return await _read_answer(response, max_bytes)
        except Exception as error:
            raise _translate(error, progress, built.url) from None

    @contextlib.asynccontextmanager
    async def _take(self, url: httpx.URL, fresh: bool) -> AsyncIterator[httpx.AsyncHTTPTransport]:
        if fresh:
            yield self._once
            return
        address = _origin(url)
        lane, is_fit = self._lanes.take(address), False
        try:
            yield lane
            is_fit = True
        finally:  # what a call that broke off leaves behind is not known
            await (self._lanes.give_back(address, lane) if is_fit else self._lanes.drop(lane))

    @contextlib.asynccontextmanager
    async def stream_events(self, request: Request) -> AsyncIterator[AsyncIterator[ServerEvent]]:
        """Hold the provider's event stream; it ends when the provider ends it. StreamRefused: it was not opened; NotTaken, AnswerLost:
        as in `send`, AnswerLost also after 60 s of silence."""
        progress = _Progress()
        headers = {"user-agent": self._user_agent, **_lower(request.headers), "accept": "text/event-stream", "cache-control": "no-store"}
        headers |= {"accept-encoding": "identity", "connection": "close"}
        timeouts = {"connect": CONNECT_SECONDS, "read": STREAM_SILENCE_SECONDS, "write": STREAM_SILENCE_SECONDS}
        built = _build(request, headers, progress, timeouts)
        try:
            response = await self._once.handle_async_request(built)
        except Exception as error:
            raise _translate(error, progress, built.url) from None
        events = _read_events(response, progress, built.url)
        try:
            _check_stream(response, built.url)
            yield events
        finally:
            await events.aclose()
            await _close(response)

    async def close(self) -> None:
        """Close every connection."""
        await self._lanes.close()
        await self._once.aclose()


class _Progress:
    """How far a call got. What is not certain counts as sent."""

    def __init__(self) -> None:
        self.is_connecting = self.is_sending = False

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        # https://www.encode.io/httpcore/extensions/#trace: `connection.…` until the connection stands, then `http11.…`, the first
        # of which comes before the first byte is written.
        if event.startswith("connection."):
            self.is_connecting = True
        else:
            self.is_sending = True


NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL)


def _translate(error: Exception, progress: _Progress, url: httpx.URL) -> ProviderFault:
    # The words of errors that come after the connection are left out: those of h11 quote headers.
    if not progress.is_sending and (progress.is_connecting or isinstance(error, NEVER_SENT)):
        why = "timed out" if isinstance(error, TimeoutError | httpx.TimeoutException) else str(error) or type(error).__name__
        return NotTaken(f"no connection to {_show(url)}: {why}")
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return AnswerLost(f"no answer in time from {_show(url)}")
    if isinstance(error, UnusableAnswer):
        return AnswerLost(f"the answer of {_show(url)} {error}")
    return AnswerLost(f"the connection to {_show(url)} broke before the whole answer was there ({type(error).__name__})")


def _show(url: httpx.URL) -> str:
    """Without user, query and fragment, where secrets stand."""
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}{url.path}"


def _lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


# What h11 would refuse as well, but only when the request counts as sent.
HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
HEADER_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\x21-\x7e \t]*[\x21-\x7e])?)?")


def _build(request: Request, headers: dict[str, str], progress: _Progress, timeouts: dict[str, float]) -> httpx.Request:
    for name, value in headers.items():
        if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
            raise NotTaken(f"the header {name!r} has characters that a header cannot have")
    try:
        url = httpx.URL(request.url)
    except (httpx.InvalidURL, ValueError):
        raise NotTaken("not a URL that can be called") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise NotTaken("the URL of a provider is http:// or https://, with a host and without a user")
    try:
        return httpx.Request(
            request.method, url, headers=headers, content=request.body or None, extensions={"trace": progress.trace, "timeout": timeouts}
        )
    except (httpx.InvalidURL, ValueError):
        raise NotTaken(f"not a call that can be made: {_show(url)}") from None


async def _close(response: httpx.Response) -> None:
    with contextlib.suppress(Exception):
        await response.aclose()


async def _read_answer(response: httpx.Response, max_bytes: int) -> Answer:
    headers = dict(response.headers.items())
    body = bytearray()
    async for piece in _unpack(response):
        body += piece
        if len(body) > max_bytes:
            raise UnusableAnswer(f"is over {max_bytes} bytes")
    for name in ("content-encoding", "content-length"):
        headers.pop(name, None)  # the body is decoded
    return Answer(status=response.status_code, headers=headers, body=bytes(body))


async def _unpack(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body decoded, in small pieces. httpx would decode each arriving piece at once, whatever becomes of it."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    gunzip = Gunzip() if choose_coding(response.headers.get("content-encoding", "")) else None
    async for data in response.stream:
        if gunzip is None:
            yield data
            continue
        for piece in gunzip.feed(data):
            yield piece
    if gunzip is not None:
        gunzip.finish()


# Event streams


def _check_stream(response: httpx.Response, url: httpx.URL) -> None:
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code != 200:
        why = f"answered {response.status_code}"
    elif content_type != "text/event-stream":
        why = "is not one"
    elif response.headers.get("content-encoding", "identity") != "identity":
        why = "is compressed although it must not be"
    else:
        return
    raise StreamRefused(f"the event stream at {_show(url)} {why}", retry_after=read_retry_after(response), status=response.status_code)


def read_retry_after(response: Response) -> float | None:
    """Seconds of `Retry-After`; where it is a date, counted from the answer's own."""
    given = response.headers.get("retry-after", "").strip()
    if given.isascii() and given.isdigit() and len(given) < 10:
        return float(given)
    try:
        wait = parsedate_to_datetime(given) - parsedate_to_datetime(response.headers.get("date", ""))
    except (ValueError, TypeError):  # no date, or one with a zone and one without
        return None
    return max(wait.total_seconds(), 0.0)


async def _read_events(response: httpx.Response, progress: _Progress, url: httpx.URL) -> AsyncGenerator[ServerEvent, None]:
    room = _Room(response)
    source = EventSource(httpx.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, stream=room))
    events = source.aiter_sse()
    try:
        async for event in events:
            room.used = 0
            if event.data:  # as the standard says; httpx-sse also gives those without
                yield ServerEvent(event.event or "message", event.data)
    except Exception as error:
        raise _translate(error, progress, url) from None
    finally:
        await events.aclose()


class _Room(httpx.AsyncByteStream):
    """Bounds what one event may take: httpx-sse keeps all of it until its end has come."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.used = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, httpx.AsyncByteStream)
        async for data in self._response.stream:
            self.used += len(data)
            if self.used > MAX_ANSWER_BYTES:
                raise UnusableAnswer("holds an event that does not end")
            yield data


# What somebody else named


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
        transport=_GuardedTransport(Guard(parse_networks(allow_private), resolve), tls or _tls()),
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
            async with contextlib.aclosing(_unpack(self._response)) as pieces:
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
    if _origin(request.url) != _origin(following.url):
        following.headers = httpx.Headers([(name, value) for name, value in following.headers.multi_items() if name in HARMLESS_HEADERS])
    return following


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
