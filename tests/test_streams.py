"""A stream that is held, where asking about all open jobs takes its time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from receiver.app import check
from receiver.config import load
from receiver.errors import AnswerLost, StoreUnavailable
from receiver.model import Status
from receiver.net import ServerEvent
from tests.factories import NOW, make_running_family
from tests.stage import Stage

CONFIG = """
[server]
api_keys = ["a-key-of-the-story"]
[providers.oxen]
api_key = "key-of-oxen"
"""
UNREADABLE = ServerEvent("media_generation_completed", "[")
DONE = {"generation_id": "gen-1", "status": "succeeded", "url": "https://hub.oxen.ai/1.png"}
BOUND = 30


class Walks:
    """Stands before `poll_now` of a store: each walk over all jobs waits until it is let go."""

    def __init__(self, store) -> None:
        self._poll_now, self.begun, self.ended, self.free = store.poll_now, 0, 0, asyncio.Event()
        self.faults: list[Exception] = []
        store.poll_now = self.poll_now

    async def poll_now(self, now, **which):
        self.begun += 1
        await self.free.wait()
        try:
            if self.faults:
                raise self.faults.pop()
            return await self._poll_now(now, **which)
        finally:
            self.ended += 1


@pytest.fixture
async def stage(tmp_path):
    async def reply(request):
        raise AnswerLost("no answer")

    async def handle(event):
        return

    stage = Stage(check(load(CONFIG, {}, folder=tmp_path)), NOW, reply, handle)
    await stage.open()
    yield stage
    await stage.close()


async def run_job(stage, remote_id):
    family = make_running_family(provider="oxen", model="flux", job={"remote_id": remote_id}, created_at=NOW)
    await stage.store.create_submission(family)
    return family.jobs[0].id


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(BOUND):
        while not await condition():
            await asyncio.sleep(0.005)


async def is_so(condition):
    return condition


async def is_asked_about(stage, job_id):
    poll = (await stage.store.load_polls([job_id])).get(job_id)
    return poll is not None and poll.due_at <= stage.clock.now()


async def has_succeeded(stage, job_id):
    job = await stage.store.read_job(job_id)
    return job.status is Status.SUCCEEDED


async def test_what_a_stream_says_is_settled_while_all_open_jobs_are_still_asked_about(stage):
    job_id = await run_job(stage, "gen-1")
    walks = Walks(stage.store)
    await stage.run_pass("stream")
    await until(lambda: is_so(walks.begun == 1))
    await stage.hear(ServerEvent("media_generation_completed", json.dumps(DONE)))
    await until(lambda: has_succeeded(stage, job_id))
    assert walks.begun == 1
    walks.free.set()


async def test_events_that_cannot_be_read_while_jobs_are_asked_about_ask_once_more_not_once_each(stage):
    job_id = await run_job(stage, "gen-1")
    walks = Walks(stage.store)
    await stage.run_pass("stream")
    await until(lambda: is_so(walks.begun == 1))
    for _ in range(20):
        await stage.hear(UNREADABLE)
    await until(lambda: is_so(not stage.client.unheard))
    walks.free.set()
    await until(lambda: is_asked_about(stage, job_id))
    await until(lambda: is_so(walks.ended == walks.begun))
    assert walks.begun == 2


async def test_all_jobs_are_asked_about_though_the_store_is_away_for_a_while(stage):
    job_id = await run_job(stage, "gen-1")
    walks = Walks(stage.store)
    walks.free.set()
    walks.faults = [StoreUnavailable("away")]
    await stage.run_pass("stream")
    await until(lambda: is_so(walks.ended == 1))

    async def is_asked_about_later():
        stage.clock.advance(timedelta(seconds=1))
        return await is_asked_about(stage, job_id)

    await until(is_asked_about_later)
    assert "oxen" in stage._house._streams.up
