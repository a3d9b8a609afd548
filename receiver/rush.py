"""Callbacks that wait for their answer go before those that have it: a sender gives up after a while, the store does not."""

from __future__ import annotations

from datetime import timedelta

from receiver.clock import Clock

MOST_WAITING = 100  # callbacks: more at once are a rush
NAP = timedelta(seconds=0.02)  # all of them may have been answered together, so a rush is over when it was not seen for so long
NAPS = 12  # at a stretch: what was acknowledged comes home in any rush, if later


class Rush:
    """Told of each callback that waits to be kept, as `with rush:`. Work that can wait asks for the `end` before each piece."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting = 0
        self._was_seen = False

    def __enter__(self) -> None:
        self._waiting += 1
        if self._waiting > MOST_WAITING:
            self._was_seen = True

    def __exit__(self, *exc_info: object) -> None:
        self._waiting -= 1

    async def end(self) -> None:
        """At once where there is no rush; else when it is over, or has lasted."""
        for _ in range(NAPS):
            if not self._was_seen:
                return
            self._was_seen = self._waiting > MOST_WAITING
            await self._clock.sleep(NAP)
