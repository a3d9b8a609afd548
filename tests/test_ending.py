"""Tasks that are told to stop."""

import asyncio

import pytest

from receiver import ending
from receiver.ending import end


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(ending, "AGAIN_AFTER", 0.02)


async def deaf(times):
    """Goes on after so many cancellations, as what waits by `asyncio.wait_for` may."""
    for _ in range(times):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
    await asyncio.Event().wait()


async def start(work):
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def test_a_task_that_missed_its_cancellation_is_told_again():
    tasks = [await start(deaf(0)), await start(deaf(1)), await start(deaf(3))]
    await end(*tasks)
    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_never_listens_holds_up_nobody():
    task = await start(deaf(ending.TRIES))
    await end(task)
    assert not task.done()
    await end(task)
    assert task.cancelled()


async def test_ended_tasks_and_no_tasks_are_no_work():
    done = await start(asyncio.sleep(0))
    await done
    await end(done)
    await end()
    assert not done.cancelled()
