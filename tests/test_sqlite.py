"""What only the SQLite store has: its file, its locks, its processes, and statements that never scan."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from receiver.errors import ConfigError, Conflict, StoreUnavailable
from receiver.model import DeliveryState, JobError, Outcome, Status
from receiver.stores import open_store, sqlite_syncing
from receiver.stores.sqlite import refuse_network
from receiver.stores.terms import DeliveryFilter, JobFilter, NoticeBound, NoticeFilter, Settlement
from tests.factories import NOW, make_delivery, make_event, make_family, make_notice, make_poll, make_running_family

BOUND = NoticeBound(callbacks=10**6, bytes=10**9)
DAY = timedelta(days=1)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def file(tmp_path):
    return tmp_path / "receiver.db"


@pytest.fixture
def url(file):
    return f"sqlite:///{file}"


async def on_writer(store, work):
    return await store._writer.run(work)


def kill_node(store):
    """What the kernel does for a process that is killed: the lock is gone, the file and the claims stay."""
    os.close(store._node_file._file)
    store._node_file._file = -1


class TestOpening:
    async def test_missing_folders_are_made(self, tmp_path):
        async with open_store(f"sqlite:///{tmp_path}/a/b/receiver.db"):
            assert (tmp_path / "a/b/receiver.db").exists()

    async def test_it_is_written_by_way_of_a_log(self, url):
        async with open_store(url) as store:
            assert await on_writer(store, lambda db: db.execute("PRAGMA journal_mode").fetchone()) == ("wal",)

    async def test_a_relative_url_is_relative_to_here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        async with open_store("sqlite:///here.db"):
            assert (tmp_path / "here.db").exists()

    @pytest.mark.parametrize("url", ["sqlite:", "sqlite://x.db", "sqlite:///", "sqlite:///:memory:", "mysql://host/db", "x.db"])
    async def test_a_url_that_names_no_file_is_refused(self, url):
        with pytest.raises(ConfigError) as refused:
            async with open_store(url):
                pass
        assert refused.value.mistakes[0].key == "store.url"

    async def test_a_listen_url_is_refused(self, url):
        with pytest.raises(ConfigError):
            open_store(url, listen_url="postgresql://host/db")

    async def test_a_file_that_is_no_database_is_refused_and_left_alone(self, file, url):
        file.write_text("my diary, " * 1000)
        with pytest.raises(ConfigError, match="cannot be used"):
            async with open_store(url):
                pass
        assert file.read_text().startswith("my diary")
        assert only_this_thread()

    async def test_a_folder_in_place_of_the_file_is_refused(self, file, url):
        file.mkdir()
        with pytest.raises(ConfigError, match="cannot be used"):
            async with open_store(url):
                pass

    async def test_a_file_in_place_of_the_folder_is_refused(self, file, url):
        file.write_text("")
        with pytest.raises(ConfigError, match="cannot be used"):
            async with open_store(f"{url}/receiver.db"):
                pass

    async def test_a_database_of_another_program_is_refused_and_left_alone(self, file, url):
        with sqlite3.connect(file) as other:
            other.execute("CREATE TABLE bookmarks (url TEXT)")
        other.close()
        with pytest.raises(ConfigError, match="another program"):
            async with open_store(url):
                pass

    def test_a_network_file_system_is_refused(self):
        mounts = "/dev/vda / ext4 rw 0 0\nserver:/x /mnt/my\\040share nfs4 rw 0 0\nme@host: /home/me/far fuse.sshfs rw 0 0\n"
        refuse_network(Path("/srv/receiver.db"), mounts)
        refuse_network(Path("/mnt/my/receiver.db"), mounts)
        for path in ("/mnt/my share/a/receiver.db", "/home/me/far/receiver.db"):
            with pytest.raises(ConfigError, match="network file system"):
                refuse_network(Path(path), mounts)


def only_this_thread():
    return [thread for thread in threading.enumerate() if "connection_worker" in repr(getattr(thread, "_target", ""))] == []


class TestClosing:
    async def test_no_thread_lock_or_node_is_left(self, file, url):
        async with open_store(url) as store:
            await store.check_writable()
        assert only_this_thread()
        assert list(Path(f"{file}.nodes").iterdir()) == []
        with sqlite3.connect(file) as db:
            assert db.execute("SELECT count(*) FROM nodes").fetchone() == (0,)
        db.close()

    async def test_a_cancelled_owner_leaves_no_thread(self, url):
        is_open = asyncio.Event()

        async def own():
            async with open_store(url):
                is_open.set()
                await asyncio.sleep(60)

        owner = asyncio.create_task(own())
        await is_open.wait()
        owner.cancel()
        await asyncio.wait([owner])
        assert owner.cancelled()
        assert only_this_thread()

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
        async with open_store(url) as store:
            assert await store.inbox_depth() == 50


class TestNodes:
    async def test_what_a_killed_node_had_claimed_can_be_claimed_again(self, url):
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
            await a.take_lease("stream:oxen", NOW, DAY)
            assert await b.bury_dead_nodes() == 0
            kill_node(a)
            assert await b.bury_dead_nodes() == 1
            assert [family.submission.id for family in await b.claim_submissions(NOW, 9, ["elkapi"])] == [waiting.submission.id]
            assert [family.submission.id for family in await b.claim_lost_submissions(9)] == [sent.submission.id]
            assert await b.take_lease("stream:oxen", NOW, DAY)
            assert await a.finish_deliveries([replace(delivery, state=DeliveryState.DONE)]) == [False]
            assert not await a.mark_sent(waiting.submission.id, NOW)
            ((again, _),) = await b.claim_deliveries(NOW, {"archive": 1})
            assert again.attempts == 2
            assert await b.bury_dead_nodes() == 0

    async def test_strange_files_beside_the_nodes_are_left_alone(self, file, url):
        async with open_store(url) as store:
            (Path(f"{file}.nodes") / "folder").mkdir()
            (Path(f"{file}.nodes") / ".DS_Store").write_text("")
            assert await store.bury_dead_nodes() == 0
            assert (Path(f"{file}.nodes") / ".DS_Store").exists()

    async def test_a_node_that_was_buried_alive_joins_again(self, url):
        async with open_store(url) as a, open_store(url) as b:
            kill_node(a)
            await b.bury_dead_nodes()
            assert await a.bury_dead_nodes() == 0
            assert await b.bury_dead_nodes() == 0
            await a.create_submission(make_family())
            assert await a.claim_submissions(NOW, 1, ["elkapi"])
            kill_node(a)
            assert await b.bury_dead_nodes() == 1
            assert await b.claim_submissions(NOW, 1, ["elkapi"])

    async def test_a_poll_that_was_asked_for_while_its_node_died_is_still_asked_for(self, url):
        async with open_store(url) as a, open_store(url) as b:
            family = make_running_family()
            await a.create_submission(family)
            poll = make_poll(family.jobs[0])
            await a.settle([Settlement(submission=family.submission, version=0, polls=(poll,))])
            await a.claim_polls(NOW, 1, ["elkapi"])
            await b.poll_now(NOW - DAY, job_ids=[poll.job_id], cancel=True)
            kill_node(a)
            await b.bury_dead_nodes()
            ((again, _),) = await b.claim_polls(NOW - DAY, 1, ["elkapi"])
            assert again == replace(poll, due_at=NOW - DAY, cancel=True)


CHILD = """
import asyncio, sys
from receiver.stores import open_store
from receiver.stores.terms import NoticeBound
from tests.factories import make_notice

async def keep(store, name):
    for number in range(10**6):
        notice = make_notice(f"sub_{name}", id=f"ntc_{name}_{number}")
        if await store.keep_notice(notice, NoticeBound(callbacks=10**9, bytes=10**12)):
            print(notice.id, flush=True)

async def main():
    async with open_store(sys.argv[1]) as store:
        await asyncio.gather(*(keep(store, name) for name in range(20)))

asyncio.run(main())
"""


class TestProcesses:
    def start(self, url):
        return subprocess.Popen([sys.executable, "-c", CHILD, url], stdout=subprocess.PIPE, text=True, cwd=ROOT)

    async def test_all_that_was_acknowledged_survives_kill_9(self, url):
        child = self.start(url)
        acknowledged = [child.stdout.readline().strip() for _ in range(300)]
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.read().split("\n")[:-1]  # the last line may be torn
        child.wait(20)
        child.stdout.close()
        async with open_store(url) as store:
            assert await store.bury_dead_nodes() == 1
            kept = {notice.id for notice in await store.claim_notices(10**6)}
        assert set(acknowledged) <= kept

    async def test_two_processes_write_one_file_in_turns(self, url):
        child = self.start(url)
        try:
            child.stdout.readline()
            async with open_store(url) as store:
                kept = await asyncio.gather(*(store.keep_notice(make_notice(f"sub_own_{n}"), BOUND) for n in range(50)))
                assert all(kept)
                assert await store.bury_dead_nodes() == 0
        finally:
            child.kill()
            child.communicate()
        with sqlite3.connect(url.removeprefix("sqlite:///")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()


class TestOutages:
    async def test_a_full_disk_is_an_outage_that_ends_when_there_is_room(self, url):
        async with open_store(url) as store:
            await on_writer(store, lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())  # as many as there are
            big = [make_notice(f"sub_{n}", body=b"x" * 100_000) for n in range(5)]
            answers = await asyncio.gather(*(store.keep_notice(notice, BOUND) for notice in big), return_exceptions=True)
            assert {type(answer) for answer in answers} == {StoreUnavailable}
            assert await store.inbox_depth() == 0
            await on_writer(store, lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchall())
            assert all(await asyncio.gather(*(store.keep_notice(notice, BOUND) for notice in big)))
            assert await store.inbox_depth() == 5

    async def test_a_file_that_another_program_locks_for_long_is_an_outage(self, file, url):
        async with open_store(url) as store:
            await on_writer(store, lambda db: db.execute("PRAGMA busy_timeout = 1").fetchall())
            other = sqlite3.connect(file)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable):
                await store.check_writable()
            other.rollback()
            other.close()
            await store.check_writable()

    async def test_after_an_io_error_the_file_is_opened_anew(self, url):
        async with open_store(url) as store:
            before = store._writer
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC

            def fail(tx, arguments):
                raise error

            with pytest.raises(StoreUnavailable):
                await store.write(fail, None)
            await store.check_writable()
            assert store._writer is not before

    async def test_one_bad_piece_harms_nobody_else(self, url):
        async with open_store(url) as store:
            broken = make_notice("sub_1", headers={"x": "\ud800"})
            answers = await asyncio.gather(
                *(store.keep_notice(notice, BOUND) for notice in (make_notice("sub_1"), broken, make_notice("sub_1"))),
                return_exceptions=True,
            )
            assert [answer is True for answer in answers] == [True, False, True]
            assert await store.inbox_depth() == 2

    async def test_the_log_is_checkpointed_now_and_then(self, file, url):
        async with open_store(url) as store:
            for _ in range(60):
                await store.keep_notice(make_notice("sub_1", body=os.urandom(1_000_000)), BOUND)
            assert Path(f"{file}-wal").stat().st_size < 30_000_000


class TestBackup:
    async def test_a_backup_is_a_whole_database(self, tmp_path, url):
        copy = tmp_path / "copy.db"
        async with open_store(url) as store:
            family = make_running_family()
            await store.create_submission(family)
            await store.backup(str(copy))
            with pytest.raises(Conflict):
                await store.backup(str(copy))
            with pytest.raises(StoreUnavailable):
                await store.backup(str(tmp_path / "missing" / "copy.db"))
        async with open_store(f"sqlite:///{copy}") as store:
            assert await store.bury_dead_nodes() == 1
            assert await store.load_families([family.submission.id]) == {family.submission.id: family}


class TestPlans:
    """Nothing that runs again and again may read a whole table, however many jobs there are."""

    async def test_no_pass_reads_a_whole_table_or_sorts_its_backlog(self, file, url):
        statements = []
        async with open_store(url) as store:
            await self.fill(store)
            for connection in (store._writer, *(reader.connection for reader in store._readers)):
                await connection.run(lambda db: db.set_trace_callback(statements.append))
            await self.use(store)
        plans = self.explain(file, statements)
        assert len(plans) > 60
        scans = {statement: plan for statement, plan in plans.items() if any(self.is_long(statement, line) for line in plan.split("\n"))}
        assert not scans, "\n\n".join(f"{statement}\n{plan}" for statement, plan in scans.items())
        claims = [plan for statement, plan in plans.items() if re.search(r"(claimed_by IS NULL|stage = 2).*ORDER BY", statement)]
        assert len(claims) >= 5
        assert not any("TEMP B-TREE" in plan for plan in claims)

    def is_long(self, statement, line):
        """A scan is short over the few parameters, leases or claims, or along an index up to a limit."""
        if not line.startswith("SCAN ") or re.match(
            r"SCAN (json_each|claimed|(pair|share|wanted|ended|new) VIRTUAL|later|CONSTANT|\(|leases)", line
        ):
            return False
        return not (line.endswith("INDEX notices_claimed") or (" INDEX " in line and re.search(r"LIMIT \d+$", statement)))

    async def fill(self, store):
        family = make_running_family(2, metadata={"user": "42"})
        lost = make_family(job={"status": Status.UNCONFIRMED, "error": JobError("submit_unknown", "lost")})
        await store.create_submission(family)
        await store.create_submission(lost)
        event = make_event(family.jobs[0], "job.processing")
        settlement = Settlement(
            submission=family.submission,
            version=0,
            jobs=(replace(family.jobs[0], sequence=1),),
            events=(event,),
            deliveries=(make_delivery(event),),
            polls=tuple(make_poll(job) for job in family.jobs),
        )
        assert await store.settle([settlement]) == [True]
        await store.keep_notice(make_notice(family.submission.id), BOUND)
        await store.keep_notice(make_notice("sub_none"), BOUND)

    async def use(self, store):
        job = (await store.read_jobs(JobFilter(), 1, None)).rows[0]
        page = await store.read_jobs(JobFilter(metadata={"user": "42"}), 1, None)
        for narrow in (
            JobFilter(),
            JobFilter(provider="elkapi"),
            JobFilter(model="elk-1"),
            JobFilter(status=Status.QUEUED),
            JobFilter(submission_id=job.submission_id),
            JobFilter(metadata={"user": "42", "team": "red"}),
            JobFilter(created_after=NOW, created_before=NOW + DAY),
        ):
            await store.read_jobs(narrow, 10, page.cursor)
        families = await store.claim_submissions(NOW, 10, ["elkapi", "oxen"])
        await store.mark_sent(families[0].submission.id, NOW)
        await store.claim_lost_submissions(10)
        await store.find_open_jobs("elkapi", ["a", "b"])
        await store.find_jobs("elkapi", ["a", "b"])
        await store.reopen_orphans("elkapi", ["a", "b"])
        await store.reopen_orphans("elkapi")
        await store.find_unconfirmed("elkapi")
        await store.claim_overdeadline(NOW + DAY, 10)
        (notice, *_) = await store.claim_notices(10)
        await store.release_notices([notice.id])
        await store.read_notices(NoticeFilter(outcome=Outcome.UNREADABLE), 10, None)
        polls = await store.claim_polls(NOW, 10, ["elkapi", "oxen"])
        await store.release_polls([poll for poll, _ in polls])
        for by in ({"job_ids": [job.id]}, {"submission_id": job.submission_id}, {"provider": "elkapi"}):
            await store.poll_now(NOW, **by)
        await store.has_open_jobs("elkapi")
        ((delivery, _),) = await store.claim_deliveries(NOW, {"archive": 10, "log": 10})
        await store.finish_deliveries([replace(delivery, state=DeliveryState.DEAD)])
        for by in (DeliveryFilter(handler="archive"), DeliveryFilter(job_id=job.id), DeliveryFilter(state=DeliveryState.DEAD)):
            await store.read_deliveries(by, 10, page.cursor)
        await store.replay(DeliveryFilter(job_id=delivery.job_id), NOW)
        await store.read_timeline(job.id)
        await store.read_events(1, 10)
        await store.find_event_position("evt_1")
        await store.newest_event()
        family = (await store.load_families([job.submission_id]))[job.submission_id]
        done = tuple(replace(job, status=Status.FAILED, finished_at=NOW) for job in family.jobs)
        assert await store.settle([Settlement(submission=family.submission, version=family.submission.version, jobs=done)]) == [True]
        await store.bury_dead_nodes()
        await store.take_tokens("elkapi", NOW, 1.0, 1, 1)
        await store.take_lease("x", NOW, DAY)
        await store.prune(NOW + 2 * DAY, DAY, DAY, DAY, 10)
        await store.delete_job(done[0].id)

    def explain(self, file, statements):
        plans = {}
        db = sqlite3.connect(file)
        for statement in dict.fromkeys(statements):
            if statement.startswith(("SELECT", "UPDATE", "INSERT", "DELETE")) and not re.search(
                r"FROM (nodes|breakers|learned)", statement
            ):
                plans[statement] = "\n".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}"))
        db.close()
        return plans


class Disk:
    """Takes the place of the call that syncs: counts, may be slow for as long as a test likes, may refuse."""

    def __init__(self):
        self.synced = 0
        self.refusals = 0
        self.is_free = threading.Event()
        self.is_free.set()

    def flush(self, file):
        self.is_free.wait(10)
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EIO, "Input/output error")
        os.fsync(file)
        self.synced += 1


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(sqlite_syncing, "flush", disk.flush)
    yield disk
    disk.is_free.set()


class TestSyncing:
    """What is answered is on disk. The next transaction does not wait for that."""

    def count_kept(self, file):
        with closing(sqlite3.connect(file)) as db:
            return db.execute("SELECT count(*) FROM notices").fetchone()[0]

    async def wait_until_kept(self, file, count):
        async with asyncio.timeout(20):
            while self.count_kept(file) < count:
                await asyncio.sleep(0.005)

    async def test_nothing_is_answered_before_the_disk_has_it(self, file, url, disk):
        async with open_store(url) as store:
            disk.is_free.clear()
            kept = asyncio.create_task(store.keep_notice(make_notice("sub_1"), BOUND))
            await self.wait_until_kept(file, 1)
            synced = disk.synced
            assert not kept.done()
            disk.is_free.set()
            assert await kept
            assert disk.synced > synced

    async def test_the_next_transaction_is_written_while_the_last_is_synced(self, file, url, disk):
        async with open_store(url) as store:
            disk.is_free.clear()
            first = asyncio.create_task(store.keep_notice(make_notice("sub_1"), BOUND))
            await self.wait_until_kept(file, 1)
            second = asyncio.create_task(store.keep_notice(make_notice("sub_2"), BOUND))
            await self.wait_until_kept(file, 2)
            assert not first.done()
            assert not second.done()
            disk.is_free.set()
            assert await asyncio.gather(first, second) == [True, True]

    async def test_a_claim_needs_no_sync_of_its_own(self, url, disk):
        async with open_store(url) as store:
            await store.keep_notice(make_notice("sub_1"), BOUND)
            synced = disk.synced
            assert len(await store.claim_notices(1)) == 1
            assert await store.claim_deliveries(NOW, {"log": 1}) == []
            assert disk.synced == synced

    async def test_a_claim_waits_until_what_it_has_seen_is_on_disk(self, file, url, disk):
        async with open_store(url) as store:
            disk.is_free.clear()
            kept = asyncio.create_task(store.keep_notice(make_notice("sub_1"), BOUND))
            await self.wait_until_kept(file, 1)
            claimed = asyncio.create_task(store.claim_notices(1))
            done, _ = await asyncio.wait([claimed], timeout=0.05)
            assert not done
            disk.is_free.set()
            assert len(await claimed) == 1
            assert await kept

    async def test_a_claim_of_what_another_process_wrote_is_answered_after_a_sync(self, url, disk):
        async with open_store(url) as store, open_store(url) as other:
            await other.keep_notice(make_notice("sub_1"), BOUND)
            synced = disk.synced
            assert len(await store.claim_notices(1)) == 1
            assert disk.synced > synced

    async def test_nothing_is_shown_before_the_disk_has_it(self, file, url, disk):
        async with open_store(url) as store, open_store(url) as other:
            disk.is_free.clear()
            notice = make_notice("sub_1")
            kept = asyncio.create_task(store.keep_notice(notice, BOUND))
            await self.wait_until_kept(file, 1)
            shown = [asyncio.create_task(one.read_notice(notice.id)) for one in (store, other)]
            done, _ = await asyncio.wait(shown, timeout=0.05)
            assert not done
            disk.is_free.set()
            assert [one.id for one in await asyncio.gather(*shown)] == [notice.id] * 2
            assert await kept

    async def test_a_disk_that_refuses_is_an_outage_and_nothing_stays_claimed(self, url, disk):
        async with open_store(url) as store, open_store(url) as other:
            await other.keep_notice(make_notice("sub_1"), BOUND)
            disk.refusals = 1
            with pytest.raises(StoreUnavailable, match="could not be synced"):
                await store.claim_notices(1)
            await store.check_writable()
            assert len(await store.claim_notices(1)) == 1

    async def test_what_was_kept_as_our_own_when_the_disk_refused_is_free(self, url, disk):
        async with open_store(url) as store:
            disk.refusals = 1
            with pytest.raises(StoreUnavailable):
                await store.keep_and_claim(make_notice("sub_1", tries=1), BOUND)
            await store.check_writable()
            assert len(await store.claim_notices(1)) == 1

    async def test_what_was_claimed_with_a_write_that_the_disk_refused_is_free(self, url, disk):
        async with open_store(url) as store:
            family = make_running_family()
            await store.create_submission(family)
            event = make_event(family.jobs[0])
            delivery = make_delivery(event, "log", state=DeliveryState.RUNNING, attempts=1)
            disk.refusals = 1
            with pytest.raises(StoreUnavailable):
                await store.settle_and_claim([Settlement(submission=family.submission, version=0, events=(event,), deliveries=(delivery,))])
            await store.check_writable()
            ((again, _),) = await store.claim_deliveries(NOW, {"log": 1})
            assert (again.id, again.attempts) == (delivery.id, 1)

    async def test_after_a_refusal_the_whole_log_is_moved_into_the_file_before_more_is_written(self, file, url, disk):
        async with open_store(url) as store:
            seen: list[str] = []
            await on_writer(store, lambda db: db.set_trace_callback(seen.append))
            disk.refusals = 1
            with pytest.raises(StoreUnavailable):
                await store.keep_notice(make_notice("sub_1"), BOUND)
            assert await store.keep_notice(make_notice("sub_2"), BOUND)
            await on_writer(store, lambda db: db.set_trace_callback(None))
            assert [one for one in seen if one == "COMMIT" or "checkpoint" in one] == [
                "COMMIT",
                "PRAGMA wal_checkpoint(TRUNCATE)",
                "COMMIT",
            ]
            assert self.count_kept(file) == 2  # nobody was told of the first one, so that one may be there

    async def test_after_a_refusal_nothing_of_it_is_shown_until_the_log_has_begun_anew(self, url, disk):
        async with open_store(url) as store:
            notice = make_notice("sub_1")
            disk.refusals = 1
            with pytest.raises(StoreUnavailable):
                await store.keep_notice(notice, BOUND)
            for _ in range(4):  # each reader more than once
                with pytest.raises(StoreUnavailable):
                    await store.read_notice(notice.id)
            await store.check_writable()
            assert (await store.read_notice(notice.id)).id == notice.id

    async def test_while_the_log_cannot_be_moved_nothing_is_written(self, file, url, disk):
        async with open_store(url) as store:
            await on_writer(store, lambda db: db.execute("PRAGMA busy_timeout = 1").fetchall())
            disk.refusals = 1
            with pytest.raises(StoreUnavailable):
                await store.keep_notice(make_notice("sub_1"), BOUND)
            with closing(sqlite3.connect(file)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM notices").fetchone()
                with pytest.raises(StoreUnavailable, match="somebody reads it"):
                    await store.keep_notice(make_notice("sub_2"), BOUND)
            assert await store.keep_notice(make_notice("sub_2"), BOUND)

    async def test_what_is_under_way_is_on_disk_when_the_store_is_closed(self, url, disk):
        async with open_store(url) as store:
            before = disk.synced
            kept = asyncio.create_task(store.keep_notice(make_notice("sub_1"), BOUND))
            await asyncio.sleep(0)
        assert await kept
        assert disk.synced > before
