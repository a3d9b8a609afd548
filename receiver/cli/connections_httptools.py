"""The same over httptools, which bounds nothing and knows of no refusal to switch protocols."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from receiver.cli.connections import MAX_HEAD, TOO_LARGE, Watched
from receiver.cli.shortcuts import Shortcut
from receiver.web.prepared import EXTENSION

FRAMING = 16  # bytes around each byte of body: who sends it one by one needs 5
FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
MOST_PIPELINED = 32  # requests that wait behind one on the same connection


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


class WatchedHttpTools(Watched, HttpToolsProtocol):  # type: ignore[misc]
    """httptools bounds nothing: what is no body is counted here."""

    idle: Idle
    _fed = 0  # bytes since the message began, without those of the read in which it did
    _held = 0  # bytes of body among them
    _has_begun = False
    _answered: Any = None  # the cycle whose turn it is
    _is_known = False  # what is parsed is a head that was parsed before

    @property
    def under_way(self) -> list[Any]:
        first = [] if self._answered is None or self._answered.response_complete else [self._answered]
        return first + [cycle for cycle, _ in reversed(self.pipeline)]

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _leave_all(self) -> None:
        super()._leave_all()
        self.pipeline.clear()

    def on_message_begin(self) -> None:
        if self._is_known:
            self.headers, self.url = [], b""  # the request has its own already
            return
        self._fed, self._held, self._has_begun = 0, 0, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._is_known:
            self._is_known = False
            return
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
        self._feed(data)
        self._watch_head()
        if not self._has_begun:
            self._fed += len(data)
        if self._fed - self._held > MAX_HEAD + FRAMING * self._held:
            self.refuse(TOO_LARGE)
        elif len(self.pipeline) > MOST_PIPELINED:
            self.transport.abort()

    def _feed(self, data: bytes) -> None:
        while data and len(self.pipeline) <= MOST_PIPELINED:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as error:
                data = self._decline_upgrade(data[error.args[0] :])
            except httptools.HttpParserError:
                self.send_400_response("")
                return

    def _decline_upgrade(self, rest: bytes) -> bytes:
        """Behind `Upgrade` httptools takes what follows for another protocol, and reads no body. But nobody was told to switch: so the
        request has its body, and then comes the next one. A parser of its own reads on, behind a head without that: this gives both."""
        if self.scope["method"] == "CONNECT":
            self.cycle.keep_alive = False
            return b""
        framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in FRAMING_HEADERS]
        self.cycle.more_body = True
        self.cycle.message_event.clear()
        self.parser = httptools.HttpRequestParser(self)
        with suppress(AttributeError):  # as uvicorn does
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_known = True
        return b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing) + rest
