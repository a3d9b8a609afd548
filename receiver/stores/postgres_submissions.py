"""The road from a request to the provider, and the families that everything is settled by."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from receiver.errors import KeyReused
from receiver.model import Family, Job, Poll, Submission
from receiver.stores.postgres_access import Access, Tx, Work, each, work
from receiver.stores.postgres_rows import JOB_TABLE, POLL_TABLE, SUBMISSION_TABLE, pack, source
from receiver.stores.rows import decode_input, json_text
from receiver.stores.terms import Replayed

# Each job with its submission and its poll. The input, which may be large, comes with the first one.
_LOAD = (
    f"SELECT {JOB_TABLE.columns_of('job')}, {POLL_TABLE.columns_of('poll')}, {SUBMISSION_TABLE.columns_of('submission')},"
    " CASE WHEN job.position = min(job.position) OVER (PARTITION BY submission.id)"
    " THEN (SELECT input FROM inputs WHERE submission_id = submission.id) END"
    " FROM submissions AS submission JOIN jobs AS job ON job.submission_id = submission.id"
    " LEFT JOIN polls AS poll ON poll.job_id = job.id"
    " WHERE submission.id = ANY($1::text[]) ORDER BY submission.id, job.position"
)
_POLL = JOB_TABLE.width  # where its columns begin
_SUBMISSION = _POLL + POLL_TABLE.width


async def load_families(tx: Tx, submission_ids: Iterable[str]) -> dict[str, Family]:
    families, _ = await load_to_settle(tx, submission_ids)
    return families


async def load_to_settle(tx: Tx, submission_ids: Iterable[str]) -> tuple[dict[str, Family], dict[str, Poll]]:
    ids = list(submission_ids)
    if not ids:
        return {}, {}
    submissions: dict[str, Submission] = {}
    polls: dict[str, Poll] = {}
    jobs: defaultdict[str, list[Job]] = defaultdict(list)
    for row in await tx.look(_LOAD, ids):
        job = JOB_TABLE.decode(row, tx.shift)
        jobs[job.submission_id].append(job)
        if row[_POLL] is not None:
            polls[job.id] = POLL_TABLE.decode(row[_POLL:_SUBMISSION], tx.shift)
        if job.submission_id not in submissions:
            submission = SUBMISSION_TABLE.decode(row[_SUBMISSION:], tx.shift, input=decode_input(row[-1]))
            submissions[job.submission_id] = submission
    return {submission_id: Family(submission, tuple(jobs[submission_id])) for submission_id, submission in submissions.items()}, polls


async def insert_jobs(tx: Tx, jobs: Sequence[Job]) -> None:
    await tx.execute(JOB_TABLE.insert(""), JOB_TABLE.pack(jobs, tx.shift))
    pairs = [(key, value, tx.to_db(job.created_at), job.id) for job in jobs for key, value in job.metadata.items()]
    if pairs:
        await tx.execute(
            "INSERT INTO job_metadata (key, value, created_at, job_id)"
            f" SELECT key, value, created_at, job_id FROM {source('key text, value text, created_at bigint, job_id text')}",
            pack(pairs),
        )


async def _create_many(tx: Tx, families: Sequence[Family]) -> list[Family | Replayed | KeyReused]:
    """Of several with one key the first is kept; another node's, if it is not on disk yet, is waited for."""
    ordered = sorted(families, key=lambda family: (family.submission.idempotency_key or "", family.submission.id))
    created = {
        row[0]
        for row in await tx.change(
            SUBMISSION_TABLE.insert("ON CONFLICT (api_key_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING RETURNING id"),
            SUBMISSION_TABLE.pack([family.submission for family in ordered], tx.shift),
        )
    }
    new = [family for family in families if family.submission.id in created]
    if new:
        await tx.execute(
            f"INSERT INTO inputs (submission_id, input) SELECT submission_id, input FROM {source('submission_id text, input text')}",
            pack([(family.submission.id, json_text(family.submission.input)) for family in new]),
        )
        await insert_jobs(tx, [job for family in new for job in family.jobs])
    return [family if family.submission.id in created else await _find_by_key(tx, family) for family in families]


_create: Work[Family, Family | Replayed] = work("settling")(_create_many)


async def _find_by_key(tx: Tx, family: Family) -> Replayed | KeyReused:
    ((submission_id, body_hash),) = await tx.look(
        "SELECT id, body_hash FROM submissions WHERE api_key_id = $1 AND idempotency_key = $2 FOR UPDATE",
        family.submission.api_key_id,
        family.submission.idempotency_key,
    )
    if body_hash != family.submission.body_hash:
        return KeyReused()
    return Replayed((await load_families(tx, [submission_id]))[submission_id])


@each("claiming")
async def _claim_waiting(tx: Tx, asked: tuple[datetime, int, Sequence[str]]) -> list[Family]:
    now, limit, providers = asked
    claimed = await tx.change(
        "WITH due AS MATERIALIZED (SELECT found.id, found.next_attempt_at FROM unnest($1::text[]) AS wanted (name) CROSS JOIN LATERAL ("
        "SELECT id, next_attempt_at FROM submissions WHERE provider = wanted.name AND state = 'waiting' AND claimed_by IS NULL"
        " AND next_attempt_at <= $2 ORDER BY next_attempt_at, id LIMIT $3 FOR UPDATE SKIP LOCKED) AS found"
        " ORDER BY found.next_attempt_at, found.id LIMIT $3)"
        " UPDATE submissions SET claimed_by = $4 FROM due WHERE submissions.id = due.id RETURNING submissions.id, due.next_attempt_at",
        list(dict.fromkeys(providers)),
        tx.to_db(now),
        limit,
        tx.node,
    )
    return await _load_in_order(tx, claimed)


@each("claiming")
async def _claim_lost(tx: Tx, limit: int) -> list[Family]:
    claimed = await tx.change(
        "UPDATE submissions SET claimed_by = $2 WHERE id IN (SELECT id FROM submissions WHERE state = 'sent' AND claimed_by IS NULL"
        " ORDER BY sent_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING id, sent_at",
        limit,
        tx.node,
    )
    return await _load_in_order(tx, claimed)


async def _load_in_order(tx: Tx, claimed: list[tuple[str, int]]) -> list[Family]:
    ids = [submission_id for submission_id, _ in sorted(claimed, key=lambda row: (row[1], row[0]))]
    families = await load_families(tx, ids)
    return [families[one] for one in ids]


@each("claiming")
async def _unclaim(tx: Tx, ids: Sequence[str]) -> None:
    await tx.execute("UPDATE submissions SET claimed_by = NULL WHERE claimed_by = $1 AND id = ANY($2::text[])", tx.node, list(ids))


@each("settling")
async def _mark_sent(tx: Tx, asked: tuple[str, datetime]) -> bool:
    submission_id, at = asked
    return (
        await tx.execute(
            "UPDATE submissions SET state = 'sent', sent_at = $1, attempts = attempts + 1, version = version + 1"
            " WHERE id = $2 AND state = 'waiting' AND claimed_by = $3",
            tx.to_db(at),
            submission_id,
            tx.node,
        )
        == 1
    )


@each("settling")
async def _unmark(tx: Tx, submission_id: str | None) -> None:
    """Only for a mark that nobody heard of: then nothing was sent."""
    await tx.execute(
        "UPDATE submissions SET state = 'waiting', sent_at = NULL, attempts = attempts - 1, version = version + 1"
        " WHERE id = $1 AND state = 'sent' AND claimed_by = $2",
        submission_id,
        tx.node,
    )


@each("settling")
async def _release(tx: Tx, asked: tuple[str, datetime]) -> None:
    submission_id, next_attempt_at = asked
    await tx.execute(
        "UPDATE submissions SET claimed_by = NULL, next_attempt_at = $1 WHERE id = $2 AND state = 'waiting' AND claimed_by = $3",
        tx.to_db(next_attempt_at),
        submission_id,
        tx.node,
    )


class SubmissionsPart(Access):
    async def create_submission(self, family: Family) -> Family | Replayed:
        return await self.write(_create, family, weight=2_000 + len(json_text(family.submission.input)))

    async def claim_submissions(self, now: datetime, limit: int, providers: Sequence[str]) -> list[Family]:
        if not await self._is_any("state = 'waiting' AND claimed_by IS NULL"):
            return []
        return await self.write(_claim_waiting, (now, limit, tuple(providers)), undo=lambda claimed: (_unclaim, _ids(claimed)))

    async def claim_lost_submissions(self, limit: int) -> list[Family]:
        if not await self._is_any("state = 'sent' AND claimed_by IS NULL"):
            return []
        return await self.write(_claim_lost, limit, undo=lambda claimed: (_unclaim, _ids(claimed)))

    async def _is_any(self, condition: str) -> bool:
        """A look costs one round trip, a claim of nothing three; most of the time there is nothing."""
        return bool(await self.read(lambda tx: tx.look(f"SELECT 1 FROM submissions WHERE {condition} LIMIT 1")))

    async def mark_sent(self, submission_id: str, at: datetime) -> bool:
        return await self.write(_mark_sent, (submission_id, at), undo=lambda is_marked: (_unmark, submission_id if is_marked else None))

    async def release_submission(self, submission_id: str, next_attempt_at: datetime) -> None:
        await self.write(_release, (submission_id, next_attempt_at))


def _ids(families: Sequence[Family]) -> list[str]:
    return [family.submission.id for family in families]
