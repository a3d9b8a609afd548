"""Notices that were pushed to us: kept many at a time, claimed in the order they came."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from receiver.model import Notice
from receiver.stores.claiming import choose_notices
from receiver.stores.rows import AMONG, BODY, NOTICES, json_text
from receiver.stores.sqlite_access import Access, Tx, forgettable, one_by_one
from receiver.stores.sqlite_packing import PACKED_NOTICES
from receiver.stores.sqlite_statements import Insert, Update
from receiver.stores.terms import Kept, NoticeBound, NoticeOutcome

_INSERT_NOTICES = Insert("notices", f"arrival, {NOTICES.columns}, claimed_by", "")
_NOTICE = PACKED_NOTICES.columns("notices")
_INSERT_BODIES = Insert("bodies", "arrival, body", "")
_LAST_AND_KNOWN = f"SELECT (SELECT ifnull(max(arrival), 0) FROM notices), (SELECT json_group_array(id) FROM notices WHERE id {AMONG})"
_SETTLE_NOTICES = Update(
    "notices",
    ("id", "outcome", "status", "job_id", "reason", "remote_id", "only_of"),
    "outcome = new.outcome, status = coalesce(new.status, notices.status), job_id = coalesce(new.job_id, notices.job_id),"
    " reason = new.reason, remote_id = coalesce(new.remote_id, notices.remote_id), claimed_by = NULL",
    "(notices.outcome IS NULL OR notices.outcome IN ('waiting', 'unreadable'))"
    " AND (new.only_of IS NULL OR notices.outcome IS NOT NULL OR notices.claimed_by = new.only_of)",
)


def settle_notices(db: sqlite3.Connection, outcomes: Sequence[NoticeOutcome], only_of: str | None = None) -> None:
    """With `only_of` those that are unsettled only where this node has claimed them."""
    last = {one.id: one for one in outcomes}  # an UPDATE meets each row once
    statuses = [None if one.status is None else one.status.value for one in last.values()]
    _SETTLE_NOTICES.write(
        db,
        [
            (one.id, one.outcome.value, status, one.job_id, one.reason, one.remote_id, only_of)
            for one, status in zip(last.values(), statuses, strict=True)
        ],
    )


_HELD_ELSEWHERE = (
    f"SELECT submission_id FROM notices WHERE submission_id {AMONG} AND outcome IS NULL AND claimed_by IS NOT NULL AND claimed_by <> ?"
)


def insert_notices(db: sqlite3.Connection, notices: Sequence[Notice], nodes: Mapping[str, str] = MappingProxyType({})) -> set[str]:
    """In this order, and with their bodies; one that is there already stays as it is. `nodes`: by notice, which one has claimed it.
    Gives the ids of the new ones."""
    if not notices:
        return set()
    last, found = db.execute(_LAST_AND_KNOWN, (json_text([notice.id for notice in notices]),)).fetchone()
    known = set(msgspec.json.decode(found))
    new = {notice.id: notice for notice in notices if notice.id not in known}
    arrivals = list(enumerate(new.values(), last + 1))
    _INSERT_NOTICES.write(db, [(arrival, *NOTICES.encode(notice), nodes.get(notice.id)) for arrival, notice in arrivals])
    _INSERT_BODIES.write(db, [(arrival, notice.body) for arrival, notice in arrivals if notice.body])
    return set(new)


def keep_notices(tx: Tx, asked: Sequence[tuple[Notice, NoticeBound, bool]]) -> list[Kept]:
    """The third tells whether it is claimed, where no other node is at its submission."""
    elsewhere = _read_held_elsewhere(tx, {notice.submission_id for notice, _, claims in asked if claims})
    kept = _read_inboxes(tx.db, {notice.submission_id for notice, _, _ in asked if notice.submission_id is not None})
    changed: set[str] = set()
    keep, answers, nodes = [], [], {}
    for notice, bound, claims in asked:
        has_room = True
        if notice.submission_id is not None:
            callbacks, size = kept.get(notice.submission_id, (0, 0))
            callbacks, size = callbacks + 1, size + len(notice.body)
            if has_room := callbacks <= bound.callbacks and size <= bound.bytes:
                kept[notice.submission_id] = callbacks, size
                changed.add(notice.submission_id)
        is_claimed = has_room and claims and notice.submission_id not in elsewhere
        if has_room:
            keep.append(notice if is_claimed or not claims else replace(notice, tries=0))
        if is_claimed:
            nodes[notice.id] = tx.node
        answers.append(has_room)
    mine = insert_notices(tx.db, keep, nodes).intersection(nodes)
    tx.db.execute(
        "INSERT OR REPLACE INTO inboxes (submission_id, callbacks, bytes)"
        " SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?)",
        (json_text([(one, *kept[one]) for one in sorted(changed)]),),
    )
    return [Kept(has_room, notice.id in mine) for (notice, _, _), has_room in zip(asked, answers, strict=True)]


def _read_held_elsewhere(tx: Tx, submission_ids: set[str | None]) -> set[str]:
    found = tx.db.execute(_HELD_ELSEWHERE, (json_text(list(submission_ids)), tx.node)) if submission_ids else ()
    return {submission_id for (submission_id,) in found}


def _read_inboxes(db: sqlite3.Connection, submission_ids: Iterable[str]) -> dict[str, tuple[int, int]]:
    (found,) = db.execute(
        f"SELECT json_group_array(json_array(submission_id, callbacks, bytes)) FROM inboxes WHERE submission_id {AMONG}",
        (json_text(list(submission_ids)),),
    ).fetchone()
    return {submission_id: (callbacks, size) for submission_id, callbacks, size in msgspec.json.decode(found)}


@forgettable
@one_by_one
def _claim(tx: Tx, asked: tuple[int, int]) -> list[Notice]:
    limit, max_tries = asked
    found = tx.db.execute(
        "SELECT arrival, tries FROM notices AS notice WHERE outcome IS NULL AND claimed_by IS NULL AND NOT EXISTS (SELECT 1 FROM notices"
        " WHERE submission_id = notice.submission_id AND outcome IS NULL AND claimed_by IS NOT NULL AND claimed_by <> ?)"
        " ORDER BY arrival LIMIT ?",
        (tx.node, limit),
    ).fetchall()
    if not found:
        return []
    worn_out, chosen = choose_notices(found, max_tries)
    if worn_out:
        reason = f"its settling was begun {max_tries} times and never finished"
        tx.db.execute(f"UPDATE notices SET outcome = 'unreadable', reason = ? WHERE arrival {AMONG}", (reason, json_text(worn_out)))
    claimed = tx.db.execute(
        f"UPDATE notices SET claimed_by = ?, tries = tries + 1 WHERE arrival {AMONG} RETURNING {_NOTICE}, {BODY}, arrival",
        (tx.node, json_text(chosen)),
    ).fetchall()
    return [PACKED_NOTICES.read(row, body=row[-2] or b"") for row in sorted(claimed, key=lambda row: row[-1])]


@one_by_one
def _release(tx: Tx, notice_ids: Sequence[str]) -> None:
    tx.db.execute(
        f"UPDATE notices SET claimed_by = NULL, tries = tries - 1 WHERE claimed_by = ? AND outcome IS NULL AND id {AMONG}",
        (tx.node, json_text(notice_ids)),
    )


@one_by_one
def _set_aside(tx: Tx, outcomes: Sequence[NoticeOutcome]) -> None:
    settle_notices(tx.db, outcomes, only_of=tx.node)


@one_by_one
def _reopen(tx: Tx, notice_id: str) -> bool:
    reopened = tx.db.execute(
        "UPDATE notices SET outcome = NULL, reason = NULL, tries = 0, claimed_by = NULL WHERE id = ? AND outcome = 'unreadable'",
        (notice_id,),
    )
    return reopened.rowcount == 1


@one_by_one
def _reopen_orphans(tx: Tx, asked: tuple[str, Sequence[str] | None]) -> int:
    provider, remote_ids = asked
    among, values = ("", ()) if remote_ids is None else (f" AND remote_id {AMONG}", (json_text(remote_ids),))
    reopened = tx.db.execute(
        "UPDATE notices SET outcome = NULL, reason = NULL, tries = 0, claimed_by = NULL"
        f" WHERE outcome = 'orphan' AND submission_id IS NULL AND remote_id IS NOT NULL AND provider = ?{among}"
        " AND EXISTS (SELECT 1 FROM jobs WHERE jobs.provider = notices.provider AND jobs.remote_id = notices.remote_id)",
        (provider, *values),
    )
    return reopened.rowcount


class InboxPart(Access):
    async def keep_notice(self, notice: Notice, bound: NoticeBound) -> bool:
        kept = await self.write(keep_notices, (notice, bound, False), weight=1_000 + len(notice.body))
        return kept.is_kept

    async def keep_and_claim(self, notice: Notice, bound: NoticeBound) -> Kept:
        weight = 1_000 + len(notice.body)
        return await self.write(keep_notices, (notice, bound, True), weight=weight, undo=lambda _: (_release, [notice.id]))

    async def claim_notices(self, limit: int, max_tries: int = 5) -> list[Notice]:
        return await self.write(_claim, (limit, max_tries), undo=lambda notices: (_release, [notice.id for notice in notices]))

    async def release_notices(self, notice_ids: Sequence[str]) -> None:
        await self.write(_release, tuple(notice_ids))

    async def set_aside_notices(self, outcomes: Sequence[NoticeOutcome]) -> None:
        await self.write(_set_aside, tuple(outcomes))

    async def reopen_notice(self, notice_id: str) -> bool:
        return await self.write(_reopen, notice_id)

    async def reopen_orphans(self, provider: str, remote_ids: Sequence[str] | None = None) -> int:
        return await self.write(_reopen_orphans, (provider, None if remote_ids is None else tuple(remote_ids)))
