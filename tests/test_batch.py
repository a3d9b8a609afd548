"""The group-commit queue: who gets which answer."""

from __future__ import annotations

import asyncio

import pytest

from receiver.errors import Overloaded, StoreUnavailable
from receiver.stores import batch
from receiver.stores.batch import Batcher


class Runner:
    """Doubles numbers; notes its batches; can be held, and can fail as told."""

    def __init__(self):
        self.batches = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.turn = asyncio.Lock()

    async def run(self, take):
        async with self.turn:
            pieces = take()
            self.batches.append(list(pieces))
            await self.gate.wait()
        if "outage" in pieces:
            raise StoreUnavailable("disk full", retry_after=7)
        if "bad" in pieces:
            raise ValueError("bad piece")
        return [piece if isinstance(piece, Exception) else piece * 2 for piece in pieces]


@pytest.fixture
def runner():
    return Runner()


@pytest.fixture
async def batcher(runner):
    batcher = Batcher(runner.run, most_waiting=5, most_weight=100, most_together=3)
    yield batcher
    runner.gate.set()
    await batcher.close()


async def fill(batcher, *pieces, **more):
    """Puts all of them into the queue and returns their tasks."""
    tasks = [asyncio.create_task(batcher.put(piece, **more)) for piece in pieces]
    await asyncio.sleep(0)
    return tasks


async def hold(runner, batcher):
    """Keeps a first batch under way, so that what follows queues."""
    runner.gate.clear()
    (first,) = await fill(batcher, 0)
    while not runner.batches:
        await asyncio.sleep(0)
    return first


async def test_what_queues_during_a_batch_becomes_the_next(runner, batcher):
    first = await hold(runner, batcher)
    rest = await fill(batcher, 1, 2, 3, 4)
    runner.gate.set()
    assert await asyncio.gather(first, *rest) == [0, 2, 4, 6, 8]
    assert runner.batches == [[0], [1, 2, 3], [4]]


async def test_where_a_server_does_the_work_a_batch_takes_half_of_many(runner):
    batcher = Batcher(runner.run, most_together=100, halved_from=3)
    first = await hold(runner, batcher)
    rest = await fill(batcher, *range(1, 11))
    runner.gate.set()
    await asyncio.gather(first, *rest)
    assert [len(batch) for batch in runner.batches] == [1, 5, 3, 2]
    await batcher.close()


async def test_an_answer_that_is_an_error_is_raised_for_its_caller_alone(batcher):
    answers = await asyncio.gather(*await fill(batcher, 1, KeyError("mine"), 2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [int, KeyError, int]


async def test_a_bad_piece_fails_alone_after_its_batch_is_run_again_piece_by_piece(runner, batcher):
    first = await hold(runner, batcher)
    rest = await fill(batcher, 1, "bad", 3)
    runner.gate.set()
    _, *answers = await asyncio.gather(first, *rest, return_exceptions=True)
    assert [answers[0], answers[2]] == [2, 6]
    assert isinstance(answers[1], ValueError)
    assert runner.batches == [[0], [1, "bad", 3], [1], ["bad"], [3]]


async def test_an_outage_is_heard_by_the_whole_batch_and_not_tried_again(runner, batcher):
    first = await hold(runner, batcher)
    rest = await fill(batcher, 1, "outage", 3)
    runner.gate.set()
    _, *answers = await asyncio.gather(first, *rest, return_exceptions=True)
    assert [(type(answer), answer.retry_after) for answer in answers] == [(StoreUnavailable, 7)] * 3
    assert len(set(map(id, answers))) == 3
    assert len(runner.batches) == 2


async def test_too_many_or_too_heavy_pieces_are_refused(runner, batcher):
    first = await hold(runner, batcher)
    waiting = await fill(batcher, 1, 2, 3, weight=30)
    with pytest.raises(Overloaded):
        await batcher.put(4, weight=30)
    waiting += await fill(batcher, 4, 5)
    with pytest.raises(Overloaded):
        await batcher.put(6)
    runner.gate.set()
    await asyncio.gather(first, *waiting)
    assert await batcher.put(6, weight=90) == 12


async def test_one_piece_heavier_than_all_that_may_wait_is_still_done(batcher):
    assert await batcher.put(1, weight=1000) == 2


async def test_a_caller_cancelled_before_its_batch_is_left_out(runner, batcher):
    first = await hold(runner, batcher)
    gone, stays = await fill(batcher, 1, 2)
    gone.cancel()
    await asyncio.wait([gone])
    runner.gate.set()
    assert await asyncio.gather(first, stays) == [0, 4]
    assert runner.batches == [[0], [2]]


async def test_an_answer_that_finds_nobody_is_handed_to_abandoned(runner, batcher):
    left = []
    runner.gate.clear()
    (caller,) = await fill(batcher, 21, abandoned=left.append)
    while not runner.batches:
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    runner.gate.set()
    assert await batcher.put(1) == 2
    assert left == [42]


async def test_an_answer_is_handed_to_abandoned_when_its_caller_is_cancelled_in_the_same_turn(batcher, monkeypatch):
    left = []
    caller = asyncio.create_task(batcher.put(21, abandoned=left.append))
    give = batch._give

    def give_and_cancel(*given):
        give(*given)
        caller.cancel()  # it has its answer, and has not heard of it

    monkeypatch.setattr(batch, "_give", give_and_cancel)
    await asyncio.wait([caller])
    assert (caller.cancelled(), left) == (True, [42])


async def test_the_next_batch_is_asked_for_while_one_is_under_way():
    """Who runs them, a thread say, takes it without a word from the loop."""
    taking, ended = [], asyncio.Event()

    async def run(take):
        taking.append(take)
        await ended.wait()
        return [piece * 2 for piece in take()] if len(taking) > 1 else first

    batcher = Batcher(run)
    tasks = await fill(batcher, 1)
    while not taking:
        await asyncio.sleep(0)
    first = [piece * 2 for piece in taking[0]()]
    tasks += await fill(batcher, 2)
    while len(taking) < 2:
        await asyncio.sleep(0)
    tasks += await fill(batcher, 3)
    assert len(taking) == 2  # one at most waits to begin, and it takes what comes until then
    ended.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6]
    await batcher.close()


async def test_what_cannot_begin_fails_for_all_who_wait():
    async def run(take):
        raise StoreUnavailable("no connection")

    batcher = Batcher(run)
    answers = await asyncio.gather(batcher.put(1), batcher.put(2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 2
    await batcher.close()


async def test_closing_finishes_what_waits_and_takes_nothing_more(runner):
    batcher = Batcher(runner.run)
    tasks = await fill(batcher, 1, 2)
    await batcher.close()
    assert await asyncio.gather(*tasks) == [2, 4]
    with pytest.raises(StoreUnavailable):
        await batcher.put(3)


async def test_what_tidies_up_holds_up_no_answer(runner):
    may_end = asyncio.Event()
    batcher = Batcher(runner.run, tidy=may_end.wait)
    try:
        async with asyncio.timeout(10):
            assert await batcher.put(1) == 2  # while the tidying goes on
    finally:
        may_end.set()
        await batcher.close()
