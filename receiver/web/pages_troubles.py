"""What needs a person: everything that does not mend itself, the worst first, each with the one thing to do about it."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

import msgspec

from receiver.model import Channel, DeliveryState, Job, Notice, Outcome, Status
from receiver.services import Services
from receiver.stores.terms import DeliveryFilter, NoticeFilter
from receiver.web.pages_frame import show_bytes, show_span
from receiver.web.providers import show_breaker

MANY = 100  # set-aside notices are counted up to here
LITTLE_SPACE = 1024**3
TOO_LONG = timedelta(minutes=1)  # for a notice to be settled
HANGS = timedelta(minutes=5)  # nothing new was taken meanwhile


class Trouble(msgspec.Struct, frozen=True):
    """One thing that a person should look at, and where; with a button where one press may mend it."""

    level: str  # bad, warn or note
    title: str
    detail: str
    link: str = ""
    button: str = ""
    action: str = ""
    fields: tuple[tuple[str, str], ...] = ()


class Refusing(msgspec.Struct, frozen=True):
    """A provider of which no job succeeded since some failed in a way that the next ones will, too."""

    provider: str
    code: str
    count: int
    message: str  # of the last one


async def find_troubles(
    services: Services,
    jobs: Mapping[tuple[str, str], int],
    deliveries: Mapping[tuple[str, str], int],
    refusing: Iterable[Refusing] = (),
) -> list[Trouble]:
    """The worst first."""
    found = [
        *public_url_troubles(services),
        *loop_troubles(services),
        *(await disk_troubles(services)),
        *(await inbox_troubles(services)),
        *(await delivery_troubles(services, deliveries)),
        *job_troubles(services, jobs),
        *refusal_troubles(refusing),
        *(await provider_troubles(services)),
        *(await notice_troubles(services)),
    ]
    return sorted(found, key=lambda trouble: LEVELS.index(trouble.level))


def public_url_troubles(services: Services) -> Iterator[Trouble]:
    server, fault = services.config.server, services.public_fault()
    said = f"{fault.detail} {fault.mend}" if fault else ""
    if not services.is_reachable():
        detail = f"No callback comes home by {server.public_url}; jobs are polled instead. {said} It is tried again every few seconds."
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


async def inbox_troubles(services: Services) -> list[Trouble]:
    oldest = await services.store.inbox_oldest()
    waits = services.clock.now() - oldest if oldest else timedelta(0)
    if waits < TOO_LONG:
        return []
    detail = f"The oldest of {await services.store.inbox_depth()} waits for {show_span(waits)}. Does a process with the role settle run?"
    return [Trouble("bad", "Callbacks are kept and not settled", f"{detail} receiver poll starts one; its log says what keeps it.")]


async def delivery_troubles(services: Services, deliveries: Mapping[tuple[str, str], int]) -> list[Trouble]:
    troubles = []
    for (handler, state), count in sorted(deliveries.items()):
        fields = (("state", state), ("handler", handler))
        link = "deliveries?" + urlencode(fields)
        if state == DeliveryState.DEAD:
            title = f"{plural(count, 'dead delivery', 'dead deliveries')} to {handler}"
            detail = f"Mend the cause, then replay. {await last_error(services, handler, DeliveryState.DEAD)}"
            troubles.append(Trouble("bad", title, detail, link, f"Replay {count}", "deliveries/replay", fields))
        elif handler not in services.handlers:
            detail = f"{plural(count, 'delivery waits', 'deliveries wait')} for a handler that is not in the configuration."
            troubles.append(Trouble("warn", f"Nobody takes what is for {handler}", detail, link))
        elif state == DeliveryState.RETRYING:
            title = f"{plural(count, 'delivery', 'deliveries')} to {handler} failed, to be tried again"
            detail = f"It is asked again by itself. {await last_error(services, handler, DeliveryState.RETRYING)}"
            troubles.append(Trouble("warn", title, detail, link, "Try now", "deliveries/replay", fields))
        elif state == DeliveryState.PENDING and (busy := deliveries.get((handler, DeliveryState.RUNNING))):
            since = await busy_since(services, handler)
            if since is not None and (span := services.clock.now() - since) >= HANGS:
                title = f"{handler} has been busy for {show_span(span)} with the same {'delivery' if busy == 1 else f'{busy} deliveries'}"
                detail = (
                    f"{plural(count, 'waits', 'wait')} behind. If it hangs, mend it, or set a timeout for it and start the server anew."
                )
                troubles.append(Trouble("warn", title, detail, "deliveries?" + urlencode({"state": "running", "handler": handler})))
    return troubles


async def busy_since(services: Services, handler: str) -> datetime | None:
    """When it took the latest of those that run."""
    listed = await services.store.read_deliveries(DeliveryFilter(state=DeliveryState.RUNNING, handler=handler), MANY, None)
    return max((row.updated_at for row in listed.rows), default=None)


async def last_error(services: Services, handler: str, state: DeliveryState) -> str:
    """What the handler said last. It may have said so to another process, or to one from before a restart."""
    health = services.handler_health.get(handler)
    if health is not None and health.last_error:
        return health.last_error
    listed = await services.store.read_deliveries(DeliveryFilter(state=state, handler=handler), 1, None)
    return next((lines[-1] for row in listed.rows if (lines := (row.last_error or "").splitlines())), "")


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
            again = f"Asked again in {show_span(breaker.open_until - now)}" if breaker.open_until else "Asked again soon"
            detail = f"{health['last_error'] or 'Its calls keep failing'}. {again}, by itself."
            troubles.append(Trouble("bad", f"{name} is left alone for a while", detail, link))
        elif health["state"] == "failing":
            title = f"{name} fails ({plural(breaker.failures, 'call', 'calls')} in a row)"
            troubles.append(Trouble("warn", title, health["last_error"] or "", link))
    if not services.accounts:
        detail = "Add a table [providers.NAME] with an api_key: the guide shows how."
        troubles.append(Trouble("note", "No provider is configured", detail, "guide"))
    for account in services.accounts.values():
        if not account.api_key:
            title = f"{account.name} has no API key"
            troubles.append(Trouble("warn", title, f"Set api_key under [providers.{account.name}].", f"providers#{account.name}"))
    return troubles


def refusal_troubles(refusing: Iterable[Refusing]) -> Iterator[Trouble]:
    for each in refusing:
        level, _, _, mend = REFUSALS[each.code]
        link = "jobs?" + urlencode({"status": Status.FAILED, "provider": each.provider})
        yield Trouble(level, tell_refusal(each), f"{mend} The last one: {each.message}", link)


def tell_refusal(refusing: Refusing) -> str:
    jobs = "job" if refusing.count == 1 else f"{refusing.count} jobs"
    return f"The last {jobs} of {refusing.provider} failed: {REFUSALS[refusing.code][2]}"


def find_refusing(jobs: Sequence[Job]) -> tuple[Refusing, ...]:
    """By provider, from jobs that ended: those that failed after the last one that succeeded, if the next ones will fail alike."""
    ended = sorted(((job.finished_at, job) for job in jobs if job.finished_at is not None), key=lambda each: each[0], reverse=True)
    failed: dict[str, list[Job]] = {}
    well: set[str] = set()
    for _, job in ended:
        if job.status is Status.SUCCEEDED:
            well.add(job.provider)
        elif job.provider not in well and job.error is not None and job.error.code in REFUSALS:
            failed.setdefault(job.provider, []).append(job)
    found = []
    for provider, its in sorted(failed.items()):
        error = its[0].error
        alike = [job for job in its if error is not None and job.error is not None and job.error.code == error.code]
        if error is not None and len(alike) >= REFUSALS[error.code][1]:
            found.append(Refusing(provider, error.code, len(alike), error.message))
    return tuple(found)


async def notice_troubles(services: Services) -> list[Trouble]:
    troubles = []
    for outcome, (level, one, many, detail) in SET_ASIDE.items():
        rows = (await services.store.read_notices(NoticeFilter(outcome=outcome), MANY, None, 0)).rows
        count = sum(not is_failed_call(notice) for notice in rows)
        if count:
            title = f"{MANY} or more {many}" if count == MANY else plural(count, one, many)
            troubles.append(Trouble(level, title, detail, f"notices?outcome={outcome}"))
    return troubles


def is_failed_call(notice: Notice) -> bool:
    """A poll that the provider answered with an error: it was asked again, and no spec can read more out of that."""
    return notice.channel is Channel.POLL and notice.http_status is not None and notice.http_status >= 400


LEVELS = ("bad", "warn", "note")
SET_ASIDE = {
    Outcome.UNREADABLE: ("warn", "unreadable notice", "unreadable notices", "The spec did not understand them. Settle again after a fix."),
    Outcome.MISMATCHED: ("note", "mismatched notice", "mismatched notices", "They speak of an id that their submission does not have."),
    Outcome.ORPHAN: ("note", "orphaned notice", "orphaned notices", "No submission of ours is known for them."),
}


REFUSALS = {  # level, how many make a trouble, what it means, what to do
    "authentication": ("bad", 1, "it does not know the key", "Look at api_key of the account: does that key still count?"),
    "permission": ("bad", 1, "the key may not do this", "Look into its dashboard: rights of the key, a plan, a region."),
    "insufficient_balance": ("bad", 1, "there is no money left", "Top up there; then submit them anew."),
    "provider_unavailable": ("bad", 1, "it cannot be reached", "Nothing was sent, nothing is billed: submit them anew when it is back."),
    "rate_limited": ("warn", 2, "too many at a time", "Set rate_limit to what the provider grants."),
    "provider_error": ("warn", 5, "it tried, and failed", "Look whether the provider tells of an outage."),
}


def plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
