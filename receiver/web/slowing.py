"""Slows those who try tokens or keys: answers to bad ones wait, and never more of them than a few."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from starlette.types import Scope

from receiver.addresses import Network
from receiver.clock import Clock
from receiver.errors import TooMany
from receiver.web.peers import find_peer

WINDOW = timedelta(minutes=1)
FREE = 20  # bad ones within a window that are answered at once: a secret that was just changed looks like this
DELAY = timedelta(seconds=1)
MOST_WAITING = 200
MOST_REMEMBERED = 10_000  # addresses; those that were quiet the longest are forgotten first


class Slowing:
    """What one application remembers of bad ones. Good ones never come here. `count` is called for each that was held."""

    def __init__(self, clock: Clock, trusted: Sequence[Network], count: Callable[[], None] = lambda: None) -> None:
        self._clock, self._trusted, self._note = clock, trusted, count
        self._seen: OrderedDict[str, tuple[datetime, int]] = OrderedDict()  # group → when its window began, bad ones since then
        self._waiting = 0

    async def hold(self, scope: Scope) -> bool:
        """Count a bad one, and return after a while where there were many; whether it was held. TooMany while enough others wait."""
        peer = find_peer(scope, self._trusted)
        # Behind an unknown proxy everybody has the same address, and who bears a forged header could choose his.
        if not peer.is_certain or self._count(peer.group) <= FREE:
            return False
        if self._waiting >= MOST_WAITING:
            raise TooMany("Too many wrong tokens or keys came from this address.", retry_after=int(WINDOW.total_seconds()))
        self._waiting += 1
        self._note()
        try:
            await self._clock.sleep(DELAY)
        finally:
            self._waiting -= 1
        return True

    def _count(self, group: str) -> int:
        now = self._clock.now()
        began_at, count = self._seen.pop(group, (now, 0))
        if not timedelta(0) <= now - began_at < WINDOW:
            began_at, count = now, 0
        self._seen[group] = began_at, count + 1
        if len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)
        return count + 1
