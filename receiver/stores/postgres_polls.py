"""When each job is to be asked about, and which node asks."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any, NamedTuple

from receiver.model import Job, Poll
from receiver.stores.listings import OPEN_AFTER
from receiver.stores.postgres_access import Access, Tx, each
from receiver.stores.postgres_rows import JOB_TABLE, POLL_TABLE, Table, numbered
from receiver.stores.rows import POLLS, Rows

# What was asked for while the poll was under way is not lost when its result is written.
_REPLACE = (
    f"{POLLS.replacing(but=('job_id', 'due_at', 'cancel'))}, due_at = least(excluded.due_at, polls.asked_at),"
    " cancel = excluded.cancel OR polls.asked_cancel, asked_at = NULL, asked_cancel = false, claimed_by = NULL"
)
_WRITE = POLL_TABLE.insert(f"ON CONFLICT (job_id) DO UPDATE SET {_REPLACE}")
# While somebody asks the claim stays, so that nobody asks a second time meanwhile.
_FREE = "polls.claimed_by IS NULL"
_KEEP = ", ".join(
    f"{field} = CASE WHEN {_FREE} THEN excluded.{field} ELSE polls.{field} END" for field in POLLS.fields if field != "job_id"
)
_PUT = POLL_TABLE.insert(
    f"ON CONFLICT (job_id) DO UPDATE SET {_KEEP}, asked_at = CASE WHEN NOT {_FREE} THEN least(polls.asked_at, excluded.due_at) END"
)

BURY = (
    "UPDATE polls SET claimed_by = NULL, due_at = least(due_at, asked_at), cancel = cancel OR asked_cancel,"
    " asked_at = NULL, asked_cancel = false WHERE claimed_by = ANY($1::text[])"
)

_POLLED = Table("polls", Rows(Poll, POLLS.codecs, beside=("job_id", "submission_id", "provider")))  # what its job does not say
_DUE = "SELECT {columns} FROM polls WHERE provider = {name} AND claimed_by IS NULL AND due_at <= $1"
# How many of each account are among the first: others pass over all that is locked, claimed or not. Merged in the order of the index,
# account by account: so many rows are read as are claimed, and no more.
_SHARES = "SELECT provider, count(*) FROM (SELECT provider FROM ({due}) AS due ORDER BY due_at, job_id LIMIT $2) AS first GROUP BY provider"
# Found once, in the index of what is due, and then by its place: what is locked does not move.
_CLAIM = (
    "WITH poll AS (UPDATE polls SET claimed_by = $3 WHERE ctid = ANY (ARRAY("
    "SELECT due.place FROM ({shares}) AS wanted (name, most)"
    f" CROSS JOIN LATERAL ({_DUE.format(columns='ctid AS place', name='wanted.name')}"
    " ORDER BY due_at, job_id LIMIT wanted.most FOR UPDATE SKIP LOCKED) AS due))"
    f" RETURNING job_id, {_POLLED.columns})"
    f" SELECT {JOB_TABLE.columns_of('job')}, {_POLLED.columns_of('poll')} FROM poll JOIN jobs AS job ON job.id = poll.job_id"
    " ORDER BY poll.due_at, poll.job_id"
)


class _Asked(NamedTuple):
    now: datetime
    job_ids: Sequence[str]
    submission_id: str | None
    cancel: bool


async def write_polls(tx: Tx, polls: Sequence[Poll], answered: Collection[str]) -> None:
    """`answered`: the jobs that this node asked about."""
    await _write_held(tx, [poll for poll in polls if poll.job_id in answered])
    await _write(tx, _PUT, [poll for poll in polls if poll.job_id not in answered])


async def _write(tx: Tx, statement: str, polls: Sequence[Poll]) -> None:
    """In the order of their ids, as everyone locks them."""
    if polls:
        last = {poll.job_id: poll for poll in polls}
        await tx.execute(statement, POLL_TABLE.pack([last[job_id] for job_id in sorted(last)], tx.shift))


@cache
def _claim_of(accounts: int) -> str:
    if accounts == 1:
        return _CLAIM.format(shares="VALUES ($4::text, $2::bigint)")
    due = " UNION ALL ".join(
        f"({_DUE.format(columns='provider, due_at, job_id', name=f'${number}')} ORDER BY due_at, job_id LIMIT $2)"
        for number in range(4, accounts + 4)
    )
    return _CLAIM.format(shares=_SHARES.format(due=due))


@each("claiming")
async def _claim(tx: Tx, asked: tuple[datetime, int, Sequence[str]]) -> list[tuple[Poll, Job]]:
    now, limit, providers = asked
    names = list(dict.fromkeys(providers))
    if not names:
        return []
    rows = await tx.change(_claim_of(len(names)), tx.to_db(now), limit, tx.node, *names)
    return [_decode(row, tx.shift) for row in rows]


def _decode(row: Sequence[Any], shift: int) -> tuple[Poll, Job]:
    job = JOB_TABLE.decode(row, shift)
    beside = row[JOB_TABLE.width :]
    return _POLLED.decode(beside, shift, job_id=job.id, submission_id=job.submission_id, provider=job.provider), job


@each("claiming")
async def _unclaim(tx: Tx, polls: Sequence[Poll]) -> None:
    await _write_held(tx, polls)


@each("settling", turn=1)
async def _release(tx: Tx, polls: Sequence[Poll]) -> None:
    await _write_held(tx, polls)


async def _write_held(tx: Tx, polls: Sequence[Poll]) -> None:
    if not polls:
        return
    rows = await tx.look(
        "SELECT job_id FROM polls WHERE claimed_by = $1 AND job_id = ANY($2::text[]) ORDER BY job_id FOR UPDATE",
        tx.node,
        [poll.job_id for poll in polls],
    )
    held = {row[0] for row in rows}
    await _write(tx, _WRITE, [poll for poll in polls if poll.job_id in held])


@each("settling", turn=1)
async def _poll_now(tx: Tx, asked: _Asked) -> int:
    now = tx.to_db(asked.now)
    changed = 0
    for where, value in _selections(asked):
        for is_claimed, due, cancel in (("IS NULL", "due_at", "cancel"), ("IS NOT NULL", "asked_at", "asked_cancel")):
            changed += await tx.execute(
                f"UPDATE polls SET {due} = least({due}, $2), {cancel} = {cancel} OR $3::boolean WHERE job_id IN ("
                f"SELECT job_id FROM polls WHERE {where.format(id='job_id')} AND claimed_by {is_claimed}"
                f" AND ({due} IS NULL OR {due} > $2 OR ($3 AND NOT {cancel})) ORDER BY job_id FOR UPDATE)",
                value,
                now,
                asked.cancel,
            )
        changed += await _poll_again(tx, asked, where.format(id="id"), value, now)
    return changed


def _selections(asked: _Asked) -> list[tuple[str, Any]]:
    selections: list[tuple[str, Any]] = []
    if asked.job_ids:
        selections.append(("{id} = ANY($1::text[])", list(asked.job_ids)))
    if asked.submission_id is not None:
        selections.append(("{id} = ANY (ARRAY(SELECT id FROM jobs WHERE submission_id = $1))", asked.submission_id))
    return selections


async def _poll_again(tx: Tx, asked: _Asked, where: str, value: Any, now: int) -> int:
    """A poll for each job that has none and whose provider may still have news."""
    return await tx.execute(
        "INSERT INTO polls (job_id, submission_id, provider, due_at, attempts, failures, not_found, cancel)"
        " SELECT id, submission_id, provider, $2, 0, 0, 0, $3::boolean FROM jobs"
        f" WHERE {where} AND remote_id IS NOT NULL"
        " AND (NOT is_final OR is_own_verdict) AND NOT EXISTS (SELECT 1 FROM polls WHERE job_id = jobs.id)"
        " ORDER BY id ON CONFLICT (job_id) DO NOTHING",
        value,
        now,
        asked.cancel,
    )


async def _load(tx: Tx, job_ids: Sequence[str]) -> dict[str, Poll]:
    rows = await tx.look(f"SELECT {POLL_TABLE.columns} FROM polls WHERE job_id = ANY($1::text[])", list(job_ids))
    polls = [POLL_TABLE.decode(row, tx.shift) for row in rows]
    return {poll.job_id: poll for poll in polls}


async def _has_open(tx: Tx, provider: str) -> bool:
    """A look at each status: a backlog of jobs without an id is passed over."""
    rows = await tx.look(
        "SELECT EXISTS (SELECT 1 FROM unnest(ARRAY['processing', 'queued', 'submitting', 'unconfirmed']) AS open (status)"
        " CROSS JOIN LATERAL (SELECT 1 FROM jobs"
        " WHERE provider = $1 AND NOT is_final AND jobs.status = open.status AND remote_id > '' LIMIT 1) AS found)",
        provider,
    )
    return bool(rows[0][0])


async def _find_open(tx: Tx, after: Sequence[str]) -> list[tuple[str, str, str]]:
    return [tuple(row) for row in await tx.look(numbered(OPEN_AFTER.format(is_open="NOT is_final")), *after)]


class PollsPart(Access):
    async def claim_polls(self, now: datetime, limit: int, providers: Sequence[str]) -> list[tuple[Poll, Job]]:
        return await self.write(_claim, (now, limit, tuple(providers)), undo=lambda claimed: (_unclaim, [poll for poll, _ in claimed]))

    async def load_polls(self, job_ids: Sequence[str]) -> dict[str, Poll]:
        return await self.read(lambda tx: _load(tx, job_ids))

    async def release_polls(self, polls: Sequence[Poll]) -> None:
        await self.write(_release, tuple(polls))

    async def poll_now(
        self,
        now: datetime,
        *,
        job_ids: Sequence[str] = (),
        submission_id: str | None = None,
        provider: str | None = None,
        cancel: bool = False,
    ) -> int:
        asked = _Asked(now, tuple(job_ids), submission_id, cancel)
        changed = await self.write(_poll_now, asked) if job_ids or submission_id else 0
        place = ("", "", "")
        while provider is not None and (rows := await self.read(partial(_find_open, after=(provider, *place)))):
            changed += await self.write(_poll_now, asked._replace(job_ids=[job_id for _, _, job_id in rows], submission_id=None))
            place = rows[-1]
        return changed

    async def has_open_jobs(self, provider: str) -> bool:
        return await self.read(lambda tx: _has_open(tx, provider))
