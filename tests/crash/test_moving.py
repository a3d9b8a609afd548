"""From SQLite to PostgreSQL with jobs under way: the server is killed, the move is killed, and every job comes home."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from receiver.clock import ManualClock
from receiver.simulator import Scenario, Simulator, serve_simulator
from tests.crash.house import configuration, open_house, until
from tests.crash.ledger import balance
from tests.crash.operator import Operator
from tests.postgres import get_server

pytestmark = pytest.mark.long

FORGOTTEN = f"evt_{0:032}"  # an event that is kept no more: from the oldest one
SLOW = 'overdue_after = "60s"'
STEPS = ("move.noted", "move.begun", "move.uncommitted", "move.part", "move.copied", "move.compared", "move.finished")


@pytest.fixture
async def url():
    return await get_server().make_database()


@pytest.fixture
def clock():
    return ManualClock(datetime.now(UTC))


@pytest.fixture
async def sim(clock):
    """Time stands still at the providers: a job ends when we want it."""
    async with serve_simulator(Simulator(Scenario(seconds=10, outputs=1), clock=clock)) as served:
        yield served


async def is_submitted(house, count):
    counts = await house.open_jobs()
    return counts["queued"] + counts["processing"] == count


async def is_home(house, clock):
    clock.advance(timedelta(seconds=5))
    return await Operator(house).sees_all_home()


async def follow(house, last_event_id, count):
    """The ids of so many events behind this one."""
    found = []
    async with house.api.stream("GET", "/v1/events", headers={"Last-Event-ID": last_event_id}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("id:"):
                found.append(line.removeprefix("id:").strip())
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("seam", STEPS)
async def test_open_jobs_of_before_come_home_by_their_old_callback_urls(sim, clock, tmp_path, url, seam):
    words = ("migrate", "--json", "--from", f"sqlite:///{tmp_path / 'receiver.db'}", "--to", url)
    async with open_house(sim, tmp_path, polling=SLOW, storage=True) as house:
        async with house.serve(fork=True) as server:
            orders = await house.submit_all([("elkapi", f"boat {number}", {}) for number in range(3)])
            await until(lambda: is_submitted(house, 3), tell=server.tail)
            first, *later = await asyncio.wait_for(follow(house, FORGOTTEN, 3), 30)
            server.kill()
            await server.died()
        async with house.run(*words, seam=seam) as dying:
            await dying.died()
        async with house.run(*words, fork=True) as moving:
            assert await moving.ended() == 0, moving.tail()
            assert json.loads("{" + moving.log.read_text().partition("{")[2])["rows"]["jobs"] == 3
        async with house.run("serve", fork=True) as refused:
            assert await refused.ended() == 2
            assert "was moved to" in refused.log.read_text()
        secret = (tmp_path / "receiver.secret").read_text()
        address = f'port = {house.port}\npublic_url = "http://127.0.0.1:{house.port}"\nsecrets = ["{secret}"]'
        house.file.write_text(configuration(sim, address, url, SLOW, outputs="outputs"))
        async with house.serve(fork=True) as server:
            assert await house.submit("elkapi", "boat 1") in orders  # the idempotency key of before
            await until(lambda: is_home(house, clock), tell=server.tail)
            books = await balance(house, orders, stores=True)
            assert {job["finished_by"] for job in await house.jobs()} == {"callback"}
            assert (await asyncio.wait_for(follow(house, first, 5), 30))[:2] == later
    assert books.faults == [], books.table()
    assert sim.simulator.ledger.billed == 3
