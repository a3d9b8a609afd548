"""Pass: deadlines, dead processes, pruning, and everything else that only time brings."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

from receiver.config import StoreConfig
from receiver.decisions import Decide, Decision
from receiver.limiter import Limiter
from receiver.model import Family
from receiver.settling import Settling
from receiver.verdicts import expire

BATCH = 200
ORPHAN_RETENTION = timedelta(days=1)
PRUNE_EVERY = timedelta(minutes=1)
ASIDE = timedelta(minutes=10)
LEARN_EVERY = timedelta(seconds=5)
log = structlog.get_logger("receiver.sweeper")


class Sweeper:
    """Looks after what nobody sends news about."""

    def __init__(self, settling: Settling, limiter: Limiter, config: StoreConfig) -> None:
        self._settling, self._store, self._limiter, self._config = settling, settling.store, limiter, config
        self._aside: dict[str, datetime] = {}  # submissions that could not be settled, and until when
        self._prune_at: datetime | None = None
        self._learn_at: datetime | None = None

    async def run_pass(self, now: datetime) -> bool:
        buried = await self._store.bury_dead_nodes()
        if buried:
            log.warning("node.buried", nodes=buried)
        await self._limiter.refresh()
        await self._settling.counters.flush()
        if self._learn_at is None or now >= self._learn_at:
            self._learn_at = now + LEARN_EVERY
            await self._settling.refresh_learned()
        has_more = await self._expire(now)
        return await self._prune(now) or has_more

    async def _expire(self, now: datetime) -> bool:
        """One that cannot be settled is left alone for a while, and holds up nobody."""
        self._aside = {submission_id: until for submission_id, until in self._aside.items() if until > now}
        families = await self._store.claim_overdeadline(now, BATCH + len(self._aside))
        decides = {family.submission.id: decide_expired(now) for family in families if family.submission.id not in self._aside}
        failed = await self._settling.settle_apart(decides, now) if decides else []
        self._aside |= dict.fromkeys(failed, now + ASIDE)
        return len(decides) >= BATCH

    async def _prune(self, now: datetime) -> bool:
        if self._prune_at is not None and now < self._prune_at:
            return False
        pruned = await self._store.prune(now, self._config.retention, self._config.raw_retention, ORPHAN_RETENTION, BATCH)
        if pruned == 0:
            self._prune_at = now + PRUNE_EVERY
            return False
        log.info("store.pruned", rows=pruned)
        return True


def decide_expired(now: datetime) -> Decide:
    def decide(family: Family) -> Decision:
        return Decision(expire(family, now))

    return decide
