"""The overview: what needs a person first, then how everything goes."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from receiver.model import DeliveryState, FinishedBy, Outcome, Status
from receiver.services import Services
from receiver.stores.base import JobFilter, NoticeFilter
from receiver.web.operations import Operation, services_of
from receiver.web.pages_frame import page, show, show_bytes
from receiver.web.providers import show_breaker, show_learned
from receiver.web.query import Query

WINDOW = timedelta(hours=1)
MOST_JOBS = 1_000  # looked at for the chart: a page must stay quick
CHART_LIVES = timedelta(seconds=5)
MANY = 100  # set-aside notices are counted up to here
LITTLE_SPACE = 1024**3
WAYS = tuple(FinishedBy)


class Trouble(msgspec.Struct, frozen=True):
    """One thing that a person should look at, and where."""

    level: str  # bad, warn or note
    title: str
    detail: str
    link: str = ""


async def show_overview(request: Request, query: Query) -> Response:
    services = services_of(request)
    jobs, deliveries = await services.tally.open_jobs(), await services.tally.deliveries()
    counters = await services.counters.read()
    statuses = Counter[str]()
    for (_, status), count in jobs.items():
        statuses[status] += count
    return show(
        request,
        "overview.html",
        troubles=await find_troubles(services, jobs, deliveries),
        statuses=[(status.value, statuses[status.value]) for status in Status if not status.is_final],
        ended=[
            (word, total(counters, "provider:", f"jobs_{word}"), f"jobs?status={word}")
            for word in ("succeeded", "failed", "cancelled", "expired")
        ],
        inbox=await services.store.inbox_depth(),
        ways=ways_home(counters),
        providers=losses(services, counters),
        learned=await show_times(services),
        chart=await draw_chart(request, services),
    )


# What needs a person


async def find_troubles(
    services: Services, jobs: Mapping[tuple[str, str], int], deliveries: Mapping[tuple[str, str], int]
) -> list[Trouble]:
    """The worst first."""
    found = [
        *public_url_troubles(services),
        *loop_troubles(services),
        *(await disk_troubles(services)),
        *delivery_troubles(services, deliveries),
        *job_troubles(services, jobs),
        *(await provider_troubles(services)),
        *(await notice_troubles(services)),
    ]
    return sorted(found, key=lambda trouble: LEVELS.index(trouble.level))


def public_url_troubles(services: Services) -> Iterator[Trouble]:
    server, fault = services.config.server, services.public_fault()
    said = f"{fault.detail} {fault.mend}" if fault else ""
    if not services.is_reachable():
        detail = f"No callback comes home by {server.public_url}; jobs are polled instead. {said}"
        yield Trouble("bad", "The public URL is not reachable", detail)
    elif fault is not None and fault.is_proven:
        yield Trouble("warn", "Not every callback may come home", said)
    elif fault is not None:
        detail = f"Callbacks arrive, so the way from outside is good. {fault.detail}"
        yield Trouble("note", "The public URL cannot be tried from here", detail)
    elif server.public_url is None and any(account.has_callback for account in services.accounts.values()):
        yield Trouble("note", "No public URL", "No callback URL is sent to providers, every job is polled: set public_url under [server].")


def loop_troubles(services: Services) -> Iterator[Trouble]:
    for loop in services.health():
        if not loop.is_well:
            yield Trouble("bad", f"The {loop.name} loop keeps failing", f"{loop.failures} passes in a row; the log says why.")


async def disk_troubles(services: Services) -> list[Trouble]:
    """How full the disk of the database is, where the database is a file."""
    url = urlsplit(services.config.store.url)
    if url.scheme != "sqlite":
        return []
    usage = await asyncio.to_thread(shutil.disk_usage, Path(unquote(url.path)).parent)
    if usage.free > LITTLE_SPACE and usage.free > usage.total / 20:
        return []
    return [Trouble("bad", "The disk is nearly full", f"{show_bytes(usage.free)} are free where the database is.")]


def delivery_troubles(services: Services, deliveries: Mapping[tuple[str, str], int]) -> Iterator[Trouble]:
    for (handler, state), count in sorted(deliveries.items()):
        link = "deliveries?" + urlencode({"state": state, "handler": handler})
        health = services.handler_health.get(handler)
        said = health.last_error if health else None
        if state == DeliveryState.DEAD:
            title = f"{plural(count, 'dead delivery', 'dead deliveries')} to {handler}"
            yield Trouble("bad", title, f"Mend the cause, then replay. {said or ''}", link)
        elif handler not in services.handlers:
            detail = f"{plural(count, 'delivery waits', 'deliveries wait')} for a handler that is not in the configuration."
            yield Trouble("warn", f"Nobody takes what is for {handler}", detail, link)
        elif state == DeliveryState.RETRYING:
            title = f"{plural(count, 'delivery', 'deliveries')} to {handler} failed, to be tried again"
            yield Trouble("warn", title, said or "The handler is asked again by itself.", link)


def job_troubles(services: Services, jobs: Mapping[tuple[str, str], int]) -> Iterator[Trouble]:
    left = Counter[str]()
    for (provider, status), count in sorted(jobs.items()):
        if status == Status.UNCONFIRMED:
            link = "jobs?" + urlencode({"status": status, "provider": provider})
            title = f"{plural(count, 'unconfirmed job', 'unconfirmed jobs')} at {provider}"
            yield Trouble("bad", title, "The provider's answer was lost: it may run, and may be billed. Resolve or abandon.", link)
        if provider not in services.accounts:
            left[provider] += count
    for provider, count in left.items():
        detail = f"{plural(count, 'job is', 'jobs are')} open there. Callbacks are kept, nothing is polled."
        yield Trouble("bad", f"{provider} is not in the configuration any more", detail, "jobs?" + urlencode({"provider": provider}))


async def provider_troubles(services: Services) -> list[Trouble]:
    now = services.clock.now()
    troubles = []
    for name, breaker in sorted((await services.store.read_breakers()).items()):
        health = show_breaker(breaker, now)
        link = f"providers#{name}"
        if health["state"] == "open":
            troubles.append(Trouble("bad", f"{name} is left alone for a while", health["last_error"] or "Its calls keep failing.", link))
        elif health["state"] == "failing":
            title = f"{name} fails ({plural(breaker.failures, 'call', 'calls')} in a row)"
            troubles.append(Trouble("warn", title, health["last_error"] or "", link))
    for account in services.accounts.values():
        if not account.api_key:
            title = f"{account.name} has no API key"
            troubles.append(Trouble("warn", title, f"Set api_key under [providers.{account.name}].", f"providers#{account.name}"))
    return troubles


async def notice_troubles(services: Services) -> list[Trouble]:
    troubles = []
    for outcome, (level, one, many, detail) in SET_ASIDE.items():
        count = len((await services.store.read_notices(NoticeFilter(outcome=outcome), MANY, None, 0)).rows)
        if count:
            title = f"{MANY} or more {many}" if count == MANY else plural(count, one, many)
            troubles.append(Trouble(level, title, detail, f"notices?outcome={outcome}"))
    return troubles


LEVELS = ("bad", "warn", "note")
SET_ASIDE = {
    Outcome.UNREADABLE: ("warn", "unreadable notice", "unreadable notices", "The spec did not understand them. Settle again after a fix."),
    Outcome.MISMATCHED: ("note", "mismatched notice", "mismatched notices", "They speak of an id that their submission does not have."),
    Outcome.ORPHAN: ("note", "orphaned notice", "orphaned notices", "No submission of ours is known for them."),
}


def plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


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
        home = sum(count.values())
        if home:
            called = count["callback"] + count["poll"]
            lost = count["poll"] / called if account.has_callback and called else None
            rows.append({"name": account.name, **count, "lost": lost})
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
    """Jobs per minute: the start of each minute as a Unix time, jobs that were made in it, and those of them that failed."""

    times: tuple[int, ...]
    made: tuple[int, ...]
    failed: tuple[int, ...]
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
        now,
    )


OVERVIEW: Operation = page("/", show_overview, "An overview.")
