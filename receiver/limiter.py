"""How often we call a provider: its rate limit, its own wishes, and leaving it alone while it keeps failing."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
import structlog

from receiver.backoff import jittered
from receiver.herald import Herald
from receiver.providers.account import Account
from receiver.stores.base import Store
from receiver.stores.terms import Breaker

TRIP_AFTER = 5  # failures in a row
FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(minutes=5)
POLL_SHARE = 0.8  # of the burst: the rest is kept for submits, which go first
log = structlog.get_logger("receiver.limiter")


class Limiter:
    """Shared by submits and polls of one process; tokens and breakers are in the store, so that processes share them too."""

    def __init__(self, store: Store, herald: Herald) -> None:
        self._store, self._herald = store, herald
        self._paused_until: dict[str, datetime] = {}
        self._breakers: dict[str, Breaker] = {}

    async def refresh(self) -> None:
        """Learn what other processes found."""
        self._breakers = await self._store.read_breakers()

    async def take(self, account: Account, now: datetime, *, for_poll: bool) -> datetime | None:
        """None: call now. Else when there is room."""
        paused = self._paused_until.get(account.name)
        if paused is not None and paused > now:
            return paused
        limit = account.rate_limit
        if limit is None:
            return None
        # Burst and rate together stay within the limit in every window of its length.
        burst = max(limit.count // 10, 1)
        per_second = max(limit.count - burst, 1) / limit.seconds if limit.count > 1 else 1 / limit.seconds
        share = max(int(burst * POLL_SHARE), 1) if for_poll else burst
        granted, room_at = await self._store.take_tokens(account.name, now, per_second, share, 1)
        return None if granted else max(room_at, now + timedelta(milliseconds=50))

    def pause(self, account: Account, now: datetime, seconds: float) -> None:
        """The provider asked to be left alone for so long (believed up to an hour)."""
        until = now + timedelta(seconds=min(max(seconds, 0), 3600))
        self._paused_until[account.name] = max(until, self._paused_until.get(account.name, until))
        log.info("provider.paused", provider=account.name, seconds=seconds)

    def is_open(self, name: str, now: datetime) -> bool:
        """Whether the provider is left alone at present, because it keeps failing."""
        breaker = self._breakers.get(name)
        return breaker is not None and breaker.open_until is not None and breaker.open_until > now

    def is_probing(self, name: str) -> bool:
        """Whether one call is to find out if the provider is well again."""
        breaker = self._breakers.get(name)
        return breaker is not None and breaker.failures >= TRIP_AFTER

    async def succeeded(self, account: Account) -> None:
        known = self._breakers.get(account.name)
        if known is not None and known.failures:
            self._note(msgspec.structs.replace(known, failures=0, open_until=None))
            if await self._store.forgive(account.name):
                log.info("provider.well", provider=account.name)

    async def failed(self, account: Account, now: datetime, reason: str) -> None:
        known = self._breakers.get(account.name)
        failures = await self._store.count_failure(account.name, now, reason)
        open_until = known.open_until if known else None
        if failures >= TRIP_AFTER:
            open_until = now + jittered(min(FIRST_PAUSE * 2 ** min(failures - TRIP_AFTER, 16), LONGEST_PAUSE))
            await self._store.leave_alone(account.name, open_until)
            log.warning("provider.failing", provider=account.name, failures=failures, reason=reason)
            if failures == TRIP_AFTER:
                await self._herald.tell("provider_failing", {"provider": account.name, "failures": failures, "last_error": reason}, now)
        self._note(Breaker(provider=account.name, failures=failures, open_until=open_until, last_error=reason, last_error_at=now))

    def _note(self, breaker: Breaker) -> None:
        self._breakers = {**self._breakers, breaker.provider: breaker}
