"""kill -9 in the middle of a burst of callbacks."""

from datetime import UTC, datetime, timedelta

import pytest

from receiver.clock import ManualClock
from receiver.simulator import Scenario, Simulator, serve_simulator
from tests.crash.house import open_house, until
from tests.crash.ledger import balance

JOBS = 500
CALL_BACK = ("pixazo", "hoox")


@pytest.fixture
def clock():
    return ManualClock(datetime.now(UTC))


@pytest.fixture
async def sim(clock):
    """Time stands still at the providers, so that all jobs can end at once."""
    async with serve_simulator(Simulator(Scenario(seconds=10, outputs=1), clock=clock)) as served:
        yield served


def acknowledged(sim, clock):
    clock.advance(timedelta(seconds=8))  # from queued to processing, and on to the end
    return sum(entry.status == 200 and entry.state == "succeeded" for entry in sim.simulator.ledger.callbacks)


async def test_kill_9_during_500_callbacks_loses_and_doubles_nothing(sim, clock, tmp_path, capsys):
    async with open_house(sim, tmp_path, polling='overdue_after = "5s"') as house:
        async with house.serve() as server:
            orders = await house.submit_all([(CALL_BACK[number % 2], f"boat {number}", {}) for number in range(JOBS)])
            await until(lambda: is_submitted(house), tell=server.tail)
            await until(lambda: acknowledged(sim, clock) >= JOBS // 2, tell=server.tail)
            server.kill()
            await server.died()
        async with house.serve() as server:
            await until(lambda: is_home(house, clock), tell=server.tail)
            books = await balance(house, orders)
    assert books.faults == [], books.table()
    assert any(entry.status is None for entry in sim.simulator.ledger.callbacks), "the kill came after the burst"
    assert books.counts["jobs succeeded"] == books.counts["final events"] == books.counts["generations billed"] == JOBS
    with capsys.disabled():
        print(books.table())


async def is_submitted(house):
    counts = await house.open_jobs()
    return counts["queued"] + counts["processing"] == JOBS


async def is_home(house, clock):
    clock.advance(timedelta(seconds=1))  # for the providers that call again
    return not await house.open_jobs() and await house.open_deliveries() == 0
