"""Events about ourselves (`receiver.*`): what a person should hear of before a user does. They go the way of every event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from receiver.config import HandlerConfig
from receiver.ids import derive_id, make_id
from receiver.model import Event
from receiver.routing import ABOUT_OURSELVES, make_deliveries
from receiver.stores.base import Store
from receiver.times import to_rfc3339

SOURCE = "/receiver"


class Herald:
    """Tells handlers whose `events` ask for it. The default `events` never do."""

    def __init__(self, store: Store, handlers: Iterable[HandlerConfig]) -> None:
        self._store, self._handlers = store, tuple(handlers)

    async def tell(self, what: str, data: Mapping[str, Any], now: datetime) -> None:
        event = own_event(what, data, now)
        await self._store.emit(event, make_deliveries(event, self._handlers, now))


def own_event(what: str, data: Mapping[str, Any], now: datetime, *because_of: str) -> Event:
    """`because_of` names what it follows from: told again, it is the same event."""
    name = ABOUT_OURSELVES + what
    return Event(
        id=derive_id("evt", name, *because_of) if because_of else make_id("evt", now),
        type=name,
        source=SOURCE,
        subject=None,
        time=to_rfc3339(now) or "",
        sequence="0",
        data=dict(data),
    )


def is_own(type: str) -> bool:
    return type.startswith(ABOUT_OURSELVES)
