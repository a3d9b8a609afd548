"""The one way in which a job changes: whole settlements, each only over the version it was computed from."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from receiver.model import Family, Job, Poll, Submission
from receiver.stores.claiming import Claimed, Settled, by_call, with_events
from receiver.stores.merging import Standing, choose_current, merge
from receiver.stores.postgres_access import Access, Tx, work
from receiver.stores.postgres_deliveries import take_back
from receiver.stores.postgres_inbox import SETTLE_NOTICES, insert_notices, pack_outcomes
from receiver.stores.postgres_outbox import insert_deliveries, insert_events
from receiver.stores.postgres_polls import write_polls
from receiver.stores.postgres_rows import CALL_TABLE, JOB_TABLE, Table, pack, source
from receiver.stores.postgres_submissions import insert_jobs, load_families, load_to_settle
from receiver.stores.rows import JOB_KEEPS, JOBS, Rows, decode_outputs, encode_event, json_text
from receiver.stores.terms import Settlement

T = TypeVar("T")

# A submission that is still `sent` keeps its claim: the node that waits for the answer lives.
_WRITE_SUBMISSIONS = (
    "UPDATE submissions SET state = new.state, attempts = new.attempts, next_attempt_at = new.next_attempt_at, sent_at = new.sent_at,"
    " version = version + 1, claimed_by = CASE WHEN claimed_by = $2 AND new.state <> 'sent' THEN NULL ELSE claimed_by END"
    f" FROM {source('id text, state text, attempts bigint, next_attempt_at bigint, sent_at bigint')}"
    " WHERE submissions.id = new.id"
)
# The jobs stay locked: see the outbox.
_LOCK = (
    "WITH family AS MATERIALIZED (SELECT id, version FROM submissions WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE)"
    " SELECT family.id, family.version, job.id, job.sequence, job.outputs FROM family JOIN jobs AS job ON job.submission_id = family.id"
    " ORDER BY job.id FOR UPDATE OF job"
)
_CHANGES = Table("jobs", Rows(Job, JOBS.codecs, beside=[field for field in JOB_KEEPS if field != "id"]))
_CHANGED = ", ".join(f"{field} = new.{field}" for field in _CHANGES.rows.fields if field != "id")
_WRITE_JOBS = f"UPDATE jobs SET {_CHANGED}, has_raw = true FROM {_CHANGES.source()} WHERE jobs.id = new.id"
_CONFIRM = (
    "UPDATE notices SET outcome = CASE WHEN notices.status IS NOT DISTINCT FROM new.status THEN 'applied' ELSE 'refuted' END"
    f" FROM {source('job_id text, status text')} WHERE notices.job_id = new.job_id AND notices.outcome = 'waiting'"
)
_REPEAT = (
    "UPDATE notices SET repeats = repeats + new.count, last_at = new.last_at"
    f" FROM {source('id text, count bigint, last_at bigint')} WHERE notices.id = new.id"
)
_LEARN = (
    "INSERT INTO durations (provider, model, seconds) SELECT provider, model, seconds"
    f" FROM {source('provider text, model text, seconds double precision')}"
)


@work("settling")
async def _settle(tx: Tx, calls: Sequence[Sequence[Settlement]]) -> list[Settled]:
    ids = sorted({settlement.submission.id for settlements in calls for settlement in settlements})
    locked = await tx.look(_LOCK, ids)
    answers, won = choose_current(calls, {submission_id: version for submission_id, version, *_ in locked})
    claimed: dict[str, Claimed] = {}
    if won:
        standing = {job_id: Standing(sequence, decode_outputs(outputs)) for _, _, job_id, sequence, outputs in locked}
        claimed = await _write(tx, merge(won, standing), set(standing))
    return by_call(calls, answers, claimed)


async def _write(tx: Tx, settlements: Sequence[Settlement], known: set[str]) -> dict[str, Claimed]:
    """Gives what was claimed, by the delivery's id."""
    submissions = [settlement.submission for settlement in settlements]
    await tx.execute(_WRITE_SUBMISSIONS, pack([_submission_row(tx, submission) for submission in submissions]), tx.node)
    await _resize(tx, [settlement.submission for settlement in settlements if settlement.is_resized])
    jobs = _all(settlement.jobs for settlement in settlements)
    await _write_jobs(tx, jobs, known)
    await _write_notices(tx, settlements, {job.id for job in jobs})
    events = [encode_event(event, event.subject) for event in _all(settlement.events for settlement in settlements)]
    await insert_events(tx, events)
    deliveries = _all(settlement.deliveries for settlement in settlements)
    claimed = await insert_deliveries(tx, deliveries)
    answered = set(_all(settlement.polls_answered for settlement in settlements))
    await write_polls(tx, _all(settlement.polls for settlement in settlements), answered)
    if ended := sorted(_all(settlement.polls_ended for settlement in settlements)):
        await tx.execute(
            "DELETE FROM polls WHERE job_id IN (SELECT job_id FROM polls WHERE job_id = ANY($1::text[]) ORDER BY job_id FOR UPDATE)", ended
        )
    if calls := _all(settlement.calls for settlement in settlements):
        await tx.execute(CALL_TABLE.insert("ON CONFLICT (id) DO NOTHING"), CALL_TABLE.pack(calls, tx.shift))
    if durations := _all(settlement.durations for settlement in settlements):
        await tx.execute(_LEARN, pack([(one.provider, one.model, one.seconds) for one in durations]))
    return with_events(deliveries, claimed, events)


def _all(groups: Iterable[Iterable[T]]) -> list[T]:
    return [one for group in groups for one in group]


def _submission_row(tx: Tx, submission: Submission) -> tuple[Any, ...]:
    return (
        submission.id,
        submission.state.value,
        submission.attempts,
        tx.to_db(submission.next_attempt_at),
        None if submission.sent_at is None else tx.to_db(submission.sent_at),
    )


async def _resize(tx: Tx, submissions: Sequence[Submission]) -> None:
    for submission in submissions:
        await tx.execute("UPDATE submissions SET count = $1 WHERE id = $2", submission.count, submission.id)
        await tx.execute("UPDATE inputs SET input = $1 WHERE submission_id = $2", json_text(submission.input), submission.id)


async def _write_jobs(tx: Tx, jobs: Sequence[Job], known: set[str]) -> None:
    if changed := [job for job in jobs if job.id in known]:
        await tx.execute(_WRITE_JOBS, _CHANGES.pack(changed, tx.shift))
    if new := [job for job in jobs if job.id not in known]:
        await insert_jobs(tx, new)


async def _write_notices(tx: Tx, settlements: Sequence[Settlement], written: set[str]) -> None:
    """`written`: the jobs whose rows were written just now."""
    notices = _all(settlement.notices for settlement in settlements)
    await insert_notices(tx, notices)
    outcomes = _all(settlement.outcomes for settlement in settlements)
    if outcomes:
        await tx.execute(SETTLE_NOTICES, pack_outcomes(outcomes))
    if confirmations := {one.job_id: one.status for one in _all(settlement.confirmations for settlement in settlements)}:
        said = [(job_id, None if status is None else status.value) for job_id, status in confirmations.items()]
        await tx.execute(_CONFIRM, pack(said))
    await _repeat(tx, _all(settlement.repeats for settlement in settlements))
    spoken_of = [notice.job_id for notice in notices] + [outcome.job_id for outcome in outcomes]
    heard = sorted({job_id for job_id in spoken_of if job_id is not None} - written)
    if heard:
        await tx.execute("UPDATE jobs SET has_raw = true WHERE id = ANY($1::text[]) AND NOT has_raw", heard)


async def _repeat(tx: Tx, repeats: Sequence[tuple[str, datetime]]) -> None:
    counts: dict[str, tuple[int, int]] = {}
    for notice_id, at in repeats:
        counts[notice_id] = counts.get(notice_id, (0, 0))[0] + 1, tx.to_db(at)
    if counts:
        await tx.execute(_REPEAT, pack([(notice_id, *counted) for notice_id, counted in counts.items()]))


async def _find_jobs(tx: Tx, provider: str, remote_ids: Sequence[str], condition: str) -> list[Job]:
    rows = await tx.look(
        f"SELECT {JOB_TABLE.columns} FROM jobs WHERE provider = $1 AND remote_id IS NOT NULL AND remote_id = ANY($2::text[])"
        f" AND {condition} ORDER BY created_at, id",
        provider,
        list(remote_ids),
    )
    return [JOB_TABLE.decode(row, tx.shift) for row in rows]


async def _load(tx: Tx, statement: str, *values: Any) -> list[Family]:
    ids = dict.fromkeys(row[0] for row in await tx.look(statement, *values))
    families = await load_families(tx, ids)
    return [families[submission_id] for submission_id in ids]


class SettlingPart(Access):
    async def load_families(self, submission_ids: Sequence[str]) -> dict[str, Family]:
        return await self.read(lambda tx: load_families(tx, submission_ids))

    async def load_to_settle(self, submission_ids: Sequence[str]) -> tuple[dict[str, Family], dict[str, Poll]]:
        return await self.read(lambda tx: load_to_settle(tx, submission_ids))

    async def find_open_jobs(self, provider: str, remote_ids: Sequence[str]) -> list[Job]:
        return await self.read(lambda tx: _find_jobs(tx, provider, remote_ids, "(NOT is_final OR is_own_verdict)"))

    async def find_jobs(self, provider: str, remote_ids: Sequence[str]) -> list[Job]:
        return await self.read(lambda tx: _find_jobs(tx, provider, remote_ids, "true"))

    async def find_unconfirmed(self, provider: str) -> list[Family]:
        statement = "SELECT submission_id FROM jobs WHERE provider = $1 AND is_lost"
        return await self.read(lambda tx: _load(tx, statement, provider), is_view=True)

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        written, _ = await self.settle_and_claim(settlements)
        return written

    async def settle_and_claim(self, settlements: Sequence[Settlement]) -> Settled:
        weight = sum(len(notice.body) for settlement in settlements for notice in settlement.notices)
        return await self.write(
            _settle, tuple(settlements), weight=weight + 2_000 * len(settlements), undo=lambda settled: take_back(settled[1])
        )

    async def claim_overdeadline(self, now: datetime, limit: int) -> list[Family]:
        statement = "SELECT submission_id FROM jobs WHERE NOT is_final AND deadline_at <= $1 ORDER BY deadline_at LIMIT $2"
        return await self.read(lambda tx: _load(tx, statement, tx.to_db(now), limit), is_view=True)
