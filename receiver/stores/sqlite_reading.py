"""Everything that only looks: listings by cursor, timelines, counts."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from receiver.model import Delivery, Event, Job, Notice
from receiver.stores.costs import DAY, Dialect, Sums, select_costs
from receiver.stores.listings import (
    LAST_CALLBACK,
    NOTICE_HEADS,
    OPEN_ACCOUNTS,
    TIMELINE_ROWS,
    NoticeStatements,
    further,
    make_notice_page,
    make_page,
    select_deliveries,
    select_jobs,
    select_notices,
    share_raw,
    take_raw,
)
from receiver.stores.rows import BODY, CALLS, DELIVERIES, JOBS, NOTICES, decode_event, decode_learned, json_text
from receiver.stores.sqlite_access import Access
from receiver.stores.terms import MOST_RAW, CostSum, DeliveryFilter, JobFilter, Learned, NoticeFilter, Page, TimelineEntry
from receiver.times import from_micros, to_micros

T = TypeVar("T")
COSTS = Dialect(
    amount="json_extract(job.cost, '$.amount')",
    unit="json_extract(job.cost, '$.unit')",
    metadata="(SELECT value FROM json_each(job.metadata) WHERE key = ?)",
)


def _read_raw(db: sqlite3.Connection, rows: Sequence[Sequence[Any]], most_raw: int) -> dict[str, bytes]:
    """The bodies of these notices as far as they fit, by id."""
    wanted = json_text(share_raw(rows, most_raw))
    return dict(
        db.execute(
            "SELECT notices.id, substr(body, 1, share.value) FROM json_each(?) AS share CROSS JOIN notices ON notices.id = share.key"
            " CROSS JOIN bodies ON bodies.arrival = notices.arrival",
            (wanted,),
        ).fetchall()
    )


def _read_notices(db: sqlite3.Connection, asked: NoticeStatements, limit: int, most_raw: int) -> Page[Notice]:
    rows = db.execute(*asked.page).fetchall()
    bodies = _read_raw(db, rows[:limit], most_raw) if most_raw else None
    page = make_notice_page(rows, limit, bodies, lambda row, body: NOTICES.decode(row, body=body))
    return page if asked.looked_at is None else further(page, db.execute(*asked.looked_at).fetchone())


def _read_timeline(db: sqlite3.Connection, job_id: str, most_raw: int) -> list[TimelineEntry] | None:
    job = db.execute("SELECT submission_id FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if job is None:
        return None
    submission_id = job[0]
    entries = []
    for row in db.execute(f"SELECT {CALLS.columns} FROM calls WHERE submission_id = ? ORDER BY at LIMIT ?", (submission_id, TIMELINE_ROWS)):
        call = CALLS.decode(row)
        entries.append(TimelineEntry(call.at, call))
    heads = db.execute(
        f"SELECT {NOTICE_HEADS} FROM notices WHERE arrival IN (SELECT arrival FROM notices WHERE job_id = ?"
        " UNION SELECT arrival FROM notices WHERE submission_id = ? AND job_id IS NULL) ORDER BY arrival LIMIT ?",
        (job_id, submission_id, TIMELINE_ROWS),
    ).fetchall()
    bodies = _read_raw(db, heads, most_raw) if most_raw else {}
    for head in heads:
        body, is_truncated = take_raw(head, bodies)
        notice = NOTICES.decode(head, body=body)
        entries.append(TimelineEntry(notice.at, notice, is_truncated and most_raw > 0))
    for at, envelope, depth in db.execute(
        "SELECT at, envelope, depth FROM events WHERE job_id = ? ORDER BY position LIMIT ?", (job_id, TIMELINE_ROWS)
    ):
        entries.append(TimelineEntry(from_micros(at), decode_event(envelope, depth)))
    for row in db.execute(
        f"SELECT {DELIVERIES.columns} FROM deliveries WHERE job_id = ? ORDER BY created_at LIMIT ?", (job_id, TIMELINE_ROWS)
    ):
        delivery = DELIVERIES.decode(row)
        entries.append(TimelineEntry(delivery.created_at, delivery))
    return sorted(entries, key=lambda entry: entry.at)


def _one(db: sqlite3.Connection, statement: str, value: Any, decode: Callable[[Sequence[Any]], T]) -> T | None:
    row = db.execute(statement, (value,)).fetchone()
    return None if row is None else decode(row)


def _counts(db: sqlite3.Connection, statement: str) -> dict[tuple[str, str], int]:
    return {(first, second): count for first, second, count in db.execute(statement)}


class ReadingPart(Access):
    async def read_job(self, job_id: str) -> Job | None:
        return await self.read(lambda db: _one(db, f"SELECT {JOBS.columns} FROM jobs WHERE id = ?", job_id, JOBS.decode))

    async def read_jobs(self, filter: JobFilter, limit: int, cursor: str | None) -> Page[Job]:
        statement, values = select_jobs(filter, limit, cursor)
        return await self.read(lambda db: make_page(db.execute(statement, values).fetchall(), limit, JOBS.decode))

    async def read_timeline(self, job_id: str, most_raw: int = MOST_RAW) -> list[TimelineEntry] | None:
        return await self.read(lambda db: _read_timeline(db, job_id, most_raw))

    async def read_notice(self, notice_id: str) -> Notice | None:
        statement = f"SELECT {NOTICES.columns}, {BODY} FROM notices WHERE id = ?"
        return await self.read(lambda db: _one(db, statement, notice_id, lambda row: NOTICES.decode(row, body=row[-1] or b"")))

    async def read_notices(self, filter: NoticeFilter, limit: int, cursor: str | None, most_raw: int = MOST_RAW) -> Page[Notice]:
        asked = select_notices(filter, limit, cursor)
        return await self.read(lambda db: _read_notices(db, asked, limit, most_raw))

    async def read_delivery(self, delivery_id: str) -> Delivery | None:
        return await self.read(
            lambda db: _one(db, f"SELECT {DELIVERIES.columns} FROM deliveries WHERE id = ?", delivery_id, DELIVERIES.decode)
        )

    async def read_deliveries(self, filter: DeliveryFilter, limit: int, cursor: str | None) -> Page[Delivery]:
        statement, values = select_deliveries(filter, limit, cursor)
        return await self.read(lambda db: make_page(db.execute(statement, values).fetchall(), limit, DELIVERIES.decode))

    async def read_events(self, after: int, limit: int) -> list[tuple[int, Event, str | None]]:
        rows = await self.read(
            lambda db: db.execute(
                "SELECT events.position, envelope, depth, jobs.provider FROM events LEFT JOIN jobs ON jobs.id = events.job_id"
                " WHERE events.position > ? ORDER BY events.position LIMIT ?",
                (after, limit),
            ).fetchall()
        )
        return [(position, decode_event(envelope, depth), provider) for position, envelope, depth, provider in rows]

    async def find_event_position(self, event_id: str) -> int | None:
        return await self.read(lambda db: _one(db, "SELECT position FROM events WHERE id = ?", event_id, lambda row: int(row[0])))

    async def newest_event(self) -> tuple[int, str] | None:
        return await self.read(
            lambda db: db.execute("SELECT position, id FROM events WHERE position = (SELECT max(position) FROM events)").fetchone()
        )

    async def count_jobs(self) -> dict[tuple[str, str], int]:
        return await self.read(
            lambda db: _counts(db, "SELECT provider, status, count(*) FROM jobs WHERE is_final = 0 GROUP BY provider, status")
        )

    async def open_accounts(self) -> list[str]:
        statement = OPEN_ACCOUNTS.format(jobs="jobs INDEXED BY jobs_open", is_open="is_final = 0")
        return await self.read(lambda db: [name for (name,) in db.execute(statement)])

    async def count_open(self, provider: str, most: int) -> int:
        statement = "SELECT count(*) FROM (SELECT 1 FROM jobs INDEXED BY jobs_open WHERE provider = ? AND is_final = 0 LIMIT ?)"
        return await self.read(lambda db: int(db.execute(statement, (provider, most)).fetchone()[0]))

    async def count_deliveries(self) -> dict[tuple[str, str], int]:
        return await self.read(
            lambda db: _counts(
                db,
                "SELECT handler, state, count(*) FROM deliveries INDEXED BY deliveries_not_done"
                " WHERE state <> 'done' GROUP BY handler, state",
            )
        )

    async def count_recent(self, handler: str, since: datetime, limit: int) -> int:
        statement = "SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE handler = ? AND created_at >= ? LIMIT ?)"
        ((count,),) = await self._fetch(statement, (handler, to_micros(since), limit))
        return int(count)

    async def inbox_depth(self) -> int:
        unclaimed, claimed = await self.read(
            lambda db: db.execute(
                "SELECT (SELECT count(*) FROM notices WHERE outcome IS NULL AND claimed_by IS NULL),"
                " (SELECT count(*) FROM notices WHERE outcome IS NULL AND claimed_by IS NOT NULL)"
            ).fetchone()
        )
        return int(unclaimed + claimed)

    async def inbox_oldest(self) -> datetime | None:
        ages = await self.read(
            lambda db: db.execute(
                "SELECT (SELECT at FROM notices WHERE outcome IS NULL AND claimed_by IS NULL ORDER BY arrival LIMIT 1),"
                " (SELECT min(at) FROM notices WHERE outcome IS NULL AND claimed_by IS NOT NULL)"
            ).fetchone()
        )
        return min((from_micros(at) for at in ages if at is not None), default=None)

    async def last_callback_at(self) -> datetime | None:
        (at,) = await self.read(lambda db: db.execute(LAST_CALLBACK).fetchone())
        return None if at is None else from_micros(at)

    async def count_overdue(self) -> dict[str, int]:
        return await self.read(
            lambda db: dict(
                db.execute(
                    "SELECT polls.provider, count(*) FROM polls JOIN jobs ON jobs.id = polls.job_id"
                    " WHERE polls.attempts > 0 AND jobs.is_final = 0 GROUP BY polls.provider"
                ).fetchall()
            )
        )

    async def sum_costs(self, provider: str, since: datetime) -> float:
        (amount,) = await self.read(
            lambda db: db.execute(
                "SELECT total(json_extract(cost, '$.amount')) FROM jobs WHERE provider = ? AND created_at >= ?"
                " AND cost IS NOT NULL AND status NOT IN ('failed', 'cancelled')",
                (provider, to_micros(since)),
            ).fetchone()
        )
        return float(amount)

    async def add_up_costs(self, filter: JobFilter, by: Sequence[str], limit: int) -> list[CostSum] | None:
        """Day by day: a year that is read at once would hold up other readers, and the log of writes would grow meanwhile."""
        bounds = "SELECT (SELECT min(created_at) FROM jobs), (SELECT max(created_at) FROM jobs)"
        oldest, newest = await self.read(lambda db: db.execute(bounds).fetchone())
        sums = Sums(by, limit)
        if oldest is None:
            return sums.result()
        start = max(from_micros(oldest), filter.created_after or from_micros(oldest))
        end = min(from_micros(newest + 1), filter.created_before or from_micros(newest + 1))
        while start < end and not sums.is_over:
            until = min(start + DAY, end)
            part = msgspec.structs.replace(filter, created_after=start, created_before=until)
            statement, values = select_costs(part, by, limit, COSTS)
            sums.add(await self._fetch(statement, values))
            start = until
        return sums.result()

    async def _fetch(self, statement: str, values: Sequence[Any]) -> list[Any]:
        return await self.read(lambda db: db.execute(statement, values).fetchall())

    async def has_submission(self, api_key_id: str, idempotency_key: str) -> bool:
        found = await self.read(
            lambda db: db.execute(
                "SELECT 1 FROM submissions WHERE api_key_id = ? AND idempotency_key = ?", (api_key_id, idempotency_key)
            ).fetchone()
        )
        return found is not None

    async def read_learned(self) -> list[Learned]:
        rows = await self.read(lambda db: db.execute("SELECT provider, model, seconds FROM learned ORDER BY provider, model").fetchall())
        return [decode_learned(*row) for row in rows]

    async def read_counters(self) -> dict[tuple[str, str], int]:
        return await self.read(lambda db: _counts(db, "SELECT scope, name, count FROM counters"))
