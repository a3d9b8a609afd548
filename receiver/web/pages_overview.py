"""The overview: what needs a person first, then how everything goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from receiver.model import FinishedBy, Status
from receiver.services import Services
from receiver.stores.terms import JobFilter
from receiver.web.metrics import share_lost
from receiver.web.operations import Operation, services_of
from receiver.web.pages_frame import page, show
from receiver.web.pages_troubles import Refusing, find_refusing, find_troubles
from receiver.web.providers import show_learned
from receiver.web.query import Query

WINDOW = timedelta(hours=1)
MOST_JOBS = 1_000  # looked at for the chart: a page must stay quick
CHART_LIVES = timedelta(seconds=5)
WAYS = tuple(FinishedBy)


async def show_overview(request: Request, query: Query) -> Response:
    services = services_of(request)
    jobs, deliveries = await services.tally.open_jobs(), await services.tally.deliveries()
    counters, chart = await services.counters.read(), await draw_chart(request, services)
    statuses = Counter[str]()
    for (_, status), count in jobs.items():
        statuses[status] += count
    return show(
        request,
        "overview.html",
        troubles=await find_troubles(services, jobs, deliveries, chart.refusing),
        statuses=[(status.value, statuses[status.value]) for status in Status if not status.is_final],
        ended=[
            (word, total(counters, "provider:", f"jobs_{word}"), f"jobs?status={word}")
            for word in ("succeeded", "failed", "cancelled", "expired")
        ],
        inbox=await services.store.inbox_depth(),
        ways=ways_home(counters),
        providers=losses(services, counters),
        learned=await show_times(services),
        chart=chart,
    )


# How it goes


def total(counters: Mapping[tuple[str, str], int], scope: str, name: str) -> int:
    return sum(count for (each, word), count in counters.items() if each.startswith(scope) and word == name)


def ways_home(counters: Mapping[tuple[str, str], int]) -> list[tuple[str, int, float]]:
    """(by what, jobs, share) of all jobs that ended."""
    counts = [(way.value, total(counters, "provider:", f"finished_by_{way}")) for way in WAYS]
    everything = sum(count for _, count in counts)
    return [(way, count, count / everything) for way, count in counts if count]


def losses(services: Services, counters: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """By provider that calls back: how many jobs came home by callback, and how many a poll had to find."""
    rows = []
    for account in services.accounts.values():
        count = {way: counters.get((f"provider:{account.name}", f"finished_by_{way}"), 0) for way in ("callback", "poll", "stream")}
        if any(count.values()):
            rows.append({"name": account.name, **count, "lost": share_lost(services, account, counters)})
    return rows


async def show_times(services: Services) -> list[dict[str, Any]]:
    """By provider and model: how long jobs took, against the silence after which they are asked about."""
    rows = []
    for learned in await services.store.read_learned():
        account = services.accounts.get(learned.provider)
        if account is None or not learned.seconds:
            continue
        ordered = sorted(learned.seconds)
        shown = show_learned(account, learned)
        rows.append(
            {
                "provider": learned.provider,
                "model": learned.model,
                "count": len(ordered),
                "p50": ordered[len(ordered) // 2],
                "p95": ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)],
                "overdue": shown["overdue_after_seconds"],
            }
        )
    return rows


class Chart(msgspec.Struct, frozen=True):
    """Jobs per minute: the start of each minute as a Unix time, jobs that were made in it, and those of them that failed.
    And the providers that make them fail."""

    times: tuple[int, ...]
    made: tuple[int, ...]
    failed: tuple[int, ...]
    refusing: tuple[Refusing, ...]
    drawn_at: datetime

    @property
    def data(self) -> str:
        return msgspec.json.encode((self.times, self.made, self.failed)).decode()


async def draw_chart(request: Request, services: Services) -> Chart:
    """The last hour, or as many minutes as the last thousand jobs took. Drawn again after a few seconds only."""
    now = services.clock.now()
    known: Chart | None = getattr(request.app.state, "chart", None)
    if known is None or now - known.drawn_at >= CHART_LIVES:
        known = request.app.state.chart = await count_minutes(services, now)
    return known


async def count_minutes(services: Services, now: datetime) -> Chart:
    page = await services.store.read_jobs(JobFilter(created_after=now - WINDOW), MOST_JOBS, None)
    last = int(now.timestamp()) // 60
    first = last - int(WINDOW.total_seconds()) // 60 + 1
    if page.cursor is not None:  # the minute of the oldest is not whole
        first = min(last, int(page.rows[-1].created_at.timestamp()) // 60 + 1)
    made, failed = Counter[int](), Counter[int]()
    for job in page.rows:
        minute = int(job.created_at.timestamp()) // 60
        made[minute] += 1
        failed[minute] += job.status in {Status.FAILED, Status.EXPIRED}
    minutes = range(first, last + 1)
    return Chart(
        tuple(minute * 60 for minute in minutes),
        tuple(made[minute] for minute in minutes),
        tuple(failed[minute] for minute in minutes),
        find_refusing(page.rows),
        now,
    )


OVERVIEW: Operation = page("/", show_overview, "An overview.")
