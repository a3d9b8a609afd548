"""The outbox: what is written with an event, who may claim it when, and what a run leaves behind.

A delivery that nobody runs stands at a stage: held back by an earlier one of its job and handler, not due yet, or ready.
Claims look at ready ones only, so neither a million that wait for their time nor a million behind a broken handler cost a claim anything.
"""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from receiver.model import Delivery, DeliveryState, Event, Stored
from receiver.stores.listings import delivery_conditions
from receiver.stores.rows import AMONG, DELIVERIES, decode_event, decode_outputs, encode_event, json_text
from receiver.stores.sqlite_access import Access, Tx, Work, forgettable, one_by_one
from receiver.stores.sqlite_packing import PACKED_DELIVERIES
from receiver.stores.sqlite_statements import Insert
from receiver.stores.terms import DeliveryFilter
from receiver.times import to_micros

HELD, NOT_DUE, READY = 0, 1, 2
PROMOTED_TOGETHER = 5_000
FINAL_EVENTS = "('job.succeeded', 'job.failed', 'job.cancelled', 'job.expired')"

INSERT_EVENTS = Insert("events", "id, job_id, at, depth, envelope", "ON CONFLICT (id) DO NOTHING")

# Is there an earlier one that must go first? `later` is the one that asks.
_IS_HELD = (
    "later.is_ordered = 1 AND EXISTS (SELECT 1 FROM deliveries AS earlier"
    " WHERE earlier.job_id = later.job_id AND earlier.handler = later.handler AND earlier.sequence < later.sequence"
    " AND earlier.is_ordered = 1 AND earlier.state IN ('pending', 'running', 'retrying')"
    f" AND NOT (later.event_type IN {FINAL_EVENTS} AND earlier.event_type IN ('job.submitted', 'job.processing')))"
)
_STAGE_OF_NEW = (
    f"CASE WHEN later.state NOT IN ('pending', 'retrying') THEN NULL WHEN {_IS_HELD} THEN {HELD}"
    f" WHEN later.next_attempt_at > later.created_at THEN {NOT_DUE} ELSE {READY} END"
)
_STAGE_OF_FREED = f"CASE WHEN next_attempt_at IS NULL THEN {READY} ELSE {NOT_DUE} END"

# Values by number: as a row of a subquery, which the condition could name, the insert takes twice the time.
_NUMBERS = {field: f"?{number}" for number, field in enumerate(DELIVERIES.fields, 1)}
INSERT_DELIVERY = (
    f"INSERT INTO deliveries ({DELIVERIES.columns}, stage) VALUES ({', '.join(_NUMBERS.values())},"
    f" {re.sub('later[.]([a-z_]+)', lambda found: _NUMBERS[found[1]], _STAGE_OF_NEW)}) ON CONFLICT (id) DO NOTHING"
)
_INSERT_CLAIMED = Insert("deliveries", f"{DELIVERIES.columns}, claimed_by", "ON CONFLICT (id) DO NOTHING")
_HOLD_CLAIMED = (
    f"UPDATE deliveries AS later SET state = 'pending', attempts = 0, stage = {HELD}, claimed_by = NULL"
    f" WHERE later.id {AMONG} AND {_IS_HELD} RETURNING id"
)
_FREE_FOLLOWERS = (
    f"UPDATE deliveries SET stage = {_STAGE_OF_FREED} WHERE rowid IN (SELECT later.rowid FROM json_each(?) AS ended"
    " CROSS JOIN deliveries AS later"
    " ON later.job_id = json_extract(ended.value, '$[0]') AND later.handler = json_extract(ended.value, '$[1]')"
    f" WHERE later.stage = {HELD} AND NOT ({_IS_HELD}))"
)
_PROMOTE = (
    f"UPDATE deliveries SET stage = {READY} WHERE rowid IN ("
    f"SELECT rowid FROM deliveries WHERE stage = {NOT_DUE} AND next_attempt_at <= ? ORDER BY next_attempt_at LIMIT ?)"
)
_CLAIMED = {"state": "'running'", "attempts": "delivery.attempts + 1", "updated_at": "?"}  # as _CLAIM writes it
_FIND_READY = (
    f"SELECT {PACKED_DELIVERIES.columns('delivery', _CLAIMED)},"
    " events.envelope, events.depth, delivery.rowid FROM deliveries AS delivery CROSS JOIN events ON events.id = delivery.event_id"
    f" WHERE delivery.handler = ? AND delivery.stage = {READY} AND ifnull(delivery.next_attempt_at, 0) <= ?"
    " ORDER BY delivery.urgent_at IS NULL, delivery.urgent_at, delivery.created_at LIMIT ?"
)
_CLAIM = (
    f"UPDATE deliveries SET state = 'running', attempts = attempts + 1, updated_at = ?, stage = NULL, claimed_by = ? WHERE rowid {AMONG}"
)
_ENDS = ("id", "state", "attempts", "next_attempt_at", "last_error", "updated_at", "urgent_at", "stage")
_FINISH = (
    "UPDATE deliveries SET "
    + ", ".join(f"{field} = json_extract(ended.value, '$[{place}]')" for place, field in enumerate(_ENDS) if place)
    + ", claimed_by = NULL FROM json_each(?1) AS ended WHERE deliveries.id = json_extract(ended.value, '$[0]')"
    " AND deliveries.state = 'running' AND +deliveries.claimed_by = ?2 RETURNING deliveries.id"
)


def insert_deliveries(db: sqlite3.Connection, deliveries: Iterable[Delivery]) -> None:
    db.executemany(INSERT_DELIVERY, map(DELIVERIES.encode, deliveries))


def insert_and_claim(tx: Tx, deliveries: Sequence[Delivery]) -> set[str]:
    """Those that come as running are claimed by this node from the start; gives their ids, without what is held back."""
    claimed = [delivery for delivery in deliveries if delivery.state is DeliveryState.RUNNING]
    _INSERT_CLAIMED.write(tx.db, [(*DELIVERIES.encode(delivery), tx.node) for delivery in claimed])
    insert_deliveries(
        tx.db, [delivery for delivery in deliveries if delivery.state is not DeliveryState.RUNNING]
    )  # they see the claimed ones
    if not claimed:
        return set()
    ids = [delivery.id for delivery in claimed]
    return set(ids).difference(row_id for (row_id,) in tx.db.execute(_HOLD_CLAIMED, (json_text(ids),)))


@forgettable
@one_by_one
def _claim(tx: Tx, asked: tuple[datetime, Mapping[str, int]]) -> list[tuple[Delivery, Event]]:
    now, room = to_micros(asked[0]), asked[1]
    tx.db.execute(_PROMOTE, (now, PROMOTED_TOGETHER))
    found = [row for handler, most in room.items() for row in tx.db.execute(_FIND_READY, (now, handler, now, max(most, 0)))]
    if found:
        tx.db.execute(_CLAIM, (now, tx.node, json_text([row[-1] for row in found])))
    return [(PACKED_DELIVERIES.read(row), decode_event(row[-3], row[-2])) for row in found]


def _finish(tx: Tx, asked: Sequence[Sequence[Delivery]]) -> list[list[bool]]:
    """All that ended together in one statement; only the first end of a run counts."""
    ends = {delivery.id: delivery for deliveries in reversed(asked) for delivery in reversed(deliveries)}
    written = {row_id for (row_id,) in tx.db.execute(_FINISH, (json_text([_end_row(end) for end in ends.values()]), tx.node))}
    over = [ends[row_id] for row_id in written if ends[row_id].state is not DeliveryState.RETRYING]
    free_followers(tx.db, [(end.job_id, end.handler) for end in over])
    return [[delivery.id in written and ends.pop(delivery.id, None) is delivery for delivery in deliveries] for deliveries in asked]


def _end_row(delivery: Delivery) -> tuple[Any, ...]:
    """The values of _ENDS."""
    is_open = delivery.state in (DeliveryState.RETRYING, DeliveryState.PENDING)
    return (
        delivery.id,
        delivery.state,
        delivery.attempts,
        delivery.next_attempt_at and to_micros(delivery.next_attempt_at),
        delivery.last_error and delivery.last_error.replace("\0", "\ufffd"),  # SQLite ends a text of JSON there
        to_micros(delivery.updated_at),
        delivery.urgent_at and to_micros(delivery.urgent_at),
        (READY if delivery.next_attempt_at is None else NOT_DUE) if is_open else None,
    )


def free_followers(db: sqlite3.Connection, ended: Iterable[tuple[str | None, str]]) -> None:
    """What waited for deliveries of this job and handler, if it waits for no other."""
    if pairs := sorted({(job_id, handler) for job_id, handler in ended if job_id is not None}):
        db.execute(_FREE_FOLLOWERS, (json_text(pairs),))


def write_emitted(db: sqlite3.Connection, event: Event, deliveries: Sequence[Delivery]) -> bool:
    """An event that no settlement makes. The job's row counts its events, so `sequence` comes from there."""
    if db.execute("SELECT 1 FROM events WHERE id = ?", (event.id,)).fetchone() is not None:
        return False
    counted = db.execute("UPDATE jobs SET sequence = sequence + 1 WHERE id = ? RETURNING sequence", (event.subject,)).fetchall()
    if counted:
        sequence = counted[0][0]
        event = replace(event, sequence=str(sequence))
        deliveries = [replace(delivery, sequence=sequence) for delivery in deliveries]
    INSERT_EVENTS.write(db, [encode_event(event, event.subject if counted else None)])
    insert_deliveries(db, deliveries)
    return True


def write_stored(db: sqlite3.Connection, job_id: str, stored: Mapping[int, Stored], at: datetime) -> bool:
    row = db.execute("SELECT outputs FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        return False
    outputs = decode_outputs(row[0])
    if not any(output.index in stored for output in outputs):
        return False
    outputs = tuple(replace(output, stored=stored.get(output.index, output.stored)) for output in outputs)
    db.execute("UPDATE jobs SET outputs = ?, updated_at = max(updated_at, ?) WHERE id = ?", (json_text(outputs), to_micros(at), job_id))
    return True


@one_by_one
def _emit(tx: Tx, asked: tuple[Event, Sequence[Delivery]]) -> bool:
    return write_emitted(tx.db, *asked)


@one_by_one
def _record_stored(tx: Tx, asked: tuple[str, int, Stored, datetime]) -> bool:
    job_id, index, stored, at = asked
    return write_stored(tx.db, job_id, {index: stored}, at)


@one_by_one
def release(tx: Tx, delivery_ids: Sequence[str]) -> None:
    tx.db.execute(
        "UPDATE deliveries SET state = CASE WHEN attempts > 1 THEN 'retrying' ELSE 'pending' END, attempts = attempts - 1,"
        f" stage = {READY}, claimed_by = NULL WHERE state = 'running' AND claimed_by = ? AND id {AMONG}",
        (tx.node, json_text(delivery_ids)),
    )


def take_back(claimed: Sequence[tuple[Delivery, Event]]) -> tuple[Work[Any, Any], Any]:
    """What undoes a claim that nobody knows of."""
    return release, [delivery.id for delivery, _ in claimed]


@one_by_one
def _replay(tx: Tx, asked: tuple[DeliveryFilter, datetime, str | None]) -> int:
    wanted, now, delivery_id = asked
    terms, values = delivery_conditions(wanted)
    if delivery_id is not None:
        terms.append("id = ?")
        values.append(delivery_id)
    terms.append("state IN ('done', 'dead', 'retrying')")
    replayed = tx.db.execute(
        f"UPDATE deliveries SET state = 'pending', attempts = 0, next_attempt_at = ?, updated_at = ?, is_ordered = 0, stage = {READY}"
        f" WHERE {' AND '.join(terms)} RETURNING job_id, handler",
        (to_micros(now), to_micros(now), *values),
    ).fetchall()
    free_followers(tx.db, replayed)
    return len(replayed)


class DeliveriesPart(Access):
    async def claim_deliveries(self, now: datetime, room: Mapping[str, int]) -> list[tuple[Delivery, Event]]:
        return await self.write(_claim, (now, dict(room)), undo=take_back)

    async def finish_deliveries(self, deliveries: Sequence[Delivery]) -> list[bool]:
        return await self.write(_finish, deliveries)

    async def emit(self, event: Event, deliveries: Sequence[Delivery]) -> bool:
        return await self.write(_emit, (event, deliveries))

    async def record_stored(self, job_id: str, index: int, stored: Any, at: datetime) -> bool:
        return await self.write(_record_stored, (job_id, index, stored, at))

    async def release_deliveries(self, delivery_ids: Sequence[str]) -> None:
        await self.write(release, tuple(delivery_ids))

    async def replay(self, filter: DeliveryFilter, now: datetime, delivery_id: str | None = None) -> int:
        return await self.write(_replay, (filter, now, delivery_id))
