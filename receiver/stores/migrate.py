"""Numbered migrations: which there are, which are applied, and that nobody changed them afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec

from receiver.errors import ConfigError, Mistake


class Migration(msgspec.Struct, frozen=True):
    """One numbered step of the schema."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations(dialect: str) -> tuple[Migration, ...]:
    """The migrations that this version carries, in order."""
    found = []
    for entry in files(__package__).joinpath("migrations", dialect).iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name):
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.number))


def find_pending(applied: dict[int, str], migrations: Sequence[Migration], database: str, *, remedy: str = "") -> list[Migration]:
    """Those not applied yet. ConfigError when the database is from a newer version or was made by other migrations."""
    known = {migration.number: migration for migration in migrations}
    for number, checksum in sorted(applied.items()):
        if number not in known:
            detail = (
                f"{database} was made by a newer version (its schema is {max(applied):04d}, this one knows {max(known, default=0):04d}): "
                f"install that version again, or {remedy or f'restore the copy {database}.before-{number:04d} if there is one'}"
            )
            raise ConfigError([Mistake("", "store.url", detail)])
        if known[number].checksum != checksum:
            detail = f"{database}: migration {number:04d} is not the one that was applied; install a released version"
            raise ConfigError([Mistake("", "store.url", detail)])
    return [migration for migration in migrations if migration.number not in applied]


def migrate_sqlite(db: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> list[int]:
    """Bring the file up to date, each migration in one transaction; a file with content is copied aside first.

    The caller holds the file lock. Returns the numbers that were applied now.
    """
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")}
    if tables and "migrations" not in tables:
        raise ConfigError([Mistake("", "store.url", f"{path} is a database of another program; name a new file")])
    applied: dict[int, str] = dict(db.execute("SELECT number, checksum FROM migrations")) if tables else {}
    pending = find_pending(applied, migrations, str(path))
    if applied and pending:
        copy_aside(db, Path(f"{path}.before-{pending[0].number:04d}"))
    for migration in pending:
        _apply(db, migration)
    return [migration.number for migration in pending]


def _apply(db: sqlite3.Connection, migration: Migration) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL)")
        for statement in split_statements(migration.sql):
            db.execute(statement)
        db.execute("INSERT INTO migrations VALUES (?, ?, ?)", (migration.number, migration.name, migration.checksum))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.rollback()
        raise


def split_statements(sql: str) -> Iterator[str]:
    """One statement after the other; `executescript` would commit before the first."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def copy_aside(db: sqlite3.Connection, target: Path) -> None:
    """A consistent copy that is whole or not there."""
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        copy = sqlite3.connect(partial)
        try:
            db.backup(copy)
        finally:
            copy.close()
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
