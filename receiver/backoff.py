"""When again: arithmetic on the attempt, the limits and a hint from the other side."""

from __future__ import annotations

import random
from datetime import datetime, timedelta


def jittered(ceiling: timedelta, least: float = 0.5) -> timedelta:
    """Between `least` times the ceiling and the ceiling."""
    return ceiling * random.uniform(least, 1)  # noqa: S311 (spreads load, guards nothing)


def full_jitter(attempt: int, first: timedelta, ceiling: timedelta) -> timedelta:
    """Full-jitter backoff after the given attempt (from 1): anything up to `first` doubled per attempt, at most `ceiling`.

    At least a tenth of it, so that a retry never comes at once.
    """
    limit = min(first * 2 ** min(max(attempt - 1, 0), 32), ceiling)
    return jittered(limit, 0.1)


def retry_at(now: datetime, attempt: int, first: timedelta, ceiling: timedelta, hint: float | None) -> datetime:
    """After the backoff, and never sooner than the other side asked for (`hint`, seconds; believed up to a day)."""
    wait = full_jitter(attempt, first, ceiling)
    if hint is not None:
        wait = max(wait, timedelta(seconds=min(max(hint, 0), 86_400)))
    return now + wait


def poll_interval(attempts: int, interval: timedelta, max_interval: timedelta) -> timedelta:
    """The pause before poll number `attempts` + 1 since the last news: grows by a fifth each time, with a tenth of jitter."""
    grown = interval * 1.2 ** min(attempts, 60)
    return min(grown, max(max_interval, interval)) * random.uniform(0.95, 1.05)  # noqa: S311
