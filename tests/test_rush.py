"""While many callbacks wait for their answer, those that have it are settled later: not never."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from receiver.clock import ManualClock
from receiver.rush import MOST_WAITING, NAP, NAPS, Rush
from receiver.settler import Settler
from tests.web.opened import open_web


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 5, 4, 12, 0, tzinfo=UTC))


@contextmanager
def waiting(rush: Rush, callbacks: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(callbacks):
            stack.enter_context(rush)
        yield


async def is_done(task: asyncio.Task[None], clock: ManualClock, naps: int) -> bool:
    for _ in range(naps):
        await asyncio.sleep(0)
        clock.advance(NAP)
    for _ in range(3):
        await asyncio.sleep(0)
    return task.done()


async def test_without_a_rush_nobody_waits(clock: ManualClock):
    rush = Rush(clock)
    with waiting(rush, MOST_WAITING):
        assert await is_done(asyncio.create_task(rush.end()), clock, 0)


async def test_a_rush_ends_when_none_was_seen_for_a_nap(clock: ManualClock):
    rush = Rush(clock)
    with waiting(rush, MOST_WAITING + 1):
        task = asyncio.create_task(rush.end())
        assert not await is_done(task, clock, 1)
    assert not await is_done(task, clock, 1)  # it was still seen when this nap began
    assert await is_done(task, clock, 1)
    assert await is_done(asyncio.create_task(rush.end()), clock, 0)


async def test_answers_given_together_do_not_end_it(clock: ManualClock):
    rush = Rush(clock)
    with waiting(rush, MOST_WAITING + 1):
        pass
    task = asyncio.create_task(rush.end())
    await asyncio.sleep(0)
    with waiting(rush, MOST_WAITING + 1):
        pass
    assert not await is_done(task, clock, 1)
    assert await is_done(task, clock, 1)


async def test_a_rush_that_does_not_end_is_waited_for_so_long_and_no_longer(clock: ManualClock):
    rush = Rush(clock)
    with waiting(rush, MOST_WAITING + 1):
        task = asyncio.create_task(rush.end())
        assert not await is_done(task, clock, NAPS - 1)
        assert await is_done(task, clock, 1)


async def test_the_settler_stands_back_in_a_rush_and_settles_all_the_same(tmp_path: Path, clock: ManualClock):
    async with open_web(tmp_path) as web:
        rush = Rush(clock)
        settler = Settler(web.services.settling, web.services.clock, lambda: None, rush)
        await settler.run_pass(web.services.clock.now())
        submitted = await web.submit()
        await web.accept(submitted["submission_id"], "elk-1")
        callback = web.callback_path(submitted["submission_id"])
        assert (await web.client.post(callback, json={"id": "elk-1", "status": "completed"})).status_code == 200
        with waiting(rush, MOST_WAITING + 1):
            run = asyncio.create_task(settler.run_pass(web.services.clock.now()))
            await asyncio.sleep(0)
            for _ in range(NAPS):
                assert await web.services.store.inbox_depth() == 1
                clock.advance(NAP)
            await run
        assert await web.services.store.inbox_depth() == 0
