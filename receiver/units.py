"""Durations, sizes and rates as people write them: `"90s"`, `"1MiB"`, `"60/m"`."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from math import isfinite

import msgspec

DURATION_HELP = 'must be a duration such as "90s", "5m", "1h", "30d" or a number of seconds'
SIZE_HELP = 'must be a size such as "512KiB", "1MiB", "5GiB" or a number of bytes'
RATE_HELP = 'must be a rate such as "60/m" ("/s", "/m" or "/h")'

LONGEST = timedelta(days=36_500)  # so that now + duration stays a date
LARGEST = 2**63 - 1

_MICROS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?) ?([A-Za-z]*)")
_RATE = re.compile(r"([0-9]{1,9}) ?/ ?([smh])")


class RateLimit(msgspec.Struct, frozen=True):
    """At most `count` calls in `seconds`."""

    count: int
    seconds: float


def parse_duration(value: str | int | float) -> timedelta:
    """Exact to the microsecond; a number, also one written as text, is in seconds."""
    micros = round(_quantity(value, _MICROS, "s", DURATION_HELP))
    if micros > LONGEST // timedelta(microseconds=1):
        raise ValueError(f"must be at most {format_duration(LONGEST)}")
    return timedelta(microseconds=micros)


def format_duration(duration: timedelta) -> str:
    """The shortest exact way to write it: `parse_duration` gives the same again."""
    micros = duration // timedelta(microseconds=1)
    for unit in ("d", "h", "m"):
        if micros and micros % _MICROS[unit] == 0:
            return f"{micros // _MICROS[unit]}{unit}"
    seconds, rest = divmod(micros, 1_000_000)
    return f"{seconds}.{rest:06}".rstrip("0").rstrip(".") + "s"


def parse_size(value: str | int) -> int:
    """Whole bytes; `KiB` counts by 1024, `kB` by 1000."""
    if isinstance(value, float):
        raise ValueError(SIZE_HELP)
    size = int(_quantity(value, _BYTES, "B", SIZE_HELP))
    if size > LARGEST:
        raise ValueError(f"must be at most {LARGEST} bytes")
    return size


def format_size(size: int) -> str:
    """The shortest exact way to write it: `parse_size` gives the same again."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def parse_rate(value: str) -> RateLimit:
    """`"60/m"` → 60 calls in 60 seconds."""
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) < 1:
        raise ValueError(RATE_HELP)
    return RateLimit(int(match[1]), _SECONDS[match[2]])


def _quantity(value: object, units: dict[str, int], plain: str, help_text: str) -> Decimal:
    """The value in the smallest unit; Decimal, because 0.1 s is not a float."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(help_text)
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match is None or (match[2] or plain) not in units:
            raise ValueError(help_text)
        return Decimal(match[1]) * units[match[2] or plain]
    if not isfinite(value) or value < 0:
        raise ValueError(help_text)
    return Decimal(str(value)) * units[plain]
