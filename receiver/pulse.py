"""Tells everyone who waits that the store changed, whichever process wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import structlog

BREATH = 0.02  # seconds between two beats: a burst of changes is told at its beginning and then now and then
log = structlog.get_logger("receiver.pulse")


class Watched(Protocol):
    """What the pulse needs of a store."""

    async def wait_for_change(self, timeout: timedelta) -> bool: ...


class Pulse:
    """A counter that grows with every change seen, and a way to wait for it to grow."""

    def __init__(self) -> None:
        self.beat = 0
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this (quick, harmless when called too often) on every change."""
        self._listeners.append(listener)

    def strike(self) -> None:
        self.beat += 1
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener()

    async def wait(self, seen: int, timeout: float) -> int:
        """The beat now, as soon as it is above `seen`, at the latest after `timeout` seconds."""
        if self.beat > seen:
            return self.beat
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            pass
        return self.beat

    async def run(self, store: Watched) -> None:
        """Follow a store until cancelled. While it fails, beat once a second: waiting must not end because watching does."""
        while True:
            try:
                if await store.wait_for_change(timedelta(seconds=5)):
                    self.strike()
                    await asyncio.sleep(BREATH)
            except Exception as error:  # a store that is away must not end the watch
                log.warning("pulse.failed", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(1)
                self.strike()
