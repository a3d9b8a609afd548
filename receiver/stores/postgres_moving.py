"""The PostgreSQL database that an installation is moved into: part after part, and nobody works with it before it is whole."""

# ruff: noqa: S608  # only names of tables and columns are put into statements; values are bound
from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec

from receiver.clock import Clock
from receiver.errors import ConfigError, Mistake
from receiver.stores.migrate import load_migrations
from receiver.stores.moved import Moved
from receiver.stores.postgres_clock import TOLERANCE
from receiver.stores.postgres_connecting import connected, name_of
from receiver.stores.postgres_migrate import migrate_postgres
from receiver.stores.postgres_rows import clean
from receiver.times import to_micros

Row = tuple[Any, ...]
BEGINNING = 4711_0004  # the advisory lock of who begins to copy
PART_SECONDS = 600.0  # for one statement
ALIVE = 15_000_000  # microseconds since its last heartbeat

_IS_THERE = "SELECT to_regclass('copying') IS NOT NULL"
_MAKE = "CREATE TABLE copying (id text NOT NULL, source text NOT NULL, shift bigint NOT NULL, places text NOT NULL)"
_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_COLUMNS = (
    "SELECT column_name::text, data_type::text, is_identity = 'YES' FROM information_schema.columns"
    " WHERE table_schema = current_schema() AND table_name = $1 AND is_generated = 'NEVER' AND column_name <> 'claimed_by'"
    " ORDER BY ordinal_position"
)
_KEY = (
    "SELECT attname::text FROM pg_index CROSS JOIN LATERAL unnest(indkey::int2[]) WITH ORDINALITY AS part (number, nth)"
    " JOIN pg_attribute ON attrelid = indrelid AND attnum = part.number WHERE indrelid = $1::regclass AND indisprimary ORDER BY nth"
)


class Shape(NamedTuple):
    """A table as it is here, without who claims its rows."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    truths: tuple[int, ...]  # columns that hold truth values
    times: tuple[int, ...]
    counted: str | None  # the column that the database numbers by itself

    def convert(self, rows: Sequence[Row], shift: int) -> list[Row]:
        """Rows of SQLite as they stand here, by the clock of this database."""
        return [self._convert(row, shift) for row in rows]

    def _convert(self, row: Row, shift: int) -> Row:
        values = [clean(value) for value in row]
        for index in self.truths:
            values[index] = bool(values[index])
        for index in self.times:
            if values[index] is not None:
                values[index] += shift
        return tuple(values)

    def key_of(self, row: Row) -> Row:
        return tuple(row[self.columns.index(column)] for column in self.key)


class Target:
    """The other database, while it is filled."""

    def __init__(self, connection: Any, name: str, clock: Clock) -> None:
        self._connection, self.name, self._clock = connection, name, clock
        self.shift = 0  # what its clock is ahead of ours, in microseconds, where they differ
        self.places: dict[str, list[Any]] = {}  # the last key that was copied, by table

    async def shape(self, table: str) -> Shape:
        found = await self._connection.fetch(_COLUMNS, table)
        columns = tuple(row[0] for row in found)
        return Shape(
            name=table,
            columns=columns,
            key=tuple(row[0] for row in await self._connection.fetch(_KEY, table)),
            truths=tuple(index for index, row in enumerate(found) if row[1] == "boolean"),
            times=tuple(index for index, column in enumerate(columns) if column in ("at", "open_until") or column.endswith("_at")),
            counted=next((row[0] for row in found if row[2]), None),
        )

    async def begin(self, moved: Moved, source: str, tables: Sequence[str]) -> None:
        """Say in the database that it is being filled, or find where that was stopped. ConfigError where something else is there."""
        async with self._connection.transaction():
            await self._connection.fetch("SELECT pg_advisory_xact_lock($1)", BEGINNING)
            if await self._is_begun(moved.id):
                self.shift, places = await self._connection.fetchrow("SELECT shift, places FROM copying")
                self.places = msgspec.json.decode(places, type=dict[str, list[Any]])
                return
            await self._refuse_content(tables)
            self.shift = await self._measure()
            await self._connection.execute(_MAKE)
            await self._connection.execute("INSERT INTO copying VALUES ($1, $2, $3, '{}')", moved.id, source, self.shift)

    async def is_begun_by(self, moved: Moved) -> bool:
        return bool(await self._connection.fetchval(_IS_THERE)) and await self._is_begun(moved.id)

    async def _is_begun(self, id: str) -> bool:
        if not await self._connection.fetchval(_IS_THERE):
            return False
        found, source = await self._connection.fetchrow("SELECT id, source FROM copying")
        if found != id:
            detail = f"{self.name} is half filled from {source}, at another time: drop the database and make it anew"
            raise ConfigError([Mistake("", "--to", detail)])
        return True

    async def _refuse_content(self, tables: Sequence[str]) -> None:
        if await self._connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM nodes WHERE seen_at > {_NOW} - {ALIVE})"):
            raise ConfigError([Mistake("", "--to", f"a server works with {self.name}: stop it, and run this again")])
        for table in tables:
            if await self._connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM {table})"):
                detail = f"{self.name} is not empty: there are {table} in it; name a new database, or drop this one and make it anew"
                raise ConfigError([Mistake("", "--to", detail)])

    async def _measure(self) -> int:
        before = to_micros(self._clock.now())
        there: int = await self._connection.fetchval(f"SELECT {_NOW}")
        ahead = there - (before + to_micros(self._clock.now())) // 2
        return ahead if abs(ahead) > TOLERANCE else 0

    async def take(self, shape: Shape, rows: Sequence[Row], last: Row) -> None:
        """Write this part, and in the same transaction that everything up to this key is here."""
        self.places[shape.name] = list(last)
        async with self._connection.transaction():
            await self._connection.copy_records_to_table(shape.name, records=rows, columns=shape.columns)
            await self._connection.execute("UPDATE copying SET places = $1", msgspec.json.encode(self.places).decode())

    async def count(self, table: str) -> int:
        return int(await self._connection.fetchval(f"SELECT count(*) FROM {table}"))

    async def read(self, shape: Shape, first: Row, last: Row) -> list[Row]:
        """The rows from one key to another, both included."""
        order, size = ", ".join(shape.key), len(shape.key)
        low, high = (", ".join(f"${number}" for number in range(start, start + size)) for start in (1, size + 1))
        rows = await self._connection.fetch(
            f"SELECT {', '.join(shape.columns)} FROM {shape.name} WHERE ({order}) >= ({low}) AND ({order}) <= ({high}) ORDER BY {order}",
            *first,
            *last,
        )
        return [tuple(row) for row in rows]

    async def finish(self, shapes: Sequence[Shape]) -> None:
        """From here on servers may work with it."""
        async with self._connection.transaction():
            for shape in shapes:
                if shape.counted is not None:
                    last = f"(SELECT max({shape.counted}) FROM {shape.name})"
                    await self._connection.execute(
                        f"SELECT setval(pg_get_serial_sequence('{shape.name}', '{shape.counted}'), coalesce({last}, 0) + 1, false)"
                    )
            await self._connection.execute("DROP TABLE copying")
        await self._connection.execute("ANALYZE")


@asynccontextmanager
async def open_target(url: str, clock: Clock) -> AsyncIterator[Target]:
    """The database with the schema of now."""
    async with connected(url, "--to", seconds=PART_SECONDS) as connection:
        await migrate_postgres(connection, name_of(url), load_migrations("postgres"))
        yield Target(connection, name_of(url), clock)


async def refuse_half_moved(connection: Any, database: str) -> None:
    """ConfigError for a database that is not whole yet."""
    if await connection.fetchval(_IS_THERE):
        source = await connection.fetchval("SELECT source FROM copying")
        detail = (
            f"{database} is half filled from {source}: run the same `receiver migrate --from … --to …` again, which goes on where it"
            " stopped; or drop the database and make it anew"
        )
        raise ConfigError([Mistake("", "store.url", detail)])
