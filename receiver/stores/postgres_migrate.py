"""Bringing a PostgreSQL database up to date: under a lock, all of it or nothing, whoever starts at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from receiver.errors import ConfigError, Mistake
from receiver.stores.migrate import Migration, find_pending

MIGRATING = 4711_0001  # the advisory lock; it ends with the transaction, so it works through a pooler
NEEDS = 14
MIGRATION_SECONDS = 3600.0  # one may write a large table anew

_KEEP_COUNT = "CREATE TABLE migrations (number bigint PRIMARY KEY, name text NOT NULL, checksum text NOT NULL)"
# Restored elsewhere the transactions count anew: positions go on behind the last one.
_REBASE = (
    "UPDATE positions SET base = greatest(base, coalesce((SELECT max(position) FROM events), 0) + 1"
    " - (pg_current_xact_id()::text::bigint << 20))"
    " WHERE (SELECT max(position) FROM events) >= base + (pg_current_xact_id()::text::bigint << 20)"
)


async def migrate_postgres(connection: Any, database: str, migrations: Sequence[Migration]) -> list[int]:
    """The numbers that were applied now. ConfigError when the database is newer than this version, or another program's."""
    version = connection.get_server_version()
    if version.major < NEEDS:
        raise ConfigError([Mistake("", "store.url", f"{database} is PostgreSQL {version.major}; {NEEDS} or newer is needed")])
    await connection.execute("BEGIN")
    try:
        await connection.fetch("SELECT pg_advisory_xact_lock($1)", MIGRATING)
        if await connection.fetchval("SELECT to_regclass('migrations')") is None:
            await connection.execute(_KEEP_COUNT)
        applied = {row[0]: row[1] for row in await connection.fetch("SELECT number, checksum FROM migrations")}
        pending = find_pending(applied, migrations, database, remedy="restore the backup that was made before")
        for migration in pending:
            await _apply(connection, database, migration)
        await connection.execute(_REBASE)
        await connection.execute("COMMIT")
    except BaseException:
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")
        raise
    return [migration.number for migration in pending]


async def _apply(connection: Any, database: str, migration: Migration) -> None:
    try:
        await connection.execute(migration.sql, timeout=MIGRATION_SECONDS)
    except (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError) as error:
        detail = f"{database} holds tables of another program ({error}): give Receiver a database of its own"
        raise ConfigError([Mistake("", "store.url", detail)]) from error
    await connection.execute(
        "INSERT INTO migrations (number, name, checksum) VALUES ($1, $2, $3)", migration.number, migration.name, migration.checksum
    )
