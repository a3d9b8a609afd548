"""What a store really executes, and how the database goes about it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from receiver.stores.base import Store

READS_OR_WRITES = ("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")
WITHOUT_TABLES = ("pg_advisory", "pg_try_advisory", "pg_notify")
Seen = dict[str, tuple[Any, ...]]  # statement → values of its last run; SQLite's have theirs written in


@asynccontextmanager
async def traced(store: Store, url: str) -> AsyncIterator[Seen]:
    seen: Seen = {}
    if url.startswith("sqlite:"):
        inside: Any = store
        connections = [inside._writer, *(reader.connection for reader in inside._readers)]
        for connection in connections:
            await connection.run(lambda db: db.set_trace_callback(lambda statement: seen.setdefault(statement, ())))
        yield seen
        for connection in connections:
            await connection.run(lambda db: db.set_trace_callback(None))
    else:
        from receiver.stores import postgres_access

        kept = {name: getattr(postgres_access.Tx, name) for name in ("look", "execute")}

        def noting(run: Any) -> Any:
            async def noted(tx: Any, statement: str, *values: Any) -> Any:
                seen[statement] = values
                return await run(tx, statement, *values)

            return noted

        for name, run in kept.items():
            setattr(postgres_access.Tx, name, noting(run))
        try:
            yield seen
        finally:
            for name, run in kept.items():
                setattr(postgres_access.Tx, name, run)


def is_plannable(statement: str) -> bool:
    return statement.lstrip().startswith(READS_OR_WRITES) and not any(word in statement for word in WITHOUT_TABLES)


async def explain(url: str, seen: Seen) -> dict[str, str]:
    """Plans by statement; of statements that differ in their values only, the first."""
    wanted = {statement: values for statement, values in seen.items() if is_plannable(statement)}
    if url.startswith("sqlite:"):
        db = sqlite3.connect(unquote(urlsplit(url).path))
        try:
            return {statement: "\n".join(f"  {row[3]}" for row in db.execute(f"EXPLAIN QUERY PLAN {statement}")) for statement in wanted}
        finally:
            db.close()
    from tests.postgres import connect

    async with connect(url) as connection:
        plans = {}
        for statement, values in wanted.items():
            rows = await connection.fetch(f"EXPLAIN {statement}", *values)
            plans[statement] = "\n".join(f"  {row[0]}" for row in rows)
        return plans
