"""A wire to PostgreSQL that counts how often somebody asked and waited for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, urlsplit

ASKS = (b"Q", b"S", b"H")  # a simple query; the end of an extended one; what is only prepared


class Wire:
    """`url` leads to the same database, by one connection for each of the caller's."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._socket = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.{parts.port or 5432}"
        self._database = parts.path[1:]
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = self.asked = 0

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{self._database}?sslmode=disable"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        answers, questions = await asyncio.open_unix_connection(self._socket)
        try:
            back = asyncio.create_task(carry(answers, writer))
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._carry_questions(reader, questions)
            back.cancel()
            await asyncio.wait([back])
        finally:
            for end in (questions, writer):
                end.close()
            self._tasks.discard(task)

    async def _carry_questions(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = b""  # the first message has none
        while True:
            size = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(size, "big") - 4)
            self.asked += kind in ASKS
            writer.write(kind + size + body)
            await writer.drain()
            kind = await reader.readexactly(1)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()  # whoever said goodbye waits for that


@asynccontextmanager
async def open_wire(upstream: str) -> AsyncIterator[Wire]:
    wire = Wire(upstream)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        await wire.close()
