"""The settler claims the next callbacks while it writes the last ones, and gives back what it no longer settles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from receiver.clock import SystemClock
from receiver.settler import Settler
from receiver.stores.claiming import Settled
from receiver.stores.terms import Settlement
from tests.web.opened import Web, open_web


class Scene:
    """Two jobs of one provider; the second one's callback comes while the first one's is written."""

    def __init__(self, web: Web) -> None:
        self.web, self.settler = web, Settler(web.services.settling, SystemClock())
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
