"""One timer for many who wait."""

from __future__ import annotations

import asyncio

import pytest

from receiver.web.patience import Patience


async def wait(patience: Patience, until: asyncio.Event) -> str:
    with patience.begin():
        await until.wait()
    return "came"


async def test_who_waits_too_long_is_told_and_the_others_go_on():
    patience, never, soon = Patience(0.05), asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(20):
        first = asyncio.create_task(wait(patience, never))
        quick = asyncio.create_task(wait(patience, soon))
        soon.set()
        assert await quick == "came"
        with pytest.raises(TimeoutError):
            await first
        assert not patience.waits
        with pytest.raises(TimeoutError):  # the timer begins again
            await wait(patience, never)


async def test_a_cancellation_from_elsewhere_stays_one():
    patience, never = Patience(60), asyncio.Event()
    task = asyncio.create_task(wait(patience, never))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()
    assert not patience.waits


async def test_what_was_given_up_can_go_on_with_something_else():
    patience = Patience(0.01)

    async def give_up_and_go_on() -> int:
        try:
            await wait(patience, asyncio.Event())
        except TimeoutError:
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert await asyncio.wait_for(asyncio.create_task(give_up_and_go_on()), 20) == 0
