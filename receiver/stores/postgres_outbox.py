"""Events with their deliveries: how they are written, and what frees a delivery that waits for an earlier one.

Whether a delivery is held back is decided while its job's row is locked: by who writes a new one, and by who ends an
earlier one. So neither overlooks the other.
"""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from msgspec.structs import replace

from receiver.model import Delivery, DeliveryState, Event, Stored
from receiver.stores.postgres_access import Tx
from receiver.stores.postgres_rows import DELIVERY_TABLE, pack, source
from receiver.stores.rows import EventRow, decode_outputs, encode_event, json_text

HELD, NOT_DUE, READY = 0, 1, 2
FINAL_EVENTS = "('job.succeeded', 'job.failed', 'job.cancelled', 'job.expired')"

# Is there an earlier one that must go first? `later` is the one that asks.
_IS_HELD = (
    "later.is_ordered AND EXISTS (SELECT 1 FROM deliveries AS earlier"
    " WHERE earlier.job_id = later.job_id AND earlier.handler = later.handler AND earlier.sequence < later.sequence"
    " AND earlier.is_ordered AND earlier.state IN ('pending', 'running', 'retrying')"
    f" AND NOT (later.event_type IN {FINAL_EVENTS} AND earlier.event_type IN ('job.submitted', 'job.processing')))"
)
_STAGE_OF_NEW = (
    f"CASE WHEN later.state NOT IN ('pending', 'retrying') THEN NULL WHEN {_IS_HELD} THEN {HELD}"
    f" WHEN later.next_attempt_at > later.created_at THEN {NOT_DUE} ELSE {READY} END"
)
_STAGE_OF_FREED = f"CASE WHEN next_attempt_at IS NULL THEN {READY} ELSE {NOT_DUE} END"

_INSERT_DELIVERIES = (
    f"INSERT INTO deliveries ({DELIVERY_TABLE.columns}, stage) SELECT {DELIVERY_TABLE.columns_of('later')}, {_STAGE_OF_NEW}"
    f" FROM {DELIVERY_TABLE.source('later')} ORDER BY nth ON CONFLICT (id) DO NOTHING"
)
_INSERT_CLAIMED = (
    f"INSERT INTO deliveries ({DELIVERY_TABLE.columns}, claimed_by) SELECT {DELIVERY_TABLE.columns}, $2"
    f" FROM {DELIVERY_TABLE.source()} ORDER BY nth ON CONFLICT (id) DO NOTHING"
)
_HOLD = (
    "UPDATE deliveries AS later"
    f" SET stage = {HELD}, state = CASE state WHEN 'running' THEN 'pending' ELSE state END,"
    " attempts = CASE state WHEN 'running' THEN 0 ELSE attempts END, claimed_by = NULL"
    f" WHERE later.id = ANY($1::text[]) AND (later.stage IN ({NOT_DUE}, {READY}) OR later.state = 'running') AND {_IS_HELD}"
    " RETURNING id"
)
_FREE = (
    f"UPDATE deliveries AS later SET stage = {_STAGE_OF_FREED} FROM unnest($1::text[], $2::text[]) AS ended (job_id, handler)"
    f" WHERE later.job_id = ended.job_id AND later.handler = ended.handler AND later.stage = {HELD} AND NOT ({_IS_HELD})"
)
_INSERT_EVENTS = (
    "INSERT INTO events (position, id, job_id, at, depth, envelope)"
    " SELECT (SELECT base FROM positions) + (pg_current_xact_id()::text::bigint << 20) + $2 + nth, id, job_id, at, depth, envelope"
    f" FROM {source('id text, job_id text, at bigint, depth bigint, envelope text')} ORDER BY nth ON CONFLICT (id) DO NOTHING"
)


async def lock_jobs(tx: Tx, job_ids: Iterable[str | None]) -> None:
    """In the order of their ids, as everyone does."""
    ids = sorted({job_id for job_id in job_ids if job_id is not None})
    if ids:
        await tx.look("SELECT 1 FROM jobs WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE", ids)


async def insert_events(tx: Tx, rows: Sequence[EventRow]) -> int:
    """How many are new. An event's position grows with the transaction's number, and within it."""
    if not rows:
        return 0
    if tx.shift:
        rows = [(event_id, job_id, at + tx.shift, depth, envelope) for event_id, job_id, at, depth, envelope in rows]
    count = await tx.execute(_INSERT_EVENTS, pack(rows), tx.events)
    tx.events += len(rows)
    return count


async def insert_deliveries(tx: Tx, deliveries: Sequence[Delivery]) -> set[str]:
    """Those that come as running are claimed by this node from the start; gives their ids, without what is held back. The caller holds
    the jobs' locks."""
    pending = [delivery for delivery in deliveries if delivery.state is not DeliveryState.RUNNING]
    claimed = [delivery for delivery in deliveries if delivery.state is DeliveryState.RUNNING]
    if pending:
        await tx.execute(_INSERT_DELIVERIES, DELIVERY_TABLE.pack(pending, tx.shift))
    if claimed:
        await tx.execute(_INSERT_CLAIMED, DELIVERY_TABLE.pack(claimed, tx.shift), tx.node)
    ids = {delivery.id for delivery in claimed}
    if claimed or _has_followers(pending):  # those of one statement do not see each other
        return ids.difference(row_id for (row_id,) in await tx.look(_HOLD, [one.id for one in deliveries]))
    return ids


def _has_followers(deliveries: Sequence[Delivery]) -> bool:
    pairs = [(delivery.job_id, delivery.handler) for delivery in deliveries if delivery.job_id is not None]
    return len(set(pairs)) < len(pairs)


async def free_followers(tx: Tx, ended: Iterable[tuple[str | None, str]]) -> None:
    """What waited for deliveries of this job and handler, if it waits for no other. The caller holds the jobs' locks."""
    pairs = sorted({(job_id, handler) for job_id, handler in ended if job_id is not None})
    if pairs:
        await tx.execute(_FREE, [job_id for job_id, _ in pairs], [handler for _, handler in pairs])


async def write_emitted(tx: Tx, event: Event, deliveries: Sequence[Delivery]) -> bool:
    """An event that no settlement makes. The job's row counts its events, so `sequence` comes from there."""
    await lock_jobs(tx, [event.subject])
    if await tx.look("SELECT 1 FROM events WHERE id = $1", event.id):
        return False
    counted = await tx.change("UPDATE jobs SET sequence = sequence + 1 WHERE id = $1 RETURNING sequence", event.subject)
    if counted:
        sequence = counted[0][0]
        event = replace(event, sequence=str(sequence))
        deliveries = [replace(delivery, sequence=sequence) for delivery in deliveries]
    if not await insert_events(tx, [encode_event(event, event.subject if counted else None)]):
        return False  # another node was quicker
    await insert_deliveries(tx, deliveries)
    return True


async def write_stored(tx: Tx, job_id: str, stored: Mapping[int, Stored], at: datetime) -> bool:
    rows = await tx.look("SELECT outputs FROM jobs WHERE id = $1 FOR UPDATE", job_id)
    if not rows:
        return False
    outputs = decode_outputs(rows[0][0])
    if not any(output.index in stored for output in outputs):
        return False
    outputs = tuple(replace(output, stored=stored.get(output.index, output.stored)) for output in outputs)
    await tx.execute(
        "UPDATE jobs SET outputs = $1, updated_at = greatest(updated_at, $2) WHERE id = $3", json_text(outputs), tx.to_db(at), job_id
    )
    return True
