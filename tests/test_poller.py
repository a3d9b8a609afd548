"""Asking about many jobs by one call, and about those that it does not name."""

import asyncio
import json
import os
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from receiver.app import check, run
from receiver.config import load
from receiver.stores.terms import JobFilter, Settlement
from tests.factories import make_poll, make_running_family
from tests.loopback import response, serve

BOUND = 30.0


def row(remote_id, status):
    return {"generation_id": remote_id, "status": status, "result_url": f"https://cdn.example.com/{remote_id}.png", "model_name": "elk-1"}


class Oxen:
    """Lists what it is told to; what is asked for alone has succeeded."""

    def __init__(self, *listed):
        self.listed = [row(remote_id, "processing") for remote_id in listed]
        self.lists, self.singles, self.at_once, self.most_at_once = 0, [], 0, 0

    async def __call__(self, seen, writer):
        last = seen.target.partition("?")[0].rsplit("/", 1)[1]
        if last == "queue":
            self.lists += 1
            body = {"generations": self.listed}
        else:
            self.singles.append(last)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await asyncio.sleep(0.01)
            self.at_once -= 1
            body = row(last, "succeeded")
        writer.write(response(body=json.dumps(body).encode(), content_type="application/json"))


@asynccontextmanager
async def polling(folder, oxen, remote_ids, interval, failures=0):
    """A process that polls, over a store with these jobs, all of them due. Gives the store."""
    async with serve(oxen) as peer:
        text = (
            f'[store]\nurl = "sqlite:///{folder}/receiver.db"\n[providers.oxen]\napi_key = "k"\nbase_url = "{peer.url}"\n'
            f'[polling]\nconcurrency = 5\ninterval = "{interval}"\nmax_interval = "{interval}"\n'
        )
        plan = check(load(text, os.environ, folder=folder))
        async with run(plan, ()) as services:
            await seed(services.store, remote_ids)
            for _ in range(failures):
                await services.store.count_failure("oxen", datetime.now(UTC), "HTTP 500")
        async with run(plan, ("poll",)) as services:
            yield services.store


async def seed(store, remote_ids):
    now = datetime.now(UTC)
    for remote_id in remote_ids:
        family = make_running_family(provider="oxen", created_at=now, job={"remote_id": remote_id})
        await store.create_submission(family)
        polls = tuple(make_poll(job, due_at=now) for job in family.jobs)
        assert await store.settle([Settlement(submission=family.submission, version=0, polls=polls)]) == [True]


async def until(condition):
    async with asyncio.timeout(BOUND):
        while not await condition():
            await asyncio.sleep(0.02)


async def jobs_of(store):
    return (await store.read_jobs(JobFilter(), 1000, None)).rows


async def test_one_call_answers_for_all_that_it_names_two_of_one_id_too(tmp_path):
    oxen = Oxen("r1", "r2", "r3", "r4")
    async with polling(tmp_path, oxen, ["r1", "r1", "r2", "r3", "r4"], "0.2s") as store:

        async def asked_twice():
            polls = await store.load_polls([job.id for job in await jobs_of(store)])
            return len(polls) == 5 and all(poll.attempts > 1 for poll in polls.values())

        await until(asked_twice)
    assert oxen.lists >= 2
    assert oxen.singles == []


async def test_a_list_that_is_answered_shows_a_failing_provider_well_again(tmp_path):
    ids = ["r1", "r2", "r3"]
    async with polling(tmp_path, Oxen(*ids), ids, "0.2s", failures=5) as store:

        async def is_well():
            breaker = (await store.read_breakers()).get("oxen")
            return breaker is None or breaker.failures == 0

        async def is_counted():
            return (await store.read_counters()).get(("provider:oxen", "polls_answered"), 0) >= 3

        await until(is_well)
        await until(is_counted)


async def test_what_the_list_does_not_name_is_asked_for_alone_as_many_at_once_as_allowed(tmp_path):
    oxen = Oxen()
    async with polling(tmp_path, oxen, [f"r{number}" for number in range(60)], "30s") as store:

        async def all_home():
            return all(job.is_final for job in await jobs_of(store))

        await until(all_home)
    assert sorted(oxen.singles) == sorted(f"r{number}" for number in range(60))
    assert oxen.most_at_once <= 5
    assert oxen.lists == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_where_the_list_is_refused_nobody_is_asked_about_alone_until_the_provider_may_be_asked_again(tmp_path, status):
    class Busy(Oxen):
        async def __call__(self, seen, writer):
            if self.lists or not seen.target.partition("?")[0].endswith("queue"):
                await super().__call__(seen, writer)
                return
            self.lists += 1
            writer.write(response(status, b"{}", content_type="application/json", retry_after="1"))

    names = [f"gen-{number}" for number in range(20)]
    oxen = Busy(*names)
    async with polling(tmp_path, oxen, names, "0.2s") as store:
        await until(lambda: asyncio.sleep(0, oxen.lists > 1))
        assert oxen.singles == []
        polls = await store.load_polls([job.id for job in await jobs_of(store)])
        assert all(poll.failures <= 1 for poll in polls.values())
