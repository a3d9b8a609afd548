"""A pooler in transaction mode, like PgBouncer's: each transaction goes to another session of the database."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

SSL, GSS = 80877103, 80877104
SESSIONS = 3
READY = (b"Z",)
FLUSHED = (b"T", b"n", b"E")  # what ends the answer to a statement that is only prepared


class Pooler:
    """The next transaction in which `lose_commit_of` is said commits, and its answer gets lost."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._socket = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.{parts.port or 5432}"
        self._database = parts.path[1:]
        self._sessions: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._greeting = b""
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0
        self.lose_commit_of: bytes | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{self._database}?sslmode=disable"

    async def open_session(self):
        reader, writer = await asyncio.open_unix_connection(self._socket)
        self._writers.append(writer)
        names = f"user\0postgres\0database\0{self._database}\0client_encoding\0utf-8\0\0".encode()
        writer.write(struct.pack("!ii", len(names) + 8, 196608) + names)
        greeting = b""
        while True:
            kind, body = await read_message(reader)
            if kind == b"S":
                greeting += pack(kind, body)
            if kind == b"Z":
                break
        self._greeting = pack(b"R", struct.pack("!i", 0)) + greeting + pack(b"K", struct.pack("!ii", 4, 2)) + pack(b"Z", b"I")
        await self._sessions.put((reader, writer))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._greet(reader, writer)
            while await self._transaction(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:  # at the end of the test
            pass
        finally:
            writer.close()
            self._serving.discard(task)

    async def _greet(self, reader, writer):
        while True:
            size, code = struct.unpack("!ii", await reader.readexactly(8))
            await reader.readexactly(size - 8)
            if code not in (SSL, GSS):
                break
            writer.write(b"N")
        writer.write(self._greeting)

    async def _transaction(self, reader, writer) -> bool:
        asked = await read_request(reader)
        if asked is None:
            return False
        server_reader, server_writer = await self._sessions.get()
        is_meant = is_lost = is_over = False
        try:
            while asked is not None and not is_over:
                server_writer.write(asked)
                is_meant |= self.lose_commit_of is not None and self.lose_commit_of in asked
                is_lost = is_meant and asked == pack(b"Q", b"COMMIT\0")
                ends = FLUSHED if asked.endswith(pack(b"H", b"")) else READY
                is_over = await forward(server_reader, None if is_lost else writer, ends) == (b"Z", b"I")
                if not is_over:
                    asked = await read_request(reader)
        finally:  # a client that went away in the middle must not take the session with it
            if is_over:
                await self._sessions.put((server_reader, server_writer))
            else:
                server_writer.close()
                await self.open_session()
        if is_lost:
            self.lose_commit_of = None
        return not is_lost

    async def close(self):
        for task in self._serving:
            task.cancel()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._serving, *(writer.wait_closed() for writer in self._writers), return_exceptions=True)


def pack(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body


async def read_message(reader):
    kind = await reader.readexactly(1)
    (size,) = struct.unpack("!i", await reader.readexactly(4))
    return kind, await reader.readexactly(size - 4)


async def read_request(reader):
    """All messages up to the one that wants an answer; None at the end."""
    asked = b""
    while True:
        kind, body = await read_message(reader)
        if kind == b"X":
            return None
        asked += pack(kind, body)
        if kind in (b"S", b"Q", b"H"):
            return asked


async def forward(reader, writer, ends):
    """The answer, and its last message."""
    while True:
        kind, body = await read_message(reader)
        if writer is not None:
            writer.write(pack(kind, body))
        if kind in ends:
            return kind, body


@asynccontextmanager
async def open_pooler(upstream: str) -> AsyncIterator[Pooler]:
    pooler = Pooler(upstream)
    for _ in range(SESSIONS):
        await pooler.open_session()
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    pooler.port = server.sockets[0].getsockname()[1]
    try:
        yield pooler
    finally:
        server.close()
        await pooler.close()
