"""The public keys of providers that publish them: fetched by the guarded client, kept for a while, never fetched in a storm."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from receiver.errors import Unavailable, Unreadable
from receiver.net import AsyncClient, HTTPError
from receiver.providers.signatures import read_jwks

SHORTEST = timedelta(minutes=5)  # how long keys are good, whatever the answer says
LONGEST = timedelta(hours=24)
USUAL = timedelta(hours=1)
PAUSE = timedelta(minutes=1)  # between fetches that an unknown key or a failure asks for
TIMEOUT_SECONDS = 10.0
MAX_BYTES = 64 * 1024
MAX_AGE = re.compile(r"(?:^|[\s,])max-age=\"?(\d{1,9})\b", re.IGNORECASE)
log = structlog.get_logger("receiver.jwks")

PublicKeys = tuple[Ed25519PublicKey, ...]


@dataclass
class Kept:
    """What is known of one address."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one fetch at a time: who waits finds its result
    keys: PublicKeys = ()
    fetched_at: datetime | None = None
    good_until: datetime | None = None
    tried_at: datetime | None = None


class Jwks:
    """Keys by the address that a spec or the configuration names; redirects are not followed."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._kept: dict[str, Kept] = {}

    async def read(self, url: str, now: datetime) -> PublicKeys:
        """The keys, from memory as long as they are good. When they cannot be fetched anew, the old ones serve until they are a day
        old; then, or when there never were any, Unavailable."""
        kept = self._kept.setdefault(url, Kept())
        if not _is_good(kept, now):
            async with kept.lock:
                if _may_try(kept, now):
                    await self._fetch(url, kept, now)
        if kept.fetched_at is None or now - kept.fetched_at > LONGEST:
            raise Unavailable("The keys of this provider cannot be fetched now; send it again later.", retry_after=60)
        return kept.keys

    async def refresh(self, url: str, now: datetime) -> PublicKeys | None:
        """For a signature that no known key made: other keys, if the provider has changed them. None where there are no others,
        or where a fetch was tried less than a minute ago: forged callbacks cause no more than that."""
        kept = self._kept.setdefault(url, Kept())
        known = kept.keys
        async with kept.lock:
            if kept.keys is known and _may_try(kept, now):
                await self._fetch(url, kept, now)
        return kept.keys if kept.keys is not known else None

    async def _fetch(self, url: str, kept: Kept, now: datetime) -> None:
        kept.tried_at = now
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                body, lifetime = await self._get(url)
            keys = read_jwks(body)
        except (HTTPError, TimeoutError, Unreadable) as error:
            log.warning("jwks.failed", url=url, reason=str(error) or type(error).__name__)
            return
        if _raw(keys) != _raw(kept.keys):
            kept.keys = keys
        kept.fetched_at, kept.good_until = now, now + lifetime
        log.info("jwks.fetched", url=url, keys=len(keys))

    async def _get(self, url: str) -> tuple[bytes, timedelta]:
        response = await self._client.send(self._client.build_request("GET", url), stream=True, follow_redirects=False)
        try:
            if response.status_code != 200:
                raise Unreadable(f"it was answered with HTTP {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise Unreadable(f"it is over {MAX_BYTES} bytes")
            return bytes(body), read_lifetime(response.headers.get("cache-control", ""))
        finally:
            await response.aclose()


def read_lifetime(cache_control: str) -> timedelta:
    """What `Cache-Control` says, within sane bounds."""
    said = MAX_AGE.search(cache_control)
    return USUAL if said is None else min(max(timedelta(seconds=int(said[1])), SHORTEST), LONGEST)


def _is_good(kept: Kept, now: datetime) -> bool:
    return kept.good_until is not None and now < kept.good_until


def _may_try(kept: Kept, now: datetime) -> bool:
    return kept.tried_at is None or abs(now - kept.tried_at) >= PAUSE  # a clock that was set back must not wait for long


def _raw(keys: PublicKeys) -> set[bytes]:
    return {key.public_bytes_raw() for key in keys}
