"""From a claim to what is written of it, beside what the stories tell."""

import asyncio
import gc
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

from receiver.clock import SystemClock
from receiver.config import HandlerConfig
from receiver.counters import Counters
from receiver.dispatcher import Dispatcher
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
