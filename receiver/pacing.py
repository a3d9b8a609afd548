"""When a job is asked about next. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from receiver.backoff import poll_interval
from receiver.model import Job, Poll, Status
from receiver.providers.account import Account

FIRST_AFTER_EXPIRY = timedelta(minutes=10)
GIVE_UP_AFTER_EXPIRY = timedelta(days=1)
LAST_CHANCE = timedelta(seconds=1)


def next_poll(
    job: Job,
    account: Account,
    now: datetime,
    poll: Poll | None,
    *,
    heard_at: datetime,
    overdue: timedelta | None,
    was_polled: bool,
    is_news: bool,
) -> Poll | None:
    """The job's poll from now on, None when it needs none.

    `heard_at` is when the job last changed before this. `overdue` is None where no news is pushed to us. A poll whose
    `attempts` are above 0 found a callback overdue: from then on the job is asked about at the interval.
    """
    if job.remote_id is None or (job.is_final and not (job.status is Status.EXPIRED and job.is_own_verdict)):
        return None
    base = poll or Poll(job_id=job.id, submission_id=job.submission_id, provider=job.provider, due_at=now)
    if job.status is Status.EXPIRED:
        return after_expiry(job, base, now, was_polled)
    if not was_polled:  # pushed to us, or just submitted
        attempts = 0
        due = now + (overdue if overdue is not None else interval_for(job, account, 0))
    elif overdue is not None and not base.attempts and heard_at + overdue > now:  # asked ahead of time: wait for the push
        attempts = 0
        due = max(heard_at + overdue, now + interval_for(job, account, 0))
    else:
        attempts = 1 if is_news else base.attempts + 1
        due = now + interval_for(job, account, attempts - 1)
    due = min(due, max(job.deadline_at - LAST_CHANCE, now + LAST_CHANCE))
    return msgspec.structs.replace(base, due_at=due, attempts=attempts, failures=0, not_found=0)


def urgent_poll(job: Job, now: datetime, poll: Poll | None) -> Poll | None:
    """Ask at once, and from then on at the interval: what was pushed could not be used."""
    if job.remote_id is None or job.is_final:
        return None
    base = poll or Poll(job_id=job.id, submission_id=job.submission_id, provider=job.provider, due_at=now)
    return msgspec.structs.replace(base, due_at=now, attempts=max(base.attempts, 1))


def interval_for(job: Job, account: Account, attempts: int) -> timedelta:
    interval = account.interval_for(job.media, job.operation)
    return poll_interval(attempts, interval, account.max_interval_for(job.media, job.operation))


def after_expiry(job: Job, poll: Poll, now: datetime, was_polled: bool) -> Poll | None:
    """Further and further apart, for a day: the provider may have made it after all."""
    attempts = poll.attempts + 1 if was_polled else 0
    first = min(job.deadline_at - job.created_at, FIRST_AFTER_EXPIRY)
    due = now + first * 2 ** min(attempts, 20)
    assert job.finished_at is not None
    if due > job.finished_at + GIVE_UP_AFTER_EXPIRY:
        return None
    return msgspec.structs.replace(poll, due_at=due, attempts=attempts, failures=0, not_found=0)
