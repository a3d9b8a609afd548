"""How long a callback may be silent before it counts as overdue: learned from the times that finished jobs took. Pure."""

from __future__ import annotations

from datetime import timedelta

from receiver.model import Channel, Job, Status, Update
from receiver.providers.account import Account
from receiver.stores.terms import Duration, Learned

ENOUGH = 10  # durations before they count for more than the prior
QUANTILE = 0.95
SLACK = 1.25  # a callback may come a little later than the slowest usual one
GRACE = timedelta(seconds=2)
NONE = timedelta(0)


def overdue_after(account: Account, job: Job, known: Learned | None) -> timedelta:
    """The silence after which a job's callback is overdue; a learned one never exceeds a quarter of the deadline."""
    fixed = account.overdue_for(job.media, job.operation)
    if fixed is not None:
        return fixed
    wait = learned_overdue(known) or account.overdue_prior(job.media, job.operation)
    return min(wait, (job.deadline_at - job.created_at) / 4)


def learned_overdue(known: Learned | None) -> timedelta | None:
    """None until enough is known."""
    if known is None or len(known.seconds) < ENOUGH:
        return None
    return timedelta(seconds=quantile(known.seconds) * SLACK) + GRACE


def quantile(seconds: tuple[float, ...]) -> float:
    """The 95th percentile of the durations."""
    ordered = sorted(seconds)
    return ordered[min(int(len(ordered) * QUANTILE), len(ordered) - 1)]


def duration_of(job: Job, update: Update, channel: Channel) -> Duration | None:
    """What a finished job teaches. One that a poll of ours found late teaches only by the provider's own times."""
    if job.status is not Status.SUCCEEDED or job.submitted_at is None or job.finished_at is None:
        return None
    if update.finished_at is not None and update.created_at is not None:
        took = update.finished_at - update.created_at
    elif channel in {Channel.CALLBACK, Channel.STREAM}:
        took = job.finished_at - job.submitted_at
    else:
        return None
    if took < NONE:
        return None
    return Duration(provider=job.provider, model=job.model or "", seconds=took.total_seconds())
