"""kill -9 at every step of the road: what must hold after the next start is the same everywhere."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from receiver.simulator import Fault, Scenario
from tests.crash.house import House, open_house, until
from tests.crash.ledger import balance
from tests.crash.operator import Operator

pytestmark = pytest.mark.long

SLOW = 'overdue_after = "20s"'  # nothing but the callback brings it home
QUICK = 'overdue_after = "0.3s"'


@dataclass(frozen=True)
class Story:
    """One job that meets a crash: how often the provider hears of it, and where it ends without help."""

    seam: str
    provider: str = "elkapi"
    scenario: Scenario = field(default_factory=lambda: Scenario(seconds=0.1))
    polling: str = QUICK
    calls: int = 1  # submit calls that reached the provider
    status: str = "succeeded"
    finished_by: str | None = None
    again: int = 0  # handler runs that must have come twice; more may, always under the same event id

    @property
    def name(self) -> str:
        return f"{self.seam} {self.provider} {' '.join(self.scenario.faults)}".strip()


LONG = Scenario(seconds=1.2)  # it ends when the next process is up
STORIES = [
    Story("submit.created"),
    Story("submit.claimed"),
    Story("submit.marked", calls=0, status="unconfirmed"),
    Story("submit.marked", "oxen", calls=0, status="unconfirmed"),
    Story("submit.answered", scenario=LONG, polling=SLOW, finished_by="callback"),  # adopted by its own callback
    Story("submit.answered", "oxen", scenario=LONG),  # adopted by the provider's list
    Story("submit.answered", "huzz", status="unconfirmed"),  # nothing can tell
    Story("submit.answered", scenario=Scenario(faults=frozenset({Fault.TOO_MANY})), status="unconfirmed"),
    Story("submit.settled"),
    Story("submit.settled", scenario=Scenario(faults=frozenset({Fault.TOO_MANY}), seconds=0.1), calls=2),
    Story("callback.begun", "pixazo", finished_by="poll"),
    Story("callback.kept", "pixazo", polling=SLOW, finished_by="callback"),
    Story("callback.kept", "hoox", polling=SLOW, finished_by="callback"),  # not answered, so it is sent again
    Story("notices.claimed", "pixazo", polling=SLOW, finished_by="callback"),
    Story("settle.uncommitted", "pixazo", polling=SLOW, finished_by="callback"),
    Story("settle.uncommitted", "oxen", LONG),
    Story("settle.uncommitted", "huzz", finished_by="poll"),
    Story("settle.written", "pixazo", polling=SLOW, finished_by="callback"),
    Story("poll.claimed", "huzz"),
    Story("poll.answered", "huzz"),
    Story("delivery.claimed"),
    Story("delivery.handled", again=1),
    Story("delivery.finished"),
    Story("storage.part"),
    Story("storage.named"),
    Story("storage.recorded"),
    Story("storage.told"),
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
async def test_a_crash_at_any_step_loses_and_repeats_nothing(sim, tmp_path, story):
    sim.simulator.plan(story.provider, story.scenario)
    async with open_house(sim, tmp_path, storage=True, polling=story.polling) as house:
        async with house.serve(seam=story.seam) as dying:
            await ask_once(house, story.provider)
            await dying.died()
        async with house.serve(fork=True) as server:
            submission_id = await house.submit(story.provider, "a boat")
            job = await until(lambda: settled(house, story.status), tell=server.tail)
            assert len(sim.simulator.ledger.submits) == story.calls
            assert sim.simulator.ledger.billed <= 1
            assert story.finished_by in (None, job["finished_by"])
            await until(Operator(house).sees_all_home, tell=server.tail)
            books = await balance(house, {submission_id: "a boat"}, stores=True)
    assert books.faults == [], books.table()
    assert books.counts["of them again, same event id"] >= story.again, books.table()
    assert len(sim.simulator.ledger.submits) == story.calls
    downloads = [(entry.job_id, entry.index) for entry in sim.simulator.ledger.downloads]
    assert len(downloads) == len(set(downloads)) or story.seam == "storage.part"
    assert not list((tmp_path / "outputs").rglob(".*"))


async def ask_once(house: House, provider: str) -> None:
    """The server may die before it answers; whoever asked will ask again with the same key."""
    try:
        await house.ask_for(provider, "a boat")
    except httpx.TransportError:
        pass


async def settled(house: House, status: str) -> Any:
    (job,) = await house.jobs()
    return job if job["status"] == status else None


@pytest.mark.parametrize("seam", ["migration.half", "migration.done"])
async def test_a_crash_while_the_database_is_made_leaves_one_that_can_be_opened(sim, tmp_path, seam):
    async with open_house(sim, tmp_path) as house:
        async with house.run("serve", seam=seam) as dying:
            await dying.died()
        async with house.serve(fork=True):
            orders = await house.submit_all([("elkapi", "a boat", {})])
            await until(Operator(house).sees_all_home)
            books = await balance(house, orders)
    assert books.faults == [], books.table()


@pytest.mark.parametrize("seam", ["shutdown.begun", "shutdown.leaving"])
async def test_a_crash_while_it_stops_loses_nothing(sim, tmp_path, seam):
    sim.simulator.plan("elkapi", *[LONG] * 10)
    async with open_house(sim, tmp_path) as house:
        async with house.serve(seam=seam) as dying:
            orders = await house.submit_all([("elkapi", f"boat {number}", {}) for number in range(10)])
            dying.signal(signal.SIGTERM)
            await dying.died()
        async with house.serve(fork=True) as server:
            await until(Operator(house).sees_all_home, tell=server.tail)
            books = await balance(house, orders)
    assert books.faults == [], books.table()
    assert len(sim.simulator.ledger.submits) == 10


async def test_a_server_that_is_told_to_stop_finishes_what_runs_and_counts_no_attempt(sim, tmp_path):
    sim.simulator.plan("elkapi", Scenario(seconds=0.1, faults=frozenset({Fault.SUBMIT_SLOW}), delay=1.0))
    async with open_house(sim, tmp_path) as house:
        async with house.serve(fork=True) as server:
            orders = await house.submit_all([("elkapi", "a boat", {})])
            await until(lambda: sim.simulator.ledger.submits)
            server.signal(signal.SIGTERM)
            assert await server.ended() == 0
        async with house.serve(fork=True) as server:
            await until(Operator(house).sees_all_home, tell=server.tail)
            books = await balance(house, orders)
    assert books.faults == [], books.table()
    assert len(sim.simulator.ledger.submits) == 1
