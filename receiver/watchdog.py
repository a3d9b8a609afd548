"""Names the handler whose blocking code stalls the event loop: seen from a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time

import structlog

STALLED_AFTER = 1.0  # seconds
log = structlog.get_logger("receiver.watchdog")


class Watchdog:
    """Asks the loop for a sign of life several times a second; logs `loop.stalled` once per stall, with the name of the task at fault."""

    def __init__(self, stalled_after: float = STALLED_AFTER) -> None:
        self._stalled_after = stalled_after
        self._stop = threading.Event()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._watch, args=(loop,), name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Not waited for: it waits for the loop, which is ours to run."""
        self._stop.set()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            alive = threading.Event()
            try:
                loop.call_soon_threadsafe(alive.set)
            except RuntimeError:  # the loop is closed
                return
            asked = time.monotonic()
            if not alive.wait(self._stalled_after) and not self._stop.is_set():
                task = asyncio.current_task(loop)
                name = task.get_name() if task else "unknown"
                log.error("loop.stalled", task=name, hint="blocking code belongs into a plain `def handle`, which runs in a thread")
                while not alive.wait(0.1) and not self._stop.is_set():
                    pass
                log.warning("loop.resumed", task=name, seconds=round(time.monotonic() - asked, 1))
            self._stop.wait(self._stalled_after / 4)
