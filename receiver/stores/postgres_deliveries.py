"""The outbox: who may claim a delivery when, and what a run leaves behind.

A delivery that nobody runs stands at a stage: held back by an earlier one of its job and handler, not due yet, or ready.
Claims look at ready ones only, so neither a million that wait for their time nor a million behind a broken handler cost a claim anything.
"""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from receiver.model import Delivery, DeliveryState, Event, Stored
from receiver.stores.listings import delivery_conditions
from receiver.stores.postgres_access import Access, Tx, Work, each, work
from receiver.stores.postgres_outbox import NOT_DUE, READY, free_followers, lock_jobs, write_emitted, write_stored
from receiver.stores.postgres_rows import DELIVERY_TABLE, numbered
from receiver.stores.rows import decode_event
from receiver.stores.terms import DeliveryFilter

PROMOTED_TOGETHER = 5_000
REPLAYED_TOGETHER = 1_000

_CLAIM = (
    "WITH due AS MATERIALIZED (SELECT found.id FROM unnest($1::text[], $2::bigint[]) AS wanted (handler, most) CROSS JOIN LATERAL ("
    f"SELECT id FROM deliveries WHERE handler = wanted.handler AND stage = {READY} AND coalesce(next_attempt_at, 0) <= $3"
    " ORDER BY urgent_at, created_at, id LIMIT wanted.most FOR UPDATE SKIP LOCKED) AS found),"
    " delivery AS (UPDATE deliveries SET state = 'running', attempts = attempts + 1, updated_at = $3, stage = NULL, claimed_by = $4"
    f" FROM due WHERE deliveries.id = due.id RETURNING {DELIVERY_TABLE.columns_of('deliveries')})"
    f" SELECT {DELIVERY_TABLE.columns_of('delivery')}, events.envelope, events.depth"
    " FROM delivery JOIN events ON events.id = delivery.event_id"
    " ORDER BY array_position($1::text[], delivery.handler::text), urgent_at, created_at, delivery.id"
)
_FINISH = (
    "UPDATE deliveries SET state = new.state, attempts = new.attempts, next_attempt_at = new.next_attempt_at,"
    " last_error = new.last_error, updated_at = new.updated_at, urgent_at = new.urgent_at, claimed_by = NULL,"
    " stage = CASE WHEN new.state NOT IN ('pending', 'retrying') THEN NULL"
    f" WHEN new.next_attempt_at IS NULL THEN {READY} ELSE {NOT_DUE} END"
    # IS TRUE: by its id each is found, not by what is claimed: that index is full of what was claimed and finished before
    f" FROM {DELIVERY_TABLE.source()} WHERE deliveries.id = new.id AND (deliveries.state = 'running') IS TRUE"
    " AND (deliveries.claimed_by = $2) IS TRUE RETURNING deliveries.id"
)


@each("claiming")
async def _claim(tx: Tx, asked: tuple[datetime, Mapping[str, int]]) -> list[tuple[Delivery, Event]]:
    now, room = tx.to_db(asked[0]), {handler: most for handler, most in asked[1].items() if most > 0}
    await tx.execute(
        f"UPDATE deliveries SET stage = {READY} WHERE id IN (SELECT id FROM deliveries"
        f" WHERE stage = {NOT_DUE} AND next_attempt_at <= $1 ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
        now,
        PROMOTED_TOGETHER,
    )
    rows = await tx.change(_CLAIM, list(room), list(room.values()), now, tx.node)
    return [(DELIVERY_TABLE.decode(row, tx.shift), decode_event(row[-2], row[-1])) for row in rows]


@work("delivering")
async def _finish(tx: Tx, asked: Sequence[Sequence[Delivery]]) -> list[list[bool]]:
    """Only the first end of a run counts."""
    ends = {delivery.id: delivery for deliveries in reversed(asked) for delivery in reversed(deliveries)}
    await lock_jobs(tx, {end.job_id for end in ends.values() if end.state is not DeliveryState.RETRYING})
    rows = DELIVERY_TABLE.pack(list(ends.values()), tx.shift)
    written = {row_id for (row_id,) in await tx.change(_FINISH, rows, tx.node)}
    over = [ends[row_id] for row_id in written if ends[row_id].state is not DeliveryState.RETRYING]
    await free_followers(tx, [(end.job_id, end.handler) for end in over])
    return [[delivery.id in written and ends.pop(delivery.id, None) is delivery for delivery in deliveries] for deliveries in asked]


@each("delivering")
async def _emit(tx: Tx, asked: tuple[Event, Sequence[Delivery]]) -> bool:
    return await write_emitted(tx, *asked)


@each("delivering")
async def _record_stored(tx: Tx, asked: tuple[str, int, Stored, datetime]) -> bool:
    job_id, index, stored, at = asked
    return await write_stored(tx, job_id, {index: stored}, at)


@each("claiming")
async def release(tx: Tx, delivery_ids: Sequence[str]) -> None:
    await tx.execute(
        "UPDATE deliveries SET state = CASE WHEN attempts > 1 THEN 'retrying' ELSE 'pending' END, attempts = attempts - 1,"
        f" stage = {READY}, claimed_by = NULL WHERE state = 'running' AND claimed_by = $1 AND id = ANY($2::text[])",
        tx.node,
        list(delivery_ids),
    )


def take_back(claimed: Sequence[tuple[Delivery, Event]]) -> tuple[Work[Any, Any], Any]:
    """What undoes a claim that nobody knows of."""
    return release, [delivery.id for delivery, _ in claimed]


class _Replay(NamedTuple):
    filter: DeliveryFilter
    now: datetime
    delivery_id: str | None
    after: tuple[int, str]


@each("delivering")
async def _replay(tx: Tx, asked: _Replay) -> tuple[int, tuple[int, str] | None]:
    """A part of them; how many, and where to go on."""
    terms, values = delivery_conditions(asked.filter)
    if asked.delivery_id is not None:
        terms.append("id = ?")
        values.append(asked.delivery_id)
    chosen = await tx.look(
        numbered(
            f"SELECT created_at, id, job_id FROM deliveries WHERE {' AND '.join([*terms, '(created_at, id) > (?, ?)'])}"
            f" AND state IN ('done', 'dead', 'retrying') ORDER BY created_at, id LIMIT {REPLAYED_TOGETHER}"
        ),
        *values,
        *asked.after,
    )
    if not chosen:
        return 0, None
    await lock_jobs(tx, [row[2] for row in chosen])
    replayed = await tx.change(
        f"UPDATE deliveries SET state = 'pending', attempts = 0, next_attempt_at = $1, updated_at = $1, is_ordered = false, stage = {READY}"
        " WHERE id = ANY($2::text[]) AND state IN ('done', 'dead', 'retrying') RETURNING job_id, handler",
        tx.to_db(asked.now),
        [row[1] for row in chosen],
    )
    await free_followers(tx, [(job_id, handler) for job_id, handler in replayed])
    return len(replayed), (chosen[-1][0], chosen[-1][1]) if len(chosen) == REPLAYED_TOGETHER else None


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
        """In parts, so that no one waits for a million."""
        count, after = 0, (-(2**63), "")
        while True:
            replayed, place = await self.write(_replay, _Replay(filter, now, delivery_id, after))
            count += replayed
            if place is None:
                return count
            after = place
