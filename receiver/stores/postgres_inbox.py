"""Notices that were pushed to us: kept many at a time by one statement, claimed in the order they came."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from receiver.model import Notice
from receiver.stores.claiming import choose_notices
from receiver.stores.postgres_access import Access, Tx, each, work
from receiver.stores.postgres_rows import NOTICE_TABLE, pack, source
from receiver.stores.rows import BODY
from receiver.stores.terms import NOT_KEPT, Kept, NoticeBound, NoticeOutcome

CLAIMING = 4711_0002  # the advisory lock under which notices are claimed

_N = NOTICE_TABLE.width
_KEPT_COLUMNS = ", ".join(
    "CASE WHEN claims AND claimed_by IS NULL THEN 0 ELSE tries END" if field == "tries" else field for field in NOTICE_TABLE.rows.fields
)
# Of `kept`, rows with an arrival of their own; what is there already stays as it is. IS TRUE: as a join with what was written, which the
# planner takes for a row or two, each of a batch is compared with each.
_WRITE = (
    f" written AS (INSERT INTO notices (arrival, {NOTICE_TABLE.columns}, claimed_by) OVERRIDING SYSTEM VALUE"
    f" SELECT arrival, {_KEPT_COLUMNS}, claimed_by FROM kept ORDER BY nth ON CONFLICT (id) DO NOTHING RETURNING arrival, claimed_by),"
    " said AS (INSERT INTO bodies (arrival, body) SELECT arrival, body FROM kept"
    " WHERE body <> '' AND (arrival IN (SELECT arrival FROM written)) IS TRUE ON CONFLICT (arrival) DO NOTHING)"
)
_ARRIVAL = "nextval('notices_arrival_seq') AS arrival"
_BOUNDED = f"{NOTICE_TABLE.typed}, room bigint, room_bytes bigint, claims boolean"
# Who holds the submission at this moment is seen, not who is just about to: then two nodes may be at it, and one of them decides again.
_CLAIMANT = (
    "CASE WHEN new.claims AND (SELECT true FROM notices AS other WHERE other.submission_id = new.submission_id"
    " AND other.outcome IS NULL AND other.claimed_by IS NOT NULL AND other.claimed_by <> $3 LIMIT 1) IS NULL THEN $3 END AS claimed_by"
)
_KEEP = (
    f"WITH kept AS MATERIALIZED (SELECT new.*, {_CLAIMANT}, {_ARRIVAL} FROM {source(_BOUNDED, has_bodies=True)}"
    # a look for each: as a plain join a young table is read whole, again with every batch
    " LEFT JOIN LATERAL (SELECT callbacks, bytes FROM inboxes WHERE inboxes.submission_id = new.submission_id LIMIT 1) AS inbox ON true"
    " WHERE submission_id IS NULL"
    " OR (coalesce(inbox.callbacks, 0) <= room AND coalesce(inbox.bytes, 0) <= room_bytes)),"
    f"{_WRITE},"
    " counted AS (INSERT INTO inboxes (submission_id, callbacks, bytes)"
    " SELECT submission_id, count(*), sum(octet_length(body)) FROM kept WHERE submission_id IS NOT NULL"
    " GROUP BY submission_id ORDER BY submission_id"
    " ON CONFLICT (submission_id) DO UPDATE SET callbacks = inboxes.callbacks + excluded.callbacks, bytes = inboxes.bytes + excluded.bytes)"
    " SELECT nth, (arrival IN (SELECT arrival FROM written WHERE claimed_by IS NOT NULL)) IS TRUE FROM kept"
)

# New ones with their bodies.
_INSERT = (
    f"WITH kept AS MATERIALIZED (SELECT new.*, false AS claims, NULL::text AS claimed_by, {_ARRIVAL}"
    f" FROM {source(NOTICE_TABLE.typed, has_bodies=True)}),{_WRITE} SELECT FROM written"
)

# A batch in one statement.
SETTLE_NOTICES = (
    "UPDATE notices SET outcome = new.outcome, status = coalesce(new.status, notices.status),"
    " job_id = coalesce(new.job_id, notices.job_id), reason = new.reason,"
    " remote_id = coalesce(new.remote_id, notices.remote_id), claimed_by = NULL"
    f" FROM {source('outcome text, status text, job_id text, reason text, remote_id text, id text')}"
    " WHERE notices.id = new.id AND (notices.outcome IS NULL OR notices.outcome IN ('waiting', 'unreadable'))"
)


async def insert_notices(tx: Tx, notices: Sequence[Notice]) -> None:
    """In this order, and with their bodies; one that is there already stays as it is."""
    if notices:
        await tx.execute(_INSERT, NOTICE_TABLE.pack(notices, tx.shift), [notice.body for notice in notices])


def decode_notice(row: Sequence[Any], shift: int) -> Notice:
    """From its columns and its body."""
    return NOTICE_TABLE.decode(row, shift, body=row[_N] or b"")


def pack_outcomes(outcomes: Sequence[NoticeOutcome]) -> str:
    last = {outcome.id: outcome for outcome in outcomes}  # an UPDATE meets each row once
    statuses = [None if one.status is None else one.status.value for one in last.values()]
    return pack(
        [
            (one.outcome.value, status, one.job_id, one.reason, one.remote_id, one.id)
            for one, status in zip(last.values(), statuses, strict=True)
        ]
    )


@work("intake", is_single=True)
async def _keep(tx: Tx, asked: Sequence[tuple[Notice, NoticeBound, bool]]) -> list[Kept]:
    """The bound is approximate by what comes at the very same time: no callback waits for another."""
    sums: dict[str | None, tuple[int, int]] = {}
    bounds = []
    for notice, bound, claims in asked:
        callbacks, size = sums.get(notice.submission_id, (0, 0))
        callbacks, size = sums[notice.submission_id] = callbacks + 1, size + len(notice.body)
        bounds.append((bound.callbacks - callbacks, bound.bytes - size, claims))  # what may be there already
    notices = NOTICE_TABLE.encode([notice for notice, _, _ in asked], tx.shift)
    rows = pack([(*notice, *bound) for notice, bound in zip(notices, bounds, strict=True)])
    kept = {
        nth: Kept(True, is_claimed) for nth, is_claimed in await tx.change(_KEEP, rows, [notice.body for notice, _, _ in asked], tx.node)
    }
    return [kept.get(nth, NOT_KEPT) for nth in range(1, len(asked) + 1)]


@each("claiming")
async def _claim(tx: Tx, asked: tuple[int, int]) -> list[Notice]:
    """One node at a time, since what another is just claiming of the same submission cannot be seen; it takes a moment."""
    limit, max_tries = asked
    await tx.look("SELECT pg_advisory_xact_lock($1)", CLAIMING)
    found = await tx.look(
        "SELECT arrival, tries FROM notices AS notice WHERE outcome IS NULL AND claimed_by IS NULL"
        " AND (SELECT true FROM notices WHERE submission_id = notice.submission_id"  # with its limit it is a look for each
        " AND outcome IS NULL AND claimed_by IS NOT NULL AND claimed_by <> $1 LIMIT 1) IS NULL"
        " ORDER BY arrival LIMIT $2 FOR UPDATE SKIP LOCKED",
        tx.node,
        limit,
    )
    worn_out, chosen = choose_notices([(row[0], row[1]) for row in found], max_tries)
    if worn_out:
        reason = f"its settling was begun {max_tries} times and never finished"
        await tx.execute("UPDATE notices SET outcome = 'unreadable', reason = $1 WHERE arrival = ANY($2::bigint[])", reason, worn_out)
    if not chosen:
        return []
    claimed = await tx.change(
        "UPDATE notices SET claimed_by = $1, tries = tries + 1 WHERE arrival = ANY($2::bigint[])"
        f" RETURNING {NOTICE_TABLE.columns}, {BODY}, arrival",
        tx.node,
        chosen,
    )
    return [decode_notice(row, tx.shift) for row in sorted(claimed, key=lambda row: row[-1])]


_RELEASE = "UPDATE notices SET claimed_by = NULL, tries = tries - 1 WHERE claimed_by = $1 AND outcome IS NULL AND id = ANY($2::text[])"


@each("claiming")
async def _unclaim(tx: Tx, notice_ids: Sequence[str]) -> None:
    await tx.execute(_RELEASE, tx.node, list(notice_ids))


@each("settling")
async def _set_aside(tx: Tx, outcomes: Sequence[NoticeOutcome]) -> None:
    if outcomes:  # an unsettled one only by the node that has claimed it
        await tx.execute(f"{SETTLE_NOTICES} AND (notices.outcome IS NOT NULL OR claimed_by = $2)", pack_outcomes(outcomes), tx.node)


@each("settling")
async def _reopen(tx: Tx, notice_id: str) -> bool:
    return (
        await tx.execute(
            "UPDATE notices SET outcome = NULL, reason = NULL, tries = 0, claimed_by = NULL WHERE id = $1 AND outcome = 'unreadable'",
            notice_id,
        )
        == 1
    )


@each("settling")
async def _reopen_orphans(tx: Tx, asked: tuple[str, Sequence[str] | None]) -> int:
    provider, remote_ids = asked
    return await tx.execute(
        "UPDATE notices SET outcome = NULL, reason = NULL, tries = 0, claimed_by = NULL"
        " WHERE outcome = 'orphan' AND submission_id IS NULL AND remote_id IS NOT NULL AND provider = $1"
        " AND ($2::text[] IS NULL OR remote_id = ANY($2::text[]))"
        " AND EXISTS (SELECT 1 FROM jobs WHERE jobs.provider = notices.provider AND jobs.remote_id = notices.remote_id)",
        provider,
        None if remote_ids is None else list(remote_ids),
    )


class InboxPart(Access):
    async def keep_notice(self, notice: Notice, bound: NoticeBound) -> bool:
        kept = await self.write(_keep, (notice, bound, False), weight=1_000 + len(notice.body))
        return kept.is_kept

    async def keep_and_claim(self, notice: Notice, bound: NoticeBound) -> Kept:
        return await self.write(_keep, (notice, bound, True), weight=1_000 + len(notice.body), undo=lambda _: (_unclaim, [notice.id]))

    async def claim_notices(self, limit: int, max_tries: int = 5) -> list[Notice]:
        if not await self.read(lambda tx: tx.look("SELECT 1 FROM notices WHERE outcome IS NULL AND claimed_by IS NULL LIMIT 1")):
            return []
        return await self.write(_claim, (limit, max_tries), undo=lambda notices: (_unclaim, [notice.id for notice in notices]))

    async def release_notices(self, notice_ids: Sequence[str]) -> None:
        await self.write(_unclaim, tuple(notice_ids))

    async def set_aside_notices(self, outcomes: Sequence[NoticeOutcome]) -> None:
        await self.write(_set_aside, tuple(outcomes))

    async def reopen_notice(self, notice_id: str) -> bool:
        return await self.write(_reopen, notice_id)

    async def reopen_orphans(self, provider: str, remote_ids: Sequence[str] | None = None) -> int:
        return await self.write(_reopen_orphans, (provider, None if remote_ids is None else tuple(remote_ids)))
