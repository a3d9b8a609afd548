"""API keys: what each may do, and how they are told apart without being kept."""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum

import msgspec


class Scope(StrEnum):
    """What a key lets its bearer do. None of them holds another."""

    SUBMIT = "submit"  # spend money
    READ = "read"
    OPERATE = "operate"  # cancel, poll, resolve, settle, replay, delete


EVERY_SCOPE = frozenset(Scope)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was made here. Only its hash is known: 256 random bits need no slow one."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    digest: str
    created_at: datetime
    revoked_at: datetime | None = None


def digest(key: str) -> str:
    """What a key is told by."""
    return hashlib.sha256(b"receiver.api_key:" + key.encode("utf-8", "replace")).hexdigest()
