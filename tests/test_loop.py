"""Running a pass until told to stop."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from receiver.clock import ManualClock
from receiver.loop import Loop

START = datetime(2026, 5, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Passes:
    """A pass that is counted, and a way to wait for the next one."""

    def __init__(self, *results: object) -> None:
        self.results = list(results)
        self.times: list[datetime] = []
        self.ran = asyncio.Event()

    async def __call__(self, now: datetime) -> bool:
        self.times.append(now)
        self.ran.set()
        result = self.results.pop(0) if self.results else False
        if isinstance(result, Exception):
            raise result
        return bool(result)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.times) < count:
                self.ran.clear()
                await self.ran.wait()
            await asyncio.sleep(0)
            await asyncio.sleep(0)


@pytest.fixture
async def start():
    tasks = []

    def start(passes: Passes) -> tuple[Loop, ManualClock, asyncio.Task[None]]:
        clock = ManualClock(START)
        loop = Loop("test", passes, MINUTE, clock)
        tasks.append(asyncio.create_task(loop.run()))
        return loop, clock, tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=5)


async def test_a_full_pass_runs_again_at_once(start):
    passes = Passes(True, True, False)
    start(passes)
    await passes.wait_for(3)
    assert passes.times == [START] * 3


async def test_an_empty_pass_waits_for_the_interval(start):
    passes = Passes()
    _, clock, _ = start(passes)
    await passes.wait_for(1)
    clock.advance(MINUTE)
    await passes.wait_for(2)
    assert passes.times == [START, START + MINUTE]


async def test_a_wake_does_not_wait_for_the_interval(start):
    passes = Passes()
    loop, _, _ = start(passes)
    await passes.wait_for(1)
    loop.wake()
    await passes.wait_for(2)
    assert passes.times == [START] * 2


async def test_after_a_wake_a_pass_comes_at_the_latest_after_the_interval(start):
    passes = Passes()
    loop, clock, _ = start(passes)
    await passes.wait_for(1)
    clock.advance(MINUTE / 2)
    loop.wake()
    await passes.wait_for(2)
    clock.advance(MINUTE)
    await passes.wait_for(3)
    clock.advance(MINUTE)
    await passes.wait_for(4)


async def test_a_failing_pass_is_counted_and_ends_nothing(start):
    passes = Passes(RuntimeError("no"), RuntimeError("no"), RuntimeError("no"))
    with capture_logs() as logs:
        loop, clock, _ = start(passes)
        for count in (1, 2, 3):
            await passes.wait_for(count)
            assert loop.health.failures == count
            clock.advance(2 * MINUTE)
        assert not loop.health.is_well
        await passes.wait_for(4)
    assert (loop.health.failures, loop.health.is_well) == (0, True)
    assert [entry["event"] for entry in logs] == ["loop.failed"] * 3


async def test_new_work_does_not_hurry_a_pass_that_failed(start):
    passes = Passes(RuntimeError("no"))
    loop, clock, _ = start(passes)
    await passes.wait_for(1)
    loop.wake()
    for _ in range(20):  # long enough for a wake to be heard
        await asyncio.sleep(0)
    assert passes.times == [START]
    clock.advance(2 * MINUTE)
    await passes.wait_for(2)


async def test_cancellation_always_ends_it(start):
    passes = Passes()
    _, _, task = start(passes)
    await passes.wait_for(1)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()


async def test_stopping_lets_the_running_pass_end_and_starts_no_other(start):
    passes = Passes()
    loop, _, task = start(passes)
    await passes.wait_for(1)
    loop.stop()
    await asyncio.wait({task}, timeout=5)
    assert (task.done(), task.cancelled(), len(passes.times)) == (True, False, 1)
