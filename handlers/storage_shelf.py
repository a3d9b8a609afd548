"""What is the same for every place where outputs are kept, a folder or a bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from receiver.handling import PermanentError, Stored

T = TypeVar("T")


class Shelf(Protocol):
    """Where outputs are kept."""

    async def keep(self, job: dict[str, Any], output: dict[str, Any]) -> Stored:
        """Keep one, or find that it is kept already."""


class OverLimit(PermanentError):
    """The output is larger than `max_bytes`."""


def check_size(index: int, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise OverLimit(f"output {index} has more bytes than max_bytes allows ({max_bytes})")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run what blocks in a thread."""
    return await whole(start_thread(work, *arguments))


def start_thread(work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    return asyncio.ensure_future(asyncio.to_thread(work, *arguments))


async def whole(task: asyncio.Future[T]) -> T:
    """What came of it; cancelled, it is waited for, so that no file is closed under it."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
