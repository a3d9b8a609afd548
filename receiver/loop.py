"""Runs a pass until told to stop: the loop is *when*, the pass is *what*."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import msgspec
import structlog

from receiver.backoff import jittered
from receiver.clock import Clock

Step = Callable[[datetime], Awaitable[bool]]
"""One pass at a time `now`; returns whether there is more to do at once."""

MAX_BACKOFF = timedelta(seconds=30)
log = structlog.get_logger("receiver.loop")


class LoopHealth(msgspec.Struct, frozen=True):
    """What readiness asks a loop."""

    name: str
    last_good_at: datetime | None
    failures: int  # in a row

    @property
    def is_well(self) -> bool:
        return self.failures < 3


class Loop:
    """Runs `step` again and again: at once when it came back with more to do, else after `interval` or a `wake()`.

    A failing pass is logged and counted, backs off and never ends the loop; cancellation always does.
    """

    def __init__(self, name: str, step: Step, interval: timedelta, clock: Clock) -> None:
        self.name = name
        self._step, self._interval, self._clock = step, interval, clock
        self._awake = asyncio.Event()
        self._alarm: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._last_good_at: datetime | None = None
        self._failures = 0

    @property
    def health(self) -> LoopHealth:
        return LoopHealth(self.name, self._last_good_at, self._failures)

    def wake(self) -> None:
        """There may be work: do not wait for the interval."""
        self._awake.set()

    def stop(self) -> None:
        """Start no further pass; the running one ends by itself."""
        self._is_stopping = True
        self._awake.set()

    async def run(self) -> None:
        try:
            while not self._is_stopping:
                self._awake.clear()
                if not await self._run_pass() and not self._is_stopping:
                    await self._rest()
        finally:
            if self._alarm is not None:
                self._alarm.cancel()

    async def _run_pass(self) -> bool:
        now = self._clock.now()
        try:
            has_more = await self._step(now)
        except Exception as error:  # whatever a pass does must not end the loop
            self._failures += 1
            log.error(
                "loop.failed",
                loop=self.name,
                failures=self._failures,
                error=f"{type(error).__name__}: {error}",
                exc_info=self._failures == 1,
            )
            return False
        self._failures = 0
        self._last_good_at = now
        return has_more

    async def _rest(self) -> None:
        if self._failures:  # a failed pass is not hurried by new work: a broken store would be hammered
            backoff = jittered(min(timedelta(seconds=0.1) * 2 ** min(self._failures, 10), MAX_BACKOFF))
            await self._clock.sleep(max(self._interval, backoff))
        else:
            self._set_alarm()
            await self._awake.wait()

    def _set_alarm(self) -> None:
        """One that an earlier rest has set may ring sooner: a pass too many now and then costs less than an alarm for each rest."""
        if self._alarm is None or self._alarm.done():
            self._alarm = asyncio.create_task(self._clock.sleep(self._interval), name=f"alarm of {self.name}")
            self._alarm.add_done_callback(lambda _: self._awake.set())
