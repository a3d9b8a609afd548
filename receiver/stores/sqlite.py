"""The store in one SQLite file: opening it, and the parts put together."""

from __future__ import annotations

import asyncio
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import unquote

from receiver.ending import finish
from receiver.errors import ConfigError, Mistake
from receiver.stores.migrate import load_migrations, migrate_sqlite
from receiver.stores.moved import refuse_moved
from receiver.stores.sqlite_access import READERS
from receiver.stores.sqlite_connecting import Connection, FileLock, close_connection, connect, primary_code, translate
from receiver.stores.sqlite_deliveries import DeliveriesPart
from receiver.stores.sqlite_inbox import InboxPart
from receiver.stores.sqlite_keys import KeysPart
from receiver.stores.sqlite_polls import PollsPart
from receiver.stores.sqlite_pruning import PruningPart
from receiver.stores.sqlite_reading import ReadingPart
from receiver.stores.sqlite_settling import SettlingPart
from receiver.stores.sqlite_submissions import SubmissionsPart
from receiver.stores.sqlite_upkeep import UpkeepPart

NEEDS = (3, 37, 0)  # STRICT tables, RETURNING
UNUSABLE = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
NETWORK_TYPES = re.compile(
    r"(nfs|smb|cifs)\d?|smbfs|afs|ncpfs|ceph|glusterfs|lustre|gfs2|ocfs2|beegfs|gpfs|davfs"
    r"|fuse\.(sshfs|s3fs|rclone|gcsfuse|goofys|glusterfs|ceph|davfs2?|juicefs|mount-s3|blobfuse2?|curlftpfs|smbnetfs)"
)


class SQLiteStore(SubmissionsPart, InboxPart, SettlingPart, PollsPart, DeliveriesPart, ReadingPart, UpkeepPart, PruningPart, KeysPart):
    """`receiver.stores.base.Store` in a file of one machine; several processes may have it open."""


@asynccontextmanager
async def open_sqlite(url: str) -> AsyncIterator[SQLiteStore]:
    """Open the file, made and migrated as needed. ConfigError when it cannot be used at all."""
    path = parse_url(url)
    store = await _open(path)
    try:
        yield store
    finally:
        await finish(asyncio.create_task(store.close()))


def parse_url(url: str) -> Path:
    """`sqlite:///relative.db`, `sqlite:////absolute.db`."""
    scheme, _, rest = url.partition(":///")
    name = unquote(rest)
    if scheme != "sqlite" or not name or name == ":memory:" or "\0" in name:
        raise _unusable(f"{url!r} names no file: write sqlite:///relative.db or sqlite:////absolute.db")
    return Path(name)


def _unusable(detail: str) -> ConfigError:
    return ConfigError([Mistake("", "store.url", detail)])


async def _open(path: Path) -> SQLiteStore:
    if sqlite3.sqlite_version_info < NEEDS:
        raise _unusable(f"this Python carries SQLite {sqlite3.sqlite_version}; {'.'.join(map(str, NEEDS))} or newer is needed")
    try:
        return await _open_usable(path)
    except sqlite3.Error as error:
        if primary_code(error) in UNUSABLE:
            raise _unusable(f"{path} cannot be used: {error}") from error
        raise translate(error) from error
    except OSError as error:
        raise _unusable(f"{path} cannot be used: {error.strerror or error}") from error


async def _open_usable(path: Path) -> SQLiteStore:
    refuse_network(path, _read_mounts())
    refuse_moved(path)  # who moves it holds the lock for long
    path.parent.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as opened:
        lock = FileLock(Path(f"{path}.lock"))
        opened.callback(lock.close)
        connections: list[Connection] = []
        for own_lock in (lock, *[None] * (READERS + 1)):
            connection = await connect(path, own_lock)
            opened.push_async_callback(close_connection, connection)
            if own_lock is not None:
                await connection.run(lambda db: _migrate(db, path, lock))
            connections.append(connection)
        store = SQLiteStore(path, lock, secrets.token_hex(8), writer=connections[0], readers=connections[1:-1], watcher=connections[-1])
        opened.pop_all()
    try:
        await store.join()
    except BaseException:
        await store.close()
        raise
    return store


def _migrate(db: sqlite3.Connection, path: Path, lock: FileLock) -> None:
    with lock.held():
        refuse_moved(path)
        migrate_sqlite(db, path, load_migrations("sqlite"))


def _read_mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux
        return ""


def refuse_network(path: Path, mounts: str) -> None:
    """ConfigError for a file on a network file system, whose locks SQLite cannot trust. `mounts` is the text of /proc/mounts."""
    whole = path.absolute().resolve()
    best, type_of_best = Path("/"), ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        folder = Path(fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"))
        if whole.is_relative_to(folder) and len(folder.parts) >= len(best.parts):
            best, type_of_best = folder, fields[2]
    if NETWORK_TYPES.fullmatch(type_of_best):
        raise _unusable(f"{path} lies on a network file system ({type_of_best} at {best}); SQLite needs a disk of this machine")
