"""Events with their deliveries: how they are written, and what frees a delivery that waits for an earlier one.

Whether a delivery is held back is decided while its job's row is locked: by who writes a new one, and by who ends an
earlier one. So neither overlooks the other.
"""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from msgspec.structs import replace

from receiver.model import Delivery, Event, Stored
from receiver.stores.postgres_access import Tx
from receiver.stores.postgres_rows import DELIVERY_TABLE, pack, source
from receiver.stores.rows import decode_outputs, encode_event, json_text

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
_HOLD_BATCH = (
    f"UPDATE deliveries AS later SET stage = {HELD} WHERE later.id = ANY($1::text[]) AND later.stage IN ({NOT_DUE}, {READY}) AND {_IS_HELD}"
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


async def insert_events(tx: Tx, events: Sequence[tuple[Event, str | None]]) -> int:
    """Each with its job; how many are new. An event's position grows with the transaction's number, and within it."""
    if not events:
        return 0
    rows = [encode_event(event, job_id) for event, job_id in events]
    if tx.shift:
        rows = [(event_id, job_id, at + tx.shift, depth, envelope) for event_id, job_id, at, depth, envelope in rows]
    count = await tx.execute(_INSERT_EVENTS, pack(rows), tx.events)
    tx.events += len(events)
    return count


async def insert_deliveries(tx: Tx, deliveries: Sequence[Delivery]) -> None:
    """The caller holds the jobs' locks."""
    if not deliveries:
        return
    await tx.execute(_INSERT_DELIVERIES, DELIVERY_TABLE.pack(deliveries, tx.shift))
    seen = set()
    for delivery in deliveries:  # those of one statement do not see each other
        if delivery.job_id is not None and (delivery.job_id, delivery.handler) in seen:
            await tx.execute(_HOLD_BATCH, [one.id for one in deliveries])
            break
        seen.add((delivery.job_id, delivery.handler))


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
    if not await insert_events(tx, [(event, event.subject if counted else None)]):
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
