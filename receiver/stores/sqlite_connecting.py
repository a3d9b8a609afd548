"""The SQLite file: how it is opened, whose turn it is, and what its errors mean."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import aiosqlite

from receiver.errors import StoreUnavailable

T = TypeVar("T")

# For every value but a number or a text Python's module asks for an adapter, which takes it four times as long to find out that there is
# none as it takes to call one that gives the value back.
sqlite3.register_adapter(type(None), {}.get)  # type: ignore[arg-type]  # of an empty one: None for None
sqlite3.register_adapter(bytes, bytes)

BUSY_SECONDS = 5.0  # another program that holds the file longer than this is an outage
LOCK_SECONDS = 10.0

# Primary result codes, https://www.sqlite.org/rescode.html
OUTAGES = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip
BROKEN = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY}


class Connection(aiosqlite.Connection):
    """aiosqlite's connection, which also runs a whole function in its thread: one hop for a transaction, not one for each statement."""

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        done: T = await self._execute(lambda: work(self._conn))  # type: ignore[no-untyped-call]
        return done

    async def open(self) -> None:
        try:
            await self
        except BaseException:
            await self.ended()
            raise

    async def ended(self) -> None:
        """aiosqlite tells its thread to end but does not wait for that."""
        while self._thread.is_alive():  # noqa: ASYNC110  # a thread sets no asyncio event
            await asyncio.sleep(0.001)


async def connect(path: Path, lock: FileLock | None = None) -> Connection:
    """The writer's connection with the lock, a reader's without."""
    connection = Connection(lambda: _open_reader(path) if lock is None else _open_writer(path, lock), iter_chunk_size=64)
    await connection.open()
    return connection


def _open_writer(path: Path, lock: FileLock) -> sqlite3.Connection:
    with lock.held():  # the first one turns the file to WAL, the first one after a crash recovers it
        db = open_connection(path)
    db.execute("PRAGMA synchronous = NORMAL")  # syncing is the Syncer's
    return db


def _open_reader(path: Path) -> sqlite3.Connection:
    db = open_connection(path)
    db.execute("PRAGMA query_only = ON")
    return db


def open_connection(path: Path) -> sqlite3.Connection:
    """As all of ours are; who is not a reader holds the lock."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA cache_size = -16384")
    except BaseException:
        db.close()
        raise
    return db


def primary_code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for an error that is not SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else 0


def translate(error: Exception) -> Exception:
    """StoreUnavailable for what is nobody's fault here, else the error itself."""
    if primary_code(error) in OUTAGES or isinstance(error, OSError):
        return StoreUnavailable(f"the database cannot be used now: {error}")
    return error


class FileLock:
    """Turns between processes: one of them writes or checkpoints at a time."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def held(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Blocks its thread, never longer than this."""
        ends_at = time.monotonic() + seconds
        while not try_lock(self._file):
            if time.monotonic() > ends_at:
                raise StoreUnavailable("another process has held the database's lock for too long")
            time.sleep(0.0005)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._file)


def try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def transaction(db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            db.rollback()
        raise


async def close_connection(connection: Connection) -> None:
    """End its thread, whatever happens: aiosqlite's is no daemon and would keep the process."""
    try:
        await connection.close()
    except (sqlite3.Error, ValueError):  # it ends its thread all the same
        pass
    await connection.ended()
