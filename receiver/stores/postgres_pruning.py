"""Deleting: a job on request, and what is old, a little at a time, so that nothing waits for it."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from receiver.errors import Conflict
from receiver.stores.postgres_access import Access, Tx, each
from receiver.stores.postgres_reading import TAUGHT
from receiver.stores.rows import LEARNED_FROM, decode_metadata

_IS_OLD = (
    "job.is_final AND job.ended_at < $1"
    " AND NOT EXISTS (SELECT 1 FROM jobs WHERE submission_id = job.submission_id AND (NOT is_final OR ended_at >= $1))"
    " AND NOT EXISTS (SELECT 1 FROM jobs JOIN deliveries AS delivery ON delivery.job_id = jobs.id"
    " WHERE jobs.submission_id = job.submission_id AND (delivery.state IN ('pending', 'running', 'retrying')"
    " OR (delivery.state = 'dead' AND delivery.updated_at >= $1)))"
)


class _Retention(NamedTuple):
    now: datetime
    retention: timedelta
    raw_retention: timedelta
    orphan_retention: timedelta
    limit: int


@each("pruning")
async def _delete_job(tx: Tx, job_id: str) -> bool | Conflict:
    found = await tx.look("SELECT submission_id FROM jobs WHERE id = $1", job_id)
    if not found:
        return False
    submission_id = found[0][0]
    await tx.look("SELECT 1 FROM submissions WHERE id = $1 FOR UPDATE", submission_id)
    jobs = await tx.look("SELECT id, is_final FROM jobs WHERE submission_id = $1 ORDER BY id FOR UPDATE", submission_id)
    is_final = {row[0]: row[1] for row in jobs}
    if job_id not in is_final:  # deleted meanwhile
        return False
    if not is_final[job_id]:
        return Conflict("the job is not final yet")
    if len(is_final) == 1:
        await _delete_submissions(tx, [submission_id])
    else:
        await _delete_jobs(tx, [job_id])
        # What is being computed meanwhile must not bring it back.
        await tx.execute("UPDATE submissions SET version = version + 1 WHERE id = $1", submission_id)
    return True


async def _delete_jobs(tx: Tx, job_ids: Sequence[str]) -> None:
    pairs = [
        (key, value, created_at, job_id)
        for job_id, created_at, metadata in await tx.look("SELECT id, created_at, metadata FROM jobs WHERE id = ANY($1::text[])", job_ids)
        for key, value in decode_metadata(metadata).items()
    ]
    if pairs:
        await tx.execute(
            "DELETE FROM job_metadata AS pair USING unnest($1::text[], $2::text[], $3::bigint[], $4::text[])"
            " AS old (key, value, created_at, job_id) WHERE pair.key = old.key AND pair.value = old.value"
            " AND pair.created_at = old.created_at AND pair.job_id = old.job_id",
            *map(list, zip(*pairs, strict=True)),
        )
    await _delete_notices(tx, "job_id = ANY($1::text[])", job_ids)
    for table in ("events", "deliveries", "polls"):
        await tx.execute(f"DELETE FROM {table} WHERE job_id = ANY($1::text[])", job_ids)
    await tx.execute("DELETE FROM jobs WHERE id = ANY($1::text[])", job_ids)


async def _delete_submissions(tx: Tx, submission_ids: Sequence[str]) -> None:
    jobs = await tx.look("SELECT id FROM jobs WHERE submission_id = ANY($1::text[])", submission_ids)
    await _delete_jobs(tx, [row[0] for row in jobs])
    await _delete_notices(tx, "submission_id = ANY($1::text[]) AND job_id IS NULL", submission_ids)
    for table in ("calls", "inboxes", "inputs"):
        await tx.execute(f"DELETE FROM {table} WHERE submission_id = ANY($1::text[])", submission_ids)
    await tx.execute("DELETE FROM submissions WHERE id = ANY($1::text[])", submission_ids)


async def _delete_notices(tx: Tx, where: str, *values: Any) -> list[str | None]:
    """With their bodies. The submission of each."""
    deleted = await tx.change(
        f"WITH gone AS (DELETE FROM notices WHERE {where} RETURNING arrival, submission_id),"
        " emptied AS (DELETE FROM bodies WHERE arrival IN (SELECT arrival FROM gone)) SELECT submission_id FROM gone",
        *values,
    )
    return [row[0] for row in deleted]


@each("pruning")
async def _prune(tx: Tx, asked: _Retention) -> int:
    old, raw_old, orphan_old = (tx.to_db(asked.now - kept) for kept in (asked.retention, asked.raw_retention, asked.orphan_retention))
    return (
        await _forget_durations(tx, asked.limit)
        + await _prune_submissions(tx, old, asked.limit)
        + await _empty_bodies(tx, raw_old, asked.limit)
        + await _prune_orphans(tx, orphan_old, asked.limit)
        + await _prune_astray(tx, old, asked.limit)
    )


async def _prune_submissions(tx: Tx, old: int, limit: int) -> int:
    """Found, locked, and looked at again: news may have come in between."""
    found = await tx.look(f"SELECT submission_id FROM jobs AS job WHERE {_IS_OLD} ORDER BY ended_at LIMIT $2", old, limit)
    if not found:
        return 0
    ids = sorted({row[0] for row in found})
    locked = await tx.look("SELECT id FROM submissions WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE SKIP LOCKED", ids)
    ids = [row[0] for row in locked]
    await tx.look("SELECT 1 FROM jobs WHERE submission_id = ANY($1::text[]) ORDER BY id FOR UPDATE", ids)
    again = await tx.look(f"SELECT DISTINCT submission_id FROM jobs AS job WHERE submission_id = ANY($2::text[]) AND {_IS_OLD}", old, ids)
    ids = [row[0] for row in again]
    if ids:
        await _delete_submissions(tx, ids)
    return len(ids)


async def _empty_bodies(tx: Tx, old: int, limit: int) -> int:
    """Also of those that found no job, once the whole submission is that old."""
    rows = await tx.look(
        "SELECT id, submission_id FROM jobs WHERE is_final AND has_raw AND ended_at < $1 ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED",
        old,
        limit,
    )
    if not rows:
        return 0
    jobs = [row[0] for row in rows]
    await tx.execute("DELETE FROM bodies WHERE arrival IN (SELECT arrival FROM notices WHERE job_id = ANY($1::text[]))", jobs)
    await tx.execute(
        "DELETE FROM bodies WHERE arrival IN (SELECT arrival FROM notices WHERE submission_id = ANY($1::text[])"
        " AND job_id IS NULL AND outcome IS NOT NULL AND NOT EXISTS ("
        "SELECT 1 FROM jobs WHERE jobs.submission_id = notices.submission_id AND (NOT is_final OR ended_at >= $2)))",
        [row[1] for row in rows],
        old,
    )
    await tx.execute("UPDATE jobs SET has_raw = false WHERE id = ANY($1::text[])", jobs)
    return len(rows)


async def _prune_orphans(tx: Tx, old: int, limit: int) -> int:
    deleted = await _delete_notices(
        tx,
        "arrival IN (SELECT arrival FROM notices WHERE outcome = 'orphan' AND at < $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED)",
        old,
        limit,
    )
    if deleted:
        await tx.execute(
            "DELETE FROM inboxes WHERE submission_id = ANY($1::text[])"
            " AND NOT EXISTS (SELECT 1 FROM notices WHERE submission_id = inboxes.submission_id AND job_id IS NULL)",
            sorted({submission_id for submission_id in deleted if submission_id is not None}),
        )
    return len(deleted)


async def _prune_astray(tx: Tx, old: int, limit: int) -> int:
    """Notices and events that belong to no submission or job, and so go with none."""
    notices = await _delete_notices(
        tx,
        "arrival IN (SELECT arrival FROM notices"
        " WHERE submission_id IS NULL AND job_id IS NULL AND outcome IS NOT NULL AND at < $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED)",
        old,
        limit,
    )
    events = await tx.look(
        "SELECT id FROM events AS event WHERE job_id IS NULL AND at < $1 AND NOT EXISTS ("
        "SELECT 1 FROM deliveries WHERE event_id = event.id AND job_id IS NULL AND (state IN ('pending', 'running', 'retrying')"
        " OR (state = 'dead' AND updated_at >= $1))) ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED",
        old,
        limit,
    )
    if events:
        ids = [row[0] for row in events]
        await tx.execute("DELETE FROM deliveries WHERE job_id IS NULL AND event_id = ANY($1::text[])", ids)
        await tx.execute("DELETE FROM events WHERE id = ANY($1::text[])", ids)
    return len(notices) + len(events)


async def _forget_durations(tx: Tx, limit: int) -> int:
    return await tx.execute(
        f"{TAUGHT} DELETE FROM durations WHERE number IN (SELECT old.number FROM taught CROSS JOIN LATERAL (SELECT number FROM durations"
        f" WHERE provider = taught.provider AND model = taught.model ORDER BY number DESC OFFSET {LEARNED_FROM} LIMIT $1) AS old LIMIT $1)",
        10 * limit,
    )


class PruningPart(Access):
    async def prune(self, now: datetime, retention: timedelta, raw_retention: timedelta, orphan_retention: timedelta, limit: int) -> int:
        return await self.write(_prune, _Retention(now, retention, raw_retention, orphan_retention, limit))

    async def delete_job(self, job_id: str) -> bool:
        return await self.write(_delete_job, job_id)
