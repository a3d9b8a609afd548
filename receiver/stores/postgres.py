"""The store in PostgreSQL: opening it, and the parts put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import structlog

from receiver.clock import Clock
from receiver.ending import finish
from receiver.stores.migrate import load_migrations
from receiver.stores.postgres_access import POOL, STATEMENT_SECONDS, keep_session, translate
from receiver.stores.postgres_changes import LOOK_EVERY, Changes
from receiver.stores.postgres_clock import DatabaseClock
from receiver.stores.postgres_connecting import CONNECT_SECONDS, connected, name_of
from receiver.stores.postgres_deliveries import DeliveriesPart
from receiver.stores.postgres_inbox import InboxPart
from receiver.stores.postgres_keys import KeysPart
from receiver.stores.postgres_migrate import migrate_postgres
from receiver.stores.postgres_moving import refuse_half_moved
from receiver.stores.postgres_nodes import NodesPart, make_node
from receiver.stores.postgres_polls import PollsPart
from receiver.stores.postgres_pruning import PruningPart
from receiver.stores.postgres_reading import ReadingPart
from receiver.stores.postgres_settling import SettlingPart
from receiver.stores.postgres_submissions import SubmissionsPart
from receiver.stores.postgres_upkeep import UpkeepPart

# A plan is made once for a connection. One made while a table was small would read all of it when it has grown, until it is analyzed.
BY_INDEX = {"enable_seqscan": "off", "jit": "off"}

log = structlog.get_logger("receiver.stores")


Listen = Callable[[], Awaitable[Any]]


class PostgresStore(
    SubmissionsPart, InboxPart, SettlingPart, PollsPart, DeliveriesPart, ReadingPart, UpkeepPart, PruningPart, NodesPart, KeysPart
):
    """`receiver.stores.base.Store` in a PostgreSQL database that any number of nodes share."""

    def __init__(self, pool: Any, clock: DatabaseClock, listen: Listen | None, *, is_pooled: bool) -> None:
        super().__init__(pool, make_node(), clock, is_pooled=is_pooled)
        self.changes = Changes(listen, self.ask)
        self.can_notify = listen is not None
        self._closing: asyncio.Task[None] | None = None

    def committed(self) -> None:
        self.changes.written()

    async def start(self) -> None:
        await self.join()
        await self.changes.start()

    async def wait_for_change(self, timeout: timedelta) -> bool:
        if self.has_hidden:  # nobody tells when the transaction ends that they stand behind
            self.has_hidden = False
            await self.changes.wait(min(timeout, timedelta(seconds=LOOK_EVERY)))
            return True
        return await self.changes.wait(timeout)

    async def close(self) -> None:
        """Give back what this node had claimed, finish what waits. Twice is harmless."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self.leave()
        await self.changes.close()
        try:
            await asyncio.wait_for(self.pool.close(), CONNECT_SECONDS)
        except Exception:  # a database that is away answers no goodbye
            self.pool.terminate()


@asynccontextmanager
async def open_postgres(url: str, *, listen_url: str = "", clock: Clock) -> AsyncIterator[PostgresStore]:
    """Open the database as a new node, made and migrated as needed. ConfigError when it cannot be used at all."""
    store = await _open(url, listen_url, clock)
    try:
        yield store
    finally:
        await finish(asyncio.create_task(store.close()))


async def _open(url: str, listen_url: str, clock: Clock) -> PostgresStore:
    async with connected(url, "store.url") as connection:
        is_pooled = await _prepare(connection, url) or bool(listen_url)
    if listen_url:
        async with connected(listen_url, "store.listen_url") as connection:
            await connection.execute("SELECT 1")
    options: dict[str, Any] = {"statement_cache_size": 0} if is_pooled else {"server_settings": BY_INDEX}
    listen = partial(_listen, listen_url or url) if listen_url or not is_pooled else None
    pool = asyncpg.create_pool(
        url, min_size=1, max_size=POOL, reset=keep_session, timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS, **options
    )
    try:
        await pool
        store = PostgresStore(pool, DatabaseClock(clock), listen, is_pooled=is_pooled)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        pool.terminate()
        raise translate(error) from error
    try:
        await store.start()
    except BaseException:
        await store.close()
        raise
    return store


async def _prepare(connection: Any, url: str) -> bool:
    """Bring the database up to date. True when a pooler stands before it: then the process that answers is not the one that greeted us."""
    await migrate_postgres(connection, name_of(url), load_migrations("postgres"))
    await refuse_half_moved(connection, name_of(url))
    await connection.execute("BEGIN")
    found = await connection.fetchrow("SELECT current_setting('fsync'), current_setting('synchronous_commit'), pg_backend_pid()")
    await connection.execute("COMMIT")
    for name, setting in zip(("fsync", "synchronous_commit"), found, strict=False):
        if setting == "off":
            log.warning(
                "store.not_durable", setting=name, hint=f"PostgreSQL runs with {name} = off: a crash can lose what was acknowledged"
            )
    is_pooled: bool = found[2] != connection.get_server_pid()
    return is_pooled


async def _listen(url: str) -> Any:
    try:
        return await asyncpg.connect(url, timeout=CONNECT_SECONDS, statement_cache_size=0)
    except Exception as error:
        raise translate(error) from error
