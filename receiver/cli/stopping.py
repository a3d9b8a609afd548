"""When to stop: the first SIGINT or SIGTERM asks nicely, the second one does not."""

from __future__ import annotations

import asyncio
import os
import signal


class Stop:
    """Made inside a running event loop. What was acknowledged is on disk, so that the hard way loses nothing either."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._take, number)

    def _take(self, number: int) -> None:
        if self._event.is_set():
            os._exit(128 + number)
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
