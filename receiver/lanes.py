"""Kept connections, each in a lane of its own, for many calls at once to few addresses.

httpcore's pool asks every connection that it has several times for every call, a look at the socket among it: of fifty calls at once
each costs three times what one alone does. A transport that keeps one connection has nobody to ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from time import monotonic
from typing import Generic, Protocol, TypeVar


class Transport(Protocol):
    """What a lane is made of; it keeps one connection."""

    def aclose(self) -> Awaitable[None]: ...


T = TypeVar("T", bound=Transport)


class Lanes(Generic[T]):
    """Lanes to any number of addresses. Idle ones are closed after `keep_seconds`, or when there are more than `most_idle`."""

    def __init__(self, make: Callable[[], T], *, most_idle: int, keep_seconds: float, now: Callable[[], float] = monotonic) -> None:
        self._make, self._most_idle, self._keep_seconds, self._now = make, most_idle, keep_seconds, now
        self._idle: dict[Hashable, deque[tuple[float, T]]] = {}  # by address, the one that waits longest first
        self._count = 0
        self._is_closed = False

    def take(self, address: Hashable) -> T:
        """The lane to this address that was used last, or a new one: the caller's alone until `give_back`."""
        waiting = self._idle.get(address)
        if waiting is None:
            return self._make()
        _, lane = waiting.pop()
        self._count -= 1
        if not waiting:
            del self._idle[address]
        return lane

    async def give_back(self, address: Hashable, lane: T) -> None:
        if self._is_closed:
            await self.drop(lane)
            return
        now = self._now()
        self._idle.setdefault(address, deque()).append((now, lane))
        self._count += 1
        for _ in range(2):  # more than came: so they grow fewer, and no caller is held up for long
            old = self._pop_old(now)
            if old is None:
                return
            await self.drop(old)

    async def drop(self, lane: T) -> None:
        with suppress(Exception):
            await lane.aclose()

    def _pop_old(self, now: float) -> T | None:
        if not self._count:
            return None
        address, waiting = min(self._idle.items(), key=lambda item: item[1][0][0])
        since, lane = waiting[0]
        if self._count <= self._most_idle and now - since < self._keep_seconds:
            return None
        waiting.popleft()
        self._count -= 1
        if not waiting:
            del self._idle[address]
        return lane

    async def close(self) -> None:
        """Close the idle ones; the others when they are given back."""
        self._is_closed = True
        idle = [lane for waiting in self._idle.values() for _, lane in waiting]
        self._idle.clear()
        self._count = 0
        for lane in idle:
            await self.drop(lane)
