"""Handlers at work: a task for each run, and one timer for all runs of a handler, which may take equally long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any

from receiver.model import Delivery, Event
from receiver.tracing import Span

GRACE = timedelta(seconds=1)  # for a cancelled handler to clean up, before it is left behind


class Run:
    """A handler at work on one delivery; what its Context needs to know."""

    __slots__ = ("delivery", "ends_at", "error", "event", "is_given_up", "span", "task")

    def __init__(self, delivery: Delivery, event: Event, span: Span) -> None:
        self.delivery, self.event, self.span = delivery, event, span
        self.error: BaseException | None = None  # None once it ended: it was done
        self.is_given_up = False
        self.ends_at = 0.0  # of the loop's clock
        self.task: asyncio.Task[None]


class Runs:
    """The runs of one handler. `on_end` is called with each that ended by itself or took too long, not with one that `cut_off` ended."""

    def __init__(self, handler: str, concurrency: int, timeout: timedelta, on_end: Callable[[Run], None]) -> None:
        self._concurrency, self._seconds, self._on_end = concurrency, timeout.total_seconds(), on_end
        self._task_name = f"handler {handler}"
        self._loop = asyncio.get_running_loop()  # asked for once: it is a system call
        self._running: dict[Run, None] = {}  # in the order of their beginning, which is that of their end
        self._timer: asyncio.TimerHandle | None = None

    @property
    def room(self) -> int:
        return self._concurrency - len(self._running)

    @property
    def tasks(self) -> Collection[asyncio.Task[None]]:
        return [run.task for run in self._running]

    def start(self, run: Run, work: Coroutine[Any, Any, None]) -> None:
        run.task = self._loop.create_task(work, name=self._task_name)
        run.ends_at = self._loop.time() + self._seconds
        self._running[run] = None
        run.task.add_done_callback(partial(self._ended, run))
        if self._timer is None:
            self._timer = self._loop.call_at(run.ends_at, self._look)

    def _ended(self, run: Run, task: asyncio.Task[None]) -> None:
        error = RuntimeError("the handler cancelled itself") if task.cancelled() else task.exception()
        self._leave(run, error)

    def _leave(self, run: Run, error: BaseException | None) -> None:
        if run in self._running:  # else it was left behind, and nobody waits for it
            del self._running[run]
            run.error = self._too_late() if run.is_given_up else error
            self._on_end(run)

    def _look(self) -> None:
        self._timer = None
        for run in self._running:
            if run.is_given_up:
                continue
            if run.ends_at > self._loop.time():
                self._timer = self._loop.call_at(run.ends_at, self._look)
                return
            run.is_given_up = True
            run.task.cancel()
            self._loop.call_later(GRACE.total_seconds(), self._leave, run, None)

    def _too_late(self) -> TimeoutError:
        return TimeoutError(f"the handler did not end within {self._seconds:g} s")

    async def cut_off(self) -> list[Run]:
        """End them all, and say which those were: what is left of one that ignores its cancellation is left behind."""
        runs, self._running = list(self._running), {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for run in runs:
            run.task.cancel()
        if runs:
            await asyncio.wait([run.task for run in runs], timeout=GRACE.total_seconds())
        return runs
