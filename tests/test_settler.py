"""The settler claims the next callbacks while it writes the last ones, and gives back what it no longer settles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from receiver.clock import SystemClock
from receiver.errors import StoreUnavailable
from receiver.model import Channel, Notice, Outcome
from receiver.rush import Rush
from receiver.settler import Settler
from receiver.stores.claiming import Settled
from receiver.stores.terms import Kept, NoticeFilter, Settlement
from tests.web.opened import Web, open_web


class Scene:
    """Two jobs of one provider; the second one's callback comes while the first one's is written."""

    def __init__(self, web: Web) -> None:
        self.web, self.settler = web, Settler(web.services.settling, SystemClock(), lambda: None, Rush(SystemClock()))
        self.ids: list[str] = []

    async def begin(self) -> None:
        for remote_id in ("elk-1", "elk-2"):
            submitted = await self.web.submit()
            await self.web.accept(submitted["submission_id"], remote_id)
            self.ids.append(submitted["submission_id"])
        await self.call_back(0)
        write = self.web.services.store.settle_and_claim

        async def settle(settlements: Sequence[Settlement]) -> Settled:
            setattr(self.web.services.store, "settle_and_claim", write)  # noqa: B010
            await self.call_back(1)
            return await write(settlements)

        setattr(self.web.services.store, "settle_and_claim", settle)  # noqa: B010

    async def call_back(self, number: int) -> None:
        answer = await self.web.client.post(
            self.web.callback_path(self.ids[number]), json={"id": f"elk-{number + 1}", "status": "completed"}
        )
        assert answer.status_code == 200

    async def run_pass(self) -> bool:
        return await self.settler.run_pass(SystemClock().now())

    async def statuses(self) -> list[str]:
        answer = await self.web.client.get("/v1/jobs")
        return [job["status"] for job in answer.json()["jobs"]][::-1]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_web(tmp_path) as web:
        scene = Scene(web)
        await scene.begin()
        yield scene


async def test_what_came_while_it_wrote_is_settled_by_the_next_pass(scene: Scene):
    assert await scene.run_pass()  # there is more
    assert await scene.statuses() == ["succeeded", "queued"]
    assert not await scene.run_pass()
    assert await scene.statuses() == ["succeeded", "succeeded"]


async def test_what_it_claimed_ahead_is_given_back_when_it_stops(scene: Scene):
    await scene.run_pass()
    await scene.settler.finish()
    [notice] = await scene.web.services.store.claim_notices(10)
    assert (notice.submission_id, notice.tries) == (scene.ids[1], 1)


async def test_what_nobody_claimed_ahead_needs_no_giving_back(scene: Scene):
    await scene.run_pass()
    await scene.run_pass()
    await scene.settler.finish()
    assert await scene.web.services.store.claim_notices(10) == []


class Door:
    """A settler at work behind the real inbox; it has looked once, and nobody waited."""

    def __init__(self, web: Web) -> None:
        self.web, self.store, self.wakes = web, web.services.store, 0
        self.settler = Settler(web.services.settling, SystemClock(), self.wake, web.services.inbox._rush)
        web.services.inbox._settler = self.settler
        self.ids: list[str] = []

    def wake(self) -> None:
        self.wakes += 1

    async def begin(self, jobs: int) -> None:
        for number in range(jobs):
            submitted = await self.web.submit()
            await self.web.accept(submitted["submission_id"], f"elk-{number}")
            self.ids.append(submitted["submission_id"])
        await self.run_pass()

    async def call_back(self, number: int, status: str = "completed") -> None:
        path = self.web.callback_path(self.ids[number])
        answer = await self.web.client.post(path, json={"id": f"elk-{number}", "status": status})
        assert answer.status_code == 200

    async def run_pass(self) -> bool:
        return await self.settler.run_pass(SystemClock().now())

    async def waiting(self) -> list[str | None]:
        """Whose callbacks another settler could claim now."""
        claimed = await self.store.claim_notices(100)
        await self.store.release_notices([notice.id for notice in claimed])
        return [notice.submission_id for notice in claimed]

    async def outcomes(self) -> list[Outcome | None]:
        page = await self.store.read_notices(NoticeFilter(channel=Channel.CALLBACK), 100, None)
        return [notice.outcome for notice in reversed(page.rows)]


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with open_web(tmp_path) as web:
        door = Door(web)
        await door.begin(3)
        yield door


async def test_a_callback_is_handed_over_and_settled_without_a_claim(door: Door, monkeypatch: pytest.MonkeyPatch):
    await door.call_back(0)
    assert (await door.waiting(), door.wakes) == ([], 1)
    claims = []

    async def claim_notices(limit: int) -> list[Notice]:
        claims.append(await door.outcomes())
        return []

    monkeypatch.setattr(door.store, "claim_notices", claim_notices)
    await door.run_pass()
    assert await door.outcomes() == [Outcome.APPLIED]
    assert all(outcomes != [None] or len(claims) == 1 for outcomes in claims)  # only ahead, for the next


async def test_several_callbacks_of_a_job_are_settled_in_the_order_they_came(door: Door):
    for status in ("processing", "completed", "failed"):
        await door.call_back(0, status)
    await door.run_pass()
    assert await door.outcomes() == [Outcome.APPLIED, Outcome.APPLIED, Outcome.LATE]


async def test_who_comes_behind_one_that_nobody_claimed_waits_behind_it(door: Door):
    await door.call_back(0, "processing")
    door.settler.leave()  # as after one for which there was no room
    await door.call_back(0, "completed")
    assert await door.waiting() == [door.ids[0]]
    while await door.run_pass():
        pass
    assert await door.outcomes() == [Outcome.APPLIED, Outcome.APPLIED]
    await door.call_back(1)
    assert await door.waiting() == []


async def test_no_more_are_handed_over_than_there_is_room_for(door: Door, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(door.settler, "_room", 1)
    for number in range(3):
        await door.call_back(number)
    assert await door.waiting() == door.ids[1:]
    while await door.run_pass():
        pass
    assert await door.outcomes() == [Outcome.APPLIED] * 3


async def test_large_ones_are_not_held_in_memory_by_the_hundred(door: Door, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(door.settler, "_room_bytes", 40)
    await door.call_back(0)
    await door.call_back(1)
    assert await door.waiting() == [door.ids[1]]


async def test_what_was_handed_over_is_given_back_when_it_stops(door: Door):
    await door.call_back(0)
    await door.settler.finish()
    assert await door.waiting() == [door.ids[0]]
    await door.call_back(1)
    assert await door.waiting() == door.ids[:2]


async def test_a_callback_that_cannot_be_kept_takes_up_no_room(door: Door, monkeypatch: pytest.MonkeyPatch):
    room = door.settler._room

    async def fail(notice: Notice, bound: object) -> Kept:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(door.store, "keep_and_claim", fail)
        answer = await door.web.client.post(door.web.callback_path(door.ids[0]), json={"id": "elk-0", "status": "completed"})
    assert (answer.status_code, door.settler._room) == (503, room)
    await door.call_back(0)
    await door.run_pass()
    assert await door.outcomes() == [Outcome.APPLIED]


async def test_while_the_store_is_away_the_pass_fails_and_keeps_what_it_has(door: Door, monkeypatch: pytest.MonkeyPatch):
    await door.call_back(0)

    async def fail(settlements: Sequence[Settlement]) -> Settled:
        raise StoreUnavailable("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(door.store, "settle_and_claim", fail)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await door.run_pass()
    while await door.run_pass():
        pass
    assert await door.outcomes() == [Outcome.APPLIED]
