"""How a store is closed: a close that was begun ends."""

from __future__ import annotations

import asyncio


async def finish(closing: asyncio.Task[None]) -> None:
    """Even when its caller is cancelled: a thread or connection left over would keep the process."""
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait([closing])
        raise
