"""What is claimed: of the notices that wait, and of the deliveries that a settlement makes. Pure, for both stores."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile

from receiver.model import Delivery, Event
from receiver.stores.rows import EventRow, decode_event
from receiver.stores.terms import Settlement

Claimed = tuple[Delivery, Event]
Settled = tuple[list[bool], list[Claimed]]
"""Which settlements of a call were written, and what was claimed with them."""


def choose_notices(found: Sequence[tuple[int, int]], max_tries: int) -> tuple[list[int], list[int]]:
    """(worn out, to be claimed) of (arrival, tries), oldest first. One that was claimed before may be what killed its settler: it is
    claimed alone, so that it takes nobody along."""
    worn_out = [arrival for arrival, tries in found if tries >= max_tries]
    left = [(arrival, tries) for arrival, tries in found if tries < max_tries]
    if left and left[0][1]:
        return worn_out, [left[0][0]]
    return worn_out, [arrival for arrival, _ in takewhile(lambda notice: not notice[1], left)]


def with_events(deliveries: Iterable[Delivery], claimed: Collection[str], events: Iterable[EventRow]) -> dict[str, Claimed]:
    """By id, those of the deliveries that were claimed. Each handler gets an event of its own, made of what was written."""
    rows = {event_id: (envelope, depth) for event_id, _, _, depth, envelope in events}
    return {one.id: (one, decode_event(*rows[one.event_id])) for one in deliveries if one.id in claimed}


def by_call(calls: Sequence[Sequence[Settlement]], written: Sequence[list[bool]], claimed: Mapping[str, Claimed]) -> list[Settled]:
    """What each call is answered."""
    return [
        (answer, [claimed[one.id] for settlement in settlements for one in settlement.deliveries if one.id in claimed] if claimed else [])
        for settlements, answer in zip(calls, written, strict=True)
    ]
