"""Everything that only looks: listings by cursor, timelines, events in the order of their commits, counts."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from receiver.model import Delivery, Event, Job, Notice
from receiver.stores.costs import Dialect, Sums, select_costs
from receiver.stores.listings import (
    LAST_CALLBACK,
    NOTICE_HEADS,
    OPEN_ACCOUNTS,
    TIMELINE_ROWS,
    NoticeStatements,
    Statement,
    further,
    make_notice_page,
    make_page,
    select_deliveries,
    select_jobs,
    select_notices,
    share_raw,
    take_raw,
)
from receiver.stores.postgres_access import Access, Tx
from receiver.stores.postgres_inbox import decode_notice
from receiver.stores.postgres_rows import CALL_TABLE, DELIVERY_TABLE, JOB_TABLE, NOTICE_TABLE, Table, numbered
from receiver.stores.rows import BODY, LEARNED_FROM, decode_event
from receiver.stores.terms import MOST_RAW, CostSum, DeliveryFilter, JobFilter, Learned, NoticeFilter, Page, TimelineEntry
from receiver.times import from_micros, to_micros

T = TypeVar("T")
COSTS = Dialect(amount="(job.cost::json->>'amount')::numeric", unit="job.cost::json->>'unit'", metadata="job.metadata::json->>?::text")

# Transactions below this have ended; a position at or above it may still get a neighbour below.
SAFE = "(SELECT base FROM positions) + (pg_snapshot_xmin(pg_current_snapshot())::text::bigint << 20)"
LOOKS = 8  # for events that are written but stand behind a transaction that runs
FIRST_LOOK_AFTER = 0.002  # seconds, then twice as long each time: half a second together

_EVENTS = (
    f"SELECT position, envelope, depth, (SELECT provider FROM jobs WHERE id = events.job_id), position >= {SAFE} FROM events"
    " WHERE position > $1 ORDER BY position LIMIT $2"
)
_TIMELINE_NOTICES = (
    f"SELECT {NOTICE_HEADS} FROM notices WHERE arrival IN (SELECT arrival FROM notices WHERE job_id = $1"
    f" UNION SELECT arrival FROM notices WHERE submission_id = $2 AND job_id IS NULL) ORDER BY arrival LIMIT {TIMELINE_ROWS}"
)
# From one model to the next in the index, however many durations there are.
TAUGHT = (
    "WITH RECURSIVE taught AS ((SELECT provider, model FROM durations ORDER BY provider, model LIMIT 1) UNION ALL"
    " SELECT following.provider, following.model FROM taught CROSS JOIN LATERAL (SELECT provider, model FROM durations"
    " WHERE (provider, model) > (taught.provider, taught.model) ORDER BY provider, model LIMIT 1) AS following)"
)
_LEARNED = (
    f"{TAUGHT} SELECT provider, model, (SELECT array_agg(seconds ORDER BY number) FROM (SELECT seconds, number FROM durations"
    " WHERE provider = taught.provider AND model = taught.model"
    f" ORDER BY number DESC LIMIT {LEARNED_FROM}) AS latest) FROM taught ORDER BY provider, model"
)


_RAW = (
    "SELECT id, substr(body, 1, size) FROM notices JOIN unnest($1::text[], $2::integer[]) AS share (id, size) USING (id)"
    " JOIN bodies USING (arrival)"
)
_NOTICE = f"SELECT {NOTICE_TABLE.columns}, {BODY} FROM notices WHERE id = $1"


async def _read_raw(tx: Tx, heads: Sequence[Any], most_raw: int) -> dict[str, bytes]:
    """The bodies of these notices as far as they fit, by id."""
    shares = share_raw(heads, most_raw)
    return {row[0]: row[1] for row in await tx.look(_RAW, list(shares), list(shares.values()))}


async def _read_notices(tx: Tx, asked: NoticeStatements, limit: int, most_raw: int) -> Page[Notice]:
    rows = [tuple(row) for row in await tx.look(numbered(asked.page[0]), *asked.page[1])]
    bodies = await _read_raw(tx, rows[:limit], most_raw) if most_raw else None
    page = make_notice_page(rows, limit, bodies, lambda row, body: NOTICE_TABLE.decode(row, tx.shift, body=body))
    if asked.looked_at is None:
        return page
    ((count, last),) = await tx.look(numbered(asked.looked_at[0]), *asked.looked_at[1])
    return further(page, (count, last))


async def _read_timeline(tx: Tx, job_id: str, most_raw: int) -> list[TimelineEntry] | None:
    job = await tx.look("SELECT submission_id FROM jobs WHERE id = $1", job_id)
    if not job:
        return None
    submission_id = job[0][0]
    entries = []
    calls = f"SELECT {CALL_TABLE.columns} FROM calls WHERE submission_id = $1 ORDER BY at LIMIT {TIMELINE_ROWS}"
    for row in await tx.look(calls, submission_id):
        call = CALL_TABLE.decode(row, tx.shift)
        entries.append(TimelineEntry(call.at, call))
    heads = [tuple(row) for row in await tx.look(_TIMELINE_NOTICES, job_id, submission_id)]
    bodies = await _read_raw(tx, heads, most_raw) if most_raw else {}
    for head in heads:
        body, is_truncated = take_raw(head, bodies)
        notice = NOTICE_TABLE.decode(head, tx.shift, body=body)
        entries.append(TimelineEntry(notice.at, notice, is_truncated and most_raw > 0))
    events = f"SELECT at, envelope, depth FROM events WHERE job_id = $1 ORDER BY position LIMIT {TIMELINE_ROWS}"
    for at, envelope, depth in await tx.look(events, job_id):
        entries.append(TimelineEntry(tx.from_db(at), decode_event(envelope, depth)))
    deliveries = f"SELECT {DELIVERY_TABLE.columns} FROM deliveries WHERE job_id = $1 ORDER BY created_at, id LIMIT {TIMELINE_ROWS}"
    for row in await tx.look(deliveries, job_id):
        delivery = DELIVERY_TABLE.decode(row, tx.shift)
        entries.append(TimelineEntry(delivery.created_at, delivery))
    return sorted(entries, key=lambda entry: entry.at)


class ReadingPart(Access):
    has_hidden = False  # events were written that may not be shown yet

    async def _one(self, table: Table[Any], row_id: str) -> Any:
        statement = f"SELECT {table.columns} FROM {table.name} WHERE id = $1"
        rows = await self.read(lambda tx: tx.look(statement, row_id))
        return table.decode(rows[0], self.clock.shift) if rows else None

    async def _page(self, select: Callable[[int], Statement], limit: int, table: Table[Any]) -> Page[Any]:
        shift = self.clock.shift
        statement, values = select(shift)
        rows = await self.read(lambda tx: tx.look(numbered(statement), *values))
        return make_page(rows, limit, lambda row: table.decode(row, shift))

    async def _rows(self, statement: str, *values: Any) -> Sequence[Any]:
        return await self.read(lambda tx: tx.look(statement, *values))

    async def _counts(self, statement: str) -> dict[tuple[str, str], int]:
        return {(first, second): count for first, second, count in await self._rows(statement)}

    async def read_job(self, job_id: str) -> Job | None:
        job: Job | None = await self._one(JOB_TABLE, job_id)
        return job

    async def read_jobs(self, filter: JobFilter, limit: int, cursor: str | None) -> Page[Job]:
        return await self._page(lambda shift: select_jobs(filter, limit, cursor, shift), limit, JOB_TABLE)

    async def read_timeline(self, job_id: str, most_raw: int = MOST_RAW) -> list[TimelineEntry] | None:
        return await self.read(lambda tx: _read_timeline(tx, job_id, most_raw), is_view=True)

    async def read_notice(self, notice_id: str) -> Notice | None:
        rows = await self._rows(_NOTICE, notice_id)
        return decode_notice(rows[0], self.clock.shift) if rows else None

    async def read_notices(self, filter: NoticeFilter, limit: int, cursor: str | None, most_raw: int = MOST_RAW) -> Page[Notice]:
        asked = select_notices(filter, limit, cursor)
        return await self.read(lambda tx: _read_notices(tx, asked, limit, most_raw), is_view=True)

    async def read_delivery(self, delivery_id: str) -> Delivery | None:
        delivery: Delivery | None = await self._one(DELIVERY_TABLE, delivery_id)
        return delivery

    async def read_deliveries(self, filter: DeliveryFilter, limit: int, cursor: str | None) -> Page[Delivery]:
        return await self._page(lambda _: select_deliveries(filter, limit, cursor), limit, DELIVERY_TABLE)

    async def read_events(self, after: int, limit: int) -> list[tuple[int, Event, str | None]]:
        """Those that stand behind a running transaction are waited for, for a moment."""
        rows = await self._rows(_EVENTS, after, limit)
        newest = rows[-1][0] if rows else after
        for look in range(LOOKS):
            if not rows or not any(is_hidden and position <= newest for position, _, _, _, is_hidden in rows):
                break
            await asyncio.sleep(FIRST_LOOK_AFTER * 2**look)
            rows = await self._rows(_EVENTS, after, limit)
        self.has_hidden |= any(row[-1] for row in rows)
        return [
            (position, decode_event(envelope, depth), provider) for position, envelope, depth, provider, is_hidden in rows if not is_hidden
        ]

    async def find_event_position(self, event_id: str) -> int | None:
        rows = await self._rows("SELECT position FROM events WHERE id = $1", event_id)
        return int(rows[0][0]) if rows else None

    async def newest_event(self) -> tuple[int, str] | None:
        rows = await self._rows(f"SELECT position, id FROM events WHERE position < {SAFE} ORDER BY position DESC LIMIT 1")
        return (rows[0][0], rows[0][1]) if rows else None

    async def count_jobs(self) -> dict[tuple[str, str], int]:
        return await self._counts("SELECT provider, status, count(*) FROM jobs WHERE NOT is_final GROUP BY provider, status")

    async def open_accounts(self) -> list[str]:
        return [row[0] for row in await self._rows(OPEN_ACCOUNTS.format(jobs="jobs", is_open="NOT is_final"))]

    async def count_open(self, provider: str, most: int) -> int:
        statement = "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE provider = $1 AND NOT is_final LIMIT $2) AS found"
        return int((await self._rows(statement, provider, most))[0][0])

    async def count_deliveries(self) -> dict[tuple[str, str], int]:
        return await self._counts("SELECT handler, state, count(*) FROM deliveries WHERE state <> 'done' GROUP BY handler, state")

    async def count_recent(self, handler: str, since: datetime, limit: int) -> int:
        statement = "SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE handler = $1 AND created_at >= $2 LIMIT $3) AS recent"
        ((count,),) = await self._rows(statement, handler, to_micros(since) + self.clock.shift, limit)
        return int(count)

    async def inbox_depth(self) -> int:
        ((unclaimed, claimed),) = await self._rows(
            "SELECT (SELECT count(*) FROM notices WHERE outcome IS NULL AND claimed_by IS NULL),"
            " (SELECT count(*) FROM notices WHERE outcome IS NULL AND claimed_by IS NOT NULL)"
        )
        return int(unclaimed + claimed)

    async def inbox_oldest(self) -> datetime | None:
        ((unclaimed, claimed),) = await self._rows(
            "SELECT (SELECT at FROM notices WHERE outcome IS NULL AND claimed_by IS NULL ORDER BY arrival LIMIT 1),"
            " (SELECT min(at) FROM notices WHERE outcome IS NULL AND claimed_by IS NOT NULL)"
        )
        return min((from_micros(at - self.clock.shift) for at in (unclaimed, claimed) if at is not None), default=None)

    async def last_callback_at(self) -> datetime | None:
        ((at,),) = await self._rows(LAST_CALLBACK)
        return None if at is None else from_micros(at - self.clock.shift)

    async def count_overdue(self) -> dict[str, int]:
        rows = await self._rows(
            "SELECT polls.provider, count(*) FROM polls JOIN jobs ON jobs.id = polls.job_id"
            " WHERE polls.attempts > 0 AND NOT jobs.is_final GROUP BY polls.provider"
        )
        return dict(rows)

    async def sum_costs(self, provider: str, since: datetime) -> float:
        ((amount,),) = await self._rows(
            "SELECT sum((cost::json->>'amount')::double precision) FROM jobs WHERE provider = $1 AND created_at >= $2"
            " AND cost IS NOT NULL AND status NOT IN ('failed', 'cancelled')",
            provider,
            to_micros(since) + self.clock.shift,
        )
        return amount or 0.0

    async def add_up_costs(self, filter: JobFilter, by: Sequence[str], limit: int) -> list[CostSum] | None:
        statement, values = select_costs(filter, by, limit, COSTS, self.clock.shift)
        sums = Sums(by, limit)
        sums.add(await self._rows(numbered(statement), *values))
        return sums.result()

    async def has_submission(self, api_key_id: str, idempotency_key: str) -> bool:
        statement = "SELECT 1 FROM submissions WHERE api_key_id = $1 AND idempotency_key = $2"
        return bool(await self._rows(statement, api_key_id, idempotency_key))

    async def read_learned(self) -> list[Learned]:
        rows = await self._rows(_LEARNED)
        return [Learned(provider=provider, model=model, seconds=tuple(seconds)) for provider, model, seconds in rows]

    async def read_counters(self) -> dict[tuple[str, str], int]:
        return await self._counts("SELECT scope, name, count FROM counters")
