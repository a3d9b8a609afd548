"""Nodes: they show that they live by the database's clock; what a dead one had claimed can be claimed again."""

# ruff: noqa: S608  # only names of tables and fixed conditions are put into statements; values are bound
from __future__ import annotations

import asyncio
import secrets

import structlog

from receiver.ending import end
from receiver.errors import ReceiverError
from receiver.stores.postgres_access import Access, Tx, each
from receiver.stores.postgres_outbox import READY
from receiver.stores.postgres_polls import BURY as BURY_POLLS

HEARTBEAT = 3.0  # seconds
LEASE = 15.0  # seconds without a heartbeat: dead
BURYING = 4711_0003  # the advisory lock of who buries

NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_JOIN = f"INSERT INTO nodes (id, seen_at) VALUES ($1, {NOW}) ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at RETURNING seen_at"
_LIVE = f"UPDATE nodes SET seen_at = {NOW} WHERE id = $1 RETURNING seen_at"

# A run that was cut off counts as an attempt.
_RELEASE = {
    "submissions": "UPDATE submissions SET claimed_by = NULL WHERE claimed_by = ANY($1::text[])",
    "notices": "UPDATE notices SET claimed_by = NULL WHERE outcome IS NULL AND claimed_by IS NOT NULL AND claimed_by = ANY($1::text[])",
    "deliveries": f"UPDATE deliveries SET state = 'retrying', stage = {READY}, claimed_by = NULL WHERE claimed_by = ANY($1::text[])",
    "polls": BURY_POLLS,
}
_CLAIMANTS = " UNION ".join(
    f"SELECT claimed_by FROM {table} WHERE claimed_by IS NOT NULL{' AND outcome IS NULL' if table == 'notices' else ''}"
    for table in _RELEASE
)

log = structlog.get_logger("receiver.stores")


def make_node() -> str:
    return secrets.token_hex(8)


async def _release_all(tx: Tx, nodes: list[str]) -> None:
    for statement in _RELEASE.values():
        await tx.execute(statement, nodes)
    await tx.execute("DELETE FROM leases WHERE node = ANY($1::text[])", nodes)


@each("pruning")
async def _bury(tx: Tx, _: None) -> int:
    """Also what stands under the name of a node that nobody knows: one that was buried while it was claiming."""
    ((is_ours,),) = await tx.look("SELECT pg_try_advisory_xact_lock($1)", BURYING)
    if not is_ours:
        return 0
    dead = await tx.change(f"DELETE FROM nodes WHERE seen_at < {NOW} - $1 AND id <> $2 RETURNING id", int(LEASE * 1_000_000), tx.node)
    strays = await tx.look(f"SELECT claimed_by FROM ({_CLAIMANTS}) AS claimed WHERE NOT EXISTS (SELECT 1 FROM nodes WHERE id = claimed_by)")
    names = sorted({row[0] for row in (*dead, *strays)})
    if names:
        await _release_all(tx, names)
    return len(dead)


@each("pruning")
async def _leave(tx: Tx, _: None) -> None:
    await _release_all(tx, [tx.node])
    await tx.execute("DELETE FROM nodes WHERE id = $1", tx.node)


class NodesPart(Access):
    _heart: asyncio.Task[None] | None = None
    _beaten_at = 0.0
    _patient_until = 0.0

    async def join(self) -> None:
        """Become a node: before anything else."""
        await self._beat(_JOIN)
        self._heart = asyncio.create_task(self._live(), name="store-heartbeat")

    async def leave(self) -> None:
        """The last thing that a node writes. If it cannot, it is found dead after a while."""
        if self._heart is not None:
            await end(self._heart)
        try:
            await self.write_last(_leave)
        except ReceiverError as error:
            log.warning("store.left_unseen", error=str(error))

    async def bury_dead_nodes(self) -> int:
        if asyncio.get_running_loop().time() < self._patient_until:
            return 0
        return await self.write(_bury, None)

    async def _live(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            try:
                if not await self._beat(_LIVE):
                    # Whoever buried us gave away what we had claimed: under a new name no old result can be written.
                    log.warning("store.node_buried_alive", node=self.node)
                    self.node = make_node()
                    await self._beat(_JOIN)
            except ReceiverError as error:
                log.warning("store.heartbeat_failed", error=str(error))

    async def _beat(self, statement: str) -> bool:
        before = self.clock.monotonic()
        seen_at = await self.ask(statement, self.node)
        after = self.clock.monotonic()
        if seen_at is None:
            return False
        self.clock.learn(seen_at, before, after)
        self._note_gap()
        return True

    def _note_gap(self) -> None:
        """When the database was away for us it was for the others: they get their time to come back before anyone buries them."""
        now = asyncio.get_running_loop().time()
        if self._beaten_at and now - self._beaten_at > LEASE / 2:
            self._patient_until = now + LEASE
        self._beaten_at = now
