"""The passes without their loops, on a real SQLite file, at a clock that stands still; it may die between any two writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from receiver.app import Clients, House, Plan
from receiver.clock import ManualClock
from receiver.model import Answer, Request
from receiver.net import ServerEvent
from receiver.services import Services
from receiver.stores.sqlite import SQLiteStore, _open, parse_url
from receiver.tokens import Tokens

SECRET = "a-secret-that-outlives-every-crash"
BOUND = 30.0  # seconds: a wait that takes longer is a failure
Reply = Callable[[Request], Awaitable[Answer]]


class Killed(BaseException):
    """The process is dead: nothing of it is written any more."""


class Client:
    """The provider as the passes see it: `reply` answers calls, and what is put into `events` comes by the stream."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.events: asyncio.Queue[ServerEvent] = asyncio.Queue()
        self.unheard = 0

    async def send(self, request: Request, *, timeout: timedelta, max_bytes: int = 0, fresh: bool = False) -> Answer:
        return await self._reply(request)

    @contextlib.asynccontextmanager
    async def stream_events(self, request: Request) -> AsyncIterator[AsyncIterator[ServerEvent]]:
        yield self._listen()

    async def _listen(self) -> AsyncIterator[ServerEvent]:
        while True:
            yield await self.events.get()
            self.unheard -= 1


class Stage:
    """One installation. `handle` stands for every configured handler."""

    def __init__(self, plan: Plan, now: datetime, reply: Reply, handle: Callable[[Any], Awaitable[None]]) -> None:
        self._plan, self._reply, self._handle = plan, reply, handle
        self.clock = ManualClock(now)
        self.tokens = Tokens([SECRET])
        self.crashes = 0
        self.is_dead = False
        self._left: int | None = None  # writes until it dies
        self._dies_before = False
        self._poison = self._puzzle = ""

    async def open(self) -> None:
        self.is_dead, self._left = False, None
        self.store: SQLiteStore = await _open(parse_url(self._plan.config.store.url))
        self._write = self.store.write
        setattr(self.store, "write", self._write_or_die)  # noqa: B010
        setattr(self.store, "load_to_settle", self._load_or_die)  # noqa: B010
        self.client = Client(self._reply)
        self._house = House(self._plan, self.store, self.tokens, self.clock, Clients(cast("Any", self.client), *[cast("Any", None)] * 2))
        self._house._dispatcher.use(dict.fromkeys(self.services.handlers, cast("Any", self)))
        await self.store.bury_dead_nodes()
        await self.services.settling.refresh_learned()

    @property
    def services(self) -> Services:
        return self._house.services

    async def handle(self, event: Any) -> None:
        await self._handle(event)

    # Dying

    def arm(self, writes: int, *, before: bool) -> None:
        """Die at this write from now on: before it is written, or when it is and nobody was told."""
        self._left, self._dies_before = writes, before

    def dies_of(self, submission_id: str) -> None:
        """From now on each process that begins to settle this submission dies."""
        self._poison = submission_id

    def errs_over(self, submission_id: str) -> None:
        """From now on whoever settles this submission meets a bug."""
        self._puzzle = submission_id

    async def _load_or_die(self, submission_ids: Sequence[str]) -> Any:
        if self._poison in submission_ids:
            self.is_dead = True
            raise Killed
        if self._puzzle in submission_ids:
            raise RuntimeError("a bug of ours")
        return await type(self.store).load_to_settle(self.store, submission_ids)

    async def _write_or_die(self, *arguments: Any, **more: Any) -> Any:
        if self._left is not None and not self.is_dead:
            self._left -= 1
            if self._left <= 0 and self._dies_before:
                self.is_dead = True
        if self.is_dead:
            raise Killed
        answer = await self._write(*arguments, **more)
        if self._left is not None and self._left <= 0:
            self.is_dead = True
            raise Killed
        return answer

    async def close(self, *, kill: bool = False) -> None:
        """Ends it; killed, it releases nothing, as after a kill -9."""
        if kill:
            self.crashes += 1
            self.is_dead = True
            os.close(self.store._node_file._file)
            self.store._node_file._file = -1
            setattr(self.store, "leave", lambda tx: None)  # noqa: B010
        with contextlib.suppress(Killed):
            await self._house._streams.close()
        await self.store.close()

    # Doing

    async def do(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """What comes of it; None where it died. After a death it is opened again, and nothing is armed."""
        async with asyncio.timeout(BOUND):
            answer = None
            try:
                answer = await work()
                await self._settle_down()
            except Killed:
                pass
            if self.is_dead:
                await self._settle_down()
                await self.close(kill=True)
                await self.open()
                return None
            self._left = None
            return answer

    async def _settle_down(self) -> None:
        """Until no work runs beside the passes, and the stream's events are taken."""
        house = self._house
        crews = house._submitter.crew, house._poller.crew
        while running := [*(task for crew in crews for task in crew._tasks), *house._dispatcher.tasks]:
            await asyncio.wait(running)
        while not self.is_dead and (self._opens_stream() or self.client.unheard or self._walks()):
            await asyncio.sleep(0.001)

    def _opens_stream(self) -> bool:
        streams = self._house._streams
        return not streams.up and any(not task.done() for task in streams._tasks.values())

    def _walks(self) -> bool:
        return any(not walk.done() for walk in self._house._streams._walks.values())

    async def run_pass(self, name: str) -> None:
        house = self._house
        passes: Mapping[str, Callable[[datetime], Awaitable[bool]]] = {
            "submit": house._submitter.run_pass,
            "settle": house._settler.run_pass,
            "poll": house._poller.run_pass,
            "stream": house._streams.run_pass,
            "dispatch": house._dispatcher.run_pass,
            "sweep": house._sweeper.run_pass,
        }
        await passes[name](self.clock.now())

    async def hear(self, event: ServerEvent) -> None:
        """An event of the stream, where it is held at present; else it is lost."""
        if self._house._streams.up:
            self.client.unheard += 1
            self.client.events.put_nowait(event)

    async def call_back(self, provider: str, token: str, body: bytes) -> bool:
        """A callback as it comes to the inbox, proof included. True: it was acknowledged."""
        inbox = self.services.inbox
        submission_id = inbox.prove(provider, token)
        await inbox.keep(provider, token, submission_id, {"content-type": "application/json"}, body)
        return True


def folder_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'receiver.db'}"
