"""Says no while there is still room: before the disk is full, or the inbox longer than anybody can settle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from urllib.parse import unquote, urlsplit

import structlog

from receiver.errors import Overloaded, Unavailable
from receiver.stores.base import Store

log = structlog.get_logger("receiver.web")

LOOK_EVERY = 1.0  # seconds
MOST_NOTICES = 500_000  # kept and not settled: what a rush of more than a minute leaves behind one process
LEAST_BYTES = 256 * 1024 * 1024  # free, so that what was acknowledged can still be settled and delivered
LEAST_PART = 20  # or one part in so many, of a small disk
RETRY_AFTER = 30  # seconds
DISK, INBOX = "disk", "inbox"
WORDS = {
    DISK: "The disk of the database is almost full. What is there is still being worked on; free some space, and this goes on by itself.",
    INBOX: "Too many notices wait to be settled; send it again later.",
}


class Headroom:
    """What one application has left. Looked at once a second at most, by whoever asks first."""

    def __init__(self, store: Store, url: str, *, seconds: Callable[[], float] = monotonic) -> None:
        self._store, self._seconds = store, seconds
        self._folder = Path(unquote(urlsplit(url).path)).parent if url.startswith("sqlite:") else None
        self._look_at = seconds()
        self._notices = 0
        self._short: frozenset[str] = frozenset()

    async def look(self) -> frozenset[str]:
        """What is short at present. A look that fails finds nothing: the write itself will say what is wrong."""
        now = self._seconds()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            try:
                self._notices = await self._store.inbox_depth()
            except Unavailable:
                pass
            self._judge({DISK: self._is_disk_short(), INBOX: self._notices >= MOST_NOTICES})
        return self._short

    async def take_notice(self) -> None:
        """Before a callback's body is read. Overloaded where there is no room for it."""
        short = await self.look()
        self._notices += 1  # until the next look counts them
        if short or self._notices > MOST_NOTICES:
            raise Overloaded(WORDS[DISK if DISK in short else INBOX], retry_after=RETRY_AFTER)

    async def take_submission(self) -> None:
        """Before a submit is kept: what has no room to be followed is not paid for."""
        if DISK in await self.look():
            raise Overloaded(WORDS[DISK], retry_after=RETRY_AFTER)

    def _judge(self, found: dict[str, bool]) -> None:
        short = frozenset(what for what, is_short in found.items() if is_short)
        for what in sorted(short - self._short):
            log.warning("headroom.short", of=what, notices=self._notices, hint=WORDS[what])
        for what in sorted(self._short - short):
            log.info("headroom.back", of=what)
        self._short = short

    def _is_disk_short(self) -> bool:
        if self._folder is None:
            return False
        try:
            disk = shutil.disk_usage(self._folder)
        except OSError:
            return False
        return disk.free < min(LEAST_BYTES, disk.total // LEAST_PART)
