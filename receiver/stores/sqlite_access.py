"""The SQLite file in use: its one writer, its readers, its log."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from receiver.errors import Overloaded, ReceiverError, StoreUnavailable
from receiver.stores.batch import Batcher
from receiver.stores.sqlite_connecting import BROKEN, Connection, FileLock, close_connection, connect, primary_code, transaction, translate
from receiver.stores.sqlite_syncing import Syncer, Ticket

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

READERS = 2
MOST_READS = 1_000  # waiting for one connection
CHECKPOINT_CHANGES = 8_000  # rows: four times the 1,000 pages of SQLite's own rule, since each one syncs the whole file
CHECKPOINT_BYTES = 8 * 1024 * 1024


class Tx(NamedTuple):
    """What a piece of work writes with."""

    db: sqlite3.Connection
    node: str


Work = Callable[[Tx, Sequence[A]], Sequence[R | ReceiverError]]


class _Piece(NamedTuple):
    work: Work[Any, Any]
    argument: Any
    undo: Callable[[Any], tuple[Work[Any, Any], Any]] | None = None


class _Written(NamedTuple):
    """A committed batch."""

    pieces: Sequence[_Piece] = ()
    answers: Sequence[Any] = ()
    changes: int = 0  # rows
    ticket: Ticket | None = None  # for the sync that its callers wait for


def one_by_one(work: Callable[[Tx, A], R]) -> Work[A, R]:
    """For work that gains nothing from being done for many at once."""

    def many(tx: Tx, arguments: Sequence[A]) -> list[R]:
        return [work(tx, argument) for argument in arguments]

    return many


_FORGETTABLE: set[Work[Any, Any]] = set()


def forgettable(work: Work[A, R]) -> Work[A, R]:
    """For claims: one that is lost when the machine loses its power is made again. They wait for what they have seen only."""
    _FORGETTABLE.add(work)
    return work


class _Reader:
    __slots__ = ("connection", "version", "waiting")

    def __init__(self, connection: Connection) -> None:
        self.connection, self.waiting, self.version = connection, 0, 0


class Access:
    """One opened file: writes go through one queue, reads through a few connections of their own."""

    def __init__(
        self, path: Path, lock: FileLock, node: str, *, writer: Connection, readers: Sequence[Connection], watcher: Connection
    ) -> None:
        self.path, self.node = path, node
        self._lock = lock
        self._writer: Connection | None = writer
        self._readers = [_Reader(reader) for reader in readers]
        self._watcher = watcher
        self._syncer = Syncer(path)
        self._version = 0  # of the file, as the writer saw it last
        self._opening = asyncio.Lock()
        self._wrote = asyncio.Event()
        self._writes = self._writes_seen = 0
        self._is_closed = False
        self._changes = 0
        self._bytes = 0
        self._is_moving = False
        self._batcher: Batcher[_Piece] = Batcher(self._run, tidy=self._checkpoint)

    async def write(
        self, work: Work[A, R], argument: A, *, weight: int = 0, undo: Callable[[R], tuple[Work[Any, Any], Any]] | None = None
    ) -> R:
        """Do this in the next transaction; answered when it is on disk.

        `undo` says what takes the result back when the caller was cancelled meanwhile: what nobody knows of must not stay claimed.
        """
        self._bytes += weight
        abandoned = None if undo is None else lambda result: self._batcher.put_unattended(_Piece(*undo(result)))
        answer: R = await self._batcher.put(_Piece(work, argument, undo), weight=weight, abandoned=abandoned)
        return answer

    async def read(self, work: Callable[[sqlite3.Connection], T], *, is_shown: bool = True) -> T:
        """Run this over one consistent view. What is not shown to anybody, only written on, need not wait until it is on disk."""
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        reader = min(self._readers, key=lambda reader: reader.waiting)
        if reader.waiting >= MOST_READS:
            raise Overloaded("too many reads are waiting")
        reader.waiting += 1
        try:
            found, ticket = await reader.connection.run(lambda db: self._look(reader, db, work))
            if is_shown and ticket is not None:
                await self._syncer.wait(ticket)
            return found
        except (sqlite3.Error, OSError) as error:
            raise translate(error) from error
        finally:
            reader.waiting -= 1

    def _look(self, reader: _Reader, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> tuple[T, Ticket | None]:
        """What it found, and the sync that follows what others have committed since this reader's last look."""
        with transaction(db, "BEGIN"):
            version, seen = _read_version(db), reader.version
            found = work(db)
        reader.version = version
        return found, self._syncer.get_last() if version == seen else self._syncer.ask()

    async def _run(self, take: Callable[[], Sequence[_Piece]]) -> Sequence[Any]:
        """The writer's thread takes its next batch itself: through the loop it would wait for whatever that is just at."""
        writer: Connection | None = None
        written = _Written()
        try:
            writer = await self._writing()
            written = await writer.run(lambda db: self._transact(db, take()))
            if written.ticket is not None:
                await self._syncer.wait(written.ticket)
        except StoreUnavailable:
            self._take_back(written)
            raise
        except (sqlite3.Error, OSError) as error:
            if primary_code(error) in BROKEN:
                await self._drop_writer(writer)
            raise translate(error) from error
        if written.changes:
            self._changes += written.changes
            self._writes += 1
            self._wrote.set()
        return written.answers

    def _take_back(self, written: _Written) -> None:
        """It stands in the file, but its callers hear that it may be lost: what they claimed must not stay claimed."""
        for piece, answer in zip(written.pieces, written.answers, strict=True):
            if piece.undo is not None and not isinstance(answer, Exception):
                self._batcher.put_unattended(_Piece(*piece.undo(answer)))

    async def _writing(self) -> Connection:
        async with self._opening:
            if self._writer is None:
                self._writer = await connect(self.path, self._lock)
            return self._writer

    def _transact(self, db: sqlite3.Connection, pieces: Sequence[_Piece]) -> _Written:
        if not pieces:
            return _Written()
        before = db.total_changes
        with self._lock.held():
            if self._syncer.is_doubtful:
                self._begin_log_anew(db)
            with transaction(db):
                version = _read_version(db)
                answers = _do(Tx(db, self.node), pieces)
        is_own = version == self._version and all(piece.work in _FORGETTABLE for piece in pieces)
        self._version = version
        ticket = self._syncer.get_last() if is_own else self._syncer.ask()
        return _Written(pieces, answers, db.total_changes - before, ticket)

    def _begin_log_anew(self, db: sqlite3.Connection) -> None:
        """All of it is moved into the file, which is synced then."""
        is_busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise StoreUnavailable("the database's log could not be synced, and somebody reads it")
        self._syncer.begin_anew()

    async def _checkpoint(self) -> None:
        """Most of it is moved beside the writer; what came meanwhile with nobody writing, for only then the log begins anew.

        What is committed stays committed, so a checkpoint that fails is tried again later and fails no caller.
        """
        if self._is_moving or (self._changes <= CHECKPOINT_CHANGES and self._bytes <= CHECKPOINT_BYTES):
            return
        self._is_moving = True
        self._changes = self._bytes = 0
        try:
            await self._watcher.run(_move_log)
            writer = await self._writing()
            await writer.run(self._move_rest)
        except (sqlite3.Error, OSError, StoreUnavailable):
            self._changes = CHECKPOINT_CHANGES
        finally:
            self._is_moving = False

    def _move_rest(self, db: sqlite3.Connection) -> None:
        with self._lock.held():
            _move_log(db)

    async def _drop_writer(self, writer: Connection | None) -> None:
        if writer is not None and writer is self._writer:
            self._writer = None
            self._version = 0
            await close_connection(writer)

    async def data_version(self) -> int:
        """Changes whenever any connection but the watching one has committed something."""
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        try:
            return await self._watcher.run(_read_version)
        except (sqlite3.Error, OSError) as error:
            raise translate(error) from error

    async def close(self) -> None:
        """Finish what waits, then close; the writer goes last, because closing the last connection checkpoints."""
        self._is_closed = True
        try:
            await self._batcher.close()
        finally:
            for connection in (self._watcher, *(reader.connection for reader in self._readers)):
                await close_connection(connection)
            await self._close_writer()
            await self._syncer.close()
            self._lock.close()

    async def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            await writer.run(self._leave_and_close)
        except (sqlite3.Error, OSError) as error:
            raise translate(error) from error
        finally:
            await close_connection(writer)

    def _leave_and_close(self, db: sqlite3.Connection) -> None:
        with self._lock.held():
            try:
                with transaction(db):
                    self.leave(Tx(db, self.node))
            finally:
                db.close()

    def leave(self, tx: Tx) -> None:
        """The last thing that a node writes."""


def _do(tx: Tx, pieces: Sequence[_Piece]) -> list[Any]:
    """All pieces of one kind at once; what waits together has no order among itself."""
    by_work: dict[Work[Any, Any], list[int]] = {}
    for index, piece in enumerate(pieces):
        by_work.setdefault(piece.work, []).append(index)
    answers: list[Any] = [None] * len(pieces)
    for work, indexes in by_work.items():
        for index, answer in zip(indexes, work(tx, [pieces[index].argument for index in indexes]), strict=True):
            answers[index] = answer
    return answers


def _move_log(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _read_version(db: sqlite3.Connection) -> int:
    """Another one when any other connection has committed something since."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])
