"""How many callbacks for a whole account one process keeps in a while: their submission, which has a bound of its own, is not known yet."""

from __future__ import annotations

from datetime import datetime, timedelta

from receiver.stores.terms import NoticeBound

WINDOW = timedelta(minutes=10)  # what was signed may be sent again for as long as its time is believed
BOUND = NoticeBound(callbacks=10_000, bytes=256 * 1024 * 1024)


class Inflow:
    """What came for each account since its window began."""

    def __init__(self, bound: NoticeBound = BOUND) -> None:
        self._bound = bound
        self._since: dict[str, tuple[datetime, int, int]] = {}  # account → when its window began, callbacks, bytes

    def take(self, account: str, size: int, now: datetime) -> timedelta | None:
        """None: keep it. Else how long until there is room."""
        began_at, callbacks, total = self._since.get(account, (now, 0, 0))
        if not timedelta(0) <= now - began_at < WINDOW:
            began_at, callbacks, total = now, 0, 0
        callbacks, total = callbacks + 1, total + size
        if callbacks > self._bound.callbacks or total > self._bound.bytes:
            return began_at + WINDOW - now
        self._since[account] = began_at, callbacks, total
        return None
