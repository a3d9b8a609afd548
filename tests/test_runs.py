"""Handlers at work: how a run ends, and what one leaves that does not."""

import asyncio
from datetime import timedelta

import pytest

from receiver import runs
from receiver.runs import Run, Runs
from receiver.tracing import NOTHING
from tests.factories import make_delivery, make_event, make_job


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(runs, "GRACE", timedelta(milliseconds=20))


class Works:
    """Runs of one handler, and those that ended."""

    def __init__(self, *, concurrency=2, timeout=60.0):
        self.ended = []
        self._has_ended = asyncio.Event()
        self.runs = Runs("tell", concurrency, timedelta(seconds=timeout), self._note)

    def _note(self, run):
        self.ended.append(run)
        self._has_ended.set()

    def start(self, work):
        event = make_event(make_job())
        run = Run(make_delivery(event, "tell"), event, NOTHING)
        self.runs.start(run, work)
        return run

    async def until_one_ended(self):
        async with asyncio.timeout(10):
            await self._has_ended.wait()
        self._has_ended.clear()


async def fail():
    raise RuntimeError("no")


async def hang():
    await asyncio.Event().wait()


async def be_deaf(heard, until):
    while not until.is_set():
        try:
            await until.wait()
        except asyncio.CancelledError:
            heard.set()


async def test_a_run_ends_with_what_it_raised():
    works = Works()
    for work in (asyncio.sleep(0), fail()):
        works.start(work)
        await works.until_one_ended()
    assert [repr(run.error) for run in works.ended] == ["None", "RuntimeError('no')"]


async def test_a_run_takes_room_until_it_ends():
    works = Works(concurrency=2)
    first = works.start(hang())
    works.start(asyncio.sleep(0))
    assert works.runs.room == 0
    await works.until_one_ended()
    assert (works.runs.room, works.runs.tasks) == (1, [first.task])
    await works.runs.cut_off()


async def test_each_run_has_its_own_time():
    works = Works(concurrency=9, timeout=0.1)
    late = [works.start(hang()), works.start(asyncio.sleep(0)), works.start(hang())]
    await works.until_one_ended()
    while len(works.ended) < 3:
        await works.until_one_ended()
    assert [repr(run.error) for run in late] == [
        "TimeoutError('the handler did not end within 0.1 s')",
        "None",
        "TimeoutError('the handler did not end within 0.1 s')",
    ]
    last = works.start(hang())  # the timer goes on
    await works.until_one_ended()
    assert isinstance(last.error, TimeoutError)


async def test_one_that_cancels_itself_has_failed():
    works = Works()
    run = works.start(hang())
    await asyncio.sleep(0)
    run.task.cancel()
    await works.until_one_ended()
    assert repr(run.error) == "RuntimeError('the handler cancelled itself')"


async def test_one_that_ignores_its_cancellation_is_left_behind():
    works = Works(timeout=0.05)
    heard, until = asyncio.Event(), asyncio.Event()
    run = works.start(be_deaf(heard, until))
    await works.until_one_ended()
    assert (isinstance(run.error, TimeoutError), heard.is_set(), run.task.done(), works.runs.room) == (True, True, False, 2)
    until.set()
    await run.task
    assert works.ended == [run]  # once


async def test_what_is_cut_off_is_nobodys_end():
    works = Works()
    heard, until = asyncio.Event(), asyncio.Event()
    cut = [works.start(hang()), works.start(be_deaf(heard, until))]
    await asyncio.sleep(0)
    assert await works.runs.cut_off() == cut
    assert (cut[0].task.cancelled(), heard.is_set(), works.runs.room) == (True, True, 2)
    until.set()
    await cut[1].task
    assert works.ended == []
