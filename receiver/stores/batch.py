"""Group commit: many callers' pieces of work become one transaction, and each caller gets his own answer.

One task runs the batches, so a cancelled caller never leaves a transaction half way. What a batch does is the store's
matter: `run` gets the pieces, does them in one transaction and gives one answer for each.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from receiver.errors import Overloaded, StoreUnavailable, Unavailable

P = TypeVar("P")


class _Waiting(Generic[P]):
    __slots__ = ("abandoned", "answer", "piece", "weight")

    def __init__(self, piece: P, weight: int, abandoned: Callable[[Any], None] | None, answer: asyncio.Future[Any]) -> None:
        self.piece, self.weight, self.abandoned, self.answer = piece, weight, abandoned, answer


class Batcher(Generic[P]):
    """Hands what has queued up to `run` as one batch, again and again, until closed.

    An answer that is an exception is raised for its caller alone. When `run` raises Unavailable, every caller of the batch
    hears it; when it raises anything else, its pieces are run again one by one, so that one bad piece harms nobody else.
    `tidy` runs after each batch, when its callers have their answers; it raises nothing.
    """

    def __init__(
        self,
        run: Callable[[Sequence[P]], Awaitable[Sequence[Any]]],
        *,
        most_waiting: int = 10_000,
        most_weight: int = 128 * 1024 * 1024,
        most_together: int = 500,
        tidy: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        self._run, self._tidy = run, tidy
        self._most_waiting, self._most_weight, self._most_together = most_waiting, most_weight, most_together
        self._queue: deque[_Waiting[P]] = deque()
        self._weight = 0  # bytes that wait or run
        self._filled = asyncio.Event()
        self._is_closed = False
        self._task = asyncio.create_task(self._work(), name="store-writer")

    async def put(self, piece: P, *, weight: int = 0, abandoned: Callable[[Any], None] | None = None) -> Any:
        """Do this piece with the next batch. Overloaded when too much waits already.

        `abandoned` gets the answer when the piece was done and its caller is no longer there.
        """
        answer = self._add(piece, weight, abandoned)
        return await answer

    def put_unattended(self, piece: P) -> None:
        """Do this piece with the next batch; nobody waits for the answer, nothing is raised."""
        if not self._is_closed:
            self._add(piece, 0, None, is_bounded=False).add_done_callback(_ignore)

    def _add(self, piece: P, weight: int, abandoned: Callable[[Any], None] | None, *, is_bounded: bool = True) -> asyncio.Future[Any]:
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        if is_bounded and self._queue and (len(self._queue) >= self._most_waiting or self._weight + weight > self._most_weight):
            raise Overloaded("too many writes are waiting")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(piece, weight, abandoned, answer))
        self._weight += weight
        self._filled.set()
        return answer

    async def close(self) -> None:
        """Finish what waits, take nothing more."""
        self._is_closed = True
        self._filled.set()
        await asyncio.shield(self._task)

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            batch = self._take()
            if batch:
                await self._serve(batch)
                if self._tidy is not None:
                    await self._tidy()
            elif self._is_closed:
                return
            else:
                self._filled.clear()

    def _take(self) -> list[_Waiting[P]]:
        batch: list[_Waiting[P]] = []
        while self._queue and len(batch) < self._most_together:
            waiting = self._queue.popleft()
            if waiting.answer.done():  # its caller was cancelled before the work began
                self._weight -= waiting.weight
            else:
                batch.append(waiting)
        return batch

    async def _serve(self, batch: list[_Waiting[P]]) -> None:
        try:
            try:
                answers = await self._run([waiting.piece for waiting in batch])
            except Unavailable as error:
                answers = [copy.copy(error) for _ in batch]
            except Exception as error:  # a stranger's fault must stay his own
                answers = [error] if len(batch) == 1 else [await self._run_alone(waiting.piece) for waiting in batch]
            for waiting, answer in zip(batch, answers, strict=True):
                _give(waiting, answer)
        finally:
            self._weight -= sum(waiting.weight for waiting in batch)

    async def _run_alone(self, piece: P) -> Any:
        try:
            (answer,) = await self._run([piece])
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
