"""Fills a database with millions of jobs by its own SQL, in minutes: what a year of work leaves behind, in lean rows.

Indexes are taken away meanwhile and built afterwards. The same jobs in both stores: five accounts of very different size, seven
models each, one of forty jobs failed, one of a thousand deliveries dead.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from receiver.times import to_micros
from tests.benchmarks.lines import tell

SPAN = timedelta(days=29)  # all of it within the default retention
RAW = timedelta(days=7)
TOGETHER = 500_000  # rows of one transaction

PROVIDER = (
    "CASE WHEN n % 100 < 60 THEN 'pixazo' WHEN n % 100 < 85 THEN 'oxen' WHEN n % 100 < 95 THEN 'hoox'"
    " WHEN n % 100 < 99 THEN 'elkapi' ELSE 'huzz' END"
)
ENDED = (
    "CASE WHEN n / 7 % 1000 < 970 THEN 'succeeded' WHEN n / 7 % 1000 < 995 THEN 'failed' WHEN n / 7 % 1000 < 999 THEN 'cancelled'"
    " ELSE 'expired' END"
)
TIME = "{start} + n * {step}"

# Column → value, by table; `n` counts the jobs. {job} and its like are ids, {yes} and {no} truth values of the database.
_SUBMISSION = {
    "id": "{sub}", "provider": PROVIDER, "operation": "'default'", "model": f"({PROVIDER}) || '-' || (n % 7)", "media": "'image'",
    "metadata": "'{{\"user\":\"' || (n % {users}) || '\"}}'", "count": "1", "state": "'answered'", "attempts": "1",
    "next_attempt_at": TIME, "sent_at": TIME, "deadline_seconds": "3600", "created_at": TIME, "api_key_id": "''",
    "idempotency_key": "'order-' || n", "body_hash": "'0123456789abcdef'", "version": "3",
}  # fmt: skip
_JOB = {
    "id": "{job}", "submission_id": "{sub}", "provider": PROVIDER, "operation": "'default'", "model": f"({PROVIDER}) || '-' || (n % 7)",
    "media": "'image'", "remote_id": "'remote-' || n", "metadata": "'{{\"user\":\"' || (n % {users}) || '\"}}'", "created_at": TIME,
    "submitted_at": TIME, "deadline_at": f"{TIME} + 3600000000", "position": "0", "is_own_verdict": "{no}",
}  # fmt: skip
_ENDED_JOB = _JOB | {
    "status": ENDED, "outputs": "'[{{\"index\":0,\"url\":\"https://cdn.example.com/' || n || '.png\"}}]'",
    "cost": "'{{\"amount\":12.0,\"unit\":\"credits\"}}'", "updated_at": f"{TIME} + 60000000", "finished_at": f"{TIME} + 60000000",
    "finished_by": "'callback'", "sequence": "2", "has_raw": f"CASE WHEN {TIME} > {{raw_after}} THEN {{yes}} ELSE {{no}} END",
}  # fmt: skip
_OPEN_JOB = _JOB | {"status": "'queued'", "outputs": "'[]'", "updated_at": TIME, "sequence": "1", "deadline_at": "{due} + 86400000000"}
_OTHERS = {
    "inputs": {"submission_id": "{sub}", "input": '\'{{"prompt":"a boat"}}\''},
    "job_metadata": {"key": "'user'", "value": "'' || (n % {users})", "created_at": TIME, "job_id": "{job}"},
    "calls": {"id": "{call}", "submission_id": "{sub}", "at": TIME, "http_status": "200"},
}
_CALLED_BACK = {
    "notices": {
        "id": "{notice}", "channel": "'callback'", "provider": PROVIDER, "at": f"{TIME} + 60000000", "submission_id": "{sub}",
        "job_id": "{job}",
        "headers": "'{{}}'", "outcome": "'applied'", "status": ENDED, "repeats": "0", "tries": "1",
    },
    "bodies": {"arrival": "(SELECT arrival FROM notices WHERE id = {notice})", "body": "{body}"},
    "inboxes": {"submission_id": "{sub}", "callbacks": "1", "bytes": "60"},
    "events": {
        "id": "{event}", "job_id": "{job}", "at": f"{TIME} + 60000000", "depth": "0",
        "envelope": "'{{\"specversion\":\"1.0\",\"id\":\"' || {event}"
        " || '\",\"source\":\"/providers/pixazo\",\"type\":\"job.succeeded\",\"subject\":\"' || {job} || '\","
        "\"time\":\"2026-07-01T12:00:00.000000Z\","
        "\"sequence\":\"2\",\"data\":{{\"job\":{{\"id\":\"' || {job} || '\"}},\"late\":false}}}}'",
    },
    "deliveries": {
        "id": "{delivery}", "event_id": "{event}", "event_type": "'job.succeeded'", "job_id": "{job}", "handler": "'archive'",
        "state": "CASE WHEN n % 1000 = 0 THEN 'dead' ELSE 'done' END", "attempts": "1", "created_at": f"{TIME} + 60000000",
        "updated_at": f"{TIME} + 61000000", "sequence": "2", "is_ordered": "{yes}",
    },
}  # fmt: skip
_POLLS = {
    "polls": {
        "job_id": "{job}", "submission_id": "{sub}", "provider": PROVIDER, "due_at": "{due} + n * 1000", "attempts": "0", "failures": "0",
        "not_found": "0", "cancel": "{no}",
    }
}  # fmt: skip
FINISHED = {"submissions": _SUBMISSION, "jobs": _ENDED_JOB} | _OTHERS | _CALLED_BACK
OPEN = {"submissions": _SUBMISSION, "jobs": _OPEN_JOB} | _OTHERS | _POLLS
Tables = dict[str, dict[str, str]]


class Filling(msgspec.Struct, frozen=True):
    """So many jobs, made one after the other until `now`. Numbers begin at `first`: what is filled twice must not meet."""

    jobs: int
    now: datetime
    tables: str = "finished"  # or open
    first: int = 1

    def id(self, prefix: str, number: int) -> str:
        """Of the job with this number, and of what belongs to it."""
        return f"{prefix}_{1 if self.tables == 'finished' else 2}{number:031x}"

    @property
    def step(self) -> int:
        return max(to_micros(self.now) - self.start, self.jobs) // self.jobs

    @property
    def start(self) -> int:
        return to_micros(self.now - SPAN)

    def statements(self, dialect: dict[str, str], source: Callable[[int, int], str]) -> Iterator[str]:
        tables: Tables = FINISHED if self.tables == "finished" else OPEN
        prefixes = {"sub": "sub", "job": "job", "notice": "ntc", "event": "evt", "delivery": "dlv", "call": "cal"}
        words = dialect | {name: f"'{self.id(prefix, 0)[:5]}' || {dialect['hex']}" for name, prefix in prefixes.items()}
        words |= {
            "start": str(self.start - self.first * self.step),
            "step": str(self.step),
            "users": str(max(self.jobs // 30, 8)),  # thirty jobs each, so that a listing has as many rows however many jobs there are
            "raw_after": str(to_micros(self.now - RAW)),
            "due": str(to_micros(self.now + timedelta(hours=1))),
        }
        for begin in range(self.first, self.first + self.jobs, TOGETHER):
            end = min(begin + TOGETHER, self.first + self.jobs) - 1
            for table, columns in tables.items():
                columns = dict(columns)
                if table == "events" and "position" in dialect:
                    columns["position"] = "n"
                values = ", ".join(value.format(**words) for value in columns.values())
                where = f" WHERE {TIME} > {{raw_after}}".format(**words) if table == "bodies" else ""
                yield f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {source(begin, end)}{where}"


SQLITE = {"hex": "printf('%031x', n)", "yes": "1", "no": "0", "body": "x'7b22737461747573223a22636f6d706c65746564227d'"}
POSTGRES = {
    "hex": "lpad(to_hex(n), 31, '0')", "yes": "true", "no": "false", "body": "'{{\"status\":\"completed\"}}'::bytea",
    "position": "n",
}  # fmt: skip


def fill_sqlite(path: Path, *fillings: Filling) -> None:
    """The schema is there; nobody else has the file open."""
    began = time.monotonic()
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000", "temp_store = FILE", "threads = 2"):
        db.execute(f"PRAGMA {pragma}")
    indexes = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL").fetchall()
    for name, _ in indexes:
        db.execute(f"DROP INDEX {name}")

    def source(begin: int, end: int) -> str:
        return f"(WITH RECURSIVE c(n) AS (SELECT {begin} UNION ALL SELECT n + 1 FROM c WHERE n < {end}) SELECT n FROM c)"

    for filling in fillings:
        for statement in filling.statements(SQLITE, source):
            db.execute(statement)
    tell(f"  filled after {time.monotonic() - began:.0f} s")
    for _, sql in indexes:
        db.execute(sql)
    db.execute("PRAGMA journal_mode = WAL")
    db.close()
    with path.open("rb") as written:  # else the first commit of who measures waits for all of it
        os.fsync(written.fileno())
    tell(f"  indexed after {time.monotonic() - began:.0f} s: {path.stat().st_size / 2**30:.1f} GiB")


async def fill_postgres(connection: Any, *fillings: Filling) -> None:
    began = time.monotonic()
    await connection.execute("SET synchronous_commit = off; SET maintenance_work_mem = '1GB'; SET max_parallel_maintenance_workers = 2")
    indexes = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        " AND indexname NOT IN (SELECT conname FROM pg_constraint) ORDER BY tablename, indexname"
    )
    for name, _ in indexes:
        await connection.execute(f"DROP INDEX {name}")
    for filling in fillings:
        for statement in filling.statements(POSTGRES, lambda begin, end: f"generate_series({begin}::bigint, {end}::bigint) AS n"):
            await connection.execute(statement, timeout=None)
    if any(filling.tables == "finished" for filling in fillings):
        await connection.execute(  # as if the events had been written by transactions of this database
            "UPDATE positions SET base = (SELECT max(position) FROM events) - (pg_current_xact_id()::text::bigint << 20) + 1"
        )
    tell(f"  filled after {time.monotonic() - began:.0f} s")
    for _, definition in indexes:
        await connection.execute(definition, timeout=None)
    tell(f"  indexed after {time.monotonic() - began:.0f} s")
    await connection.execute("VACUUM ANALYZE", timeout=None)
    size = await connection.fetchval("SELECT pg_database_size(current_database())")
    tell(f"  vacuumed after {time.monotonic() - began:.0f} s: {size / 2**30:.1f} GiB")
