"""Nodes and their claims, leases, shared limits."""

# ruff: noqa: S608  # only names of columns and fixed conditions are put into statements; values are bound
from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from receiver.errors import Conflict
from receiver.stores.migrate import copy_aside
from receiver.stores.rows import BREAKERS
from receiver.stores.sqlite_access import Access, Tx, one_by_one
from receiver.stores.sqlite_connecting import close_connection, connect, translate, try_lock
from receiver.stores.sqlite_deliveries import READY
from receiver.stores.sqlite_polls import BURY as BURY_POLLS
from receiver.stores.terms import Breaker
from receiver.times import from_micros, to_micros

NODE_NAME = re.compile(r"[0-9a-f]{16}")
LOOK_EVERY = timedelta(milliseconds=50)

_RELEASE_ALL = (
    "UPDATE submissions SET claimed_by = NULL WHERE claimed_by = ?",
    "UPDATE notices SET claimed_by = NULL WHERE outcome IS NULL AND claimed_by IS NOT NULL AND claimed_by = ?",
    f"UPDATE deliveries SET state = 'retrying', stage = {READY}, claimed_by = NULL WHERE claimed_by = ?",
    BURY_POLLS,
    "DELETE FROM leases WHERE node = ?",
    "DELETE FROM nodes WHERE id = ?",
)


class NodeFile:
    """A node lives as long as the kernel says that its file is locked; after a `kill -9` that ends at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1

    def hold(self) -> None:
        """Make and lock the file; again, when somebody took it away."""
        if self._file >= 0 and self.path.exists():
            return
        self.close()
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try_lock(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self.path.unlink(missing_ok=True)


def release_all(db: sqlite3.Connection, node: str) -> None:
    """Whatever this node had claimed can be claimed again. A run that was cut off counts as an attempt."""
    for statement in _RELEASE_ALL:
        db.execute(statement, (node,))


@one_by_one
def register(tx: Tx, own: NodeFile) -> None:
    own.hold()
    tx.db.execute("INSERT OR IGNORE INTO nodes (id) VALUES (?)", (tx.node,))


@one_by_one
def _bury(tx: Tx, own: NodeFile) -> int:
    own.hold()  # should somebody have buried us alive
    tx.db.execute("INSERT OR IGNORE INTO nodes (id) VALUES (?)", (tx.node,))
    folder = own.path.parent
    registered = {row_id for (row_id,) in tx.db.execute("SELECT id FROM nodes")}
    buried = 0
    named = {path.name for path in folder.iterdir() if NODE_NAME.fullmatch(path.name)}
    for node in sorted((registered | named) - {tx.node}):
        if _is_dead(folder / node):
            release_all(tx.db, node)
            buried += node in registered
    return buried


def find_living(folder: Path) -> list[str]:
    """The nodes whose files are held."""
    names = sorted(path.name for path in folder.iterdir() if NODE_NAME.fullmatch(path.name)) if folder.is_dir() else []
    return [name for name in names if not _is_dead(folder / name)]


def _is_dead(path: Path) -> bool:
    """Nodes come and are buried under the file lock, so nobody is just about to lock a file that is free."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not try_lock(file):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(file)


@one_by_one
def _take_lease(tx: Tx, asked: tuple[str, datetime, timedelta]) -> bool:
    name, now, duration = asked
    taken = tx.db.execute(
        "INSERT INTO leases (name, node, ends_at) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET node = excluded.node, ends_at = excluded.ends_at"
        " WHERE leases.node = excluded.node OR leases.ends_at <= ?",
        (name, tx.node, to_micros(now + duration), to_micros(now)),
    )
    return taken.rowcount == 1


@one_by_one
def _drop_lease(tx: Tx, name: str) -> None:
    tx.db.execute("DELETE FROM leases WHERE name = ? AND node = ?", (name, tx.node))


class _Wanted(NamedTuple):
    name: str
    now: datetime
    per_second: float
    burst: int
    wanted: int


@one_by_one
def _take_tokens(tx: Tx, asked: _Wanted) -> tuple[int, datetime]:
    """GCRA: the bucket is one instant, when all that was given will have come back."""
    now = to_micros(asked.now)
    each = -int(-1_000_000 // asked.per_second)  # microseconds for a token, rounded up: never over the limit
    row = tx.db.execute("SELECT full_at FROM buckets WHERE name = ?", (asked.name,)).fetchone()
    full_at = now if row is None else min(max(row[0], now), now + asked.burst * each)  # a clock that was set back must not wait for long
    granted = max(min((now + asked.burst * each - full_at) // each, asked.wanted), 0)
    full_at += granted * each
    if granted:
        tx.db.execute("INSERT OR REPLACE INTO buckets (name, full_at) VALUES (?, ?)", (asked.name, full_at))
    return granted, from_micros(max(now, full_at + each - asked.burst * each))


@one_by_one
def _count_failure(tx: Tx, asked: tuple[str, datetime, str]) -> int:
    provider, at, error = asked
    ((failures,),) = tx.db.execute(
        "INSERT INTO breakers (provider, failures, last_error, last_error_at) VALUES (?, 1, ?, ?) ON CONFLICT (provider) DO UPDATE SET"
        " failures = failures + 1, last_error = excluded.last_error, last_error_at = excluded.last_error_at RETURNING failures",
        (provider, error, to_micros(at)),
    ).fetchall()
    return int(failures)


@one_by_one
def _leave_alone(tx: Tx, asked: tuple[str, datetime]) -> None:
    provider, until = asked
    tx.db.execute(
        "INSERT INTO breakers (provider, failures, open_until) VALUES (?, 0, ?) ON CONFLICT (provider) DO UPDATE SET"
        " open_until = max(ifnull(open_until, 0), excluded.open_until)",
        (provider, to_micros(until)),
    )


@one_by_one
def _forgive(tx: Tx, provider: str) -> bool:
    forgiven = tx.db.execute("UPDATE breakers SET failures = 0, open_until = NULL WHERE provider = ? AND failures > 0", (provider,))
    return forgiven.rowcount == 1


def _add_counts(tx: Tx, calls: Sequence[Mapping[tuple[str, str], int]]) -> list[None]:
    sums: dict[tuple[str, str], int] = {}
    for counts in calls:
        for key, count in counts.items():
            sums[key] = sums.get(key, 0) + count
    tx.db.executemany(
        "INSERT INTO counters (scope, name, count) VALUES (?, ?, ?) ON CONFLICT (scope, name) DO UPDATE SET count = count + excluded.count",
        [(*key, count) for key, count in sums.items()],
    )
    return [None for _ in calls]


@one_by_one
def _check(tx: Tx, _: None) -> None:
    tx.db.execute("INSERT INTO nodes (id, checks) VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET checks = checks + 1", (tx.node,))


def _backup(db: sqlite3.Connection, target: Path) -> None:
    if target.exists():
        raise Conflict(f"{target} exists already")
    copy_aside(db, target)


class UpkeepPart(Access):
    can_notify = False

    _node_file: NodeFile
    _seen_version: int

    async def join(self) -> None:
        """Become a node: before anything else."""
        self._node_file = NodeFile(Path(f"{self.path}.nodes") / self.node)
        await self.write(register, self._node_file)
        self._seen_version = await self.data_version()

    def leave(self, tx: Tx) -> None:
        release_all(tx.db, self.node)

    async def close(self) -> None:
        """Give back what this node had claimed, finish what waits, end every thread. Twice is harmless."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    _closing: asyncio.Task[None] | None = None

    async def _close(self) -> None:
        try:
            await Access.close(self)
        finally:
            self._node_file.close()

    async def wait_for_change(self, timeout: timedelta) -> bool:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout.total_seconds()
        while not self._has_written():  # what we wrote ourselves we know without asking
            version = await self.data_version()
            if version != self._seen_version:
                self._seen_version = version
                return True
            left = ends_at - loop.time()
            if left <= 0:
                return False
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wrote.wait(), min(left, LOOK_EVERY.total_seconds()))
        return True

    def _has_written(self) -> bool:
        """Whether we have since this was asked last."""
        self._wrote.clear()
        seen, self._writes_seen = self._writes_seen, self._writes
        return seen != self._writes

    async def bury_dead_nodes(self) -> int:
        return await self.write(_bury, self._node_file)

    async def take_lease(self, name: str, now: datetime, duration: timedelta) -> bool:
        return await self.write(_take_lease, (name, now, duration))

    async def drop_lease(self, name: str) -> None:
        await self.write(_drop_lease, name)

    async def take_tokens(self, name: str, now: datetime, per_second: float, burst: int, wanted: int) -> tuple[int, datetime]:
        return await self.write(_take_tokens, _Wanted(name, now, per_second, burst, wanted))

    async def read_breakers(self) -> dict[str, Breaker]:
        rows = await self.read(lambda db: db.execute(f"SELECT {BREAKERS.columns} FROM breakers").fetchall())
        return {breaker.provider: breaker for breaker in map(BREAKERS.decode, rows)}

    async def count_failure(self, provider: str, at: datetime, error: str) -> int:
        return await self.write(_count_failure, (provider, at, error))

    async def leave_alone(self, provider: str, until: datetime) -> None:
        await self.write(_leave_alone, (provider, until))

    async def forgive(self, provider: str) -> bool:
        return await self.write(_forgive, provider)

    async def add_counts(self, counts: Mapping[tuple[str, str], int]) -> None:
        await self.write(_add_counts, dict(counts))

    async def check_writable(self) -> None:
        await self.write(_check, None)

    async def backup(self, path: str) -> None:
        connection = await connect(self.path)
        try:
            await connection.run(lambda db: _backup(db, Path(path)))
        except (sqlite3.Error, OSError) as error:
            raise translate(error) from error
        finally:
            await asyncio.shield(close_connection(connection))
