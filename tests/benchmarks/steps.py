"""Everything that a store does, as steps to be measured: each on a database of `filling`, with what undoes it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from receiver.keys import ApiKey, Scope
from receiver.model import Channel, DeliveryState, Family, Outcome, Status
from receiver.stores.base import Store
from receiver.stores.terms import DeliveryFilter, JobFilter, NoticeBound, NoticeFilter, NoticeOutcome, Settlement
from receiver.times import from_micros
from tests.benchmarks.filling import Filling
from tests.factories import make_call, make_delivery, make_event, make_family, make_notice, make_poll, make_running_family, make_stored

DAY = timedelta(days=1)
BOUND = NoticeBound()
Step = Callable[[], Awaitable[Any]]


async def make_steps(store: Store, filling: Filling, *, live: int = 600, limit: int = 100) -> dict[str, Step]:
    """By what it is called in the table. A step may return what undoes it. `live` jobs are under way; pages have `limit` rows."""
    families = [make_running_family(created_at=filling.now) for _ in range(live)]
    async with asyncio.TaskGroup() as tasks:
        for family in families:
            tasks.create_task(store.create_submission(family))
            tasks.create_task(store.keep_notice(make_notice(family.submission.id, at=filling.now), BOUND))
    half = len(families) // 2
    await store.settle([settle_one(family, filling.now) for family in families[half:]])
    return {
        **list_jobs(store, filling, limit),
        **list_others(store, limit),
        **read(store, filling),
        **count(store, filling.now),
        **submit(store, filling.now),
        **settle(store, filling.now, iter(families[:half])),
        **claim(store, filling.now),
        **deliver(store, filling),
        **keep_up(store, filling.now),
        **prune(store, filling),
    }


def settle_one(family: Family, now: datetime) -> Settlement:
    job, event = family.jobs[0], make_event(family.jobs[0], "job.processing", at=now)
    return Settlement(
        submission=family.submission,
        version=family.submission.version,
        jobs=(replace(job, status=Status.PROCESSING, sequence=1),),
        notices=(make_notice(family.submission.id, job_id=job.id, outcome=Outcome.APPLIED, at=now),),
        events=(event,),
        deliveries=(make_delivery(event, next_attempt_at=now),),
        polls=(make_poll(job, due_at=now),),
        calls=(make_call(family.submission.id, at=now),),
    )


def list_jobs(store: Store, filling: Filling, limit: int) -> dict[str, Step]:
    """Every filter that the API and the pages offer, with the one that most jobs fit and the one that hardly any does."""
    old = from_micros(filling.start + filling.step * (filling.jobs // 2))
    found: dict[str, Step] = {}
    for provider, model, status, metadata, since in itertools.product(
        (None, "pixazo", "huzz"), (None, "pixazo-1"), (None, Status.SUCCEEDED, Status.EXPIRED), ({}, {"user": "7"}), (None, old)
    ):
        wanted = JobFilter(
            provider=provider, model=model, status=status, metadata=metadata, created_after=since, created_before=since and since + DAY
        )
        words = [provider, model, status, "metadata" if metadata else None, "a day" if since else None]
        found[f"jobs: {', '.join(word for word in words if word) or 'all'}"] = lambda wanted=wanted: store.read_jobs(wanted, limit, None)

    async def deep() -> None:
        await store.read_jobs(JobFilter(), limit, (await store.read_jobs(JobFilter(created_before=old), 1, None)).cursor)

    by_submission = JobFilter(submission_id=filling.id("sub", 7))
    return found | {"jobs: all, deep in": deep, "jobs: of a submission": lambda: store.read_jobs(by_submission, limit, None)}


def list_others(store: Store, limit: int) -> dict[str, Step]:
    found: dict[str, Step] = {}
    for state, handler in itertools.product((None, *DeliveryState), (None, "archive", "gone")):
        by_state = DeliveryFilter(state=state, handler=handler)
        name = ", ".join(word for word in (state, handler) if word) or "all"
        found[f"deliveries: {name}"] = lambda wanted=by_state: store.read_deliveries(wanted, limit, None)
    for outcome, provider, channel in itertools.product((None, *Outcome), (None, "huzz"), (None, Channel.CALLBACK, Channel.STREAM)):
        by_outcome = NoticeFilter(outcome=outcome, provider=provider, channel=channel)
        name = ", ".join(word for word in (outcome, provider, channel) if word) or "all"
        found[f"notices: {name}"] = lambda wanted=by_outcome: store.read_notices(wanted, limit, None)
    return found


def read(store: Store, filling: Filling) -> dict[str, Step]:
    middle = filling.jobs // 2
    some = range(1, 101)
    return {
        "a job": lambda: store.read_job(filling.id("job", middle)),
        "a timeline": lambda: store.read_timeline(filling.id("job", middle)),
        "a notice": lambda: store.read_notice(filling.id("ntc", middle)),
        "a delivery": lambda: store.read_delivery(filling.id("dlv", middle)),
        "jobs by remote id": lambda: store.find_jobs("pixazo", [f"remote-{middle}", "remote-1"]),
        "open jobs by remote id": lambda: store.find_open_jobs("pixazo", [f"remote-{middle}", "remote-1"]),
        "unconfirmed jobs": lambda: store.find_unconfirmed("pixazo"),
        "events, the oldest": lambda: store.read_events(0, 100),
        "an event's position": lambda: store.find_event_position(filling.id("evt", middle)),
        "the newest event": store.newest_event,
        "idempotency key": lambda: store.has_submission("", f"order-{middle}"),
        "100 families": lambda: store.load_families([filling.id("sub", n) for n in some]),
        "100 families and their polls": lambda: store.load_to_settle([filling.id("sub", n) for n in some]),
        "100 polls": lambda: store.load_polls([filling.id("job", n) for n in some]),
    }


def count(store: Store, now: datetime) -> dict[str, Step]:
    return {
        "count: open jobs": store.count_jobs,
        "count: open jobs of an account": lambda: store.count_open("pixazo", 1_000),
        "accounts with open jobs": store.open_accounts,
        "count: open deliveries": store.count_deliveries,
        "count: recent deliveries of a handler": lambda: store.count_recent("archive", now - timedelta(seconds=5), 100),
        "count: overdue": store.count_overdue,
        "count: inbox": store.inbox_depth,
        "oldest in the inbox": store.inbox_oldest,
        "last callback": store.last_callback_at,
        "has open jobs": lambda: store.has_open_jobs("pixazo"),
        "has no open jobs": lambda: store.has_open_jobs("huzz"),
        "costs of the last seconds": lambda: store.sum_costs("pixazo", now - timedelta(seconds=5)),
        "costs by model of the last seconds": lambda: store.add_up_costs(
            JobFilter(created_after=now - timedelta(seconds=5)), ["model"], 100
        ),
        "learned": store.read_learned,
        "counters": store.read_counters,
    }


def submit(store: Store, now: datetime) -> dict[str, Step]:
    made: list[str] = []

    async def create() -> None:
        family = make_family(provider="elkapi", created_at=now, idempotency_key=f"key-{len(made)}", metadata={"user": "7"})
        made.append(family.submission.id)
        await store.create_submission(family)

    async def claim() -> Step:
        claimed = await store.claim_submissions(now, 1, ["elkapi", "pixazo"])
        return lambda: store.release_submission(claimed[0].submission.id, now)

    async def send() -> None:
        for family in await store.claim_submissions(now, 1, ["elkapi"]):
            await store.mark_sent(family.submission.id, now)

    return {
        "create a submission": create,
        "claim submissions": claim,
        "mark one sent": send,
        "claim lost submissions": lambda: store.claim_lost_submissions(64),
    }


def settle(store: Store, now: datetime, families: Iterator[Family]) -> dict[str, Step]:
    async def one() -> None:
        assert await store.settle([settle_one(next(families), now)]) == [True]

    async def one_and_claim() -> Step:
        settlement = settle_one(next(families), now)
        (pending,) = settlement.deliveries
        claiming = replace(settlement, deliveries=(replace(pending, state=DeliveryState.RUNNING, attempts=1),))
        _, claimed = await store.settle_and_claim([claiming])
        return lambda: store.release_deliveries([delivery.id for delivery, _ in claimed])

    async def keep() -> None:
        await asyncio.gather(*(store.keep_notice(make_notice(f"sub_{n}", at=now), BOUND) for n in range(64)))

    async def keep_and_claim() -> Step:
        notices = [replace(make_notice(f"sub_{n}", at=now), tries=1) for n in range(64)]
        await asyncio.gather(*(store.keep_and_claim(notice, BOUND) for notice in notices))
        return lambda: store.release_notices([notice.id for notice in notices])

    async def set_aside() -> Step:
        notice = make_notice(None, at=now)
        await store.keep_notice(notice, BOUND)
        await store.claim_notices(10_000)
        await store.set_aside_notices([NoticeOutcome(id=notice.id, outcome=Outcome.UNREADABLE)])
        return lambda: store.reopen_notice(notice.id)

    # The one that is set aside is claimed with all others: before there are 64 more.
    return {
        "settle": one,
        "settle and claim": one_and_claim,
        "set a notice aside": set_aside,
        "keep 64 notices": keep,
        "keep and claim 64 notices": keep_and_claim,
    }


def claim(store: Store, now: datetime) -> dict[str, Step]:
    later = now + timedelta(hours=2)

    async def notices() -> Step:
        ids = [notice.id for notice in await store.claim_notices(64)]
        return lambda: store.release_notices(ids)

    async def polls() -> Step:
        claimed = await store.claim_polls(later, 64, ["elkapi", "pixazo"])
        return lambda: store.release_polls([poll for poll, _ in claimed])

    async def deliveries() -> Step:
        claimed = await store.claim_deliveries(later, {"archive": 64, "gone": 64})
        return lambda: store.release_deliveries([delivery.id for delivery, _ in claimed])

    return {
        "claim notices": notices,
        "claim polls": polls,
        "claim deliveries": deliveries,
        "overdue deadlines": lambda: store.claim_overdeadline(now, 200),
    }


def deliver(store: Store, filling: Filling) -> dict[str, Step]:
    now = filling.now

    async def finish() -> Step:
        claimed = await store.claim_deliveries(now + DAY, {"archive": 16})
        ended = [replace(delivery, state=DeliveryState.DEAD) for delivery, _ in claimed]
        await store.finish_deliveries(ended)
        return lambda: asyncio.gather(*(store.replay(DeliveryFilter(), now, delivery.id) for delivery in ended))

    async def emit() -> None:
        job = await store.read_job(filling.id("job", 9))
        assert job is not None
        event = make_event(job, "acme.billed", at=now)
        await store.emit(event, [make_delivery(event, next_attempt_at=now)])

    return {
        "finish 16 deliveries": finish,
        "emit": emit,
        "an output is stored": lambda: store.record_stored(filling.id("job", 9), 0, make_stored(), now),
        "replay what a job had": lambda: store.replay(DeliveryFilter(job_id=filling.id("job", 9)), now),
        "replay what of a handler is retrying": lambda: store.replay(DeliveryFilter(handler="gone", state=DeliveryState.RETRYING), now),
    }


def keep_up(store: Store, now: datetime) -> dict[str, Step]:
    key = ApiKey(id="key_1", name="ci", scopes=(Scope.READ,), digest="0" * 64, created_at=now)
    return {
        "poll a submission now": lambda: store.poll_now(now, submission_id="sub_none"),
        "poll a job now": lambda: store.poll_now(now, job_ids=["job_none"]),
        "poll an account now": lambda: store.poll_now(now, provider="pixazo"),
        "orphans that found their job": lambda: store.reopen_orphans("pixazo", ["remote-1"]),
        "all orphans": lambda: store.reopen_orphans("pixazo"),
        "bury dead nodes": store.bury_dead_nodes,
        "take a lease": lambda: store.take_lease("stream:oxen", now, DAY),
        "drop a lease": lambda: store.drop_lease("stream:oxen"),
        "take tokens": lambda: store.take_tokens("elkapi", now, 100.0, 1000, 1),
        "read breakers": store.read_breakers,
        "count a failure": lambda: store.count_failure("elkapi", now, "HTTP 500"),
        "leave alone": lambda: store.leave_alone("elkapi", now),
        "forgive": lambda: store.forgive("elkapi"),
        "add counts": lambda: store.add_counts({("receiver", "starts"): 1}),
        "check": store.check_writable,
        "create a key": lambda: store.create_key(key),
        "read keys": store.read_keys,
        "revoke a key": lambda: store.revoke_key(key.id, now),
    }


def prune(store: Store, filling: Filling) -> dict[str, Step]:
    numbers = itertools.count(1)
    year = timedelta(days=365)
    first = from_micros(filling.start + 60_000_000 + 300 * filling.step)  # 299 jobs had ended then
    return {
        "delete a job": lambda: store.delete_job(filling.id("job", next(numbers))),
        "prune, nothing old": lambda: store.prune(filling.now, year, year, DAY, 200),
        "prune 10": lambda: store.prune(filling.now, filling.now - first, year, DAY, 10),
        "empty bodies": lambda: store.prune(filling.now, year, timedelta(days=6), DAY, 10),
    }
