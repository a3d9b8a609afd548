"""Listings that both databases answer alike: filters to statements, places to cursors. `?` stands for a value."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from receiver.errors import Invalid
from receiver.model import DeliveryState, Notice
from receiver.stores.rows import DELIVERIES, JOBS, NOTICES
from receiver.stores.terms import DeliveryFilter, JobFilter, NoticeFilter, Page
from receiver.times import to_micros

T = TypeVar("T")
Statement = tuple[str, list[Any]]
TIMELINE_ROWS = 1_000  # of each kind
SET_ASIDE = (  # as in the index
    "(outcome = 'unreadable' OR outcome = 'mismatched' OR outcome = 'waiting' OR outcome = 'refuted' OR outcome = 'orphan')"
)
LOOKED_AT = 10_000  # notices for one page or answer where no index leads to them; there may be millions of answers to polls
LAST_CALLBACK = (
    f"SELECT max(at) FROM (SELECT channel, at FROM notices ORDER BY arrival DESC LIMIT {LOOKED_AT}) AS latest WHERE channel = 'callback'"
)

# The open jobs of an account behind (status, remote id, id), so many at a time: nobody waits until a million are dealt with, and a callback
# waits for one slice. A thousand of them held SQLite's writer for 8 ms on a calm machine; a walk over all takes no longer in smaller ones.
OPEN_AFTER = (
    "SELECT status, remote_id, id FROM jobs WHERE provider = ? AND {is_open} AND remote_id IS NOT NULL"
    " AND (status, remote_id, id) > (?, ?, ?) ORDER BY status, remote_id, id LIMIT 250"
)

# From one account to the next in the index.
OPEN_ACCOUNTS = (
    "WITH RECURSIVE accounts (name) AS (SELECT min(provider) FROM {jobs} WHERE {is_open} UNION ALL"
    " SELECT (SELECT min(provider) FROM {jobs} WHERE {is_open} AND provider > accounts.name) FROM accounts WHERE accounts.name IS NOT NULL)"
    " SELECT name FROM accounts WHERE name IS NOT NULL"
)

_parse_place = msgspec.json.Decoder(tuple[int, str]).decode


# A notice's row with the size of its body in place of the body, which may be 16 MiB.
NOTICE_HEADS = f"{NOTICES.columns}, coalesce((SELECT length(body) FROM bodies WHERE bodies.arrival = notices.arrival), 0) AS size"
_ID, _SIZE = NOTICES.fields.index("id"), len(NOTICES.fields)


def share_raw(rows: Sequence[Sequence[Any]], most_raw: int) -> dict[str, int]:
    """How many bytes to read of which notices' bodies; `rows` begin with NOTICE_HEADS."""
    shares: dict[str, int] = {}
    left = most_raw
    for row in rows:
        if share := min(row[_SIZE], left):
            shares[row[_ID]] = share
        left -= share
    return shares


def take_raw(row: Sequence[Any], bodies: Mapping[str, bytes]) -> tuple[bytes, bool]:
    """What was read of its body, and whether that is less than all of it."""
    body = bodies.get(row[_ID], b"")
    return body, len(body) < row[_SIZE]


def make_notice_page(
    rows: Sequence[Sequence[Any]], limit: int, bodies: Mapping[str, bytes] | None, decode: Callable[[Sequence[Any], bytes], Notice]
) -> Page[Notice]:
    """`rows` as for `make_page`, beginning with NOTICE_HEADS; `bodies` None: they were not asked for."""
    raw = {row[_ID]: take_raw(row, bodies or {}) for row in rows[:limit]}
    page = make_page(rows, limit, lambda row: decode(row, raw[row[_ID]][0]))
    truncated = frozenset(notice_id for notice_id, (_, is_truncated) in raw.items() if is_truncated and bodies is not None)
    return Page(page.rows, page.cursor, truncated)


def make_cursor(at: int, id: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((at, id))).decode().rstrip("=")


def parse_cursor(cursor: str) -> tuple[int, str]:
    """Invalid for anything that `make_cursor` did not make."""
    try:
        at, row_id = _parse_place(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, msgspec.DecodeError):
        raise Invalid([{"parameter": "cursor", "detail": "is not a cursor that this service gave"}]) from None
    if not -(2**63) <= at < 2**63:
        raise Invalid([{"parameter": "cursor", "detail": "is not a cursor that this service gave"}])
    return at, row_id


def make_page(rows: Sequence[Sequence[Any]], limit: int, decode: Callable[[Sequence[Any]], T]) -> Page[T]:
    """`rows` may be one more than `limit`, and end with the time and id they are ordered by."""
    cursor = make_cursor(rows[limit - 1][-2], rows[limit - 1][-1]) if len(rows) > limit else None
    return Page(tuple(decode(row) for row in rows[:limit]), cursor)


def _where(terms: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(terms)}" if terms else ""


def job_terms(filter: JobFilter, shift: int) -> tuple[str, tuple[str, str], list[str], list[Any]]:
    """(where jobs come from, the columns of their order, conditions, values). With metadata the first pair leads, in its index by time;
    the others are looked up. `shift` is what the database's clock is ahead of ours, in microseconds."""
    pairs = list(filter.metadata.items())
    lead, source = ("pair", "job_metadata AS pair CROSS JOIN jobs AS job") if pairs else ("job", "jobs AS job")
    order = (f"{lead}.created_at", "pair.job_id" if pairs else "job.id")
    terms: list[str] = ["job.id = pair.job_id"] if pairs else []
    values: list[Any] = []
    for number, pair in enumerate(pairs):
        terms.append(
            "pair.key = ? AND pair.value = ?"
            if number == 0
            else "EXISTS (SELECT 1 FROM job_metadata WHERE key = ? AND value = ? AND created_at = job.created_at AND job_id = job.id)"
        )
        values += pair
    for column in ("provider", "model", "status", "submission_id"):
        if (value := getattr(filter, column)) is not None:
            terms.append(f"job.{column} = ?")
            values.append(str(value))
    if not pairs and filter.provider is not None and filter.model is not None and filter.status is not None:
        # The index by model and status leads; for a provider that has no such model it would lead past all of another's.
        source = f"(SELECT 1 FROM jobs WHERE provider = ? AND model = ? LIMIT 1) AS known CROSS JOIN {source}"
        values = [filter.provider, filter.model, *values]
    for sign, at in ((">=", filter.created_after), ("<", filter.created_before)):
        if at is not None:
            terms.append(f"{order[0]} {sign} ?")
            values.append(to_micros(at) + shift)
    return source, order, terms, values


def select_jobs(filter: JobFilter, limit: int, cursor: str | None, shift: int = 0) -> Statement:
    """The listing's statement."""
    source, order, terms, values = job_terms(filter, shift)
    if cursor is not None:
        terms.append(f"({order[0]}, {order[1]}) < (?, ?)")
        values += parse_cursor(cursor)
    columns = f"{JOBS.columns_of('job')}, {order[0]}, {order[1]}"
    return f"SELECT {columns} FROM {source}{_where(terms)} ORDER BY {order[0]} DESC, {order[1]} DESC LIMIT ?", [*values, limit + 1]


class NoticeStatements(NamedTuple):
    """`page` finds the rows of a page: heads only, the bodies are read by `share_raw`. Where there is no index for the filter it looks at
    a number of notices only; `looked_at` then tells how many those were, and where to go on."""

    page: Statement
    looked_at: Statement | None


def select_notices(filter: NoticeFilter, limit: int, cursor: str | None) -> NoticeStatements:
    """Callbacks are kept as fast as they come, so there is no index beyond those that passes need."""
    led: list[str] = []  # what an index leads to
    leading: list[Any] = []
    rest: list[str] = []
    resting: list[Any] = []
    for column in ("outcome", "provider", "channel"):
        if (value := getattr(filter, column)) is None:
            continue
        is_led = column == "outcome" and f"'{value}'" in SET_ASIDE
        (led if is_led else rest).append(f"{column} = ?")
        (leading if is_led else resting).append(str(value))
        if is_led:
            led.append(SET_ASIDE)
    if cursor is not None:
        led.append("arrival < ?")
        leading.append(parse_cursor(cursor)[0])
    heads = f"{NOTICE_HEADS}, arrival, id"
    if not rest:
        return NoticeStatements((f"SELECT {heads} FROM notices{_where(led)} ORDER BY arrival DESC LIMIT ?", [*leading, limit + 1]), None)
    latest = f"FROM notices{_where(led)} ORDER BY arrival DESC LIMIT {LOOKED_AT}"
    page = (
        f"SELECT {NOTICE_HEADS}, arrival, id FROM (SELECT {NOTICES.columns}, arrival {latest}) AS notices"
        f" WHERE {' AND '.join(rest)} ORDER BY arrival DESC LIMIT ?"
    )
    looked_at = f"SELECT count(*), min(arrival) FROM (SELECT arrival {latest}) AS latest"
    return NoticeStatements((page, [*leading, *resting, limit + 1]), (looked_at, leading))


def further(page: Page[Notice], looked_at: Sequence[Any]) -> Page[Notice]:
    """The page with a cursor where it is not full only because so many notices were looked at."""
    count, last = looked_at
    return page if page.cursor is not None or count < LOOKED_AT else Page(page.rows, make_cursor(last, ""), page.truncated)


def delivery_conditions(filter: DeliveryFilter) -> tuple[list[str], list[Any]]:
    """The WHERE terms of a filter; `state <> 'done'` beside another state lets the index of the few be used."""
    terms: list[str] = []
    values: list[Any] = []
    for column, value in (("handler", filter.handler), ("job_id", filter.job_id), ("event_type", filter.event_type)):
        if value is not None:
            terms.append(f"{column} = ?")
            values.append(value)
    if filter.state is not None:
        terms.append("state = ?")
        values.append(filter.state.value)
        if filter.state is not DeliveryState.DONE:
            terms.append("state <> 'done'")
    return terms, values


def select_deliveries(filter: DeliveryFilter, limit: int, cursor: str | None) -> Statement:
    terms, values = delivery_conditions(filter)
    if cursor is not None:
        terms.append("(created_at, id) < (?, ?)")
        values += parse_cursor(cursor)
    statement = f"SELECT {DELIVERIES.columns}, created_at, id FROM deliveries{_where(terms)} ORDER BY created_at DESC, id DESC LIMIT ?"
    return statement, [*values, limit + 1]
