"""Ids: UUIDv7 (RFC 9562) with a prefix; they sort roughly by time, and nothing relies on it."""

from __future__ import annotations

import random
import uuid
from datetime import datetime

from receiver.times import to_micros

RANDOM = 0x0FFF_3FFF_FFFF_FFFF_FFFF  # of the 80 bits that stand below the time
VERSION_AND_VARIANT = 0x7000_8000_0000_0000_0000


def uuid7(now: datetime) -> uuid.UUID:
    return uuid.UUID(int=_number(now))


def make_id(prefix: str, now: datetime) -> str:
    """`make_id("job", now)` → `job_019e…`, 32 hexadecimal digits after the prefix."""
    return f"{prefix}_{_number(now).to_bytes(16).hex()}"


def _number(now: datetime) -> int:
    bits = random.getrandbits(80)  # seeded by the system in every process; an id guards nothing, and a system call each is slow
    return to_micros(now) // 1000 << 80 | bits & RANDOM | VERSION_AND_VARIANT


def derive_id(prefix: str, *parts: str) -> str:
    """The same parts give the same id, so that work done again makes nothing new."""
    return f"{prefix}_{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(parts)).hex}"
