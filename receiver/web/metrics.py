"""The numbers at `/metrics`: which there are, under which names, with which labels. config/deploy/README.md explains each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from receiver import __version__
from receiver.counters import DURATIONS, LAGS, MILLISECONDS, bucket
from receiver.model import DeliveryState, FinishedBy, Status
from receiver.probing import Cause
from receiver.providers.account import Account
from receiver.services import Services
from receiver.web.headroom import DISK, INBOX

Counts = Mapping[tuple[str, str], int]


class Snapshot(Collector):
    """Numbers that were read a moment ago, in the way Prometheus' library wants to be given them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


@dataclass(frozen=True)
class Counted:
    """A counter: whose it is (`provider`, `handler`, or nobody's), and which of our counts stand in it, by the value of `label`."""

    name: str
    text: str
    owner: str
    words: Mapping[str, str]
    label: str = ""


COUNTED = (
    Counted("receiver_callbacks_accepted", "Callbacks that are kept on disk.", "provider", {"callbacks_accepted": ""}),
    Counted(
        "receiver_callbacks_refused",
        "Callbacks that were not kept.",
        "provider",
        {
            "callbacks_wrong_token": "token",
            "callbacks_wrong_signature": "signature",
            "callbacks_over_limit": "too_large",
            "callbacks_over_bound": "too_many",
            "callbacks_unkept": "unavailable",
        },
        "reason",
    ),
    Counted("receiver_callbacks_slowed", "Refusals that were held back, for who tries many tokens.", "", {"callbacks_slowed": ""}),
    Counted("receiver_keys_slowed", "Refusals of API keys that were held back, for who tries many.", "", {"keys_slowed": ""}),
    Counted("receiver_submits", "Calls that ask a provider for work.", "provider", {"submits": ""}),
    Counted(
        "receiver_submissions_refused",
        "Requests that a brake of the account stopped before money was spent.",
        "provider",
        {"braked_max_open": "max_open", "braked_max_cost_per_day": "max_cost_per_day"},
        "brake",
    ),
    Counted("receiver_polls", "Polls of one job.", "provider", {"polls_answered": "answered", "polls_failed": "failed"}, "outcome"),
    Counted("receiver_poll_calls", "Calls that ask about jobs; one may ask about many.", "provider", {"polls": ""}),
    Counted("receiver_stream_events", "Events of a provider's stream.", "provider", {"stream_events": ""}),
    Counted("receiver_unknown_statuses", "Status words that the spec does not know.", "provider", {"unknown_statuses": ""}),
    Counted(
        "receiver_job_events",
        "Events of jobs.",
        "provider",
        {f"jobs_{status}": f"job.{status}" for status in ("submitted", *Status) if status not in (Status.SUBMITTING, Status.QUEUED)},
        "type",
    ),
    Counted("receiver_jobs_finished", "Jobs that ended.", "provider", {f"finished_by_{way}": str(way) for way in FinishedBy}, "by"),
    Counted(
        "receiver_deliveries",
        "Attempts of handlers.",
        "handler",
        {f"deliveries_{state}": str(state) for state in (DeliveryState.DONE, DeliveryState.RETRYING, DeliveryState.DEAD)},
        "outcome",
    ),
)


async def gather_metrics(services: Services, short: Collection[str]) -> list[Metric]:
    counts = await services.counters.read()
    owners = {"provider": sorted(services.accounts), "handler": sorted(services.handlers), "": [""]}
    return [
        info(),
        *(await waiting(services, short)),
        *(await health(services)),
        *(await money(services)),
        *(count(family, counts, owners[family.owner]) for family in COUNTED),
        loss_ratio(services, counts),
        histogram("receiver_job_seconds", "From the request to success.", "provider", "duration:", owners["provider"], counts, DURATIONS),
        histogram("receiver_settle_lag_seconds", "From a callback's arrival until it is settled.", "", "settle_lag", [""], counts, LAGS),
    ]


def info() -> Metric:
    family = GaugeMetricFamily("receiver_info", "The version that answers.", labels=["version"])
    family.add_metric([__version__], 1)
    return family


async def waiting(services: Services, short: Collection[str]) -> list[Metric]:
    """What is under way, and for how long."""
    store = services.store
    oldest, deliveries = await store.inbox_oldest(), await services.tally.deliveries()
    age = 0.0 if oldest is None else max((services.clock.now() - oldest).total_seconds(), 0.0)
    overdue = await services.tally.overdue()
    dead = {
        (handler,): deliveries.get((handler, DeliveryState.DEAD), 0) for handler in {*services.handlers, *(name for name, _ in deliveries)}
    }
    return [
        gauge("receiver_inbox_notices", "Notices that are kept and not settled.", (), {(): await store.inbox_depth()}),
        gauge("receiver_inbox_oldest_seconds", "How long the oldest of them waits.", (), {(): age}),
        gauge("receiver_short", "1 while new work is refused for want of it.", ("of",), {(each,): each in short for each in (DISK, INBOX)}),
        gauge("receiver_open_jobs", "Jobs that are not final.", ("provider", "status"), await services.tally.open_jobs()),
        gauge(
            "receiver_overdue_jobs",
            "Open jobs whose news is overdue, so that they are polled.",
            ("provider",),
            {(account.name,): overdue.get(account.name, 0) for account in pushing(services)},
        ),
        gauge("receiver_open_deliveries", "Deliveries that are not done.", ("handler", "state"), deliveries),
        gauge("receiver_dead_letters", "Deliveries that were given up and wait for a replay.", ("handler",), dead),
    ]


async def health(services: Services) -> list[Metric]:
    breakers = await services.store.read_breakers()
    failures = {(name,): breakers[name].failures if name in breakers else 0 for name in {*services.accounts, *breakers}}
    loops = {(loop.name,): loop.failures for loop in services.health()}
    fault = services.public_fault()
    faults = {(cause.value,): fault is not None and fault.cause is cause for cause in Cause}
    return [
        gauge("receiver_provider_failures", "Calls in a row that failed.", ("provider",), failures),
        gauge("receiver_loop_failures", "Passes in a row that failed.", ("loop",), loops),
        gauge("receiver_public_url_reachable", "0 when no callback comes home by the public URL.", (), {(): services.is_reachable()}),
        gauge("receiver_public_url_fault", "1 for what our own request by the public URL met.", ("cause",), faults),
    ]


async def money(services: Services) -> list[Metric]:
    midnight = services.clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    sums = await asyncio.gather(*(services.tally.costs(name, midnight) for name in services.accounts))
    text = "What jobs made since midnight UTC cost, in the provider's unit."
    return [
        gauge("receiver_cost_today", text, ("provider",), {(name,): amount for name, amount in zip(services.accounts, sums, strict=True)})
    ]


def pushing(services: Services) -> list[Account]:
    """The accounts whose news comes by itself, as long as nothing is lost."""
    has_url = services.config.server.public_url is not None
    return [account for account in services.accounts.values() if (account.has_callback and has_url) or account.has_stream]


def share_lost(services: Services, account: Account, counts: Counts) -> float | None:
    """Of the jobs that came home by callback or poll, since the database was made: how many a poll had to find. None where there were
    none, or nobody calls back."""
    called, polled = (counts.get((f"provider:{account.name}", f"finished_by_{way}"), 0) for way in ("callback", "poll"))
    is_called = account.has_callback and services.config.server.public_url is not None
    return polled / (called + polled) if is_called and called + polled else None


def loss_ratio(services: Services, counts: Counts) -> Metric:
    shares = {(account.name,): share_lost(services, account, counts) for account in services.accounts.values()}
    values = {name: share for name, share in shares.items() if share is not None}
    return gauge("receiver_callback_loss_ratio", "Jobs that a poll had to bring home in spite of callbacks.", ("provider",), values)


def gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def count(family: Counted, counts: Counts, owners: Sequence[str]) -> Metric:
    """Every value of the label for every owner that is configured, 0 at first; and for others that were counted."""
    prefix = f"{family.owner}:" if family.owner else "receiver"
    counted = {scope.removeprefix(prefix) for scope, word in counts if word in family.words and scope.startswith(prefix)}
    metric = CounterMetricFamily(family.name, family.text, labels=[name for name in (family.owner, family.label) if name])
    for owner in sorted({*owners, *counted}):
        for word, value in family.words.items():
            metric.add_metric([each for each in (owner, value) if each], counts.get((prefix + owner, word), 0))
    return metric


def histogram(name: str, text: str, owner: str, prefix: str, owners: Sequence[str], counts: Counts, bounds: Sequence[float]) -> Metric:
    metric = HistogramMetricFamily(name, text, labels=[owner] if owner else [])
    counted = {scope.removeprefix(prefix) for scope, _ in counts if scope.startswith(prefix)}
    for each in sorted({*owners, *counted}):
        here = Counter({word: number for (scope, word), number in counts.items() if scope == prefix + each})
        totals = accumulate(here[bucket(bound)] for bound in (*bounds, inf))
        buckets = [(show_bound(bound), total) for bound, total in zip((*bounds, inf), totals, strict=True)]
        metric.add_metric([each] if each else [], buckets, here[MILLISECONDS] / 1000)
    return metric


def show_bound(bound: float) -> str:
    return "+Inf" if bound == inf else str(bound)
