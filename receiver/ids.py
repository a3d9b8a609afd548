"""Ids: UUIDv7 (RFC 9562) with a prefix; they sort roughly by time, and nothing relies on it."""

from __future__ import annotations

import random
import uuid
from datetime import datetime

from receiver.model import to_micros


def uuid7(now: datetime) -> uuid.UUID:
    return uuid.UUID(int=_number(now))


def make_id(prefix: str, now: datetime) -> str:
    """`make_id("job", now)` → `job_019e…`, 32 hexadecimal digits after the prefix."""
    return f"{prefix}_{_number(now):032x}"


def _number(now: datetime) -> int:
    millis = to_micros(now) // 1000
    bits = random.getrandbits(74)  # seeded by the system in every process; an id guards nothing, and a system call each is slow
    high = (millis & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (bits >> 62) << 64
    return high | 0b10 << 62 | bits & 0x3FFF_FFFF_FFFF_FFFF


def derive_id(prefix: str, *parts: str) -> str:
    """The same parts give the same id, so that work done again makes nothing new."""
    return f"{prefix}_{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(parts)).hex}"
