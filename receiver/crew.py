"""Work that runs beside its loop, so that a slow provider holds up nobody else: a bounded number per name."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import structlog

from receiver.backoff import full_jitter
from receiver.clock import Clock
from receiver.ending import end
from receiver.errors import Unavailable

T = TypeVar("T")
log = structlog.get_logger("receiver.crew")


class Crew:
    """Runs pieces of work as tasks; `limit_of` says how many a name may have at once. `on_room` is called when one ends."""

    def __init__(self, name: str, limit_of: Callable[[str], int], on_room: Callable[[], None]) -> None:
        self.name = name
        self._limit_of, self._on_room = limit_of, on_room
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Counter[str] = Counter()

    def room(self, name: str) -> int:
        return max(self._limit_of(name) - self._running[name], 0)

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._run(work), name=f"{self.name} {name}")
        self._running[name] += 1
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(name, task))

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # one piece of work must not harm the others
            log.error("crew.failed", crew=self.name, error=f"{type(error).__name__}: {error}", exc_info=True)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._running[name] -= 1
        self._on_room()

    async def finish(self, grace: timedelta) -> None:
        """Let running work end, for so long; then cut it off."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace.total_seconds())
        await end(*self._tasks)


async def until_stored(write: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """Write what has already happened, however long the store is away: its outcome exists nowhere else."""
    attempt = 0
    while True:
        try:
            return await write()
        except Unavailable as error:
            attempt += 1
            log.warning("store.unavailable", attempt=attempt, error=str(error))
            await clock.sleep(full_jitter(attempt, timedelta(seconds=0.2), timedelta(seconds=10)))
