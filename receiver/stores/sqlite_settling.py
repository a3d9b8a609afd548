"""The one way in which a job changes: whole settlements, each only over the version it was computed from."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime

from receiver.model import Family, Job, Submission, to_micros
from receiver.stores.base import Duration, Learned, Settlement
from receiver.stores.merging import Standing, choose_current, merge
from receiver.stores.rows import (
    AMONG,
    CALLS,
    JOB_KEEPS,
    JOBS,
    add_duration,
    decode_learned,
    decode_outputs,
    encode_event,
    json_text,
)
from receiver.stores.sqlite_access import Access, Insert, Tx
from receiver.stores.sqlite_deliveries import INSERT_EVENTS, insert_deliveries
from receiver.stores.sqlite_inbox import SETTLE_NOTICE, insert_notices, outcome_row
from receiver.stores.sqlite_polls import write_polls
from receiver.stores.sqlite_submissions import insert_jobs, load_families

# A submission that is still `sent` keeps its claim: the node that waits for the answer lives.
_NEW = "json_extract(new.value, '$[{}]')".format
_WRITE_SUBMISSIONS = (
    f"UPDATE submissions SET state = {_NEW(1)}, attempts = {_NEW(2)}, next_attempt_at = {_NEW(3)}, sent_at = {_NEW(4)},"
    f" version = version + 1, claimed_by = CASE WHEN claimed_by = ?1 AND {_NEW(1)} <> 'sent' THEN NULL ELSE claimed_by END"
    f" FROM json_each(?2) AS new WHERE submissions.id = {_NEW(0)}"
)
_WRITE_JOBS = Insert("jobs", JOBS.columns, f"ON CONFLICT (id) DO UPDATE SET {JOBS.replacing(but=JOB_KEEPS)}, has_raw = 1")
# A look for each id. With IN in place of this SQLite may go through all ids of the account.
_BY_REMOTE_ID = (
    f"SELECT {JOBS.columns_of('job')} FROM json_each(?) AS wanted CROSS JOIN jobs AS job INDEXED BY jobs_by_remote_id"
    " ON job.provider = ? AND job.remote_id = wanted.value"
)
_CONFIRM = "UPDATE notices SET outcome = CASE WHEN status IS ? THEN 'applied' ELSE 'refuted' END WHERE job_id = ? AND outcome = 'waiting'"


def settle(tx: Tx, calls: Sequence[Sequence[Settlement]]) -> list[list[bool]]:
    ids = {settlement.submission.id for settlements in calls for settlement in settlements}
    versions = _read_versions(tx.db, ids)
    answers, won = choose_current(calls, versions)
    if won:
        _write(tx, merge(won, _read_standing(tx.db, ids)))
    return answers


def _read_versions(db: sqlite3.Connection, ids: Iterable[str]) -> dict[str, int]:
    return dict(db.execute(f"SELECT id, version FROM submissions WHERE id {AMONG}", (json_text(list(ids)),)).fetchall())


def _read_standing(db: sqlite3.Connection, ids: Iterable[str]) -> dict[str, Standing]:
    rows = db.execute(f"SELECT id, sequence, outputs FROM jobs WHERE submission_id {AMONG}", (json_text(list(ids)),))
    return {job_id: Standing(sequence, decode_outputs(outputs)) for job_id, sequence, outputs in rows}


def _write(tx: Tx, settlements: list[Settlement]) -> None:
    db = tx.db
    db.execute(_WRITE_SUBMISSIONS, (tx.node, json_text([_submission_row(settlement.submission) for settlement in settlements])))
    _resize(db, [settlement.submission for settlement in settlements if settlement.is_resized])
    _write_jobs(db, [job for settlement in settlements for job in settlement.jobs])
    insert_notices(db, [notice for settlement in settlements for notice in settlement.notices])
    outcomes = [outcome for settlement in settlements for outcome in settlement.outcomes]
    db.executemany(SETTLE_NOTICE, map(outcome_row, outcomes))
    confirmations = [confirmation for settlement in settlements for confirmation in settlement.confirmations]
    db.executemany(_CONFIRM, [(None if one.status is None else one.status.value, one.job_id) for one in confirmations])
    repeats: list[tuple[str, datetime]] = [repeat for settlement in settlements for repeat in settlement.repeats]
    db.executemany(
        "UPDATE notices SET repeats = repeats + 1, last_at = ? WHERE id = ?", [(to_micros(at), notice_id) for notice_id, at in repeats]
    )
    heard = {notice.job_id for settlement in settlements for notice in settlement.notices} | {outcome.job_id for outcome in outcomes}
    db.execute(f"UPDATE jobs SET has_raw = 1 WHERE id {AMONG} AND has_raw = 0", (json_text(list(heard)),))
    INSERT_EVENTS.write(db, [encode_event(event, event.subject) for settlement in settlements for event in settlement.events])
    insert_deliveries(db, [delivery for settlement in settlements for delivery in settlement.deliveries])
    answered = {job_id for settlement in settlements for job_id in settlement.polls_answered}
    write_polls(tx, [poll for settlement in settlements for poll in settlement.polls], answered)
    if ended := [job_id for settlement in settlements for job_id in settlement.polls_ended]:
        db.execute(f"DELETE FROM polls WHERE job_id {AMONG}", (json_text(ended),))
    db.executemany(
        f"INSERT INTO calls ({CALLS.columns}) VALUES ({CALLS.marks}) ON CONFLICT (id) DO NOTHING",
        [CALLS.encode(call) for settlement in settlements for call in settlement.calls],
    )
    _learn(db, [duration for settlement in settlements for duration in settlement.durations])


def _submission_row(submission: Submission) -> tuple[str | int | None, ...]:
    sent_at = None if submission.sent_at is None else to_micros(submission.sent_at)
    return submission.id, submission.state.value, submission.attempts, to_micros(submission.next_attempt_at), sent_at


def _resize(db: sqlite3.Connection, submissions: Sequence[Submission]) -> None:
    db.executemany("UPDATE submissions SET count = ? WHERE id = ?", [(submission.count, submission.id) for submission in submissions])
    rows = [(json_text(submission.input), submission.id) for submission in submissions]
    db.executemany("UPDATE inputs SET input = ? WHERE submission_id = ?", rows)


def _write_jobs(db: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    ids = json_text([job.id for job in jobs])
    known = {row_id for (row_id,) in db.execute(f"SELECT id FROM jobs WHERE id {AMONG}", (ids,))}
    _WRITE_JOBS.write(db, [JOBS.encode(job) for job in jobs if job.id in known])
    insert_jobs(db, [job for job in jobs if job.id not in known])


def _learn(db: sqlite3.Connection, durations: Sequence[Duration]) -> None:
    learned: dict[tuple[str, str], Learned] = {}
    for duration in durations:
        key = duration.provider, duration.model
        if key not in learned:
            row = db.execute("SELECT provider, model, seconds FROM learned WHERE provider = ? AND model = ?", key).fetchone()
            if row is not None:
                learned[key] = decode_learned(*row)
        learned[key] = add_duration(learned.get(key), duration)
    db.executemany(
        "INSERT OR REPLACE INTO learned (provider, model, seconds) VALUES (?, ?, ?)",
        [(*key, json_text(value.seconds)) for key, value in learned.items()],
    )


def _find_open_jobs(db: sqlite3.Connection, provider: str, remote_ids: Sequence[str]) -> list[Job]:
    rows = db.execute(f"{_BY_REMOTE_ID} AND (is_final = 0 OR is_own_verdict = 1)", (json_text(list(set(remote_ids))), provider))
    return [JOBS.decode(row) for row in rows]


def _find_jobs(db: sqlite3.Connection, provider: str, remote_ids: Sequence[str]) -> list[Job]:
    rows = db.execute(f"{_BY_REMOTE_ID} ORDER BY created_at, job.id", (json_text(list(set(remote_ids))), provider))
    return [JOBS.decode(row) for row in rows]


def _load(db: sqlite3.Connection, ids: Iterable[tuple[str]]) -> list[Family]:
    return list(load_families(db, dict.fromkeys(row_id for (row_id,) in ids)).values())


class SettlingPart(Access):
    async def load_families(self, submission_ids: Sequence[str]) -> dict[str, Family]:
        return await self.read(lambda db: load_families(db, submission_ids))

    async def find_open_jobs(self, provider: str, remote_ids: Sequence[str]) -> list[Job]:
        return await self.read(lambda db: _find_open_jobs(db, provider, remote_ids))

    async def find_jobs(self, provider: str, remote_ids: Sequence[str]) -> list[Job]:
        return await self.read(lambda db: _find_jobs(db, provider, remote_ids))

    async def find_unconfirmed(self, provider: str) -> list[Family]:
        return await self.read(
            lambda db: _load(db, db.execute("SELECT submission_id FROM jobs WHERE provider = ? AND is_lost = 1", (provider,)))
        )

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        weight = sum(len(notice.body) for settlement in settlements for notice in settlement.notices)
        return await self.write(settle, tuple(settlements), weight=weight + 2_000 * len(settlements))

    async def claim_overdeadline(self, now: datetime, limit: int) -> list[Family]:
        return await self.read(
            lambda db: _load(
                db,
                db.execute(
                    "SELECT submission_id FROM jobs WHERE is_final = 0 AND deadline_at <= ? ORDER BY deadline_at LIMIT ?",
                    (to_micros(now), limit),
                ),
            )
        )
