"""When each job is to be asked about, and which node asks."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from receiver.model import Job, Poll
from receiver.stores.listings import OPEN_AFTER
from receiver.stores.rows import AMONG, POLLS, json_text
from receiver.stores.sqlite_access import Access, Tx, forgettable, one_by_one
from receiver.stores.sqlite_packing import PACKED_JOBS, PACKED_POLLS
from receiver.times import to_micros

# What was asked for while the poll was under way is not lost when its result is written.
_REPLACE = (
    f"{POLLS.replacing(but=('job_id', 'due_at', 'cancel'))}, due_at = min(excluded.due_at, ifnull(polls.asked_at, excluded.due_at)),"
    " cancel = max(excluded.cancel, polls.asked_cancel), asked_at = NULL, asked_cancel = 0, claimed_by = NULL"
)
_WRITE = f"INSERT INTO polls ({POLLS.columns}) VALUES ({POLLS.marks}) ON CONFLICT (job_id) DO UPDATE SET {_REPLACE}"
# While somebody asks the claim stays, so that nobody asks a second time meanwhile.
_FREE = "polls.claimed_by IS NULL"
_KEEP = ", ".join(f"{field} = iif({_FREE}, excluded.{field}, polls.{field})" for field in POLLS.fields if field != "job_id")
_PUT = (
    f"INSERT INTO polls ({POLLS.columns}) VALUES ({POLLS.marks}) ON CONFLICT (job_id) DO UPDATE SET {_KEEP},"
    f" asked_at = iif({_FREE}, NULL, min(excluded.due_at, ifnull(polls.asked_at, excluded.due_at)))"
)

_DUE = "SELECT job_id, due_at FROM polls INDEXED BY polls_due WHERE provider = ? AND claimed_by IS NULL AND due_at <= ?"

BURY = (
    "UPDATE polls SET claimed_by = NULL, due_at = min(due_at, ifnull(asked_at, due_at)), cancel = max(cancel, asked_cancel),"
    " asked_at = NULL, asked_cancel = 0 WHERE claimed_by = ?"
)


class _Asked(NamedTuple):
    now: datetime
    job_ids: Sequence[str]
    submission_id: str | None
    cancel: bool


def write_polls(tx: Tx, polls: Sequence[Poll], answered: Collection[str]) -> None:
    """`answered`: the jobs that this node asked about."""
    _write_held(tx, [poll for poll in polls if poll.job_id in answered])
    tx.db.executemany(_PUT, [POLLS.encode(poll) for poll in polls if poll.job_id not in answered])


@forgettable
@one_by_one
def _claim(tx: Tx, asked: tuple[datetime, int, Sequence[str]]) -> list[tuple[Poll, Job]]:
    now, limit, providers = asked
    names = list(dict.fromkeys(providers))
    if not names:
        return []
    # Merged in the order of the index, account by account: so many rows are read as are claimed, and no more.
    due = tx.db.execute(
        f"{' UNION ALL '.join([_DUE] * len(names))} ORDER BY due_at LIMIT ?",
        (*(value for name in names for value in (name, to_micros(now))), limit),
    )
    ids = json_text([job_id for job_id, _ in due])
    if ids == "[]":
        return []
    tx.db.execute(f"UPDATE polls SET claimed_by = ? WHERE job_id {AMONG}", (tx.node, ids))
    rows = tx.db.execute(
        f"SELECT {PACKED_POLLS.columns('poll')}, {PACKED_JOBS.columns('job')} FROM json_each(?) AS claimed"
        " CROSS JOIN polls AS poll ON poll.job_id = claimed.value JOIN jobs AS job ON job.id = poll.job_id ORDER BY claimed.key",
        (ids,),
    )
    return [(PACKED_POLLS.read(row), PACKED_JOBS.read(row[PACKED_POLLS.width :])) for row in rows]


@one_by_one
def _release(tx: Tx, polls: Sequence[Poll]) -> None:
    _write_held(tx, polls)


def _write_held(tx: Tx, polls: Sequence[Poll]) -> None:
    if not polls:
        return
    held = {
        job_id
        for (job_id,) in tx.db.execute(
            f"SELECT job_id FROM polls WHERE claimed_by = ? AND job_id {AMONG}",
            (tx.node, json_text([poll.job_id for poll in polls])),
        )
    }
    tx.db.executemany(_WRITE, [POLLS.encode(poll) for poll in polls if poll.job_id in held])


@one_by_one
def _poll_now(tx: Tx, asked: _Asked) -> int:
    now = to_micros(asked.now)
    changed = 0
    for where, value in _selections(asked):
        for condition, due, cancel in (("claimed_by IS NULL", "due_at", "cancel"), ("claimed_by IS NOT NULL", "asked_at", "asked_cancel")):
            changed += tx.db.execute(
                f"UPDATE polls SET {due} = min(ifnull({due}, ?), ?), {cancel} = max({cancel}, ?)"
                f" WHERE {where.format(id='job_id')} AND {condition} AND (ifnull({due}, ? + 1) > ? OR {cancel} < ?)",
                (now, now, asked.cancel, value, now, now, asked.cancel),
            ).rowcount
        changed += _poll_again(tx.db, asked, where.format(id="id"), value, now)
    return changed


def _selections(asked: _Asked) -> list[tuple[str, str]]:
    selections = []
    if asked.job_ids:
        selections.append((f"{{id}} {AMONG}", json_text(list(asked.job_ids))))
    if asked.submission_id is not None:
        selections.append(("submission_id = ?", asked.submission_id))
    return selections


def _poll_again(db: sqlite3.Connection, asked: _Asked, where: str, value: str, now: int) -> int:
    """A poll for each job that has none and whose provider may still have news."""
    return db.execute(
        "INSERT INTO polls (job_id, submission_id, provider, due_at, attempts, failures, not_found, cancel)"
        f" SELECT id, submission_id, provider, ?, 0, 0, 0, ? FROM jobs WHERE {where} AND remote_id IS NOT NULL"
        " AND (is_final = 0 OR is_own_verdict = 1) AND NOT EXISTS (SELECT 1 FROM polls WHERE job_id = jobs.id)",
        (now, asked.cancel, value),
    ).rowcount


def load_polls(db: sqlite3.Connection, job_ids: Sequence[str]) -> dict[str, Poll]:
    rows: Any = db.execute(f"SELECT {PACKED_POLLS.columns('polls')} FROM polls WHERE job_id {AMONG}", (json_text(list(job_ids)),))
    return {poll.job_id: poll for poll in map(PACKED_POLLS.read, rows)}


def _has_open(db: sqlite3.Connection, provider: str) -> bool:
    """A look at each status: a backlog of jobs without an id is passed over."""
    found = db.execute(
        "SELECT 1 FROM jobs INDEXED BY jobs_open WHERE provider = ? AND is_final = 0"
        " AND status IN ('processing', 'queued', 'submitting', 'unconfirmed') AND remote_id > '' LIMIT 1",
        (provider,),
    )
    return found.fetchone() is not None


def _find_open(db: sqlite3.Connection, after: Sequence[str]) -> list[tuple[str, str, str]]:
    return db.execute(OPEN_AFTER.format(is_open="is_final = 0"), after).fetchall()


class PollsPart(Access):
    async def claim_polls(self, now: datetime, limit: int, providers: Sequence[str]) -> list[tuple[Poll, Job]]:
        return await self.write(_claim, (now, limit, tuple(providers)), undo=lambda claimed: (_release, [poll for poll, _ in claimed]))

    async def load_polls(self, job_ids: Sequence[str]) -> dict[str, Poll]:
        return await self.read(lambda db: load_polls(db, job_ids))

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
        return await self.read(lambda db: _has_open(db, provider))
