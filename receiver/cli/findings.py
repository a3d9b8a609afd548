"""What the doctor finds."""

from __future__ import annotations

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor's: how it stands, what was looked at, what was seen, and how to mend it."""

    state: Literal["ok", "warn", "fail"]
    check: str
    detail: str
    mend: str = ""
