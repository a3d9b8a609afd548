"""What only the PostgreSQL store has: nodes by heartbeat, one clock for all, poolers, outages, and races that are forced."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

import pytest
import structlog
from msgspec.structs import replace

from receiver.clock import SystemClock
from receiver.errors import ConfigError, Conflict, StoreUnavailable
from receiver.model import DeliveryState, JobError, Outcome, Status
from receiver.stores import open_store, postgres_access, postgres_nodes
from receiver.stores.postgres_changes import CHANNEL, TELL_EVERY
from receiver.stores.postgres_outbox import insert_events
from receiver.stores.rows import encode_event
from receiver.stores.terms import DeliveryFilter, JobFilter, NoticeBound, NoticeOutcome, Settlement
from tests.factories import (
    NOW,
    make_delivery,
    make_event,
    make_family,
    make_notice,
    make_poll,
    make_running_family,
    seconds,
)
from tests.pooler import open_pooler
from tests.postgres import connect, get_server

pytestmark = pytest.mark.long

BOUND = NoticeBound(callbacks=10**6, bytes=10**9)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture
async def url():
    server = get_server()
    url = await server.take_database()
    yield url
    await server.give_back(url)


@pytest.fixture
async def empty_url():
    return await get_server().make_database()


@pytest.fixture
async def store(url):
    async with open_store(url) as opened:
        yield opened


@pytest.fixture
async def raw(url):
    """A second connection, for what another program does meanwhile."""
    async with connect(url) as connection:
        yield connection


@pytest.fixture
async def stoppable():
    server = get_server()
    if server.wheel is None:
        pytest.skip("the server that RECEIVER_TEST_POSTGRES_URL names is not ours to stop")
    yield server
    await asyncio.to_thread(server.start)


def changed(url, **parts):
    return urlunsplit(urlsplit(url)._replace(**parts))


def bounded(seconds=10):
    return asyncio.timeout(seconds)


async def until(condition):
    async with bounded():
        while not await condition():
            await asyncio.sleep(0.01)


async def die(raw, store):
    """What the others see of a process that is killed: no more heartbeats."""
    store._heart.cancel()
    await raw.execute("UPDATE nodes SET seen_at = 0 WHERE id = $1", store.node)


async def put_poll(store, provider="elkapi", **fields):
    family = make_running_family(provider=provider)
    await store.create_submission(family)
    poll = make_poll(family.jobs[0], **fields)
    assert await store.settle([Settlement(submission=family.submission, version=0, polls=(poll,))]) == [True]
    return poll


async def put_event(store, family, sequence, type="job.succeeded", handler="archive"):
    now = (await store.load_families([family.submission.id]))[family.submission.id]
    event = make_event(now.jobs[0], type, sequence=sequence)
    delivery = make_delivery(event, handler)
    jobs = (replace(now.jobs[0], sequence=sequence),)
    settlement = Settlement(submission=now.submission, version=now.submission.version, jobs=jobs, events=(event,), deliveries=(delivery,))
    assert await store.settle([settlement]) == [True]
    return delivery


class TestOpening:
    def test_a_missing_driver_is_named_with_the_line_that_installs_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "asyncpg", None)
        with pytest.raises(ConfigError, match=r'pip install "callback-receiver\[postgres\]"'):
            open_store("postgresql://user@host/db")

    @pytest.mark.parametrize(
        "parts", [{"path": "/not_there"}, {"netloc": "nobody:secret-word@"}, {"netloc": "postgres:secret-word@host:port"}]
    )
    async def test_a_database_that_cannot_be_used_is_a_mistake_in_the_configuration_without_its_password(self, url, parts):
        with pytest.raises(ConfigError) as refused:
            async with open_store(changed(url, **parts)):
                pass
        assert refused.value.mistakes[0].key == "store.url"
        assert "secret-word" not in str(refused.value)

    async def test_a_listening_address_that_cannot_be_used_is_named(self, url):
        with pytest.raises(ConfigError) as refused:
            async with open_store(url, listen_url=changed(url, path="/not_there")):
                pass
        assert refused.value.mistakes[0].key == "store.listen_url"

    @pytest.mark.parametrize("address", ["postgresql://postgres@127.0.0.1:1/db", "postgresql://postgres@/db?host=/nowhere"])
    async def test_a_server_that_is_away_is_an_outage(self, address):
        with pytest.raises(StoreUnavailable):
            async with open_store(address):
                pass

    async def test_many_nodes_start_at_once_on_an_empty_database(self, empty_url):
        async def visit():
            async with open_store(empty_url) as store:
                await store.add_counts({("", "visits"): 1})
                return store.node

        assert len(set(await asyncio.gather(*(visit() for _ in range(6))))) == 6
        async with open_store(empty_url) as store:
            assert await store.read_counters() == {("", "visits"): 6}

    async def test_a_newer_schema_is_refused(self, empty_url):
        async with open_store(empty_url):
            pass
        async with connect(empty_url) as raw:
            await raw.execute("INSERT INTO migrations VALUES (9999, 'from_the_future', 'x')")
        with pytest.raises(ConfigError, match="newer version") as refused:
            async with open_store(empty_url):
                pass
        assert "backup" in str(refused.value)

    async def test_tables_of_another_program_are_left_alone(self, empty_url):
        async with connect(empty_url) as raw:
            await raw.execute("CREATE TABLE jobs (title text)")
            with pytest.raises(ConfigError, match="another program"):
                async with open_store(empty_url):
                    pass
            assert await raw.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 1

    async def test_a_plan_that_was_made_while_tables_were_empty_does_not_read_all_of_them_later(self, empty_url):
        async def work(store):
            notice = make_notice("sub_1")
            await store.keep_notice(notice, BOUND)
            await store.claim_notices(9)
            await store.set_aside_notices([NoticeOutcome(id=notice.id, outcome=Outcome.APPLIED)])

        async with open_store(empty_url):
            pass
        async with connect(empty_url) as raw:
            await raw.execute("VACUUM ANALYZE")
            async with open_store(empty_url) as store:
                for _ in range(10):
                    await work(store)
                await raw.execute("INSERT INTO bodies SELECT -n, 'x' FROM generate_series(1, 2000) AS n")
                await raw.execute("INSERT INTO inboxes SELECT 'sub_2_' || n, 1, 1 FROM generate_series(1, 2000) AS n")
                await work(store)
            read = "SELECT sum(seq_tup_read)::int FROM pg_stat_user_tables WHERE relname IN ('bodies', 'inboxes', 'notices')"
            assert await raw.fetchval(read) < 1_000

    async def test_settings_that_can_lose_what_was_acknowledged_are_warned_of(self, url):
        with structlog.testing.capture_logs() as logs:
            async with open_store(f"{url}&options=-c%20synchronous_commit%3Doff" if "?" in url else f"{url}?synchronous_commit=off"):
                pass
        assert "synchronous_commit" in [line["setting"] for line in logs if line["event"] == "store.not_durable"]

    async def test_a_backup_names_the_tool_that_makes_one(self, store):
        with pytest.raises(Conflict, match="pg_dump"):
            await store.backup("/tmp/copy.db")

    async def test_nothing_is_left_of_a_closed_node(self, url, raw):
        async with open_store(url) as store:
            await store.check_writable()
        assert await raw.fetchval("SELECT count(*) FROM nodes") == 0
        others = "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        await until(lambda: raw.fetchval(others))
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("store-")] == []

    async def test_what_waits_is_written_before_the_end_and_later_work_is_refused(self, url):
        async with open_store(url) as store:
            waiting = [asyncio.create_task(store.keep_notice(make_notice("sub_1"), BOUND)) for _ in range(50)]
            await asyncio.sleep(0)
            await store.close()
            assert await asyncio.gather(*waiting) == [True] * 50
            with pytest.raises(StoreUnavailable):
                await store.check_writable()
            with pytest.raises(StoreUnavailable):
                await store.read_job("job_1")

    async def test_a_character_that_postgresql_cannot_hold_harms_nobody(self, store):
        family = make_running_family(metadata={"a\0b": "c\0"}, job={"remote_id": "r\0", "error": JobError("unknown", "x\0y")})
        await store.create_submission(family)
        ((job,),) = [family.jobs for family in (await store.load_families([family.submission.id])).values()]
        assert (job.remote_id, job.error) == ("r\ufffd", JobError("unknown", "x\0y"))
        assert [found.id for found in await store.find_open_jobs("elkapi", ["r\0"])] == [job.id]
        assert [found.id for found in (await store.read_jobs(JobFilter(metadata={"a\0b": "c\0"}), 9, None)).rows] == [job.id]


class TestNodes:
    async def test_what_a_killed_node_had_claimed_can_be_claimed_again(self, url, raw):
        async with open_store(url) as a, open_store(url) as b:
            waiting, sent = make_family(), make_family()
            await a.create_submission(sent)
            await a.claim_submissions(NOW, 1, ["elkapi"])
            await a.mark_sent(sent.submission.id, NOW)
            await a.create_submission(waiting)
            await a.claim_submissions(NOW, 1, ["elkapi"])
            event = make_event(None, "receiver.started")
            await a.emit(event, [make_delivery(event)])
            ((delivery, _),) = await a.claim_deliveries(NOW, {"archive": 1})
            await a.keep_notice(make_notice("sub_1"), BOUND)
            await a.claim_notices(1)
            await a.take_lease("stream:oxen", NOW, DAY)
            assert await b.bury_dead_nodes() == 0
            await die(raw, a)
            assert await b.bury_dead_nodes() == 1
            assert [family.submission.id for family in await b.claim_submissions(NOW, 9, ["elkapi"])] == [waiting.submission.id]
            assert [family.submission.id for family in await b.claim_lost_submissions(9)] == [sent.submission.id]
            assert [notice.tries for notice in await b.claim_notices(9)] == [2]
            assert await b.take_lease("stream:oxen", NOW, DAY)
            assert await a.finish_deliveries([replace(delivery, state=DeliveryState.DONE)]) == [False]
            assert not await a.mark_sent(waiting.submission.id, NOW)
            ((again, _),) = await b.claim_deliveries(NOW, {"archive": 1})
            assert again.attempts == 2
            assert await b.bury_dead_nodes() == 0

    async def test_a_node_that_was_buried_alive_goes_on_under_a_new_name(self, url, raw, monkeypatch):
        monkeypatch.setattr(postgres_nodes, "HEARTBEAT", 0.05)
        async with open_store(url) as a:
            poll, old_name = await put_poll(a), a.node
            await a.claim_polls(NOW, 1, ["elkapi"])
            await raw.execute("DELETE FROM nodes WHERE id = $1", old_name)  # with all that burying does, but the claims

            async def is_renamed():
                return await raw.fetchval("SELECT id FROM nodes WHERE id <> $1", old_name) == a.node

            await until(is_renamed)
            await a.release_polls([replace(poll, failures=1)])
            assert (await a.load_polls([poll.job_id]))[poll.job_id].failures == 0
            assert await a.claim_polls(NOW, 1, ["elkapi"]) == []
            assert await a.bury_dead_nodes() == 0  # nobody died, but a name was found that nobody bears
            assert len(await a.claim_polls(NOW, 1, ["elkapi"])) == 1

    async def test_a_heartbeat_keeps_a_node_alive(self, url, raw, monkeypatch):
        monkeypatch.setattr(postgres_nodes, "HEARTBEAT", 0.05)
        async with open_store(url) as a, open_store(url) as b:
            await raw.execute("UPDATE nodes SET seen_at = 0 WHERE id = $1", a.node)
            await until(lambda: raw.fetchval("SELECT seen_at > 0 FROM nodes WHERE id = $1", a.node))
            assert await b.bury_dead_nodes() == 0

    async def test_after_an_outage_the_others_get_their_time_to_come_back(self, url, raw):
        async with open_store(url) as a, open_store(url) as b:
            await die(raw, a)
            b._beaten_at -= postgres_nodes.LEASE
            assert await b._beat(postgres_nodes._LIVE)
            assert await b.bury_dead_nodes() == 0
            b._patient_until = 0.0
            assert await b.bury_dead_nodes() == 1

    async def test_a_poll_that_was_asked_for_while_its_node_died_is_still_asked_for(self, url, raw):
        async with open_store(url) as a, open_store(url) as b:
            poll = await put_poll(a)
            await a.claim_polls(NOW, 1, ["elkapi"])
            await b.poll_now(NOW - DAY, job_ids=[poll.job_id], cancel=True)
            await die(raw, a)
            await b.bury_dead_nodes()
            ((again, _),) = await b.claim_polls(NOW - DAY, 1, ["elkapi"])
            assert again == replace(poll, due_at=NOW - DAY, cancel=True)


class WrongClock(SystemClock):
    def __init__(self, ahead):
        self.ahead = ahead

    def now(self):
        return datetime.now(UTC) + self.ahead


class TestClock:
    @pytest.mark.parametrize("ahead", [HOUR, -HOUR])
    async def test_a_node_whose_clock_is_wrong_neither_claims_early_nor_loses_work(self, url, ahead):
        right, wrong = WrongClock(timedelta(0)), WrongClock(ahead)
        async with open_store(url, clock=right) as a, open_store(url, clock=wrong) as b:
            due = await put_poll(a, due_at=right.now() - seconds(1))
            later = await put_poll(a, due_at=right.now() + seconds(60))
            assert [poll.job_id for poll, _ in await b.claim_polls(wrong.now(), 9, ["elkapi"])] == [due.job_id]
            assert await b.claim_polls(wrong.now() + seconds(50), 9, ["elkapi"]) == []
            ((poll, job),) = await b.claim_polls(wrong.now() + seconds(70), 9, ["elkapi"])
            assert poll.job_id == later.job_id
            assert abs(poll.due_at - ahead - later.due_at) < seconds(1)  # what it reads is in its own terms
            assert abs(job.created_at - ahead - NOW) < seconds(1)
            await b.release_polls([replace(poll, due_at=wrong.now() + seconds(5))])
            assert await a.claim_polls(right.now(), 9, ["elkapi"]) == []
            assert len(await a.claim_polls(right.now() + seconds(7), 9, ["elkapi"])) == 1

    async def test_leases_and_limits_hold_against_a_wrong_clock(self, url):
        right, wrong = WrongClock(timedelta(0)), WrongClock(HOUR)
        async with open_store(url, clock=right) as a, open_store(url, clock=wrong) as b:
            assert await a.take_lease("stream:oxen", right.now(), seconds(60))
            assert not await b.take_lease("stream:oxen", wrong.now(), seconds(60))
            assert (await a.take_tokens("oxen", right.now(), 0.01, 3, 3))[0] == 3
            granted, room_at = await b.take_tokens("oxen", wrong.now(), 0.01, 3, 3)
            assert granted == 0
            assert seconds(90) < room_at - wrong.now() < seconds(101)

    async def test_a_clock_that_jumps_is_noticed_at_once(self, url):
        clock = WrongClock(timedelta(0))
        async with open_store(url, clock=clock) as store:
            poll = await put_poll(store, due_at=clock.now() + seconds(60))
            clock.ahead = HOUR
            assert await store.claim_polls(clock.now(), 9, ["elkapi"]) == []
            clock.ahead = -HOUR
            assert [one.job_id for one, _ in await store.claim_polls(clock.now() + seconds(61), 9, ["elkapi"])] == [poll.job_id]

    async def test_a_wrong_clock_lists_by_its_own_times(self, url):
        clock = WrongClock(HOUR)
        async with open_store(url, clock=clock) as store:
            family = make_running_family(created_at=NOW)
            await store.create_submission(family)
            for narrow, count in ((JobFilter(created_after=NOW), 1), (JobFilter(created_before=NOW), 0)):
                assert len((await store.read_jobs(narrow, 9, None)).rows) == count


class TestRaces:
    @asynccontextmanager
    async def holding(self, raw, statement, *values):
        async with raw.transaction():
            yield await raw.fetchval(f"{statement} LIMIT 1 FOR UPDATE", *values)

    async def test_a_row_that_someone_holds_delays_no_other(self, store, raw):
        families = [make_family(next_attempt_at=NOW + seconds(n)) for n in range(2)]
        polls = [await put_poll(store, due_at=NOW + seconds(n)) for n in range(2)]
        notices = [make_notice(f"sub_{n}") for n in range(2)]
        events = [make_event(None, "receiver.started", at=NOW + seconds(n)) for n in range(2)]
        for family, notice, event in zip(families, notices, events, strict=True):
            await store.create_submission(family)
            await store.keep_notice(notice, BOUND)
            await store.emit(event, [make_delivery(event)])
        later = NOW + seconds(9)
        async with bounded(3):
            async with self.holding(raw, "SELECT id FROM submissions WHERE state = 'waiting' ORDER BY next_attempt_at"):
                assert [one.submission.id for one in await store.claim_submissions(later, 9, ["elkapi"])] == [families[1].submission.id]
            async with self.holding(raw, "SELECT job_id FROM polls ORDER BY due_at"):
                assert [poll.job_id for poll, _ in await store.claim_polls(later, 9, ["elkapi"])] == [polls[1].job_id]
            async with self.holding(raw, "SELECT id FROM notices ORDER BY arrival"):
                assert [notice.id for notice in await store.claim_notices(9)] == [notices[1].id]
            async with self.holding(raw, "SELECT event_id FROM deliveries ORDER BY created_at"):
                assert [event.id for _, event in await store.claim_deliveries(later, {"archive": 9})] == [events[1].id]

    async def test_a_claim_of_two_accounts_leaves_the_others_what_it_does_not_take(self, store, raw):
        polls = [await put_poll(store, "elkapi" if n < 3 else "oxen", due_at=NOW + seconds(n)) for n in range(6)]
        locked = "SELECT count(*) FROM polls WHERE claimed_by IS NULL AND xmax::text <> '0'"
        assert await raw.fetchval(locked) == 0
        async with bounded(3), self.holding(raw, "SELECT job_id FROM polls ORDER BY due_at"):  # the next of its account stands in for it
            claimed = await store.claim_polls(NOW + seconds(9), 2, ["oxen", "elkapi"])
        assert [poll.job_id for poll, _ in claimed] == [poll.job_id for poll in polls[1:3]]
        assert await raw.fetchval(locked) == 1  # by who held it
        assert [poll.job_id for poll, _ in await store.claim_polls(NOW + seconds(9), 2, ["oxen", "elkapi"])] == [
            polls[0].job_id,
            polls[3].job_id,
        ]
        assert await raw.fetchval(locked) == 0

    async def test_pruning_waits_for_nobody_and_nobody_for_it(self, store, raw):
        families = [make_running_family(job={"status": Status.FAILED, "finished_at": NOW + seconds(n)}) for n in range(2)]
        for family in families:
            await store.create_submission(family)
        old = NOW + 31 * DAY
        async with bounded(3):
            async with self.holding(raw, "SELECT id FROM submissions WHERE id = $1", families[0].submission.id):
                assert await store.prune(old, 30 * DAY, 999 * DAY, DAY, 9) == 1
                assert await store.read_job(families[1].jobs[0].id) is None
            async with raw.transaction():
                await raw.execute("DELETE FROM jobs WHERE id = $1", families[0].jobs[0].id)
                assert await store.keep_notice(make_notice(families[0].submission.id), BOUND)

    @pytest.mark.parametrize("first", ["settle", "finish"])
    async def test_a_delivery_written_while_the_one_before_it_ends_is_not_forgotten(self, url, raw, first):
        async with open_store(url) as a, open_store(url) as b:
            family = make_running_family()
            await a.create_submission(family)
            await put_event(a, family, 1)
            ((running, _),) = await a.claim_deliveries(NOW, {"archive": 1})
            async with self.holding(raw, "SELECT id FROM jobs WHERE id = $1", family.jobs[0].id):
                work = {
                    "settle": lambda: put_event(b, family, 2, "job.stored"),
                    "finish": lambda: a.finish_deliveries([replace(running, state=DeliveryState.DONE)]),
                }
                waiting = [asyncio.create_task(work.pop(first)())]
                await self.blocked(raw, 1)
                waiting.append(asyncio.create_task(work.popitem()[1]()))
                await self.blocked(raw, 2)
            async with bounded():
                await asyncio.gather(*waiting)
            assert len(await b.claim_deliveries(NOW, {"archive": 9})) == 1

    async def blocked(self, raw, count):
        async def is_so():
            async with connect_like(raw) as other:
                return await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") >= count

        await until(is_so)

    async def test_of_two_that_lock_each_other_out_both_are_done(self, url, raw):
        slow = f"{url}{'&' if '?' in url else '?'}options=-c%20deadlock_timeout%3D50ms"
        async with open_store(slow) as store:
            first, second = sorted([make_running_family(), make_running_family()], key=lambda family: family.submission.id)
            for family in (first, second):
                await store.create_submission(family)
            async with raw.transaction():
                lock = "SELECT 1 FROM submissions WHERE id = $1 FOR UPDATE"
                await raw.fetch(lock, second.submission.id)
                settling = asyncio.create_task(
                    store.settle([Settlement(submission=family.submission, version=0) for family in (first, second)])
                )
                await self.blocked(raw, 1)
                await raw.fetch(lock, first.submission.id)
            async with bounded():
                assert await settling == [True, True]

    async def test_an_event_behind_a_running_transaction_waits_for_it(self, store, raw):
        early, late = make_event(None, "receiver.one"), make_event(None, "receiver.two")
        tx = raw.transaction()
        await tx.start()
        await insert_events(RawTx(raw), [encode_event(early, None)])
        await store.emit(late, [])
        assert await store.read_events(0, 9) == []
        assert await store.newest_event() is None
        async with bounded():
            assert await store.wait_for_change(seconds(60))
        await tx.commit()
        assert [event.id for _, event, _ in await store.read_events(0, 9)] == [early.id, late.id]

    async def test_no_event_is_skipped_by_who_follows_while_many_nodes_write(self, url):
        async with open_store(url) as a, open_store(url) as b:
            families = [make_running_family() for _ in range(6)]
            for family in families:
                await a.create_submission(family)

            async def write(node, family):
                for number in range(1, 16):
                    await put_event(node, family, number)

            writing = asyncio.gather(*(write((a, b)[n % 2], family) for n, family in enumerate(families)))
            seen, position = [], 0
            async with bounded(30):
                while len(seen) < 90:
                    rows = await a.read_events(position, 7)
                    seen += [event.id for _, event, _ in rows]
                    position = rows[-1][0] if rows else position
            await writing
            assert len(set(seen)) == 90
            assert await a.read_events(position, 9) == []

    async def test_positions_go_on_behind_the_last_after_a_restore_elsewhere(self, empty_url):
        async with open_store(empty_url) as store:
            old = make_event(None, "receiver.old")
            await store.emit(old, [])
        async with connect(empty_url) as raw:  # there the transactions had counted further
            await raw.execute("UPDATE events SET position = position + (1::bigint << 50)")
        async with open_store(empty_url) as store:
            new = make_event(None, "receiver.new")
            await store.emit(new, [])
            assert [event.id for _, event, _ in await store.read_events(0, 9)] == [old.id, new.id]


@asynccontextmanager
async def connect_like(raw):
    """`raw` itself is within a transaction, but a look at the locks is free."""
    yield raw


class RawTx:
    shift = events = 0

    def __init__(self, connection):
        self._connection = connection

    async def execute(self, statement, *values):
        return int((await self._connection.execute(statement, *values)).split()[-1])


class TestPoolers:
    async def test_all_that_a_node_does_works_through_a_pooler(self, url):
        async with open_pooler(url) as pooler, open_store(pooler.url) as a, open_store(pooler.url) as b:
            assert not a.can_notify
            family = make_running_family(metadata={"user": "42"})
            await a.create_submission(family)
            poll = await put_poll(a)
            for _ in range(3):
                await a.keep_notice(make_notice(family.submission.id), BOUND)
                assert await b.inbox_depth() > 0
            assert len(await b.claim_notices(9)) == 3
            assert [one.job_id for one, _ in await b.claim_polls(NOW, 9, ["elkapi"])] == [poll.job_id]
            delivery = await put_event(a, family, 1)
            assert [one.id for one, _ in await b.claim_deliveries(NOW, {"archive": 9})] == [delivery.id]
            assert [one.id for one in (await a.read_jobs(JobFilter(metadata={"user": "42"}), 9, None)).rows] == [family.jobs[0].id]
            assert len(await a.read_events(0, 9)) == 1
            assert (await a.read_deliveries(DeliveryFilter(), 9, None)).rows[0].state is DeliveryState.RUNNING

    async def test_who_cannot_listen_looks(self, url):
        async with open_pooler(url) as pooler, open_store(pooler.url) as a, open_store(url) as b:
            assert b.can_notify
            for writer, waiter in ((a, b), (b, a)):
                while await waiter.wait_for_change(seconds(0.2)):
                    pass
                waiting = asyncio.create_task(waiter.wait_for_change(seconds(20)))
                await writer.add_counts({("", "n"): 1})
                async with bounded(5):
                    assert await waiting

    async def test_however_much_a_node_writes_the_others_are_told_now_and_then(self, url, raw):
        heard = []
        await raw.add_listener(CHANNEL, lambda *words: heard.append(words[-1]))
        async with open_store(url) as store:
            began = asyncio.get_running_loop().time()
            for _ in range(20):
                await asyncio.gather(*(store.keep_notice(make_notice(f"sub_{n}"), BOUND) for n in range(20)))

            async def has_come():
                await raw.execute("SELECT 1")
                return heard

            await until(has_come)
            most = (asyncio.get_running_loop().time() - began) / TELL_EVERY + 1
            assert 1 <= len(heard) <= most
        assert set(heard) == {""}

    async def test_a_direct_connection_beside_the_pooler_listens(self, url):
        async with open_pooler(url) as pooler, open_store(pooler.url, listen_url=url) as a, open_store(url) as b:
            assert a.can_notify
            while await a.wait_for_change(seconds(0.2)):
                pass
            waiting = asyncio.create_task(a.wait_for_change(seconds(20)))
            await b.add_counts({("", "n"): 1})
            async with bounded(5):
                assert await waiting

    async def test_a_claim_whose_commit_was_lost_on_the_way_back_is_given_back(self, url):
        async with open_pooler(url) as pooler, open_store(pooler.url) as store:
            poll = await put_poll(store)
            pooler.lose_commit_of = b"UPDATE polls"
            with pytest.raises(StoreUnavailable):
                await store.claim_polls(NOW, 9, ["elkapi"])
            assert [one for one, _ in await store.claim_polls(NOW, 9, ["elkapi"])] == [poll]

    async def test_what_was_kept_as_our_own_when_the_answer_was_lost_on_the_way_back_is_given_back(self, url):
        async with open_pooler(url) as pooler, open_store(pooler.url) as store:
            pooler.lose_commit_of = b"INSERT INTO notices"
            with pytest.raises(StoreUnavailable):
                await store.keep_and_claim(make_notice("sub_1", tries=1), BOUND)
            assert await store.keep_notice(make_notice("sub_2"), BOUND)
            assert [notice.submission_id for notice in await store.claim_notices(9)] == ["sub_1", "sub_2"]

    async def test_a_lone_statement_whose_answer_is_lost_is_taken_back_by_the_next_one(self, url, monkeypatch):
        async with open_store(url) as store:
            do = postgres_access._do

            async def lose(tx, pieces):
                monkeypatch.setattr(postgres_access, "_do", do)
                await do(tx, pieces)
                raise ConnectionResetError("the server went away")

            monkeypatch.setattr(postgres_access, "_do", lose)
            with pytest.raises(StoreUnavailable):
                await store.keep_and_claim(make_notice("sub_1", tries=1), BOUND)
            assert await store.claim_notices(9) == []
            assert await store.keep_notice(make_notice("sub_2"), BOUND)
            claimed = await store.claim_notices(9)
            assert [(notice.submission_id, notice.tries) for notice in claimed] == [("sub_1", 1), ("sub_2", 1)]

    async def test_what_was_claimed_with_a_write_whose_commit_was_lost_on_the_way_back_is_given_back(self, url):
        async with open_pooler(url) as pooler, open_store(pooler.url) as store:
            family = make_running_family()
            await store.create_submission(family)
            event = make_event(family.jobs[0])
            delivery = make_delivery(event, state=DeliveryState.RUNNING, attempts=1)
            settlement = Settlement(submission=family.submission, version=0, events=(event,), deliveries=(delivery,))
            pooler.lose_commit_of = b"INSERT INTO deliveries"
            with pytest.raises(StoreUnavailable):
                await store.settle_and_claim([settlement])
            assert await store.settle_and_claim([settlement]) == ([False], [])
            ((again, _),) = await store.claim_deliveries(NOW, {"archive": 1})
            assert (again.id, again.attempts) == (delivery.id, 1)

    async def test_a_mark_whose_commit_was_lost_on_the_way_back_is_made_again(self, url):
        async with open_pooler(url) as pooler, open_store(pooler.url) as store:
            family = make_family()
            await store.create_submission(family)
            await store.claim_submissions(NOW, 9, ["elkapi"])
            pooler.lose_commit_of = b"state = 'sent'"
            with pytest.raises(StoreUnavailable):
                await store.mark_sent(family.submission.id, NOW)
            assert await store.mark_sent(family.submission.id, NOW)
            sent = (await store.load_families([family.submission.id]))[family.submission.id].submission
            assert (sent.attempts, sent.sent_at) == (1, NOW)

    async def test_a_notice_whose_commit_was_lost_on_the_way_back_is_kept_once(self, url):
        async with open_pooler(url) as pooler, open_store(pooler.url) as store:
            notice = make_notice("sub_1")
            pooler.lose_commit_of = b"INSERT INTO notices"
            with pytest.raises(StoreUnavailable):
                await store.keep_notice(notice, BOUND)
            assert await store.keep_notice(notice, BOUND)
            assert await store.inbox_depth() == 1


class TestOutages:
    async def test_while_the_server_is_away_everything_says_so_and_nothing_acknowledged_is_lost(self, stoppable, url):
        acknowledged, failures = [], []

        async def keep(store, name):
            while not is_over.is_set():
                notice = make_notice(f"sub_{name}")
                try:
                    if await store.keep_notice(notice, BOUND):
                        acknowledged.append(notice.id)
                except StoreUnavailable as error:
                    failures.append(error)
                    await asyncio.sleep(0.02)

        is_over = asyncio.Event()
        async with open_store(url) as a, open_store(url) as b:
            await put_poll(a)
            keeping = asyncio.gather(*(keep(a, n) for n in range(5)))

            async def has_kept(count=20, since=0):
                return len(acknowledged) >= since + count

            await until(has_kept)
            await asyncio.to_thread(stoppable.stop_hard)
            for work in (a.read_job("job_1"), a.claim_polls(NOW, 1, ["elkapi"]), b.check_writable(), b.settle([])):
                with pytest.raises(StoreUnavailable):
                    await work
            await asyncio.to_thread(stoppable.start)
            since = len(acknowledged)
            await until(lambda: has_kept(since=since))
            is_over.set()
            await keeping
            assert failures
            assert set(acknowledged) <= {notice.id for notice in await a.claim_notices(10**6)}
            assert len(await b.claim_polls(NOW, 1, ["elkapi"])) == 1
            await self.hears_again(a, b)

    async def hears_again(self, a, b):
        async with bounded(15):
            while a.changes._listener is None or b.changes._listener is None:
                await asyncio.sleep(0.02)
            while await b.wait_for_change(seconds(0.2)):
                pass
            waiting = asyncio.create_task(b.wait_for_change(seconds(20)))
            await a.add_counts({("", "n"): 1})
            assert await waiting

    async def test_a_node_closes_quietly_while_the_server_is_away(self, stoppable, url):
        async with bounded(20), open_store(url) as store:
            await store.check_writable()
            await asyncio.to_thread(stoppable.stop_hard)
        await asyncio.to_thread(stoppable.start)

    async def test_a_bad_piece_of_work_harms_no_other(self, store):
        good, bad = make_running_family(), make_running_family(provider=None)
        answers = await asyncio.gather(*(store.create_submission(family) for family in (good, bad)), return_exceptions=True)
        assert answers[0] == good
        assert isinstance(answers[1], Exception)
        assert (await store.read_job(good.jobs[0].id)).status is Status.QUEUED
