"""Deleting: a job on request, and what is old, a little at a time, because there is one writer and everyone waits for it."""

# ruff: noqa: S608  # only names of tables and fixed conditions are put into statements; values are bound
from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from receiver.errors import Conflict
from receiver.stores.rows import AMONG, json_text
from receiver.stores.sqlite_access import Access, Tx, one_by_one
from receiver.times import to_micros

SLICE_SECONDS = 0.01  # of deleting between two turns of the others
LEAST_SLICE = 8  # submissions: less would be all commits


@one_by_one
def _delete_job(tx: Tx, job_id: str) -> bool | Conflict:
    job = tx.db.execute("SELECT submission_id, is_final FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if job is None:
        return False
    submission_id, is_final = job
    if not is_final:
        return Conflict("the job is not final yet")
    if tx.db.execute("SELECT count(*) FROM jobs WHERE submission_id = ?", (submission_id,)).fetchone()[0] == 1:
        delete_submissions(tx.db, [submission_id])
    else:
        delete_jobs(tx.db, [job_id])
        # What is being computed meanwhile must not bring it back.
        tx.db.execute("UPDATE submissions SET version = version + 1 WHERE id = ?", (submission_id,))
    return True


def delete_jobs(db: sqlite3.Connection, job_ids: Sequence[str]) -> None:
    ids = json_text(job_ids)
    db.execute(
        "DELETE FROM job_metadata WHERE (key, value, created_at, job_id) IN"
        f" (SELECT pair.key, pair.value, jobs.created_at, jobs.id FROM jobs, json_each(jobs.metadata) AS pair WHERE jobs.id {AMONG})",
        (ids,),
    )
    _delete_notices(db, f"job_id {AMONG}", (ids,))
    for table in ("events", "deliveries", "polls"):
        db.execute(f"DELETE FROM {table} WHERE job_id {AMONG}", (ids,))
    db.execute(f"DELETE FROM jobs WHERE id {AMONG}", (ids,))


def delete_submissions(db: sqlite3.Connection, submission_ids: Sequence[str]) -> None:
    ids = json_text(submission_ids)
    delete_jobs(db, [row_id for (row_id,) in db.execute(f"SELECT id FROM jobs WHERE submission_id {AMONG}", (ids,))])
    _delete_notices(db, f"submission_id {AMONG} AND job_id IS NULL", (ids,))
    for table in ("calls", "inboxes", "inputs"):
        db.execute(f"DELETE FROM {table} WHERE submission_id {AMONG}", (ids,))
    db.execute(f"DELETE FROM submissions WHERE id {AMONG}", (ids,))


def _delete_notices(db: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> list[str | None]:
    """With their bodies. The submission of each."""
    deleted = db.execute(f"DELETE FROM notices WHERE {where} RETURNING arrival, submission_id", values).fetchall()
    db.execute(f"DELETE FROM bodies WHERE arrival {AMONG}", (json_text([arrival for arrival, _ in deleted]),))
    return [submission_id for _, submission_id in deleted]


class _Old(NamedTuple):
    """Times in microseconds: what is older is deleted, at most so many of each kind."""

    jobs: int
    bodies: int
    orphans: int
    limit: int


@one_by_one
def _prune(tx: Tx, old: _Old) -> tuple[int, float]:
    """How many rows, and how many seconds they took."""
    before = time.monotonic()
    rows = (
        _prune_submissions(tx.db, old.jobs, old.limit)
        + _empty_bodies(tx.db, old.bodies, old.limit)
        + _prune_orphans(tx.db, old.orphans, old.limit)
        + _prune_astray(tx.db, old.jobs, old.limit)
    )
    return rows, time.monotonic() - before


def _prune_submissions(db: sqlite3.Connection, old: int, limit: int) -> int:
    found = db.execute(
        "SELECT submission_id FROM jobs AS job INDEXED BY jobs_ended WHERE is_final = 1 AND ended_at < ?"
        " AND NOT EXISTS (SELECT 1 FROM jobs WHERE submission_id = job.submission_id AND (is_final = 0 OR ended_at >= ?))"
        " AND NOT EXISTS (SELECT 1 FROM jobs CROSS JOIN deliveries AS delivery ON delivery.job_id = jobs.id"
        " WHERE jobs.submission_id = job.submission_id AND (delivery.state IN ('pending', 'running', 'retrying')"
        " OR (delivery.state = 'dead' AND delivery.updated_at >= ?))) ORDER BY ended_at LIMIT ?",
        (old, old, old, limit),
    )
    ids = list(dict.fromkeys(row_id for (row_id,) in found))
    if ids:
        delete_submissions(db, ids)
    return len(ids)


def _empty_bodies(db: sqlite3.Connection, old: int, limit: int) -> int:
    """Also of those that found no job, once the whole submission is that old."""
    rows = db.execute(
        "SELECT id, submission_id FROM jobs INDEXED BY jobs_with_raw WHERE is_final = 1 AND has_raw = 1 AND ended_at < ?"
        " ORDER BY ended_at LIMIT ?",
        (old, limit),
    ).fetchall()
    if not rows:
        return 0
    jobs = json_text([job_id for job_id, _ in rows])
    db.execute(f"DELETE FROM bodies WHERE arrival IN (SELECT arrival FROM notices WHERE job_id {AMONG})", (jobs,))
    db.execute(
        f"DELETE FROM bodies WHERE arrival IN (SELECT arrival FROM notices WHERE submission_id {AMONG}"
        " AND job_id IS NULL AND outcome IS NOT NULL AND NOT EXISTS ("
        "SELECT 1 FROM jobs WHERE jobs.submission_id = notices.submission_id AND (is_final = 0 OR ended_at >= ?)))",
        (json_text([submission_id for _, submission_id in rows]), old),
    )
    db.execute(f"UPDATE jobs SET has_raw = 0 WHERE id {AMONG}", (jobs,))
    return len(rows)


def _prune_orphans(db: sqlite3.Connection, old: int, limit: int) -> int:
    deleted = _delete_notices(
        db, "arrival IN (SELECT arrival FROM notices WHERE outcome = 'orphan' AND at < ? ORDER BY at LIMIT ?)", (old, limit)
    )
    db.execute(
        f"DELETE FROM inboxes WHERE submission_id {AMONG}"
        " AND NOT EXISTS (SELECT 1 FROM notices WHERE submission_id = inboxes.submission_id AND job_id IS NULL)",
        (json_text([submission_id for submission_id in deleted if submission_id is not None]),),
    )
    return len(deleted)


def _prune_astray(db: sqlite3.Connection, old: int, limit: int) -> int:
    """Notices and events that belong to no submission or job, and so go with none."""
    notices = _delete_notices(
        db,
        "arrival IN (SELECT arrival FROM notices"
        " WHERE submission_id IS NULL AND job_id IS NULL AND outcome IS NOT NULL AND at < ? ORDER BY at LIMIT ?)",
        (old, limit),
    )
    events = db.execute(
        "SELECT id FROM events AS event WHERE job_id IS NULL AND at < ? AND NOT EXISTS ("
        "SELECT 1 FROM deliveries WHERE event_id = event.id AND job_id IS NULL AND (state IN ('pending', 'running', 'retrying')"
        " OR (state = 'dead' AND updated_at >= ?))) ORDER BY at LIMIT ?",
        (old, old, limit),
    ).fetchall()
    ids = json_text([row_id for (row_id,) in events])
    db.execute(f"DELETE FROM deliveries WHERE job_id IS NULL AND event_id {AMONG}", (ids,))
    db.execute(f"DELETE FROM events WHERE id {AMONG}", (ids,))
    return len(notices) + len(events)


class PruningPart(Access):
    _slice = LEAST_SLICE  # submissions that are deleted in about SLICE_SECONDS: a few where their pages come from the disk, else many

    async def prune(self, now: datetime, retention: timedelta, raw_retention: timedelta, orphan_retention: timedelta, limit: int) -> int:
        """In slices, and no longer than a second: who calls has other things to do as well."""
        old = _Old(to_micros(now - retention), to_micros(now - raw_retention), to_micros(now - orphan_retention), 0)
        total, ends_at = 0, time.monotonic() + 1.0
        while total < limit and time.monotonic() < ends_at:
            asked = min(self._slice, limit - total)
            before = time.monotonic()
            rows, took = await self.write(_prune, old._replace(limit=asked))
            if rows == 0:
                break
            total += rows
            if rows >= asked or took > SLICE_SECONDS:
                self._slice = max(min(int(asked * SLICE_SECONDS / max(took, 0.0001)), 2 * self._slice, limit), LEAST_SLICE)
            await asyncio.sleep(min(time.monotonic() - before, 1.0))  # as much time for the others
        return total

    async def delete_job(self, job_id: str) -> bool:
        return await self.write(_delete_job, job_id)
