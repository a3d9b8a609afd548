"""What one connection may cost: how many there are, how long it may dawdle, how much it may send that is no body."""

from __future__ import annotations

import asyncio
import resource
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import ref

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from receiver.web.prepared import EXTENSION

MAX_HEAD = 64 * 1024  # bytes of request line and headers; of chunk sizes, extensions and trailers as many
FRAMING = 16  # bytes around each byte of body: who sends it one by one needs 5
HEAD_SECONDS = 20.0  # for a head to arrive
READER_SECONDS = 60.0  # for a client to take in what stands in the buffer, which is 64 KiB
MOST_CONNECTIONS = 10_000
MOST_PIPELINED = 32  # requests that wait behind one on the same connection
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
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

    @property
    def is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
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
        super().connection_lost(exc)
        for timer in (self._head_timer, self._reader_timer):
            if timer is not None:
                timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP: then nobody reads what the application would still answer to an earlier part of it."""
        if not self.is_answering:
            super().send_400_response(msg)
            return
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        if self.cycle.response_started:
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def refuse(self, answer: bytes) -> None:
        """End the connection; with an answer where none is being given."""
        if self.is_answering:
            self.transport.abort()
            return
        self.transport.write(answer)
        self.transport.close()


class Shortcut:
    """An Exchange over uvicorn's cycle. What is out of the ordinary takes the ordinary way."""

    __slots__ = ("_find_cycle",)

    def __init__(self, cycle: Any) -> None:
        self._find_cycle = ref(cycle)  # it holds the scope, and so this: held in turn, it would wait for the garbage collector

    def take_body(self) -> bytes | None:
        cycle = self._find_cycle()
        if cycle is None or cycle.disconnected or cycle.more_body or cycle.waiting_for_100_continue:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def _is_ordinary(self, cycle: Any) -> bool:
        return cycle.keep_alive and not (cycle.disconnected or cycle.flow.write_paused or cycle.waiting_for_100_continue)

    def write(self, after_date: bytes) -> bool:
        cycle = self._find_cycle()
        if cycle is None or not self._is_ordinary(cycle):
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.transport.write(begin_ok(tuple(cycle.default_headers)) + after_date)
        cycle.message_event.set()
        cycle.on_response()
        return True


@lru_cache(maxsize=1)
def begin_ok(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """With the date, which changes once a second."""
    return b"HTTP/1.1 200 OK\r\n" + b"".join(b"%s: %s\r\n" % header for header in headers)


class H11Shortcut(Shortcut):
    __slots__ = ()

    def _is_ordinary(self, cycle: Any) -> bool:
        """DONE says also that the other side will go on with this connection."""
        return cycle.conn.their_state is h11.DONE and super()._is_ordinary(cycle)


class WatchedH11(Watched, H11Protocol):
    """h11 bounds heads, chunk headers and trailers by itself, given `h11_max_incomplete_event_size`."""

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.scope["extensions"] = {EXTENSION: H11Shortcut(self.cycle)}  # type: ignore[dict-item]

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


class Idle:
    """Connections that wait for their next request, in the order in which they began to. One timer for them all: one for each costs
    more than reading the head of a request."""

    def __init__(self) -> None:
        self._until: dict[Any, float] = {}  # of the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: Any) -> None:
        ends_at = self._until[connection] = connection.loop.time() + connection.timeout_keep_alive
        if self._timer is None:
            self._timer = connection.loop.call_at(ends_at, self._look, connection.loop)

    def end(self, connection: Any) -> None:
        self._until.pop(connection, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for connection, ends_at in list(self._until.items()):
            if ends_at > loop.time():
                self._timer = loop.call_at(ends_at, self._look, loop)
                return
            del self._until[connection]
            connection.timeout_keep_alive_handler()


def find_protocol() -> type[asyncio.Protocol]:
    """A class for uvicorn: over httptools where it is installed, else over h11."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return type("Connection", (WatchedH11,), {"most": most_connections()})

    class WatchedHttpTools(Watched, HttpToolsProtocol):  # type: ignore[misc]
        """httptools bounds nothing: what is no body is counted here."""

        most = most_connections()
        idle = Idle()
        _fed = 0  # bytes since the message began, without those of the read in which it did
        _held = 0  # bytes of body among them
        _has_begun = False

        def on_message_begin(self) -> None:
            self._fed, self._held, self._has_begun = 0, 0, True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self.scope["extensions"] = {EXTENSION: Shortcut(self.cycle)}  # type: ignore[dict-item]

        def on_body(self, body: bytes) -> None:
            self._held += len(body)
            super().on_body(body)

        def on_response_complete(self) -> None:
            if self.pipeline or self.transport.is_closing():
                super().on_response_complete()
                return
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            self.idle.begin(self)

        def connection_lost(self, exc: Exception | None) -> None:
            self.idle.end(self)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self.idle.end(self)
            self._has_begun = False
            super().data_received(data)
            if not self._has_begun:
                self._fed += len(data)
            if self._fed - self._held > MAX_HEAD + FRAMING * self._held:
                self.refuse(TOO_LARGE)
            elif len(self.pipeline) > MOST_PIPELINED:
                self.transport.abort()

    found: Any = WatchedHttpTools
    return found  # type: ignore[no-any-return]
