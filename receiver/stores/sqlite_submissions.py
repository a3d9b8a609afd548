"""The road from a request to the provider, and the families that everything is settled by."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from receiver.errors import KeyReused
from receiver.model import Family, Job, Submission
from receiver.stores.rows import AMONG, JOBS, SUBMISSIONS, decode_input, json_text
from receiver.stores.sqlite_access import Access, Tx, Work, one_by_one
from receiver.stores.sqlite_packing import PACKED_JOBS, PACKED_SUBMISSIONS
from receiver.stores.terms import Replayed
from receiver.times import to_micros

_JOB, _SUBMISSION = PACKED_JOBS.columns("jobs"), PACKED_SUBMISSIONS.columns("submissions")
_INPUT = "(SELECT input FROM inputs WHERE submission_id = submissions.id)"


def load_families(db: sqlite3.Connection, submission_ids: Iterable[str]) -> dict[str, Family]:
    ids = json_text(list(submission_ids))
    jobs: dict[str, list[Job]] = {}
    for row in db.execute(f"SELECT {_JOB} FROM jobs WHERE submission_id {AMONG} ORDER BY submission_id, position", (ids,)):
        job = PACKED_JOBS.read(row)
        jobs.setdefault(job.submission_id, []).append(job)
    submissions = db.execute(f"SELECT {_SUBMISSION}, {_INPUT} FROM submissions WHERE id {AMONG}", (ids,))
    families = (Family(_decode(row), ()) for row in submissions)
    return {one.submission.id: Family(one.submission, tuple(jobs.get(one.submission.id, ()))) for one in families}


def _decode(row: Sequence[Any]) -> Submission:
    return PACKED_SUBMISSIONS.read(row, input=decode_input(row[-1]))


def insert_jobs(db: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    db.executemany(f"INSERT INTO jobs ({JOBS.columns}) VALUES ({JOBS.marks})", map(JOBS.encode, jobs))
    pairs = [(key, value, to_micros(job.created_at), job.id) for job in jobs for key, value in job.metadata.items()]
    db.executemany("INSERT INTO job_metadata (key, value, created_at, job_id) VALUES (?, ?, ?, ?)", pairs)


@one_by_one
def _create(tx: Tx, family: Family) -> Family | Replayed | KeyReused:
    submission = family.submission
    if submission.idempotency_key is not None:
        known = tx.db.execute(
            "SELECT id, body_hash FROM submissions WHERE api_key_id = ? AND idempotency_key = ?",
            (submission.api_key_id, submission.idempotency_key),
        ).fetchone()
        if known is not None:
            if known[1] != submission.body_hash:
                return KeyReused()
            return Replayed(load_families(tx.db, [known[0]])[known[0]])
    tx.db.execute(f"INSERT INTO submissions ({SUBMISSIONS.columns}) VALUES ({SUBMISSIONS.marks})", SUBMISSIONS.encode(submission))
    tx.db.execute("INSERT INTO inputs (submission_id, input) VALUES (?, ?)", (submission.id, json_text(submission.input)))
    insert_jobs(tx.db, family.jobs)
    return family


@one_by_one
def _claim_waiting(tx: Tx, asked: tuple[datetime, int, Sequence[str]]) -> list[Family]:
    now, limit, providers = asked
    due: list[tuple[int, str]] = []
    if tx.db.execute("SELECT 1 FROM submissions WHERE state = 'waiting' AND claimed_by IS NULL LIMIT 1").fetchone() is None:
        return []  # as most of the time
    for provider in dict.fromkeys(providers):
        due += tx.db.execute(
            "SELECT next_attempt_at, id FROM submissions WHERE provider = ? AND state = 'waiting' AND claimed_by IS NULL"
            " AND next_attempt_at <= ? ORDER BY next_attempt_at LIMIT ?",
            (provider, to_micros(now), limit),
        )
    return _claim(tx, [submission_id for _, submission_id in sorted(due)[:limit]])


@one_by_one
def _claim_lost(tx: Tx, limit: int) -> list[Family]:
    lost = tx.db.execute("SELECT id FROM submissions WHERE state = 'sent' AND claimed_by IS NULL ORDER BY sent_at LIMIT ?", (limit,))
    return _claim(tx, [row_id for (row_id,) in lost])


def _claim(tx: Tx, ids: list[str]) -> list[Family]:
    if not ids:
        return []
    tx.db.execute(f"UPDATE submissions SET claimed_by = ? WHERE id {AMONG}", (tx.node, json_text(ids)))
    families = load_families(tx.db, ids)
    return [families[one] for one in ids]


@one_by_one
def _unclaim(tx: Tx, ids: Sequence[str]) -> None:
    tx.db.execute(f"UPDATE submissions SET claimed_by = NULL WHERE claimed_by = ? AND id {AMONG}", (tx.node, json_text(ids)))


@one_by_one
def _mark_sent(tx: Tx, asked: tuple[str, datetime]) -> bool:
    submission_id, at = asked
    marked = tx.db.execute(
        "UPDATE submissions SET state = 'sent', sent_at = ?, attempts = attempts + 1, version = version + 1"
        " WHERE id = ? AND state = 'waiting' AND claimed_by = ?",
        (to_micros(at), submission_id, tx.node),
    )
    return marked.rowcount == 1


@one_by_one
def _release(tx: Tx, asked: tuple[str, datetime]) -> None:
    submission_id, next_attempt_at = asked
    tx.db.execute(
        "UPDATE submissions SET claimed_by = NULL, next_attempt_at = ? WHERE id = ? AND state = 'waiting' AND claimed_by = ?",
        (to_micros(next_attempt_at), submission_id, tx.node),
    )


def _undo(families: list[Family]) -> tuple[Work[Any, Any], list[str]]:
    return _unclaim, [family.submission.id for family in families]


class SubmissionsPart(Access):
    async def create_submission(self, family: Family) -> Family | Replayed:
        return await self.write(_create, family, weight=2_000 + len(json_text(family.submission.input)))

    async def claim_submissions(self, now: datetime, limit: int, providers: Sequence[str]) -> list[Family]:
        return await self.write(_claim_waiting, (now, limit, tuple(providers)), undo=_undo)

    async def claim_lost_submissions(self, limit: int) -> list[Family]:
        return await self.write(_claim_lost, limit, undo=_undo)

    async def mark_sent(self, submission_id: str, at: datetime) -> bool:
        return await self.write(_mark_sent, (submission_id, at))

    async def release_submission(self, submission_id: str, next_attempt_at: datetime) -> None:
        await self.write(_release, (submission_id, next_attempt_at))
