"""Answers that are ready, written past ASGI's messages: an Exchange over uvicorn's cycle of a request and its answer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from weakref import ref

import h11


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
