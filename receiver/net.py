"""The network: every HTTP call of ours starts here or in guarded.py, the only rooms that know httpx (but receiver/client, for users).

Three clients, by whose word the address is:

- `ProviderClient` calls providers at addresses that the operator configured. It says whether a call that failed may be repeated.
- `guarded.guarded_client` fetches what somebody else named (outputs, keys of signers, what a handler is told to fetch).
- `plain_client` is for addresses that the operator names (a handler's `url`, the command line) and for the simulator: no guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx
import msgspec
from httpx_sse import EventSource

from receiver import __version__
from receiver.errors import AnswerLost, NotTaken, ProviderFault
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
    """A client without a guard, for addresses that the operator names: no redirects, nothing from the environment."""
    return httpx.AsyncClient(
        verify=shared_tls(),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(30.0, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=200, max_keepalive_connections=50, keepalive_expiry=15.0),
        headers={"user-agent": USER_AGENT},
    )


@cache
def shared_tls() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes longer than a call."""
    return httpx.create_ssl_context(trust_env=False)


def origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


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
            lambda: httpx.AsyncHTTPTransport(verify=tls or shared_tls(), trust_env=False, limits=one, retries=0),
            most_idle=100,
            keep_seconds=KEEP_SECONDS,
        )
        self._once = httpx.AsyncHTTPTransport(verify=tls or shared_tls(), trust_env=False, limits=once, retries=0)
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
        address = origin(url)
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
    async for piece in unpack(response):
        body += piece
        if len(body) > max_bytes:
            raise UnusableAnswer(f"is over {max_bytes} bytes")
    for name in ("content-encoding", "content-length"):
        headers.pop(name, None)  # the body is decoded
    return Answer(status=response.status_code, headers=headers, body=bytes(body))


async def unpack(response: httpx.Response) -> AsyncGenerator[bytes, None]:
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
