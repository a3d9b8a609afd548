"""Bodies of notices stand apart from what becomes of them: they come along from older schemas, and go with their notices."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from receiver.model import Outcome, Status
from receiver.stores import open_store
from receiver.stores.migrate import load_migrations, migrate_sqlite
from receiver.stores.postgres_migrate import migrate_postgres
from receiver.stores.terms import NoticeBound, NoticeFilter, NoticeOutcome, Settlement
from tests.factories import NOW, make_notice, make_running_family
from tests.postgres import connect, get_server

BOUND = NoticeBound()
DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request, tmp_path):
    """An empty database."""
    return f"sqlite:///{tmp_path}/receiver.db" if request.param == "sqlite" else await get_server().make_database()


def path_of(url):
    return Path(urlsplit(url).path.removeprefix("/"))


@pytest.fixture
async def older(url):
    """A database whose notices hold their bodies themselves: one is unsettled, one was emptied by age, one is set aside."""
    dialect = url.partition(":")[0].removesuffix("ql")
    migrations = list(takewhile(lambda migration: migration.name != "bodies", load_migrations(dialect)))
    first, none, last = ("x'007b'", "x''", "x'7d'") if dialect == "sqlite" else (r"'\x007b'", "''", r"'\x7d'")
    insert = (
        "INSERT INTO notices (id, channel, provider, at, headers, body, outcome, repeats, tries)"
        f" VALUES ('ntc_1', 'callback', 'elkapi', 1, '{{}}', {first}, NULL, 0, 0),"
        f" ('ntc_2', 'poll', 'elkapi', 2, '{{}}', {none}, 'applied', 0, 1),"
        f" ('ntc_3', 'callback', 'elkapi', 3, '{{}}', {last}, 'orphan', 0, 1)"
    )
    if dialect == "sqlite":
        with closing(sqlite3.connect(path_of(url), isolation_level=None)) as db:
            migrate_sqlite(db, path_of(url), migrations)
            db.execute(insert)
    else:
        async with connect(url) as connection:
            await migrate_postgres(connection, "it", migrations)
            await connection.execute(insert)
    return url


async def count_bodies(url):
    count = "SELECT count(*) FROM bodies"
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(path_of(url))) as db:
            return db.execute(count).fetchone()[0]
    async with connect(url) as connection:
        return await connection.fetchval(count)


async def test_notices_that_held_their_bodies_themselves_keep_them(older):
    async with open_store(older) as store:
        shown = (await store.read_notices(NoticeFilter(), 10, None)).rows
        assert [(notice.id, notice.body) for notice in shown] == [("ntc_3", b"}"), ("ntc_2", b""), ("ntc_1", b"\0{")]
        assert [notice.body for notice in await store.claim_notices(10)] == [b"\0{"]


async def test_a_body_that_is_no_longer_kept_is_no_longer_there(url):
    families = [make_running_family() for _ in range(3)]
    notices = [make_notice(family.submission.id, job_id=family.jobs[0].id, outcome=Outcome.APPLIED) for family in families]
    orphan = make_notice("sub_none")
    async with open_store(url) as store:
        for family, notice in zip(families, notices, strict=True):
            await store.create_submission(family)
            jobs = tuple(replace(job, status=Status.FAILED, finished_at=NOW) for job in family.jobs)
            assert all(await store.settle([Settlement(submission=family.submission, version=0, jobs=jobs, notices=(notice,))]))
        for _ in range(2):  # written twice, kept once
            await store.keep_notice(orphan, BOUND)
        await store.claim_notices(1)
        await store.set_aside_notices([NoticeOutcome(id=orphan.id, outcome=Outcome.ORPHAN)])
        assert await count_bodies(url) == 4
        await store.delete_job(families[0].jobs[0].id)
        assert await count_bodies(url) == 3
        while await store.prune(NOW + 2 * DAY, 9 * DAY, 9 * DAY, DAY, 10):  # orphans
            pass
        assert await count_bodies(url) == 2
        while await store.prune(NOW + 2 * DAY, 9 * DAY, DAY, DAY, 10):  # by the retention of bodies
            pass
        assert await count_bodies(url) == 0
