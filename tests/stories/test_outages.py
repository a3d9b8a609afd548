"""The store goes away while all runs, for longer than any wait of ours: loops live, /readyz says so, and it goes on by itself."""

import asyncio
import errno
import fcntl
import sqlite3
from contextlib import asynccontextmanager

import httpx
import pytest

from receiver.simulator import Fault, Scenario
from receiver.stores import sqlite_access, sqlite_connecting, sqlite_syncing
from tests.postgres import get_server
from tests.stories.home import open_home, recorded, recorder

pytestmark = pytest.mark.long

LOOPS = {"submit", "settle", "poll", "dispatch", "sweep"}
POLLING = 'overdue_after = "1s"\ninterval = "0.2s"'
FINALS = {"job.succeeded", "job.failed", "job.expired"}


class Outage:
    """A database that can be taken away. `url` is what to configure, empty for a file of the installation's own."""

    url = ""
    names = frozenset({"store", *LOOPS})  # what /readyz says

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch

    async def begin(self): ...

    async def end(self): ...


class Locked(Outage):
    """Another process holds the lock and does not give it back."""

    async def begin(self):
        self.monkeypatch.setattr(sqlite_connecting.FileLock.held.__wrapped__, "__defaults__", (0.3,))  # in place of ten seconds
        self.file = (self.folder / "receiver.db.lock").open()
        fcntl.flock(self.file, fcntl.LOCK_EX)

    async def end(self):
        self.file.close()


class Broken(Outage):
    """Every read and write of the disk fails."""

    async def begin(self):
        self.monkeypatch.setattr(sqlite_access, "transaction", self.fail)

    async def end(self):
        self.monkeypatch.undo()

    def fail(self, *_):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error


class Refusing(Outage):
    """Whatever is written is there, but the disk does not say that it has it. A claim after which nothing was to be written stands."""

    names = frozenset({"store"})

    async def begin(self):
        self.monkeypatch.setattr(sqlite_syncing, "flush", self.fail)

    async def end(self):
        self.monkeypatch.undo()

    def fail(self, _):
        raise OSError(errno.EIO, "Input/output error")


class Stopped(Outage):
    """The PostgreSQL server has lost its power."""

    async def begin(self):
        await asyncio.to_thread(get_server().stop_hard)

    async def end(self):
        await asyncio.to_thread(get_server().start)


@pytest.fixture(params=[Locked, Broken, Refusing, Stopped])
async def outage(request, tmp_path, monkeypatch):
    made = request.param(tmp_path, monkeypatch)
    if request.param is not Stopped:
        yield made
        return
    server = get_server()
    if server.wheel is None:
        pytest.skip("the server that RECEIVER_TEST_POSTGRES_URL names is not ours to stop")
    made.url = await server.take_database()
    yield made
    await asyncio.to_thread(server.start)
    await server.give_back(made.url)


@asynccontextmanager
async def gone(outage):
    await outage.begin()
    try:
        yield
    finally:
        await outage.end()


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not (value := await condition()):
            await asyncio.sleep(0.05)
        return value


async def patiently(ask):
    """The answer; asked again where a kept connection ended under the request, as it may on a machine that stalls."""
    for _ in range(5):
        try:
            return await ask()
        except httpx.TransportError:
            await asyncio.sleep(0.1)
    return await ask()


async def test_loops_outlive_a_store_that_is_away_and_readiness_says_so(sim, tmp_path, outage):
    lost = Scenario(seconds=0.3, faults=frozenset({Fault.LOST}))
    sim.simulator.plan("elkapi", lost, Scenario(seconds=2))
    sim.simulator.plan("huzz", lost)
    async with open_home(sim, tmp_path, store=outage.url, polling=POLLING, more=recorder(tmp_path)) as home:
        jobs = [job for provider in ("elkapi", "elkapi") for job in await home.submit(provider)]
        jobs += await home.submit("huzz", "kling/kling-v2.6-pro/text-to-video")

        async def names_all():
            answer = await patiently(lambda: home.api.get("/readyz"))
            failing = set(answer.json().get("failing", ()))
            return answer if answer.status_code == 503 and outage.names <= failing else None

        async def is_ready():
            return (await patiently(lambda: home.api.get("/readyz"))).status_code == 200

        async def submit_boat():
            boat = {"provider": "elkapi", "model": "kling-v2", "input": {"prompt": "a boat"}}
            return await patiently(lambda: home.api.post("/v1/jobs", json=boat, headers={"Idempotency-Key": "a-boat"}))

        async def is_taken():
            answer = await submit_boat()
            assert answer.status_code in {202, 409}, answer.text  # 409: the first one is still under way
            return answer if answer.status_code == 202 else None

        async with gone(outage):
            await until(names_all)
            assert (await patiently(lambda: home.api.get("/healthz"))).status_code == 200
            callback = sim.simulator.ledger.submits[0].callback_url.removeprefix(home.url)
            news = {"id": jobs[0]["remote_id"], "status": "completed"}
            refused = await patiently(lambda: home.api.post(callback, json=news))
            assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
            refused = await submit_boat()
            assert refused.status_code == 503
        await until(is_ready)
        jobs += (await until(is_taken)).json()["jobs"]  # whether the refused one stands or not
        assert {(await home.final(job["id"]))["status"] for job in jobs} == {"succeeded"}
        jobs += await home.submit("elkapi")
        await home.final(jobs[-1]["id"])
        await home.until(lambda: len([event for event in recorded(tmp_path) if event["type"] in FINALS]) >= len(jobs))
        finals = [event["job"] for event in recorded(tmp_path) if event["type"] in FINALS]
        assert sorted(finals) == sorted(job["id"] for job in jobs)
        assert sim.simulator.ledger.billed == len(jobs)
