"""How nodes hear of each other's work: a hint after commits, never within them. What is true stands in the tables.

A node tells the others once in a while, however much it wrote: a transaction that notifies holds up all others that do.
Who has a connection of his own listens; who stands behind a pooler looks at a counter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog

from receiver.ending import end
from receiver.errors import StoreUnavailable
from receiver.stores.postgres_access import translate

CHANNEL = "receiver_changes"
TELL_EVERY = 0.025  # seconds
LOOK_EVERY = 0.1
ALIVE_EVERY = 10.0  # a listening connection that died unnoticed is found by then
AGAIN_AFTER = 0.5
TELL = f"SELECT nextval('changes'), pg_notify('{CHANNEL}', '')"
LOOK = "SELECT last_value FROM changes"

log = structlog.get_logger("receiver.stores")
Ask = Callable[[str], Awaitable[int]]


class Changes:
    """What this node wrote and what the others did, as one event to wait for."""

    def __init__(self, connect: Callable[[], Awaitable[Any]] | None, ask: Ask) -> None:
        self._connect, self._ask = connect, ask  # `connect` is None where nobody can listen
        self.can_notify = connect is not None
        self._listener: Any = None
        self._beat = self._seen_beat = 0
        self._counted: int | None = None
        self._struck = asyncio.Event()
        self._to_tell = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """ConfigError or StoreUnavailable when there is nobody to listen to."""
        if self._connect is not None:
            await self._open_listener()
            self._tasks.append(asyncio.create_task(self._listen(), name="store-listener"))
        else:
            self._counted = await self._ask(LOOK)
        self._tasks.append(asyncio.create_task(self._tell(), name="store-teller"))

    async def close(self) -> None:
        await end(*self._tasks)
        if self._to_tell.is_set():  # what we gave back can be taken at once
            with suppress(StoreUnavailable):
                await self._tell_once(TELL)
        await self._drop_listener()

    def written(self) -> None:
        """This node wrote something."""
        self._strike()
        self._to_tell.set()

    async def wait(self, timeout: timedelta) -> bool:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout.total_seconds()
        while True:
            if self._listener is None:
                await self._look()
            if self._beat != self._seen_beat:
                self._seen_beat = self._beat
                return True
            left = ends_at - loop.time()
            if left <= 0:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(left if self._listener is not None else min(left, LOOK_EVERY)):
                    await self._struck.wait()

    def _strike(self) -> None:
        self._beat += 1
        self._struck.set()
        self._struck = asyncio.Event()

    async def _look(self) -> None:
        counted = await self._ask(LOOK)
        if counted != self._counted:
            self._counted = counted
            self._beat += 1

    # Telling

    async def _tell(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ALIVE_EVERY):
                    await self._to_tell.wait()
                statement = TELL
            except TimeoutError:
                statement = LOOK
            self._to_tell.clear()
            try:
                await self._tell_once(statement)
            except StoreUnavailable:
                self._to_tell.set()
                await asyncio.sleep(AGAIN_AFTER)
            await asyncio.sleep(TELL_EVERY)

    async def _tell_once(self, statement: str) -> None:
        listener = self._listener
        if listener is not None:
            try:
                await listener.execute(statement, timeout=LOOK_EVERY * 50)  # who listens need not know the count
            except Exception as error:
                listener.terminate()
                raise translate(error) from error
            return
        counted = await self._ask(statement)
        if self._counted is not None and counted == self._counted + 1:  # nobody else came in between
            self._counted = counted

    # Listening

    async def _open_listener(self) -> None:
        assert self._connect is not None
        connection = await self._connect()
        own = connection.get_server_pid()

        def heard(_: Any, pid: int, channel: str, payload: object) -> None:
            if pid != own:  # what we wrote ourselves we know
                self._strike()

        try:
            await connection.execute("SET synchronous_commit = off")  # a hint may be lost, and while one is written all others wait
            await connection.add_listener(CHANNEL, heard)
        except BaseException:
            connection.terminate()
            raise
        self._listener = connection
        self._strike()  # what happened meanwhile was not heard

    async def _listen(self) -> None:
        """Keep a listening connection open; while there is none, changes are looked for."""
        while True:
            lost = asyncio.Event()
            listener = self._listener
            if listener is not None:
                listener.add_termination_listener(lambda _, lost=lost: lost.set())
                if not listener.is_closed():
                    await lost.wait()
                self._listener = None
                self._strike()
                log.warning("store.listener_lost")
            await asyncio.sleep(AGAIN_AFTER)
            with suppress(StoreUnavailable):
                await self._open_listener()

    async def _drop_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            try:
                await listener.close(timeout=2)
            except Exception:  # it is gone either way
                listener.terminate()
