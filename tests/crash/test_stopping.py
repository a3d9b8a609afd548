"""SIGTERM: nothing new is accepted, what runs ends within its time, the rest is released as if it had never begun."""

from __future__ import annotations

import asyncio
import signal

import httpx
import pytest

from receiver.model import DeliveryState
from receiver.simulator import Fault, Scenario
from receiver.stores import open_store
from receiver.stores.terms import DeliveryFilter
from tests.crash.house import open_house, until
from tests.crash.ledger import balance
from tests.crash.operator import Operator

pytestmark = pytest.mark.long

HANDLERS = """
[[handlers]]
name = "{name}"
use = "stopping:{name}"
events = ["job.succeeded"]
timeout = "5m"
"""
MODULE = """import asyncio, pathlib

HERE = pathlib.Path(__file__).parent

def note(line):
    with (HERE / "noted.txt").open("a") as file:
        file.write(line + "\\n")

async def quick(event, context):
    note("quick begins")
    while not (HERE / "told").exists():
        await asyncio.sleep(0.05)
    note("quick ends")

async def endless(event, context):
    note("endless begins")
    while not (HERE / "next").exists():
        await asyncio.sleep(0.05)
    note("endless ends")
"""
HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


async def test_what_runs_ends_the_rest_is_released_and_nothing_new_comes_in(sim, tmp_path):
    sim.simulator.plan("elkapi", Scenario(seconds=0.1))
    async with open_house(sim, tmp_path) as house:
        (tmp_path / "stopping.py").write_text(MODULE)
        house.file.write_text(house.file.read_text() + HANDLERS.format(name="quick") + HANDLERS.format(name="endless"))
        async with house.serve(fork=True) as server:
            orders = await house.submit_all([("elkapi", "a boat", {})])
            await until(lambda: noted(house) >= {"quick begins", "endless begins"}, tell=server.tail)
            sim.simulator.plan("elkapi", Scenario(seconds=12, faults=frozenset({Fault.SUBMIT_SLOW}), delay=4.0))
            orders |= await house.submit_all([("elkapi", "a slow boat", {})])
            await until(lambda: len(sim.simulator.ledger.submits) == 2, tell=server.tail)
            waiting = asyncio.create_task(house.api.get(f"/v1/jobs/{await find(house, 'submitting')}", params={"wait": "60"}))
            callback = await begin_callback(house, sim)
            server.signal(signal.SIGTERM)
            assert (await waiting).json()["finished_at"] is None, "who waits for a job is told how it stands"
            await until(lambda: is_refused(house), tell=server.tail)
            (tmp_path / "told").touch()  # what ran when it was told to stop ends after that
            assert await callback() == 200, "what has begun to arrive is kept"
            assert server.code is None
            assert await server.ended() == 0
        assert "quick ends" in noted(house)
        assert "endless ends" not in noted(house)
        async with open_store(f"sqlite:///{tmp_path / 'receiver.db'}") as store:
            (cut_off,) = (await store.read_deliveries(DeliveryFilter(handler="endless"), 10, None)).rows
        assert (cut_off.state, cut_off.attempts) == (DeliveryState.PENDING, 0)
        (tmp_path / "next").touch()
        async with house.serve(fork=True) as server:
            assert await find(house, "unconfirmed") is None, "the answer to the slow submit came in time"
            await until(Operator(house).sees_all_home, 90, tell=server.tail)
            books = await balance(house, orders)
            deliveries = (await house.api.get("/v1/deliveries")).json()["deliveries"]
    assert books.faults == [], books.table()
    assert len(sim.simulator.ledger.submits) == 2
    assert {(row["handler"], row["state"], row["attempts"]) for row in deliveries} >= {("quick", "done", 1), ("endless", "done", 1)}
    lines = (tmp_path / "noted.txt").read_text().splitlines()
    assert (lines.count("quick begins"), lines.count("endless begins")) == (2, 3), "two jobs; what was cut off began once more"


def noted(house):
    file = house.folder / "noted.txt"
    return set(file.read_text().splitlines()) if file.exists() else set()


async def find(house, status):
    """The id of a job that stands so."""
    return next((job["id"] for job in await house.jobs(status=status)), None)


async def is_refused(house):
    """Whether a new connection gets nowhere."""
    async with httpx.AsyncClient(trust_env=False) as stranger:
        try:
            await stranger.get(f"http://127.0.0.1:{house.port}/healthz")
        except httpx.ConnectError:
            return True
        return False


async def begin_callback(house, sim):
    """Half of a callback; what comes back sends the other half and gives the status of the answer."""
    entry = sim.simulator.ledger.submits[0]
    body = b'{"id": "%b", "status": "completed"}' % entry.job_ids[0].encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(HEAD % (httpx.URL(entry.callback_url).raw_path, len(body)) + body[:10])
    await writer.drain()
    for _ in range(2):  # who came later is answered: the server has read what is there
        assert not await is_refused(house)

    async def end():
        writer.write(body[10:])
        answer = await asyncio.wait_for(reader.readline(), 30)
        writer.close()
        await writer.wait_closed()
        return int(answer.split()[1])

    return end
