"""Two installations on one PostgreSQL: whoever gets a callback, every job comes home once."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from receiver.clock import ManualClock
from receiver.simulator import Fault, Scenario, Simulator, serve_simulator
from tests.postgres import get_server
from tests.stories.home import open_home, recorded, recorder

pytestmark = pytest.mark.long

FINAL = {"job.succeeded"}


@pytest.fixture
async def database():
    server = get_server()
    url = await server.take_database()
    yield url
    await server.give_back(url)


async def events_of(folder, count):
    """What the handler heard, once so many final events are there."""
    async with asyncio.timeout(20):
        while True:
            heard = recorded(folder)
            if sum(event["type"] in FINAL for event in heard) >= count:
                return heard
            await asyncio.sleep(0.05)


def assert_heard_once(heard, jobs):
    assert {event["job"] for event in heard if event["type"] in FINAL} == {job["id"] for job in jobs}
    assert max(Counter(event["id"] for event in heard).values()) == 1


async def test_jobs_come_home_whichever_node_gets_the_callback(sim, tmp_path, database):
    more = recorder(tmp_path)
    async with open_home(sim, tmp_path, store=database, more=more) as a, open_home(sim, tmp_path, store=database, more=more) as b:
        answers = await asyncio.gather(*((a, b)[n % 2].submit("elkapi", prompt=f"boat {n}") for n in range(12)))
        jobs = [job for (job,) in answers]
        done = await asyncio.gather(*((b, a)[n % 2].final(job["id"]) for n, job in enumerate(jobs)))  # each asked of the other node
        assert {(job["status"], job["finished_by"]) for job in done} == {("succeeded", "callback")}
        assert_heard_once(await events_of(tmp_path, 12), jobs)
        ledger = sim.simulator.ledger
        assert (len(ledger.submits), ledger.billed, ledger.polls) == (12, 12, 0)
        assert {entry.status for entry in ledger.callbacks} == {200}


async def test_nodes_share_the_work_by_roles(sim, tmp_path, database):
    more = recorder(tmp_path)
    async with (
        open_home(sim, tmp_path, ("web", "submit"), store=database, more=more) as door,
        open_home(sim, tmp_path, ("web", "settle", "poll", "stream", "dispatch"), store=database, more=more) as worker,
    ):
        sim.simulator.plan("pixazo", Scenario(seconds=0.3))
        (job,) = await worker.submit("pixazo", "hunyuan-image")
        done = await door.final(job["id"])
        assert (done["status"], done["finished_by"]) == ("succeeded", "callback")
        assert_heard_once(await events_of(tmp_path, 1), [job])
        (submit,) = sim.simulator.ledger.submits
        assert urlsplit(submit.callback_url).netloc == urlsplit(door.url).netloc  # and the other one settled and dispatched


async def test_no_poll_and_no_delivery_is_doubled(sim, tmp_path, database):
    more, quick = recorder(tmp_path), 'overdue_after = "0.4s"\ninterval = "0.2s"'
    for _ in range(10):
        sim.simulator.plan("elkapi", Scenario(seconds=0.2, delay=1.0, polls=1, faults=frozenset({Fault.LOST, Fault.POLL_SLOW})))
    async with (
        open_home(sim, tmp_path, store=database, more=more, polling=quick) as a,
        open_home(sim, tmp_path, store=database, more=more, polling=quick) as b,
    ):
        answers = await asyncio.gather(*((a, b)[n % 2].submit("elkapi", prompt=f"boat {n}") for n in range(10)))
        jobs = [job for (job,) in answers]
        done = await asyncio.gather(*(a.final(job["id"]) for job in jobs))
        assert {(job["status"], job["finished_by"]) for job in done} == {("succeeded", "poll")}
        assert_heard_once(await events_of(tmp_path, 10), jobs)
        # Each answer took much longer than the interval, and nobody asked a second time meanwhile.
        assert [sim.simulator.ledger.job(job["remote_id"]).polls for job in done] == [1] * 10


async def passed(home, name):
    """The loop of this name ran once more, from its beginning."""
    for _ in range(2):  # the first one to end may have begun before
        seen = last_pass(home, name)
        await home.until(lambda seen=seen: last_pass(home, name) != seen)


def last_pass(home, name):
    return next(loop.last_good_at for loop in home.services.health() if loop.name == name)


async def test_one_node_holds_a_stream_and_another_takes_it_over(tmp_path, database):
    clock, config = ManualClock(datetime.now(UTC)), {"store": database, "more": recorder(tmp_path), "polling": 'overdue_after = "60s"'}
    async with serve_simulator(Simulator(Scenario(seconds=10), clock=clock)) as sim, AsyncExitStack() as first:
        a = await first.enter_async_context(open_home(sim, tmp_path, **config))
        (job,) = await a.submit("oxen", "kling-video-v2-6-pro-text-to-video")
        await a.until(lambda: sim.simulator.ledger.streams_opened == 1)
        async with open_home(sim, tmp_path, **config) as b:
            await passed(b, "stream")
            await passed(a, "stream")
            assert sim.simulator.ledger.streams_opened == 1
            await first.aclose()
            await b.until(lambda: sim.simulator.ledger.streams_opened == 2)

            async def is_final():
                clock.advance(timedelta(seconds=3))
                return (await b.job(job["id"]))["status"] == "succeeded"

            await b.until(is_final)
            assert (await b.job(job["id"]))["finished_by"] == "stream"
            assert {entry.listeners for entry in sim.simulator.ledger.streamed} == {1}
            assert_heard_once(await events_of(tmp_path, 1), [job])
