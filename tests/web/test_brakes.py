"""The brakes on money."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from receiver.model import Channel, Cost, Status, Update
from receiver.rules import apply_update
from tests.web.opened import ELK, SUBMIT_NOW, Web, open_web


@asynccontextmanager
async def braked(folder: Path, **brakes: float) -> AsyncIterator[Web]:
    async with open_web(folder) as web:
        config = web.services.config
        providers = config.providers | {"elkapi": replace(config.providers["elkapi"], **brakes)}
        object.__setattr__(web.services, "config", replace(config, providers=providers))
        yield web


async def submit(web: Web, body=ELK, **headers: str):
    return await web.client.post("/v1/jobs", json=body, headers=SUBMIT_NOW | headers)


async def succeed(web: Web, answer, cost: float) -> None:
    submission_id = answer.json()["submission_id"]
    await web.accept(submission_id, "elk-1")
    update = Update(remote_id="elk-1", status=Status.SUCCEEDED, cost=Cost(cost, "credits"))
    now = web.services.clock.now()
    await web.settle(submission_id, lambda family: apply_update(family, update, Channel.POLL, now), Channel.POLL)
    web.app.state.brakes._sums.clear()  # a sum counts for a second


async def test_no_more_jobs_are_open_than_the_account_allows(tmp_path):
    async with braked(tmp_path, max_open=2) as web:
        answers = await asyncio.gather(*(submit(web) for _ in range(6)))
        assert sorted(answer.status_code for answer in answers) == [202, 202, 429, 429, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) > 0
        assert "2 jobs are open, and 2 may be (max_open under [providers.elkapi])" in refused.json()["detail"]
        assert (await submit(web, ELK | {"provider": "huzz", "model": "kling/v2"})).status_code == 202
        await succeed(web, next(answer for answer in answers if answer.status_code == 202), 1)
        assert (await submit(web)).status_code == 202
        text = (await web.client.get("/metrics")).text
        assert 'receiver_submissions_refused_total{brake="max_open",provider="elkapi"} 4.0' in text


async def test_a_day_costs_no_more_than_the_account_allows(tmp_path):
    async with braked(tmp_path, max_cost_per_day=10) as web:
        await succeed(web, await submit(web), 9.5)
        last = await submit(web)
        assert last.status_code == 202
        await succeed(web, last, 3)
        refused = await submit(web)
        assert (refused.status_code, 0 < int(refused.headers["retry-after"]) <= 86_401) == (429, True)
        assert "cost 12.5, and 10 is the limit of a day" in refused.json()["detail"]
        assert (await web.client.get("/v1/jobs")).json()["jobs"][0]["id"] == last.json()["jobs"][0]["id"]


async def test_a_repeated_request_is_answered_whatever_the_brakes_say(tmp_path):
    async with braked(tmp_path, max_open=1, max_cost_per_day=0.5) as web:
        first = await submit(web, **{"Idempotency-Key": "order-1"})
        await succeed(web, first, 1)
        assert (await submit(web, **{"Idempotency-Key": "order-2"})).status_code == 429
        again = await submit(web, **{"Idempotency-Key": "order-1"})
        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
        assert (await submit(web, ELK | {"metadata": {"a": "b"}}, **{"Idempotency-Key": "order-1"})).status_code == 422


async def test_nothing_at_all_is_allowed_by_zero(tmp_path):
    async with braked(tmp_path, max_open=0) as web:
        assert (await submit(web)).status_code == 429
        page = await web.client.post("/try", data={"provider": "elkapi", "model": "flux", "input": "{}", "token": "t"})
        assert "max_open under [providers.elkapi]" in page.text
