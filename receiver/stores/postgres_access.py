"""The PostgreSQL database: its connections, its writing lanes, and what its errors mean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import asyncpg
import structlog

from receiver.errors import Overloaded, ReceiverError, StoreUnavailable
from receiver.stores.batch import Batcher
from receiver.stores.postgres_clock import DatabaseClock
from receiver.stores.postgres_rows import clean
from receiver.times import from_micros, to_micros

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

LANES = ("intake", "claiming", "settling", "delivering", "upkeep", "pruning")  # each writes one transaction at a time
LAZY = frozenset({"claiming"})  # what a crash of the database may forget: a claim is made again
READERS = 3
POOL = len(LANES) + READERS + 1  # and the heartbeat
MOST_READS = 1_000  # waiting for a connection
WAIT_SECONDS = 10.0  # for a connection
STATEMENT_SECONDS = 30.0
HALVED_FROM = 32  # pieces of a lane that wait
TRIES = 3  # of a transaction that got into another's way

# A node that was stopped in the middle of a transaction must not hold its locks for long.
BEGIN = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '10s'"
BEGIN_LAZY = f"{BEGIN}; SET LOCAL synchronous_commit = off"
BEGIN_VIEW = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

# Classes of https://www.postgresql.org/docs/current/errcodes-appendix.html
OUTAGES = ("08", "53", "57", "58", "F0", "XX", "25006", "25P03", "40", "55P03")
CROSSED = ("40001", "40P01")  # serialization failure, deadlock: again from the beginning

log = structlog.get_logger("receiver.stores")


def translate(error: Exception) -> Exception:
    """StoreUnavailable for what is nobody's fault here, else the error itself."""
    if isinstance(error, asyncpg.PostgresError):
        is_outage = (error.sqlstate or "").startswith(OUTAGES)
    else:
        is_outage = isinstance(error, OSError | TimeoutError | EOFError | asyncpg.InterfaceError | asyncpg.InternalClientError)
    return StoreUnavailable(f"the database cannot be used now: {str(error) or type(error).__name__}") if is_outage else error


async def keep_session(connection: Any) -> None:
    """In place of asyncpg's reset on each release: our statements never change the session."""
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")


class Tx:
    """What a piece of work reads and writes with."""

    def __init__(self, connection: Any, node: str, shift: int) -> None:
        self._connection = connection
        self.node, self.shift = node, shift
        self.has_changed = False
        self.events = 0  # written in this transaction

    async def look(self, statement: str, *values: Any) -> list[Any]:
        rows: list[Any] = await self._connection.fetch(statement, *map(clean, values))
        return rows

    async def change(self, statement: str, *values: Any) -> list[Any]:
        """The rows that a writing statement returns; one that returns none has changed nothing."""
        rows = await self.look(statement, *values)
        self.has_changed |= bool(rows)
        return rows

    async def execute(self, statement: str, *values: Any) -> int:
        """How many rows were written."""
        status: str = await self._connection.execute(statement, *map(clean, values))
        count = int(status.rpartition(" ")[2])
        self.has_changed |= count > 0
        return count

    def to_db(self, at: datetime) -> int:
        return to_micros(at) + self.shift

    def from_db(self, at: int) -> datetime:
        return from_micros(at - self.shift)


@dataclass(frozen=True, eq=False)
class Work(Generic[A, R]):
    """Something to do in a transaction, for many callers at once; on which lane, and whether others need to hear of it."""

    do: Callable[[Tx, Sequence[A]], Awaitable[Sequence[R | ReceiverError]]]
    lane: str
    turn: tuple[int, str]  # among the others of a transaction: everyone locks in one order
    is_quiet: bool
    is_single: bool


def work(
    lane: str, *, turn: int = 0, is_quiet: bool = False, is_single: bool = False
) -> Callable[[Callable[[Tx, Sequence[A]], Awaitable[Sequence[R | ReceiverError]]]], Work[A, R]]:
    """`is_single`: it is one statement, which is a transaction by itself; what takes it back needs no answer."""
    return lambda do: Work(do, lane, (turn, do.__name__), is_quiet, is_single)


def each(lane: str, *, turn: int = 0, is_quiet: bool = False) -> Callable[[Callable[[Tx, A], Awaitable[R | ReceiverError]]], Work[A, R]]:
    """For work that gains nothing from being done for many at once."""

    def wrap(do: Callable[[Tx, A], Awaitable[R | ReceiverError]]) -> Work[A, R]:
        async def many(tx: Tx, arguments: Sequence[A]) -> list[R | ReceiverError]:
            return [await do(tx, argument) for argument in arguments]

        return Work(many, lane, (turn, do.__name__), is_quiet, is_single=False)

    return wrap


Undo = Callable[[R], tuple[Work[Any, Any], Any]]


class _Piece(Generic[A, R]):
    __slots__ = ("argument", "undo", "work")

    def __init__(self, work: Work[A, R], argument: A, undo: Undo[R] | None = None) -> None:
        self.work, self.argument, self.undo = work, argument, undo

    def undoing(self, answer: R) -> _Piece[Any, Any] | None:
        return None if self.undo is None or isinstance(answer, Exception) else _Piece(*self.undo(answer))


Take = Callable[[], Sequence[_Piece[Any, Any]]]


class _Lane:
    """A queue of its own, so that work of one kind never waits for another's commit."""

    def __init__(self, name: str, run: Callable[[_Lane, Take], Awaitable[list[Any]]]) -> None:
        self.name = name
        self.begin = BEGIN_LAZY if name in LAZY else BEGIN
        self.doubtful: list[_Piece[Any, Any]] = []  # what takes back a transaction whose end nobody knows
        self.batcher: Batcher[_Piece[Any, Any]] = Batcher(lambda take: run(self, take), halved_from=HALVED_FROM)
        self.turn = asyncio.Lock()


class Access:
    """One opened database: writes go through a few queues, each to one transaction at a time; reads beside them."""

    def __init__(self, pool: Any, node: str, clock: DatabaseClock, *, is_pooled: bool) -> None:
        self.pool, self.node, self.clock = pool, node, clock
        self._is_pooled = is_pooled  # a pooler may give each transaction another session
        self._is_closed = False
        self._reads = 0
        self._readers = asyncio.Semaphore(READERS)
        self._lanes = {name: _Lane(name, self._run) for name in LANES}

    def committed(self) -> None:
        """Something was written that others may wait for."""

    async def write(self, work: Work[A, R], argument: A, *, weight: int = 0, undo: Undo[R] | None = None) -> R:
        """Do this in the next transaction of its lane; answered when it is on disk.

        `undo` says what takes the result back when its caller cannot know of it: what nobody knows of must not stay claimed.
        """
        batcher = self._lanes[work.lane].batcher
        piece = _Piece(work, argument, undo)

        def abandoned(answer: R) -> None:
            undoing = piece.undoing(answer)
            if undoing is not None:
                batcher.put_unattended(undoing)

        answer: R = await batcher.put(piece, weight=weight, abandoned=abandoned)
        return answer

    async def read(self, look: Callable[[Tx], Awaitable[T]], *, is_view: bool = False) -> T:
        """Run this; with `is_view` all its statements see the same state of the database."""
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        if self._reads >= MOST_READS:
            raise Overloaded("too many reads are waiting")
        self._reads += 1
        try:
            async with self._readers, self.session() as connection:
                tx = Tx(connection, self.node, self.clock.shift)
                if not (is_view or self._is_pooled):
                    return await look(tx)
                await connection.execute(BEGIN_VIEW)
                found = await look(tx)
                await connection.execute("COMMIT")
                return found
        finally:
            self._reads -= 1

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        """A connection of the pool; its errors are translated."""
        try:
            async with self.pool.acquire(timeout=WAIT_SECONDS) as connection:
                yield connection
        except Exception as error:
            translated = translate(error)
            if translated is error:
                raise
            raise translated from error

    async def ask(self, statement: str, *values: Any) -> Any:
        """The one value that a statement gives, beside all lanes."""
        async with self.session() as connection:
            if not self._is_pooled:
                return await connection.fetchval(statement, *values)
            await connection.execute(BEGIN)
            answer = await connection.fetchval(statement, *values)
            await connection.execute("COMMIT")
            return answer

    async def _run(self, lane: _Lane, take: Take) -> list[Any]:
        async with lane.turn:
            pieces = take()
            return await self._run_taken(lane, pieces) if pieces else []

    async def _run_taken(self, lane: _Lane, pieces: Sequence[_Piece[Any, Any]]) -> list[Any]:
        for left in reversed(range(TRIES)):
            try:
                return await self._run_once(lane, pieces)
            except StoreUnavailable as error:
                if left == 0 or getattr(error.__cause__, "sqlstate", None) not in CROSSED:
                    raise
                log.warning("store.crossed", lane=lane.name, error=str(error))
        raise AssertionError

    async def _run_once(self, lane: _Lane, pieces: Sequence[_Piece[Any, Any]]) -> list[Any]:
        async with self.session() as connection:
            tx = Tx(connection, self.node, self.clock.shift)
            if all(piece.work.is_single for piece in pieces) and not (self._is_pooled or lane.doubtful):
                answers = await self._do_single(lane, tx, pieces)
            else:
                answers = await self._transact(lane, connection, tx, pieces)
        if tx.has_changed and not all(piece.work.is_quiet for piece in pieces):
            self.committed()
        return answers

    async def _do_single(self, lane: _Lane, tx: Tx, pieces: Sequence[_Piece[Any, Any]]) -> list[Any]:
        try:
            return await _do(tx, pieces)
        except Exception:  # it may have been done all the same
            lane.doubtful += [_Piece(*piece.undo(None)) for piece in pieces if piece.undo is not None]
            raise

    async def _transact(self, lane: _Lane, connection: Any, tx: Tx, pieces: Sequence[_Piece[Any, Any]]) -> list[Any]:
        await connection.execute(lane.begin)
        try:
            for doubtful in lane.doubtful:
                await _do(tx, [doubtful])
            answers = await _do(tx, pieces)
        except Exception:
            with suppress(Exception):  # a connection that is gone has nothing to roll back
                await connection.execute("ROLLBACK")
            raise
        try:
            await connection.execute("COMMIT")
        except Exception:  # it may have been done all the same
            undoing = [piece.undoing(answer) for piece, answer in zip(pieces, answers, strict=True)]
            lane.doubtful += [piece for piece in undoing if piece is not None]
            raise
        lane.doubtful.clear()
        return answers

    async def write_last(self, work: Work[None, None]) -> None:
        """Finish what waits, take nothing more, then do this."""
        self._is_closed = True
        await asyncio.gather(*(lane.batcher.close() for lane in self._lanes.values()))
        await self._run(self._lanes[work.lane], lambda: [_Piece(work, None)])


async def _do(tx: Tx, pieces: Sequence[_Piece[Any, Any]]) -> list[Any]:
    """All pieces of one kind at once; what waits together has no order among itself."""
    by_work: dict[Work[Any, Any], list[int]] = {}
    for index, piece in enumerate(pieces):
        by_work.setdefault(piece.work, []).append(index)
    answers: list[Any] = [None] * len(pieces)
    for one, indexes in sorted(by_work.items(), key=lambda item: item[0].turn):
        for index, answer in zip(indexes, await one.do(tx, [pieces[index].argument for index in indexes]), strict=True):
            answers[index] = answer
    return answers
