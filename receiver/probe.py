"""Pass: is our own callback route reachable under the public URL? If not, nobody's callback comes home."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta

import structlog

from receiver.config import ServerConfig
from receiver.errors import ProviderFault
from receiver.herald import Herald
from receiver.model import Request
from receiver.net import ProviderClient
from receiver.providers.account import Account
from receiver.stores.base import Store
from receiver.tokens import Tokens

PROBED = "receiver-probe"  # the provider's place in the path; no account can have this name's token
TIMEOUT = timedelta(seconds=10)
PROBE_AGAIN = timedelta(seconds=15)  # after one that failed: what stands in front may only be starting
PROBE_EVERY = timedelta(minutes=3)
log = structlog.get_logger("receiver.probe")


class Probe:
    """Calls our own callback route from outside. `is_reachable` is True until a probe has failed."""

    def __init__(
        self, config: ServerConfig, tokens: Tokens, client: ProviderClient, store: Store, accounts: Mapping[str, Account], herald: Herald
    ) -> None:
        self._herald = herald
        self._public_url, self._tokens, self._client, self._store, self._accounts = config.public_url, tokens, client, store, accounts
        self.is_needed = bool(config.public_url and config.probe_public_url)
        self.is_reachable = True
        self._next_at: datetime | None = None

    async def run_pass(self, now: datetime) -> bool:
        if self._next_at is not None and now < self._next_at:
            return False
        was_reachable, self.is_reachable = self.is_reachable, await self._reach()
        if was_reachable and not self.is_reachable:
            log.warning("public_url.unreachable", public_url=self._public_url, hint="callbacks cannot come home; jobs are polled instead")
            await self._herald.tell("callbacks_lost", {"public_url": self._public_url}, now)
            for account in self._accounts.values():
                if account.has_callback:
                    await self._store.poll_now(now, provider=account.name)
        elif self.is_reachable and not was_reachable:
            log.info("public_url.reachable", public_url=self._public_url)
        self._next_at = now + PROBE_EVERY if self.is_reachable else None
        return False

    async def _reach(self) -> bool:
        """Whether the one who answers there can prove to be us, by a token that only we can check."""
        token = self._tokens.make(PROBED, "sub_" + secrets.token_hex(16))
        request = Request(method="POST", url=f"{self._public_url}/callbacks/{PROBED}/{token}")
        try:
            answer = await self._client.send(request, timeout=TIMEOUT, max_bytes=65_536)
        except ProviderFault:
            return False
        return answer.status == 200 and answer.headers.get("receiver-probe") == probe_proof(self._tokens, token)


def probe_proof(tokens: Tokens, token: str) -> str:
    """What our own callback route answers to a probe: nobody else can sign it. Unproven for a token that is not ours."""
    return tokens.make(PROBED + ".proof", tokens.check(PROBED, token))
