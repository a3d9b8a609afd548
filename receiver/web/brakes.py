"""The brakes on money, `max_open` and `max_cost_per_day` of an account: asked before a submission is kept."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import datetime, timedelta

from receiver.config import ProviderConfig
from receiver.errors import TooMany
from receiver.model import Family, Submission
from receiver.services import Services
from receiver.stores.terms import Replayed

RETRY_AFTER = 15  # seconds: jobs end all the time
SUM_LIVES = timedelta(seconds=1)  # costs become known with the provider's answers: adding them up for every request helps nobody


class Brakes:
    """One request of an account at a time looks and is kept, so that many at once get no further than one after the other.
    Several processes that take requests may each be one request over."""

    def __init__(self, services: Services) -> None:
        self._services, self._store = services, services.store
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._sums: dict[str, tuple[datetime, float]] = {}

    async def create(self, family: Family) -> Family | Replayed:
        """As `create_submission` of the store; TooMany, and nothing kept, where the account may take on no more."""
        submission = family.submission
        config = self._services.config.providers.get(submission.provider, ProviderConfig())
        if config.max_open is None and config.max_cost_per_day is None:
            return await self._store.create_submission(family)
        async with self._locks[submission.provider]:
            if not await self._is_repeated(submission):
                await self._check_open(submission, config.max_open)
                await self._check_cost(submission, config.max_cost_per_day)
            return await self._store.create_submission(family)

    async def _is_repeated(self, submission: Submission) -> bool:
        """What was paid for already costs nothing."""
        key = submission.idempotency_key
        return key is not None and await self._store.has_submission(submission.api_key_id, key)

    async def _check_open(self, submission: Submission, most: int | None) -> None:
        if most is None:
            return
        name = submission.provider
        is_open = await self._store.count_open(name, most)
        if is_open + submission.count > most:
            asked = "" if submission.count == 1 else f", {submission.count} more are asked for"
            raise self._refusal(name, "max_open", f"{is_open} jobs are open{asked}, and {most} may be", RETRY_AFTER)

    async def _check_cost(self, submission: Submission, most: float | None) -> None:
        if most is None:
            return
        name, now = submission.provider, self._services.clock.now()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        spent = await self._sum(name, midnight, now)
        if spent >= most:
            left = midnight + timedelta(days=1) - now
            detail = f"the jobs since midnight UTC cost {spent:g}, and {most:g} is the limit of a day"
            raise self._refusal(name, "max_cost_per_day", detail, int(left.total_seconds()) + 1)

    async def _sum(self, name: str, midnight: datetime, now: datetime) -> float:
        known = self._sums.get(name)
        if known is None or not midnight <= known[0] <= now < known[0] + SUM_LIVES:
            known = self._sums[name] = now, await self._store.sum_costs(name, midnight)
        return known[1]

    def _refusal(self, name: str, brake: str, detail: str, retry_after: int) -> TooMany:
        self._services.counters.add(f"provider:{name}", f"braked_{brake}")
        return TooMany(f"Nothing was sent: {detail} ({brake} under [providers.{name}]).", retry_after=retry_after)
