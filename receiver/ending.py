"""How tasks end: what is told to stop stops, and a close that was begun is done."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_AFTER = 2.0  # seconds; long enough to give back what a task holds
TRIES = 5


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these and wait for their end, for ten seconds at most.

    Told once, a task may go on: the `asyncio.wait_for` of Python 3.11 loses a cancellation that comes in the same turn as its
    result (https://github.com/python/cpython/issues/86296), and asyncpg stands on it.
    """
    for _ in range(TRIES):
        running = [task for task in tasks if not task.done()]
        if not running:
            return
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=AGAIN_AFTER)


async def finish(closing: asyncio.Task[None]) -> None:
    """Wait for this even when its caller is cancelled: a thread or connection left over would keep the process."""
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait([closing])
        raise
