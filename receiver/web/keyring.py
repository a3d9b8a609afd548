"""Who may ask for what: API keys, those of the configuration and those that were made here."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from starlette.types import Scope as Connection

from receiver.keys import EVERY_SCOPE, ApiKey, Scope, digest
from receiver.stores.base import Store

FRESH = 1.0  # seconds for which the keys of the store count as known


class Caller(NamedTuple):
    """Whom a key stands for. `key_id` names it and tells nothing about it."""

    key_id: str
    scopes: frozenset[Scope]


NOBODY = Caller("", frozenset())
ANYBODY = Caller("", EVERY_SCOPE)
"""Whoever reaches a server without keys: only this machine does."""


class Keyring:
    """The keys that count now. A key that was made or revoked is known here a second later."""

    def __init__(self, store: Store, api_keys: Sequence[str], seconds: Callable[[], float] = monotonic) -> None:
        self._store, self._seconds = store, seconds
        self._configured = [digest(key) for key in api_keys]
        self._stored: tuple[ApiKey, ...] = ()
        self._read_at = seconds() - FRESH
        self._lock = asyncio.Lock()

    @property
    def is_empty(self) -> bool:
        """No key in the configuration: then keys are asked of nobody, and only this machine is served."""
        return not self._configured

    async def find(self, presented: str) -> Caller | None:
        """Whose key this is. All are compared, each in constant time. Unavailable when the store is needed and away."""
        given = digest(presented)
        matches = [hmac.compare_digest(given, known) for known in self._configured]
        if any(matches):
            return Caller(given[:32], EVERY_SCOPE)
        found = [key for key in await self._read() if hmac.compare_digest(given, key.digest)]
        return Caller(found[0].id, frozenset(found[0].scopes)) if found else None

    async def find_by_id(self, key_id: str) -> Caller | None:
        """The caller that had this `key_id`, while its key still counts."""
        if any(known[:32] == key_id for known in self._configured):
            return Caller(key_id, EVERY_SCOPE)
        return next((Caller(key.id, frozenset(key.scopes)) for key in await self._read() if key.id == key_id), None)

    async def _read(self) -> tuple[ApiKey, ...]:
        async with self._lock:
            if self._seconds() - self._read_at >= FRESH:
                self._stored = tuple(key for key in await self._store.read_keys() if key.revoked_at is None)
                self._read_at = self._seconds()
            return self._stored


def admit(connection: Connection, caller: Caller, *, is_session: bool = False) -> None:
    """Note on a request who asks, and whether by a cookie; `caller_of` reads it."""
    connection["state"] = {**connection.get("state", {}), "caller": caller, "api_key_id": caller.key_id, "is_session": is_session}


def caller_of(connection: Connection) -> Caller:
    found = connection.get("state", {}).get("caller", NOBODY)
    return found if isinstance(found, Caller) else NOBODY
