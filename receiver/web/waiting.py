"""Holds a request until something has come true, waking whenever the store changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from receiver.pulse import Pulse

BREATH = 0.02  # seconds between two looks: a burst of changes is looked at once
T = TypeVar("T")


class Waiting:
    """What the requests of one application wait on. `stop` lets all of them answer at once with what they have."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self.has_stopped = False

    def stop(self) -> None:
        self.has_stopped = True
        self.pulse.strike()

    async def until(self, look: Callable[[], Awaitable[T]], is_enough: Callable[[T], bool], seconds: float) -> T:
        """What `look` sees as soon as that is enough, at the latest after `seconds`."""
        end = monotonic() + seconds
        while True:
            seen = self.pulse.beat
            value = await look()
            if is_enough(value) or self.has_stopped or (left := end - monotonic()) <= 0:
                return value
            await self.pulse.wait(seen, left)
            await asyncio.sleep(min(BREATH, left))
