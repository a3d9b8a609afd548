"""Counts what happened, by scope and name; kept in the store in small steps, so that all processes add up."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import inf
from typing import Protocol

DURATIONS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)  # of jobs, in seconds
LAGS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # from kept to settled
MILLISECONDS = "milliseconds"


@cache
def bucket(bound: float) -> str:
    """The name under which is counted what took no longer than this and longer than the bound before."""
    return f"up_to_{bound:g}"


class CountStore(Protocol):
    """What counters need of a store."""

    async def add_counts(self, counts: dict[tuple[str, str], int]) -> None: ...

    async def read_counters(self) -> dict[tuple[str, str], int]: ...


class Counters:
    """Counters in memory, handed to the store by `flush`. A crash loses at most what was counted since the last one.

    A scope is `provider:NAME`, `handler:NAME` or `receiver`; a name is one of a closed set, like `callbacks_accepted`. What takes time is
    counted by how long it took, under a scope of its own: `duration:NAME` of a provider, `settle_lag`.
    """

    def __init__(self, store: CountStore) -> None:
        self._store = store
        self._fresh: dict[tuple[str, str], int] = {}

    def add(self, scope: str, name: str, count: int = 1) -> None:
        key = scope, name
        self._fresh[key] = self._fresh.get(key, 0) + count

    def observe(self, scope: str, seconds: float, bounds: Sequence[float]) -> None:
        """Count one more that took so long: under the first bound that it does not exceed, and in the sum."""
        seconds = max(seconds, 0.0)
        at = bisect_left(bounds, seconds)
        self.add(scope, bucket(bounds[at] if at < len(bounds) else inf))
        self.add(scope, MILLISECONDS, round(seconds * 1000))

    async def flush(self) -> None:
        if not self._fresh:
            return
        taken, self._fresh = self._fresh, {}
        try:
            await self._store.add_counts(taken)
        except Exception:
            for (scope, name), count in taken.items():
                self.add(scope, name, count)
            raise

    async def read(self) -> dict[tuple[str, str], int]:
        """All counts, those not flushed yet included."""
        total = Counter(await self._store.read_counters())
        total.update(self._fresh)
        return dict(total)
