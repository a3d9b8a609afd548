"""From a claim to what is written of it, beside what the stories tell."""

import asyncio
import gc
import os
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import pytest

from receiver.clock import SystemClock
from receiver.config import HandlerConfig
from receiver.counters import Counters
from receiver.dispatcher import Dispatcher
from receiver.errors import RetryLater
from receiver.masking import Masker
from receiver.model import DeliveryState
from receiver.runs import Run
from receiver.settling import claim
from receiver.stores import open_store
from receiver.stores.terms import DeliveryFilter, Settlement
from tests.factories import make_delivery, make_event, make_running_family

SOON = timedelta(seconds=10)


class Handler:
    def __init__(self, handle):
        self.handle = handle


@asynccontextmanager
async def dispatching(folder, handle, count=1, concurrency=10):
    """A dispatcher over a store with so many deliveries of jobs of their own."""
    clock = SystemClock()
    async with open_store(f"sqlite:///{folder}/receiver.db", clock=clock) as store:
        families = [make_running_family() for _ in range(count)]
        for family in families:
            await store.create_submission(family)
            event = make_event(family.jobs[0])
            draft = Settlement(submission=family.submission, version=0, events=(event,), deliveries=(make_delivery(event, "tell"),))
            assert await store.settle([draft]) == [True]
        config = HandlerConfig(name="tell", use="x:y", events=("*",), concurrency=concurrency)
        wakes = asyncio.Event()
        dispatcher = Dispatcher(store, (config,), clock, Counters(store), Masker(()), cast("Any", None), wakes.set)
        dispatcher.use({"tell": cast("Any", Handler(handle))})
        yield dispatcher, store, wakes


async def states(store):
    page = await store.read_deliveries(DeliveryFilter(), 100, None)
    return sorted(delivery.state for delivery in page.rows)


async def until_idle(dispatcher):
    async with asyncio.timeout(10):
        while tasks := dispatcher.tasks:
            await asyncio.wait(tasks)


async def nothing(event):
    pass


async def test_what_ends_together_is_written_together(tmp_path, monkeypatch):
    async with dispatching(tmp_path, nothing, 8) as (dispatcher, store, _):
        calls = []
        finish = store.finish_deliveries

        async def count(deliveries):
            calls.append(len(deliveries))
            return await finish(deliveries)

        monkeypatch.setattr(store, "finish_deliveries", count)
        await dispatcher.run_pass(SystemClock().now())
        await until_idle(dispatcher)
        assert (calls, await states(store)) == ([8], [DeliveryState.DONE] * 8)


async def test_a_run_that_was_written_leaves_nothing_for_the_garbage_collector(tmp_path):
    async with dispatching(tmp_path, nothing, 8) as (dispatcher, store, _):
        gc.collect()
        gc.disable()
        try:
            await dispatcher.run_pass(SystemClock().now())
            await until_idle(dispatcher)
            await dispatcher.finish(SOON)
            assert await states(store) == [DeliveryState.DONE] * 8
            assert [each for each in gc.get_objects() if isinstance(each, Run)] == []
        finally:
            gc.enable()


async def test_one_end_that_cannot_be_written_harms_no_other(tmp_path, monkeypatch):
    async with dispatching(tmp_path, nothing, 4) as (dispatcher, store, _):
        finish = store.finish_deliveries
        (poison, *_) = (await store.read_deliveries(DeliveryFilter(), 1, None)).rows

        async def err(deliveries):
            if any(delivery.id == poison.id for delivery in deliveries):
                raise ValueError("a bug of ours")
            return await finish(deliveries)

        monkeypatch.setattr(store, "finish_deliveries", err)
        await dispatcher.run_pass(SystemClock().now())
        await until_idle(dispatcher)
        assert await states(store) == [DeliveryState.DONE] * 3 + [DeliveryState.RUNNING]


class Unreadable(Exception):
    def __str__(self):
        raise ValueError("nor this")


class Careless(RetryLater):
    def __init__(self):  # without what RetryLater keeps
        pass


ODD = {
    "half a character": lambda: ValueError("\ud83d"),
    "unreadable": Unreadable,
    "careless": Careless,
    "no number": lambda: RetryLater("soon"),
    "NaN": lambda: RetryLater(float("nan")),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
async def test_an_exception_that_cannot_be_read_is_a_failure_of_its_own_run_alone(tmp_path, make):
    seen = []

    async def handle(event):
        seen.append(event)
        if len(seen) == 1:
            raise make()

    async with dispatching(tmp_path, handle, 3) as (dispatcher, store, _):
        await dispatcher.run_pass(SystemClock().now())
        await until_idle(dispatcher)
        assert await states(store) == [DeliveryState.DONE, DeliveryState.DONE, DeliveryState.RETRYING]
        failed = next(delivery for delivery in (await store.read_deliveries(DeliveryFilter(), 9, None)).rows if delivery.last_error)
        assert failed.last_error.split(":")[0] in {"RuntimeError", "ValueError"}


async def test_seconds_that_come_from_a_header_are_a_number_all_the_same():
    assert RetryLater("30").seconds == 30


@pytest.mark.parametrize("leave", [SystemExit, KeyboardInterrupt])
async def test_a_handler_that_ends_the_process_ends_only_its_own_run(tmp_path, leave):
    async def handle(event):
        raise leave

    async with dispatching(tmp_path, handle) as (dispatcher, store, _):
        await dispatcher.run_pass(SystemClock().now())
        await until_idle(dispatcher)
        (delivery,) = (await store.read_deliveries(DeliveryFilter(), 9, None)).rows
        assert (delivery.state, delivery.last_error) == (
            DeliveryState.RETRYING,
            "RuntimeError: the handler tried to end the process",
        )


@pytest.mark.parametrize(("ends", "is_dead"), [(1, False), (8, False), (12, False), (13, True)])
async def test_what_ends_our_process_each_time_is_dead_in_the_end_and_what_only_met_an_end_is_run(tmp_path, ends, is_dead):
    """The handler may have eight attempts; who has one must not lose it to an end that was not his."""
    begun = []

    async def handle(event):
        begun.append(event)

    def die(store):
        """As after a kill -9: it releases nothing, and its lock is gone."""
        os.close(store._node_file._file)
        store._node_file._file = -1
        store.leave = lambda tx: None

    for _ in range(ends):
        async with dispatching(tmp_path, handle, 0 if begun else 1) as (dispatcher, store, _):
            await store.bury_dead_nodes()
            (claimed,) = await store.claim_deliveries(SystemClock().now(), {"tell": 1})
            begun.append(claimed)
            die(store)
    begun.clear()
    async with dispatching(tmp_path, handle, 0) as (dispatcher, store, _):
        await store.bury_dead_nodes()
        await dispatcher.run_pass(SystemClock().now())
        await until_idle(dispatcher)
        dead = (await store.read_deliveries(DeliveryFilter(state=DeliveryState.DEAD), 9, None)).rows
        assert (len(begun), len(dead)) == ((0, 1) if is_dead else (1, 0))
        assert [delivery.last_error for delivery in dead] == [
            "PermanentError: it was begun 13 times, and each time our process ended before it did"
        ] * is_dead


async def test_a_full_handler_wakes_the_loop_when_a_run_ends(tmp_path):
    async with dispatching(tmp_path, nothing, 3, concurrency=2) as (dispatcher, store, wakes):
        for left in (1, 0):
            wakes.clear()
            await dispatcher.run_pass(SystemClock().now())
            await until_idle(dispatcher)
            assert wakes.is_set() == bool(left)
        assert await states(store) == [DeliveryState.DONE] * 3


async def test_what_is_cut_off_by_our_end_counts_as_no_attempt(tmp_path):
    async def hang(event):
        await asyncio.Event().wait()

    async with dispatching(tmp_path, hang, 2) as (dispatcher, store, _):
        await dispatcher.run_pass(SystemClock().now())
        await dispatcher.finish(timedelta(0))
        page = await store.read_deliveries(DeliveryFilter(), 9, None)
        assert [(delivery.state, delivery.attempts) for delivery in page.rows] == [(DeliveryState.PENDING, 0)] * 2


async def test_what_is_claimed_while_we_end_is_given_back(tmp_path):
    calls = []

    async def note(event):
        calls.append(event.id)

    async with dispatching(tmp_path, note, 2) as (dispatcher, store, _):
        claiming = asyncio.create_task(dispatcher.run_pass(SystemClock().now()))
        await asyncio.sleep(0)
        await dispatcher.finish(SOON)
        await claiming
        assert (await states(store), calls) == ([DeliveryState.PENDING] * 2, [])


async def make_claimed(store, reserved):
    """What a settlement makes, claimed as far as there is room."""
    family = make_running_family()
    await store.create_submission(family)
    event = make_event(family.jobs[0])
    draft = Settlement(submission=family.submission, version=0, events=(event,), deliveries=(make_delivery(event, "tell"),))
    _, claimed = await store.settle_and_claim(claim([draft], reserved))
    return claimed


async def test_what_is_claimed_with_its_write_is_run_without_a_claim(tmp_path):
    async with dispatching(tmp_path, nothing, 0) as (dispatcher, store, wakes):
        reserved = dispatcher.reserve({"tell": 1, "somebody else's": 1})
        assert reserved == {"tell": 1}
        await dispatcher.run(reserved, await make_claimed(store, reserved))
        await until_idle(dispatcher)
        assert (await states(store), wakes.is_set()) == ([DeliveryState.DONE], False)


async def test_room_is_reserved_once_until_it_is_given_back(tmp_path):
    async with dispatching(tmp_path, nothing, 0, concurrency=3) as (dispatcher, _, wakes):
        assert dispatcher.reserve({"tell": 2}) == {"tell": 2}
        assert dispatcher.reserve({"tell": 2}) == {"tell": 1}
        assert dispatcher.reserve({"tell": 1}) == {}
        await dispatcher.run({"tell": 2}, ())
        assert wakes.is_set()  # somebody got less than he wanted
        await dispatcher.run_pass(SystemClock().now())
        assert dispatcher.reserve({"tell": 3}) == {"tell": 2}


async def test_a_running_handler_leaves_no_more_room_than_its_concurrency(tmp_path):
    at_work = 0
    most = 0
    go_on = asyncio.Event()

    async def hang(event):
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await go_on.wait()
        at_work -= 1

    async with dispatching(tmp_path, hang, 3, concurrency=4) as (dispatcher, store, _):
        for _ in range(3):
            reserved = dispatcher.reserve({"tell": 1})
            await dispatcher.run(reserved, await make_claimed(store, reserved))
            await dispatcher.run_pass(SystemClock().now())
        go_on.set()
        while DeliveryState.PENDING in await states(store):
            await until_idle(dispatcher)
            await dispatcher.run_pass(SystemClock().now())
        await until_idle(dispatcher)
        assert (most, await states(store)) == (4, [DeliveryState.DONE] * 6)


async def test_who_waits_already_goes_before_what_is_made_now(tmp_path):
    go_on = asyncio.Event()

    async def hang(event):
        await go_on.wait()

    async with dispatching(tmp_path, hang, 3, concurrency=2) as (dispatcher, store, _):
        await dispatcher.run_pass(SystemClock().now())
        go_on.set()
        await until_idle(dispatcher)
        assert dispatcher.reserve({"tell": 1}) == {}
        await dispatcher.run_pass(SystemClock().now())
        await until_idle(dispatcher)
        assert await states(store) == [DeliveryState.DONE] * 3
        assert dispatcher.reserve({"tell": 1}) == {"tell": 1}


async def test_what_is_claimed_with_its_write_while_we_end_is_given_back(tmp_path):
    async with dispatching(tmp_path, nothing, 0) as (dispatcher, store, _):
        reserved = dispatcher.reserve({"tell": 1})
        claimed = await make_claimed(store, reserved)
        await dispatcher.finish(SOON)
        await dispatcher.run(reserved, claimed)
        page = await store.read_deliveries(DeliveryFilter(), 9, None)
        assert [(delivery.state, delivery.attempts) for delivery in page.rows] == [(DeliveryState.PENDING, 0)]
        assert dispatcher.reserve({"tell": 1}) == {}


async def test_what_ended_is_written_before_we_end(tmp_path):
    async with dispatching(tmp_path, nothing, 2) as (dispatcher, store, _):
        await dispatcher.run_pass(SystemClock().now())
        await dispatcher.finish(SOON)
        assert await states(store) == [DeliveryState.DONE] * 2
