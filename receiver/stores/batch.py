"""Group commit: many callers' pieces of work become one transaction, and each caller gets his own answer.

Tasks of their own run the batches, so a cancelled caller never leaves a transaction half way. What a batch does is the store's
matter: `run` gets the pieces, does them in one transaction and gives one answer for each.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from receiver.errors import Overloaded, StoreUnavailable, Unavailable

P = TypeVar("P")


class _Waiting(Generic[P]):
    __slots__ = ("abandoned", "answer", "piece", "weight")

    def __init__(self, piece: P, weight: int, abandoned: Callable[[Any], None] | None, answer: asyncio.Future[Any]) -> None:
        self.piece, self.weight, self.abandoned, self.answer = piece, weight, abandoned, answer


class Batcher(Generic[P]):
    """Hands what has queued up to `run` as one batch, again and again, until closed.

    `run` gets a function that takes the batch, and calls it once when it can begin, in whatever thread: the next batch is asked for while
    one is under way, and what queues meanwhile is in it. An answer that is an exception is raised for its caller alone. When `run` raises
    Unavailable, every caller of the batch hears it; when it raises anything else, its pieces are run again one by one, so that one bad
    piece harms nobody else. `tidy` runs after each batch, when its callers have their answers; it raises nothing. Of more
    than `halved_from` that wait a batch takes half: where a server does the work, the callers of one half are answered meanwhile.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], Sequence[P]]], Awaitable[Sequence[Any]]],
        *,
        most_waiting: int = 10_000,
        most_weight: int = 128 * 1024 * 1024,
        most_together: int = 500,
        halved_from: int | None = None,
        tidy: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        self._run, self._tidy = run, tidy
        self._loop = asyncio.get_running_loop()  # asked for once: it is a system call
        self._most_waiting, self._most_weight, self._most_together = most_waiting, most_weight, most_together
        self._halved_from = most_together if halved_from is None else halved_from
        self._queue: deque[_Waiting[P]] = deque()
        self._weight = 0  # bytes that wait or run
        self._is_asked = False  # for a batch that nobody has taken yet
        self._batches: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def put(self, piece: P, *, weight: int = 0, abandoned: Callable[[Any], None] | None = None) -> Any:
        """Do this piece with the next batch. Overloaded when too much waits already.

        `abandoned` gets the answer when the piece was done and its caller is no longer there.
        """
        answer = self._add(piece, weight, abandoned)
        try:
            return await answer
        except asyncio.CancelledError:
            if abandoned is not None and answer.done() and not answer.cancelled() and answer.exception() is None:
                abandoned(answer.result())  # it came in the same turn
            raise

    def put_unattended(self, piece: P) -> None:
        """Do this piece with the next batch; nobody waits for the answer, nothing is raised."""
        if not self._is_closed:
            self._add(piece, 0, None, is_bounded=False).add_done_callback(_ignore)

    def _add(self, piece: P, weight: int, abandoned: Callable[[Any], None] | None, *, is_bounded: bool = True) -> asyncio.Future[Any]:
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        if is_bounded and self._queue and (len(self._queue) >= self._most_waiting or self._weight + weight > self._most_weight):
            raise Overloaded("too many writes are waiting")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._queue.append(_Waiting(piece, weight, abandoned, answer))
        self._weight += weight
        self._ask()
        return answer

    async def close(self) -> None:
        """Finish what waits, take nothing more."""
        self._is_closed = True
        while self._batches:
            await asyncio.wait(self._batches)

    def _ask(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            batch = self._loop.create_task(self._serve(), name="store-writer")
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)

    def _take(self) -> list[_Waiting[P]]:
        """May run in another thread than `_add`: from the first line on what is added is asked for anew."""
        self._is_asked = False
        most = min(max(len(self._queue) // 2, self._halved_from), self._most_together)
        batch: list[_Waiting[P]] = []
        with suppress(IndexError):
            while len(batch) < most:
                batch.append(self._queue.popleft())
        return batch

    async def _serve(self) -> None:
        taken: list[_Waiting[P]] = []
        batch: list[_Waiting[P]] = []

        def take() -> list[P]:
            taken.extend(self._take())
            batch.extend(waiting for waiting in taken if not waiting.answer.done())  # else its caller was cancelled before the work began
            return [waiting.piece for waiting in batch]

        try:
            try:
                answers = await self._run(take)
            except Exception as error:
                if not taken:
                    take()
                answers = await self._answer_failed(batch, error)
            for waiting, answer in zip(batch, answers, strict=True):
                _give(waiting, answer)
        finally:
            self._weight -= sum(waiting.weight for waiting in taken)
            if self._queue:
                self._ask()
        if self._tidy is not None:
            await self._tidy()

    async def _answer_failed(self, batch: Sequence[_Waiting[P]], error: Exception) -> list[Any]:
        """A stranger's fault must stay his own."""
        if isinstance(error, Unavailable):
            return [copy.copy(error) for _ in batch]
        return [error] if len(batch) == 1 else [await self._run_alone(waiting.piece) for waiting in batch]

    async def _run_alone(self, piece: P) -> Any:
        try:
            (answer,) = await self._run(lambda: [piece])
        except Exception as error:  # answered to its caller
            return error
        return answer


def _give(waiting: _Waiting[Any], answer: Any) -> None:
    if waiting.answer.done():
        if waiting.abandoned is not None and not isinstance(answer, Exception):
            waiting.abandoned(answer)
    elif isinstance(answer, Exception):
        waiting.answer.set_exception(answer)
    else:
        waiting.answer.set_result(answer)


def _ignore(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()
