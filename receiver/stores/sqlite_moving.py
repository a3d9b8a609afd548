"""The SQLite file that an installation is moved out of: up to date, claimed by nobody, and held so that nobody opens it."""

# ruff: noqa: S608  # only names of tables and columns are put into statements; values are bound
from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from receiver.errors import ConfigError, Mistake
from receiver.stores.migrate import load_migrations, migrate_sqlite
from receiver.stores.sqlite import UNUSABLE
from receiver.stores.sqlite_connecting import FileLock, open_connection, primary_code, transaction, translate
from receiver.stores.sqlite_upkeep import find_living, release_all

Row = tuple[Any, ...]
ROWS, BYTES = 2_000, 8 * 1024 * 1024  # of one part

# What stands otherwise here than there.
VIEWS = {
    "durations": "(SELECT row_number() OVER (ORDER BY provider, model, one.key) AS number, provider, model, one.value AS seconds"
    " FROM learned, json_each(learned.seconds) AS one)"
}


@contextmanager
def hold(path: Path) -> Iterator[Source]:
    """ConfigError while a server works with the file, or when it is no database of ours."""
    if not path.is_file():
        raise ConfigError([Mistake("", "--from", f"there is no database at {path}")])
    try:
        lock = FileLock(Path(f"{path}.lock"))
        try:
            with lock.held():
                db = open_connection(path)
                try:
                    _make_ready(db, path)
                    yield Source(db)
                finally:
                    db.close()
        finally:
            lock.close()
    except (sqlite3.Error, OSError) as error:
        if primary_code(error) in UNUSABLE:
            raise ConfigError([Mistake("", "--from", f"{path} cannot be used: {error}")]) from error
        raise translate(error) from error


def _make_ready(db: sqlite3.Connection, path: Path) -> None:
    living = find_living(Path(f"{path}.nodes"))
    if living:
        detail = (
            f"{path} is in use by {len(living)} process{'es' if len(living) > 1 else ''}: stop every `receiver serve` and `receiver poll`"
            " that works with it, and run this again; nothing was changed"
        )
        raise ConfigError([Mistake("", "--from", detail)])
    migrate_sqlite(db, path, load_migrations("sqlite"))
    with transaction(db):
        for (node,) in db.execute("SELECT id FROM nodes").fetchall():
            release_all(db, node)


class Source:
    """What is to be moved, table by table in the order of a key."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def count(self, table: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM {VIEWS.get(table, table)}").fetchone()[0])

    def parts(self, table: str, columns: Sequence[str], key: Sequence[str], after: Row | None = None) -> Iterator[list[Row]]:
        """The rows behind a key, a bounded number at a time."""
        order, where = ", ".join(key), ""
        if after is not None:
            where = f" WHERE ({order}) > ({', '.join('?' * len(key))})"
        rows = self._db.execute(f"SELECT {', '.join(columns)} FROM {VIEWS.get(table, table)}{where} ORDER BY {order}", after or ())
        part: list[Row] = []
        size = 0
        for row in rows:
            part.append(row)
            size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if len(part) >= ROWS or size >= BYTES:
                yield part
                part, size = [], 0
        if part:
            yield part
