"""Gives up what takes too long. One timer for all who wait equally long: one for each costs more than reading a body that is there."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Patience:
    """`with patience.begin():` raises TimeoutError in its task where that took longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.waits: dict[Wait, None] = {}  # in the order of their beginning, which is that of their end
        self.loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> Wait:
        if self.loop is None or self._timer is None:
            self.loop = asyncio.get_running_loop()  # now and then: it is a system call
            self._timer = self.loop.call_later(self.seconds, self._look, self.loop)
        return Wait(self, self.loop.time() + self.seconds)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        for wait in list(self.waits):
            if wait.ends_at > loop.time():
                self._timer = loop.call_at(wait.ends_at, self._look, loop)
                return
            wait.give_up()
        self._timer = None


class Wait:
    """One who waits."""

    __slots__ = ("_has_given_up", "_patience", "_task", "ends_at")

    def __init__(self, patience: Patience, ends_at: float) -> None:
        self._patience, self.ends_at = patience, ends_at
        self._task: asyncio.Task[object] | None = None
        self._has_given_up = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task(self._patience.loop)
        self._patience.waits[self] = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._patience.waits.pop(self, None)
        if self._has_given_up and self._task is not None and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def give_up(self) -> None:
        self._patience.waits.pop(self, None)
        self._has_given_up = True
        if self._task is not None:
            self._task.cancel()
