"""Moving an installation from SQLite to PostgreSQL: everything arrives, nobody works with halves, and it can be begun again."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import pytest
from msgspec.structs import replace

from receiver.clock import SystemClock
from receiver.errors import ConfigError
from receiver.keys import ApiKey, Scope
from receiver.model import DeliveryState, JobError, Outcome, Status
from receiver.stores import open_store
from receiver.stores.moved import note_of
from receiver.stores.moving import LEFT, TABLES, move
from receiver.stores.terms import DeliveryFilter, Duration, JobFilter, NoticeBound, NoticeFilter, Settlement
from tests.factories import (
    NOW,
    make_call,
    make_delivery,
    make_event,
    make_family,
    make_id,
    make_notice,
    make_output,
    make_poll,
    make_running_family,
    make_stored,
    seconds,
)
from tests.postgres import connect, get_server

pytestmark = pytest.mark.long

BOUND = NoticeBound()
CLOCK, HOUR = SystemClock(), timedelta(hours=1)
DEAD = "0123456789abcdef"  # a node that was killed


@pytest.fixture
async def url():
    return await get_server().make_database()


@pytest.fixture
async def path(tmp_path):
    """A file with something of everything, in which a node died that had claimed what it could."""
    path = tmp_path / "receiver.db"
    async with open_store(f"sqlite:///{path}") as store:
        await fill(store)
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO nodes (id) VALUES (?)", (DEAD,))
        db.execute("UPDATE submissions SET claimed_by = ? WHERE state <> 'answered'", (DEAD,))
        db.execute("UPDATE notices SET claimed_by = ? WHERE outcome IS NULL", (DEAD,))
        db.execute("UPDATE polls SET claimed_by = ?, asked_at = due_at - 1", (DEAD,))
        db.execute("UPDATE deliveries SET state = 'running', stage = NULL, claimed_by = ? WHERE state = 'pending'", (DEAD,))
        db.executemany(
            "INSERT INTO notices (id, channel, provider, at, headers, outcome, repeats, tries)"
            " VALUES (?, 'callback', 'elkapi', 1, '{}', 'orphan', 0, 0)",
            [(make_id("ntc"),) for _ in range(4_500)],
        )
        db.commit()
    return path


async def fill(store):
    await store.create_submission(make_family(next_attempt_at=NOW, idempotency_key="order-1", body_hash="h"))
    open_one = make_running_family(metadata={"user": "42", "team": "r\u00e9d"})
    ended = make_running_family(2, job={"status": Status.SUCCEEDED, "outputs": (make_output(stored=make_stored()),), "finished_at": NOW})
    failed = make_running_family(job={"status": Status.FAILED, "error": JobError("provider_error", "a \0 in it"), "remote_id": "a\0b"})
    for family in (open_one, ended, failed):
        await store.create_submission(family)
        job = family.jobs[0]
        submitted, told = (make_event(job, kind, sequence=n) for n, kind in ((1, "job.submitted"), (2, f"job.{job.status}")))
        settlement = Settlement(
            submission=family.submission,
            version=0,
            jobs=tuple(replace(job, sequence=2) for job in family.jobs),
            notices=(make_notice(family.submission.id, job_id=job.id, outcome=Outcome.APPLIED, body=bytes(range(256))),),
            events=(submitted, told),
            deliveries=(make_delivery(submitted), make_delivery(told), make_delivery(told, "slack", state=DeliveryState.DEAD)),
            polls=(make_poll(job, attempts=3),) if not job.is_final else (),
            calls=(make_call(family.submission.id),),
            durations=tuple(Duration(provider="elkapi", model="kling-v2", seconds=n / 7) for n in range(3)),
        )
        assert await store.settle([settlement]) == [True]
    await store.keep_notice(make_notice(open_one.submission.id), BOUND)
    await store.keep_notice(make_notice("sub_gone"), BOUND)
    await store.create_key(ApiKey(id="key_1", name="ci", scopes=(Scope.SUBMIT,), digest="d", created_at=NOW))
    await store.add_counts({("provider:elkapi", "polls"): 7})
    await store.count_failure("elkapi", NOW, "HTTP 500")
    await store.leave_alone("elkapi", NOW)
    await store.take_tokens("elkapi", NOW, 1, 5, 3)
    await store.take_lease("stream:oxen", NOW, seconds(60))


async def read_all(store):
    """All that a user can see of an installation."""
    jobs = (await store.read_jobs(JobFilter(), 100, None)).rows
    return {
        "jobs": jobs,
        "by metadata": [job.id for job in (await store.read_jobs(JobFilter(metadata={"user": "42"}), 9, None)).rows],
        "timelines": [await store.read_timeline(job.id) for job in jobs],
        "notices": (await store.read_notices(NoticeFilter(), 10_000, None)).rows,
        "deliveries": (await store.read_deliveries(DeliveryFilter(), 100, None)).rows,
        "events": await store.read_events(0, 100),
        "families": await store.load_families([job.submission_id for job in jobs]),
        "polls": await store.load_polls([job.id for job in jobs]),
        "keys": await store.read_keys(),
        "learned": await store.read_learned(),
        "counters": await store.read_counters(),
        "breakers": await store.read_breakers(),
        "depth": await store.inbox_depth(),
    }


def silent(*_):
    pass


async def test_everything_arrives_and_can_be_claimed_again(path, url):
    counts = await move(path, url, silent, CLOCK)
    assert counts["notices"] == 4_505
    note_of(path).unlink()
    async with open_store(f"sqlite:///{path}") as store:
        before = await read_all(store)
    async with open_store(url) as store:
        after = await read_all(store)
        for what, seen in before.items():
            assert cleaned(after[what]) == cleaned(seen), what
        assert len(await store.claim_submissions(NOW, 9, ["elkapi"])) == 1
        assert len(await store.claim_notices(9)) == 2
        assert [poll.attempts for poll, _ in await store.claim_polls(NOW, 9, ["elkapi"])] == [3]
        assert {one.state for one, _ in await store.claim_deliveries(NOW, {"archive": 9})} == {DeliveryState.RUNNING}
        assert await store.has_submission("", "order-1")
        assert await store.take_tokens("elkapi", NOW, 1, 5, 5) == (2, NOW + seconds(1))
        assert await store.take_lease("stream:oxen", NOW, seconds(60))


def cleaned(value):
    """The one character that PostgreSQL does not have."""
    return repr(value).replace("\\x00", "\ufffd")


@pytest.mark.parametrize("ahead", [0, 1 << 50])
async def test_what_comes_later_stands_behind_what_was_moved(path, url, ahead):
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE events SET position = position + ?", (ahead,))
        db.commit()
    await move(path, url, silent, CLOCK)
    async with open_store(url) as store:
        moved = await store.read_events(0, 100)
        notice, event = make_notice(None), make_event(None, "receiver.started")
        await store.keep_notice(notice, BOUND)
        await store.emit(event, [])
        assert (await store.read_notices(NoticeFilter(), 1, None)).rows[0].id == notice.id
        assert [one.id for _, one, _ in await store.read_events(moved[-1][0], 9)] == [event.id]
        assert await store.find_event_position(moved[0][1].id) == moved[0][0]


async def test_every_table_and_column_is_moved_or_left_on_purpose(path, url):
    async with open_store(url):
        pass
    with closing(sqlite3.connect(path)) as db:
        here = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")}
        assert here - {"learned"} | {"durations"} == {*TABLES, *LEFT}
        async with connect(url) as raw:
            for table in set(TABLES) - {"durations"}:
                columns = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
                there = await raw.fetch(
                    "SELECT column_name FROM information_schema.columns WHERE table_name = $1 AND is_generated = 'NEVER'", table
                )
                assert columns == {row[0] for row in there}, table


async def test_a_database_with_something_in_it_is_refused_and_the_file_stays_in_use(path, url):
    async with open_store(url) as store:
        await store.create_submission(make_family())
    with pytest.raises(ConfigError, match="is not empty: there are submissions"):
        await move(path, url, silent, CLOCK)
    async with open_store(f"sqlite:///{path}") as store:
        await store.check_writable()


async def test_a_database_that_a_server_works_with_is_refused(path, url):
    async with open_store(url):
        with pytest.raises(ConfigError, match="a server works with"):
            await move(path, url, silent, CLOCK)


async def test_half_a_copy_of_another_time_is_refused(path, url):
    with pytest.raises(Interrupted):
        await move(path, url, interrupt, CLOCK)
    note_of(path).unlink()  # somebody went on with the file
    with pytest.raises(ConfigError, match="at another time"):
        await move(path, url, silent, CLOCK)
    assert not note_of(path).exists()


class Interrupted(Exception):
    pass


def interrupt(what, table, done, there):
    if table == "notices" and done >= 2_000:
        raise Interrupted


async def test_nobody_works_with_a_half_and_it_goes_on_where_it_stopped(path, url):
    with pytest.raises(Interrupted):
        await move(path, url, interrupt, CLOCK)
    for half in (f"sqlite:///{path}", url):
        with pytest.raises(ConfigError, match="run the same `receiver migrate"):
            async with open_store(half):
                pass
    told = []
    await move(path, url, lambda *words: told.append(words), CLOCK)
    assert ("copied", "jobs") not in {words[:2] for words in told}
    assert told[0][:3] == ("copied", "notices", 4_000)
    with pytest.raises(ConfigError, match="was moved to"):
        async with open_store(f"sqlite:///{path}"):
            pass


async def test_who_starts_meanwhile_is_told_at_once(path, url):
    async def start():
        async with open_store(f"sqlite:///{path}"):
            pass

    def meanwhile(what, table, done, there):
        if (what, table) == ("copied", "jobs"):
            told.append(elsewhere.submit(asyncio.run, start()).exception(timeout=8))  # before it gives up waiting for the lock

    told = []
    with ThreadPoolExecutor(1) as elsewhere:
        await move(path, url, meanwhile, CLOCK)
    assert "half moved" in str(told[0])


async def test_once_more_is_harmless_and_into_another_database_refused(path, url):
    counts = await move(path, url, silent, CLOCK)
    assert await move(path, url, silent, CLOCK) == counts
    with pytest.raises(ConfigError, match="to move it once more"):
        await move(path, await get_server().make_database(), silent, CLOCK)


async def test_a_row_that_is_not_what_it_was_is_found(path, url):
    async def change():
        async with connect(url) as raw:
            await raw.execute("UPDATE events SET envelope = replace(envelope, 'succeeded', 'failed')")

    class Stopped(Exception):
        pass

    def stop(what, table, done, there):
        if table == "calls":
            raise Stopped

    with pytest.raises(Stopped):
        await move(path, url, stop, CLOCK)
    await change()
    with pytest.raises(ConfigError, match=r"events in .* are not what was copied"):
        await move(path, url, silent, CLOCK)


class LateClock(SystemClock):
    def now(self):
        return super().now() - HOUR


async def test_times_stand_by_the_clock_of_the_database(path, url):
    await move(path, url, silent, LateClock())
    async with open_store(url) as store:
        jobs = (await store.read_jobs(JobFilter(), 9, None)).rows
        assert {abs(job.created_at - NOW - HOUR) < seconds(1) for job in jobs} == {True}
