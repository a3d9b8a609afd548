"""Counts for people and for monitoring: what takes long to count is counted again after a while only."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from time import monotonic
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
REST = 20  # times as long as counting took: a page that everyone looks at may take a twentieth of the database's time
QUICK = 0.01  # seconds: what takes no longer is counted every time


class Countable(Protocol):
    """What a tally needs of a store."""

    async def count_jobs(self) -> dict[tuple[str, str], int]: ...

    async def count_deliveries(self) -> dict[tuple[str, str], int]: ...

    async def count_overdue(self) -> dict[str, int]: ...

    async def sum_costs(self, provider: str, since: datetime) -> float: ...


class Tally:
    """The counts of one process. Who asks while somebody is counting waits for that."""

    def __init__(self, store: Countable, *, seconds: Callable[[], float] = monotonic) -> None:
        self._store, self._seconds = store, seconds
        self._locks: defaultdict[tuple[Any, ...], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._known: dict[tuple[Any, ...], tuple[float, Any]] = {}

    async def open_jobs(self) -> Mapping[tuple[str, str], int]:
        """(provider, status) → open jobs."""
        return await self._count(("jobs",), self._store.count_jobs)

    async def deliveries(self) -> Mapping[tuple[str, str], int]:
        """(handler, state) → deliveries that are not done."""
        return await self._count(("deliveries",), self._store.count_deliveries)

    async def overdue(self) -> Mapping[str, int]:
        """Account → open jobs that are asked about because no news came."""
        return await self._count(("overdue",), self._store.count_overdue)

    async def costs(self, provider: str, since: datetime) -> float:
        """What the account's jobs since then cost."""
        return await self._count(("costs", provider, since), lambda: self._store.sum_costs(provider, since))

    async def _count(self, what: tuple[Any, ...], count: Callable[[], Awaitable[T]]) -> T:
        async with self._locks[what[:2]]:
            lives_until, known = self._known.get(what, (0.0, None))
            before = self._seconds()
            if before < lives_until:
                found: T = known
                return found
            found = await count()
            took = self._seconds() - before
            for old in [key for key in self._known if key[:2] == what[:2]]:  # of another day
                del self._known[old]
            if took > QUICK:
                self._known[what] = before + took * (1 + REST), found
            return found
