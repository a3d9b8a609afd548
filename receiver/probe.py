"""Pass: does what is posted under the public URL arrive here, as it was sent? If not, nobody's callback comes home."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import structlog

from receiver.clock import Clock
from receiver.config import ServerConfig
from receiver.herald import Herald
from receiver.net import ProviderClient
from receiver.probing import Fault, probe
from receiver.providers.account import Account
from receiver.stores.base import Store
from receiver.tokens import Tokens

PROBE_AGAIN = timedelta(seconds=15)  # after one that failed: what stands in front may only be starting
BREATH = timedelta(seconds=1)  # before the first one that fails is believed: so may we
PROBE_EVERY = timedelta(minutes=3)
FRESH = timedelta(hours=1)  # a callback that came within it says more than a probe: not every network leads out and in again
log = structlog.get_logger("receiver.probe")


class Probe:
    """Calls our own callback route from outside. `is_reachable` is True until a probe has failed and no callback says otherwise;
    `fault` is what the last probe found, also where callbacks arrive all the same."""

    def __init__(
        self,
        config: ServerConfig,
        tokens: Tokens,
        client: ProviderClient,
        store: Store,
        accounts: Mapping[str, Account],
        herald: Herald,
        clock: Clock,
    ) -> None:
        self._herald, self._clock = herald, clock
        self._config, self._tokens, self._client, self._store, self._accounts = config, tokens, client, store, accounts
        self.is_needed = bool(config.public_url and config.probe_public_url)
        self.is_reachable = True
        self.fault: Fault | None = None
        self._next_at: datetime | None = None

    async def run_pass(self, now: datetime) -> bool:
        if self._next_at is not None and now < self._next_at:
            return False
        fault = await self._ask()
        if fault is not None and self.fault is None:
            await self._clock.sleep(BREATH)
            fault = await self._ask()
        is_reachable = fault is None or await has_fresh_callback(self._store, now)
        self._tell(fault, is_reachable)
        was_reachable, self.is_reachable, self.fault = self.is_reachable, is_reachable, fault
        self._next_at = now + PROBE_EVERY if fault is None else None
        if was_reachable and fault is not None and not is_reachable:
            await self._poll_all(fault, now)
        return False

    async def _ask(self) -> Fault | None:
        config = self._config
        return await probe(self._client, self._tokens, config.public_url or "", self._accounts.values(), config.max_body_bytes)

    def _tell(self, fault: Fault | None, is_reachable: bool) -> None:
        """In the log, once for each change."""
        url = self._config.public_url
        if fault is None:
            if self.fault is not None:
                log.info("public_url.reachable", public_url=url)
        elif self.fault is None or (self.fault.cause, self.is_reachable) != (fault.cause, is_reachable):
            effect = "callbacks arrive all the same" if is_reachable else "callbacks cannot come home; jobs are polled instead"
            event = "public_url.faulty" if is_reachable else "public_url.unreachable"
            log.warning(event, public_url=url, cause=fault.cause, detail=fault.detail, hint=fault.mend, effect=effect)

    async def _poll_all(self, fault: Fault, now: datetime) -> None:
        """What is under way counts as overdue."""
        data = {"public_url": self._config.public_url, "cause": fault.cause.value, "detail": fault.detail}
        if await self._store.take_lease("public_url.told", now, PROBE_EVERY):  # every process asks, one tells
            await self._herald.tell("callbacks_lost", data, now)
        for account in self._accounts.values():
            if account.has_callback:
                await self._store.poll_now(now, provider=account.name)


async def has_fresh_callback(store: Store, now: datetime) -> bool:
    """Whether a provider found the way lately."""
    latest = await store.last_callback_at()
    return latest is not None and now - latest < FRESH
