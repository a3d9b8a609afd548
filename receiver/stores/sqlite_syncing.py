"""Syncing beside the writer: while the log is on its way to the disk, the next transaction is written already.

SQLite itself syncs within each COMMIT (`synchronous = FULL`), and its connection stands still for that long. Here it leaves the sync to us
(`NORMAL`: https://www.sqlite.org/pragma.html#pragma_synchronous), and an answer waits for a sync that began after its commit.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from receiver.errors import StoreUnavailable

Ticket = asyncio.Future[OSError | None]

flush = getattr(os, "fdatasync", os.fsync)  # macOS has no other


class Syncer:
    """A thread that syncs the log of an opened file, as often as somebody asks; who asks meanwhile shares the next sync."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._file = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        _sync_folder(path.parent)  # the log may be new in it
        self._asked: SimpleQueue[Ticket | None] = SimpleQueue()
        self._last: Ticket | None = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="store-syncer", daemon=True)
        self._thread.start()

    def ask(self) -> Ticket:
        """From any thread: what is committed by now is on disk when this is done."""
        ticket: Ticket = self._loop.create_future()
        self._last = ticket
        self._asked.put(ticket)
        return ticket

    def get_last(self) -> Ticket | None:
        """What was asked for last, unless it is done and the disk has refused nothing."""
        last = self._last
        return None if last is None or (last.done() and not self.is_doubtful) else last

    @property
    def is_doubtful(self) -> bool:
        """The disk has refused once. Then it forgets what it was to write, and a later sync says nothing of that
        (https://lwn.net/Articles/752063): each one fails until the log has begun anew."""
        return self._error is not None

    def begin_anew(self) -> None:
        self._error = None

    async def wait(self, ticket: Ticket) -> None:
        """StoreUnavailable when nobody knows whether the disk has what was committed."""
        error = await asyncio.shield(ticket)
        if error is not None:
            raise StoreUnavailable(f"the database's log could not be synced: {error}")

    async def close(self) -> None:
        """Ends the thread when everything is synced that was asked for."""
        self._asked.put(None)
        while self._thread.is_alive():  # noqa: ASYNC110  # a thread sets no asyncio event
            await asyncio.sleep(0.001)
        os.close(self._file)

    def _work(self) -> None:
        is_over = False
        while not is_over:
            asked = [self._asked.get()]
            with suppress(Empty):
                while True:
                    asked.append(self._asked.get_nowait())
            is_over = None in asked
            if tickets := [ticket for ticket in asked if ticket is not None]:
                error = self._sync()
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(_stamp, tickets, error)

    def _sync(self) -> OSError | None:
        if self._error is None:
            try:
                flush(self._file)
            except OSError as error:
                self._error = error
        return self._error


def _stamp(tickets: list[Ticket], error: OSError | None) -> None:
    for ticket in tickets:
        ticket.set_result(error)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
