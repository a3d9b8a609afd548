"""Costs as a page: by day, provider, model and one key of metadata, as far as providers tell."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from time import monotonic
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import Invalid
from receiver.providers.spec import Spec
from receiver.stores.base import Store
from receiver.stores.terms import CostSum, JobFilter
from receiver.times import to_rfc3339
from receiver.web.costs import MOST_SUMS
from receiver.web.operations import services_of
from receiver.web.pages_frame import Form, page, read_fields, show
from receiver.web.query import Query

PERIODS = {"1": "today", "7": "7 days", "30": "30 days", "90": "90 days", "365": "a year"}
PERIOD = "7"
DAY = timedelta(days=1)
MOST_ROWS = 50
MOST_VALUES = 100_000  # of a key; more would take too much room
KEYS_FROM = 100  # the latest jobs, whose keys of metadata are offered
LIVES = 5.0  # seconds, and the longer the longer it took
TIMES_AS_LONG = 20
MOST_KEPT = 16
KEPT_ROWS = 30_000
BASE = ("day", "provider", "model")
Asked = tuple[bytes, tuple[str, ...]]


class Row(msgspec.Struct, frozen=True):
    """One line of a table: what, how much, how many jobs, the share of the whole; and where its jobs are."""

    name: str | None
    amount: Decimal
    jobs: int
    share: float
    link: str = ""


class Money(msgspec.Struct, frozen=True):
    """Everything in one unit."""

    unit: str
    amount: Decimal
    jobs: int
    days: tuple[Row, ...]  # the latest first
    series: str  # for the chart; empty where there is nothing to draw
    tables: tuple[tuple[str, tuple[Row, ...], int], ...]  # (title, rows, how many more)


class Sums(msgspec.Struct, frozen=True):
    """What the store added up; of a key of metadata only the largest sums, and how many more there are, by unit."""

    rows: tuple[CostSum, ...] = ()
    more: dict[str, int] = {}


class Ledger:
    """Sums that were added up a moment ago: an open page asks again whenever anything changed."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Asked, tuple[float, Sums | None]] = OrderedDict()
        self._lock = asyncio.Lock()

    async def read(self, store: Store, filter: JobFilter, by: tuple[str, ...]) -> Sums | None:
        """None: there is too much to add up."""
        asked = msgspec.json.encode(filter), by
        async with self._lock:
            ends_at, sums = self._kept.get(asked, (0.0, None))
            began_at = monotonic()
            if began_at >= ends_at:
                sums = await add_up(store, filter, by)
                lives = max(LIVES, (monotonic() - began_at) * TIMES_AS_LONG)
                self._kept[asked] = monotonic() + lives, sums
            self._kept.move_to_end(asked)
            while len(self._kept) > MOST_KEPT or (len(self._kept) > 1 and self._rows() > KEPT_ROWS):
                self._kept.popitem(last=False)
        return sums

    def _rows(self) -> int:
        return sum(len(sums.rows) for _, sums in self._kept.values() if sums is not None)


async def add_up(store: Store, filter: JobFilter, by: tuple[str, ...]) -> Sums | None:
    if by == BASE:
        found = await store.add_up_costs(filter, by, MOST_SUMS)
        return None if found is None else Sums(tuple(found))
    found = await store.add_up_costs(filter, by, MOST_VALUES)
    if found is None:
        return None
    kept, more = [], Counter[str]()
    for each in found:
        more[each.unit] += 1
        if more[each.unit] <= MOST_ROWS:
            kept.append(each)
    return Sums(tuple(kept), {unit: max(count - MOST_ROWS, 0) for unit, count in more.items()})


async def show_costs(request: Request, query: Query) -> Response:
    services, fields = services_of(request), read_fields(request)
    days, key, wanted = read_choice(fields, services.clock.now())
    ledger: Ledger = request.app.state.ledger
    sums = await ledger.read(services.store, wanted, BASE)
    by_key = await ledger.read(services.store, wanted, (f"metadata.{key}",)) if key else Sums()
    known = sums or Sums()
    latest = await services.store.read_jobs(JobFilter(), KEYS_FROM, None)
    links = {name: value for name, value in fields.items() if name not in ("days", "key")}
    return show(
        request,
        "costs.html",
        units=[count(unit, known.rows, by_key or Sums(), key, links, wanted) for unit in units_of(known.rows)],
        is_too_much=sums is None,
        has_too_many=key if by_key is None else "",
        key=key,
        keys=sorted({name for job in latest.rows for name in job.metadata} | ({key} if key else set())),
        fields=fields,
        days=days,
        periods=PERIODS,
        telling=sorted(account.name for account in services.accounts.values() if tells(account.spec)),
        providers=sorted({*services.accounts, *(each.group[1] or "" for each in known.rows)}),
    )


def tells(spec: Spec) -> bool:
    """Whether the provider says what a job cost."""
    return any(reading.cost for reading in spec.readings.values())


def read_choice(fields: Form, now: datetime) -> tuple[str, str, JobFilter]:
    """(days, key of metadata, filter). Days are whole ones of UTC, today among them."""
    pairs = {name.removeprefix("metadata."): text for name, text in fields.items() if name.startswith("metadata.")}
    known = {"days", "key", "provider", "model", *(f"metadata.{name}" for name in pairs)}
    errors = [{"parameter": name, "detail": "is no filter of this page"} for name in fields if name not in known]
    days = fields.get("days", PERIOD)
    if days not in PERIODS:
        errors.append({"parameter": "days", "detail": f"is none of {', '.join(PERIODS)}"})
    if errors:
        raise Invalid(errors)
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = midnight - timedelta(days=int(days) - 1)
    key = fields.get("key", "")
    return days, key, JobFilter(provider=fields.get("provider"), model=fields.get("model"), metadata=pairs, created_after=since)


def units_of(sums: Iterable[CostSum]) -> list[str]:
    """The one with the most jobs first."""
    jobs = Counter[str]()
    for each in sums:
        jobs[each.unit] += each.jobs
    return [unit for unit, _ in jobs.most_common()]


def count(unit: str, sums: Sequence[CostSum], by_key: Sums, key: str, links: Form, wanted: JobFilter) -> Money:
    own, values = ([each for each in found if each.unit == unit] for found in (sums, by_key.rows))
    amount = sum((exact(each) for each in own), Decimal())

    def rows(found: Sequence[CostSum], place: int, field: str, more: int = 0) -> tuple[str, tuple[Row, ...], int]:
        made = make_rows(found, place, amount, lambda name: jobs_link({**links, field: name}, wanted))
        return "By " + field.removeprefix("metadata."), made[:MOST_ROWS], more + max(len(made) - MOST_ROWS, 0)

    days = make_rows(own, 0, amount, lambda name: jobs_link(links, wanted, name))
    tables = [rows(own, 1, "provider"), rows(own, 2, "model")]
    if key:
        tables.append(rows(values, 0, f"metadata.{key}", by_key.more.get(unit, 0)))
    return Money(
        unit=unit,
        amount=amount,
        jobs=sum(each.jobs for each in own),
        days=tuple(sorted(days, key=lambda row: row.name or "", reverse=True)),
        series=draw(days, wanted),
        tables=tuple(tables),
    )


def exact(each: CostSum) -> Decimal:
    """As it is written, so that tenths add up to tenths."""
    return Decimal(str(each.amount))


def make_rows(sums: Iterable[CostSum], place: int, whole: Decimal, link: Callable[[str], str]) -> tuple[Row, ...]:
    """A row for each value in this place of the groups, the largest first."""
    amounts: dict[str | None, Decimal] = {}
    jobs = Counter[str | None]()
    for each in sums:
        name = each.group[place]
        amounts[name] = amounts.get(name, Decimal()) + exact(each)
        jobs[name] += each.jobs
    ordered = sorted(amounts.items(), key=lambda item: (-item[1], item[0] or ""))
    return tuple(
        Row(name, amount, jobs[name], float(amount / whole) if whole else 0.0, link(name) if name else "") for name, amount in ordered
    )


def jobs_link(fields: Form, wanted: JobFilter, day: str = "") -> str:
    """The jobs that are meant, in their list."""
    start = midnight(day) if day else wanted.created_after
    times = {"created_after": to_rfc3339(start), "created_before": to_rfc3339(start + DAY) if start and day else None}
    return "jobs?" + urlencode({**fields, **{name: at for name, at in times.items() if at}})


def draw(days: Iterable[Row], wanted: JobFilter) -> str:
    """Every day since the first one, as Unix times, and what it cost, as JSON; nothing for one day alone."""
    amounts = {row.name: float(row.amount) for row in days}
    assert wanted.created_after is not None
    first = min(wanted.created_after, *(midnight(name) for name in amounts if name))
    last = max(midnight(name) for name in amounts if name)
    times = [first + number * DAY for number in range((last - first).days + 1)]
    if len(times) < 2:
        return ""
    return msgspec.json.encode(([int(at.timestamp()) for at in times], [amounts.get(at.date().isoformat(), 0) for at in times])).decode()


def midnight(day: str) -> datetime:
    return datetime.fromisoformat(f"{day}T00:00:00Z")


PAGES = (page("/costs", show_costs, "What jobs cost."),)
