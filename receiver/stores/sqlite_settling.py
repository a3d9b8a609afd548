"""The one way in which a job changes: whole settlements, each only over the version it was computed from."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from receiver.model import Family, Job, Poll, Submission
from receiver.stores.claiming import Claimed, Settled, by_call, with_events
from receiver.stores.merging import Standing, choose_current, merge
from receiver.stores.rows import (
    AMONG,
    CALLS,
    JOB_KEEPS,
    JOBS,
    Rows,
    add_duration,
    decode_learned,
    decode_outputs,
    encode_event,
    json_text,
)
from receiver.stores.sqlite_access import Access, Tx
from receiver.stores.sqlite_deliveries import INSERT_EVENTS, insert_and_claim, take_back
from receiver.stores.sqlite_inbox import insert_notices, settle_notices
from receiver.stores.sqlite_packing import PACKED_JOBS
from receiver.stores.sqlite_polls import load_polls, write_polls
from receiver.stores.sqlite_statements import Update
from receiver.stores.sqlite_submissions import insert_jobs, load_families
from receiver.stores.terms import Duration, Learned, Settlement
from receiver.times import to_micros

# A submission that is still `sent` keeps its claim: the node that waits for the answer lives.
_NEW = "json_extract(new.value, '$[{}]')".format
_WRITE_SUBMISSIONS = (
    f"UPDATE submissions SET state = {_NEW(1)}, attempts = {_NEW(2)}, next_attempt_at = {_NEW(3)}, sent_at = {_NEW(4)},"
    f" version = version + 1, claimed_by = CASE WHEN claimed_by = ?1 AND {_NEW(1)} <> 'sent' THEN NULL ELSE claimed_by END"
    f" FROM json_each(?2) AS new WHERE submissions.id = {_NEW(0)}"
)
# A column that is set has each index written that it stands in. A job gets its remote id once.
_CHANGES = Rows(Job, JOBS.codecs, beside=(*JOB_KEEPS, "remote_id"))
_WRITE_JOBS = Update("jobs", ("id", *_CHANGES.fields), f"{', '.join(f'{field} = new.{field}' for field in _CHANGES.fields)}, has_raw = 1")
_WRITE_REMOTE_IDS = Update("jobs", ("id", "remote_id"), "remote_id = new.remote_id")
# One row, and so one turn of this thread.
_READ = (
    f"SELECT (SELECT json_group_array(json_array(id, version)) FROM submissions WHERE id {AMONG.replace('?', '?1')}),"
    " (SELECT json_group_array(json_array(id, remote_id, sequence, outputs)) FROM jobs"
    f" WHERE submission_id {AMONG.replace('?', '?1')})"
)
_decode_versions = msgspec.json.Decoder(tuple[tuple[str, int], ...]).decode
_decode_rows = msgspec.json.Decoder(tuple[tuple[str, str | None, int, str], ...]).decode
# A look for each id. With IN in place of this SQLite may go through all ids of the account.
_BY_REMOTE_ID = (
    f"SELECT {PACKED_JOBS.columns('job')} FROM json_each(?) AS wanted CROSS JOIN jobs AS job INDEXED BY jobs_by_remote_id"
    " ON job.provider = ? AND job.remote_id = wanted.value"
)
_CONFIRM = "UPDATE notices SET outcome = CASE WHEN status IS ? THEN 'applied' ELSE 'refuted' END WHERE job_id = ? AND outcome = 'waiting'"


def settle(tx: Tx, calls: Sequence[Sequence[Settlement]]) -> list[Settled]:
    ids = json_text([settlement.submission.id for settlements in calls for settlement in settlements])
    versions, rows = tx.db.execute(_READ, (ids,)).fetchone()
    answers, won = choose_current(calls, dict(_decode_versions(versions)))
    claimed: dict[str, Claimed] = {}
    if won:
        jobs = _decode_rows(rows)
        standing = {job_id: Standing(sequence, decode_outputs(outputs)) for job_id, _, sequence, outputs in jobs}
        claimed = _write(tx, merge(won, standing), {job_id: remote_id for job_id, remote_id, _, _ in jobs})
    return by_call(calls, answers, claimed)


def _write(tx: Tx, settlements: list[Settlement], remote_ids: Mapping[str, str | None]) -> dict[str, Claimed]:
    """`remote_ids`: of all jobs that are there. Gives what was claimed, by the delivery's id."""
    db = tx.db
    db.execute(_WRITE_SUBMISSIONS, (tx.node, json_text([_submission_row(settlement.submission) for settlement in settlements])))
    _resize(db, [settlement.submission for settlement in settlements if settlement.is_resized])
    jobs = [job for settlement in settlements for job in settlement.jobs]
    _write_jobs(db, jobs, remote_ids)
    _write_notices(db, settlements, {job.id for job in jobs})
    events = [encode_event(event, event.subject) for settlement in settlements for event in settlement.events]
    INSERT_EVENTS.write(db, events)
    deliveries = [delivery for settlement in settlements for delivery in settlement.deliveries]
    claimed = with_events(deliveries, insert_and_claim(tx, deliveries), events)
    answered = {job_id for settlement in settlements for job_id in settlement.polls_answered}
    if polls := [poll for settlement in settlements for poll in settlement.polls]:
        write_polls(tx, polls, answered)
    if ended := [job_id for settlement in settlements for job_id in settlement.polls_ended]:
        db.execute(f"DELETE FROM polls WHERE job_id {AMONG}", (json_text(ended),))
    if calls := [CALLS.encode(call) for settlement in settlements for call in settlement.calls]:
        db.executemany(f"INSERT INTO calls ({CALLS.columns}) VALUES ({CALLS.marks}) ON CONFLICT (id) DO NOTHING", calls)
    if durations := [duration for settlement in settlements for duration in settlement.durations]:
        _learn(db, durations)
    return claimed


def _write_notices(db: sqlite3.Connection, settlements: Sequence[Settlement], written: set[str]) -> None:
    """`written`: the jobs whose rows were written just now."""
    notices = [notice for settlement in settlements for notice in settlement.notices]
    insert_notices(db, notices)
    outcomes = [outcome for settlement in settlements for outcome in settlement.outcomes]
    settle_notices(db, outcomes)
    if confirmations := [confirmation for settlement in settlements for confirmation in settlement.confirmations]:
        db.executemany(_CONFIRM, [(None if one.status is None else one.status.value, one.job_id) for one in confirmations])
    if repeats := [repeat for settlement in settlements for repeat in settlement.repeats]:
        _repeat(db, repeats)
    spoken_of = {notice.job_id for notice in notices} | {outcome.job_id for outcome in outcomes}
    if heard := spoken_of - written - {None}:
        db.execute(f"UPDATE jobs SET has_raw = 1 WHERE id {AMONG} AND has_raw = 0", (json_text(list(heard)),))


def _repeat(db: sqlite3.Connection, repeats: Sequence[tuple[str, datetime]]) -> None:
    rows = [(to_micros(at), notice_id) for notice_id, at in repeats]
    db.executemany("UPDATE notices SET repeats = repeats + 1, last_at = ? WHERE id = ?", rows)


def _submission_row(submission: Submission) -> tuple[str | int | None, ...]:
    sent_at = None if submission.sent_at is None else to_micros(submission.sent_at)
    return submission.id, submission.state.value, submission.attempts, to_micros(submission.next_attempt_at), sent_at


def _resize(db: sqlite3.Connection, submissions: Sequence[Submission]) -> None:
    for submission in submissions:
        db.execute("UPDATE submissions SET count = ? WHERE id = ?", (submission.count, submission.id))
        db.execute("UPDATE inputs SET input = ? WHERE submission_id = ?", (json_text(submission.input), submission.id))


def _write_jobs(db: sqlite3.Connection, jobs: Sequence[Job], remote_ids: Mapping[str, str | None]) -> None:
    known = [job for job in jobs if job.id in remote_ids]
    _WRITE_JOBS.write(db, [(job.id, *_CHANGES.encode(job)) for job in known])
    _WRITE_REMOTE_IDS.write(db, [(job.id, job.remote_id) for job in known if job.remote_id != remote_ids[job.id]])
    if len(known) < len(jobs):
        insert_jobs(db, [job for job in jobs if job.id not in remote_ids])


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
    return [PACKED_JOBS.read(row) for row in rows]


def _find_jobs(db: sqlite3.Connection, provider: str, remote_ids: Sequence[str]) -> list[Job]:
    rows = db.execute(f"{_BY_REMOTE_ID} ORDER BY created_at, job.id", (json_text(list(set(remote_ids))), provider))
    return [PACKED_JOBS.read(row) for row in rows]


def _load_to_settle(db: sqlite3.Connection, submission_ids: Sequence[str]) -> tuple[dict[str, Family], dict[str, Poll]]:
    families = load_families(db, submission_ids)
    return families, load_polls(db, [job.id for family in families.values() for job in family.jobs])


def _load(db: sqlite3.Connection, ids: Iterable[tuple[str]]) -> list[Family]:
    return list(load_families(db, dict.fromkeys(row_id for (row_id,) in ids)).values())


class SettlingPart(Access):
    async def load_families(self, submission_ids: Sequence[str]) -> dict[str, Family]:
        return await self.read(lambda db: load_families(db, submission_ids))

    async def load_to_settle(self, submission_ids: Sequence[str]) -> tuple[dict[str, Family], dict[str, Poll]]:
        return await self.read(lambda db: _load_to_settle(db, submission_ids), is_shown=False)

    async def find_open_jobs(self, provider: str, remote_ids: Sequence[str]) -> list[Job]:
        return await self.read(lambda db: _find_open_jobs(db, provider, remote_ids))

    async def find_jobs(self, provider: str, remote_ids: Sequence[str]) -> list[Job]:
        return await self.read(lambda db: _find_jobs(db, provider, remote_ids))

    async def find_unconfirmed(self, provider: str) -> list[Family]:
        return await self.read(
            lambda db: _load(db, db.execute("SELECT submission_id FROM jobs WHERE provider = ? AND is_lost = 1", (provider,)))
        )

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        written, _ = await self.settle_and_claim(settlements)
        return written

    async def settle_and_claim(self, settlements: Sequence[Settlement]) -> Settled:
        weight = sum(len(notice.body) for settlement in settlements for notice in settlement.notices)
        return await self.write(
            settle, tuple(settlements), weight=weight + 2_000 * len(settlements), undo=lambda settled: take_back(settled[1])
        )

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
