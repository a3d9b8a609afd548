"""What one connection may cost: how many there are, how long it may dawdle, how much it may send that is no body."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from receiver.cli.shortcuts import H11Shortcut
from receiver.web.prepared import EXTENSION

MAX_HEAD = 64 * 1024  # bytes of request line and headers; of chunk sizes, extensions and trailers as many
HEAD_SECONDS = 20.0  # for a head to arrive
READER_SECONDS = 60.0  # for a client to take in what stands in the buffer, which is 64 KiB
MOST_CONNECTIONS = 10_000
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
NO_HTTP = b'{"type":"about:blank","title":"Bad Request","status":400,"detail":"This is no HTTP request."}'
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (
    len(NO_HTTP),
    NO_HTTP,
)
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

if TYPE_CHECKING:
    Base = H11Protocol
else:
    Base = object


def most_connections() -> int:
    """As many as leave a quarter of the files that may be open to the rest of us."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, soft * 3 // 4)


class Watched(Base):
    """On top of one of uvicorn's protocols, which wait for ever for a head and for a client that does not read."""

    most = MOST_CONNECTIONS
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    reaper: Reaper

    @property
    def is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def under_way(self) -> list[Any]:
        """What is not answered yet, in the order of the answers."""
        return [self.cycle] if self.is_answering else []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.reaper.watch(self)
        if len(self.connections) > self.most:
            self.refuse(BUSY)
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def _watch_head(self) -> None:
        """The clock runs from the first byte that belongs to no request which is being answered."""
        if self.is_answering:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up_head)

    def _give_up_head(self) -> None:
        self._head_timer = None
        if not self.is_answering:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader_timer is None:
            self._reader_timer = self.loop.call_later(READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave_all()
        super().connection_lost(exc)
        for timer in (self._head_timer, self._reader_timer):
            if timer is not None:
                timer.cancel()

    def _leave_all(self) -> None:
        """Nobody reads what the application would still answer."""
        for cycle in self.under_way:
            cycle.disconnected = True
            cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. An answer that is being given is cut off; to one that was given already no second one is added."""
        under_way = self.under_way
        self._leave_all()
        if under_way and under_way[0].response_started:
            self.transport.abort()
            return
        if under_way or self.cycle is None or not self.cycle.more_body:
            self.transport.write(BAD_REQUEST)
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: strangers must not fill the log."""

    def refuse(self, answer: bytes) -> None:
        """End the connection; with an answer where none is being given."""
        if self.is_answering:
            self.transport.abort()
            return
        self.transport.write(answer)
        self.transport.close()


class WatchedH11(Watched, H11Protocol):
    """h11 bounds heads, chunk headers and trailers by itself, given `h11_max_incomplete_event_size`."""

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            if not self.scope["path"].startswith("/"):
                self._take_absolute_form(self.scope)
            self.scope["extensions"] = {EXTENSION: H11Shortcut(self.cycle)}  # type: ignore[dict-item]

    def _take_absolute_form(self, scope: Any) -> None:
        """`http://host/path` as the target, which every server has to understand: https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2"""
        scheme, _, rest = scope["raw_path"].partition(b"://")
        if scheme.lower() in {b"http", b"https"}:
            _, slash, path = rest.partition(b"/")
            scope["raw_path"] = slash + path or b"/"
            scope["path"] = unquote(scope["raw_path"].decode("ascii"))

    def on_response_complete(self) -> None:
        if self.conn.our_state is not h11.SEND_RESPONSE:
            super().on_response_complete()
            return
        left, _ = self.conn.trailing_data  # h11 does not know of the answer, so what comes is read by a fresh one
        self.conn = h11.Connection(h11.SERVER, MAX_HEAD)
        super().on_response_complete()
        if left and not self.transport.is_closing():
            self.conn.receive_data(left)
            self.handle_events()


class Reaper:
    """Ends connections that we have closed and that stay all the same: what stands in the buffer is taken in by nobody. Short of 64 KiB no
    one is told that the other side does not read. One look at all of them now and then."""

    def __init__(self) -> None:
        self._closing: set[Any] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connection: Any) -> None:
        if self._timer is None:
            self._timer = connection.loop.call_later(READER_SECONDS, self._look, connection.loop, connection.connections)

    def _look(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        closing = {connection for connection in connections if connection.transport.is_closing()}
        for connection in closing & self._closing:
            connection.transport.abort()
        self._closing = closing
        self._timer = loop.call_later(READER_SECONDS, self._look, loop, connections) if connections else None


def find_protocol() -> type[asyncio.Protocol]:
    """A class for uvicorn: over httptools where it is installed, else over h11."""
    shared: dict[str, Any] = {"most": most_connections(), "reaper": Reaper()}
    try:
        from receiver.cli.connections_httptools import Idle, WatchedHttpTools
    except ImportError:
        return type("Connection", (WatchedH11,), shared)
    return type("Connection", (WatchedHttpTools,), {**shared, "idle": Idle()})
