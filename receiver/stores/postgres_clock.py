"""The database's clock as this node knows it: who is due and whose lease has ended is judged by it alone."""

from __future__ import annotations

import time

from receiver.clock import Clock
from receiver.times import to_micros

# Clocks that agree this well are taken as one: it is less than the notice a loop takes of a due time, and more than what measuring adds.
TOLERANCE = 250_000  # microseconds


class DatabaseClock:
    """How far the database's clock is ahead of the node's, in microseconds.

    Between two measurements the database's time is carried on by a clock that cannot be set, so a node whose wall clock
    jumps is right again at once. The shift moves only when it is clearly wrong: times read and written back stay the same.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._base = to_micros(clock.now()) - _monotonic()
        self._shift = 0

    def learn(self, database_at: int, before: int, after: int) -> None:
        """The database's time, asked for between two readings of `monotonic`."""
        if abs(database_at - (before + after) // 2 - self._base) > (after - before) // 2:  # else this measurement tells nothing new
            self._base = database_at - (before + after) // 2

    @staticmethod
    def monotonic() -> int:
        return _monotonic()

    @property
    def shift(self) -> int:
        now = self._base + _monotonic() - to_micros(self._clock.now())
        if abs(now - self._shift) > TOLERANCE:
            self._shift = 0 if abs(now) <= TOLERANCE else now
        return self._shift


def _monotonic() -> int:
    return time.monotonic_ns() // 1_000
