"""Kept connections: the last one first, old ones closed, one call at a time on each."""

import asyncio

import pytest

from receiver.lanes import Lanes
from receiver.model import Request
from receiver.net import ProviderClient
from tests.factories import seconds
from tests.loopback import hang, response, say, serve


class Lane:
    def __init__(self):
        self.is_closed = False

    async def aclose(self):
        self.is_closed = True
        raise OSError("it was gone already")


class Watch:
    """The time, as the test sets it."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def lanes(watch):
    return Lanes(Lane, most_idle=3, keep_seconds=15.0, now=watch)


async def test_the_lane_that_was_used_last_is_taken_again(lanes):
    first, second = lanes.take("a"), lanes.take("a")
    await lanes.give_back("a", first)
    await lanes.give_back("a", second)
    assert lanes.take("b") not in (first, second)
    assert lanes.take("a") is second
    assert lanes.take("a") is first
    assert lanes.take("a") not in (first, second)


async def test_a_lane_that_waited_too_long_is_closed(lanes, watch):
    old, other = lanes.take("a"), lanes.take("b")
    await lanes.give_back("a", old)
    watch.now = 15.0
    await lanes.give_back("b", other)
    assert (old.is_closed, other.is_closed) == (True, False)
    assert lanes.take("a") is not old


async def test_of_too_many_idle_ones_the_oldest_are_closed(lanes, watch):
    taken = [lanes.take("a") for _ in range(5)]
    for lane in taken:
        watch.now += 0.1
        await lanes.give_back("a", lane)
    assert [lane.is_closed for lane in taken] == [True, True, False, False, False]


async def test_after_the_end_nothing_is_kept(lanes):
    idle, busy = lanes.take("a"), lanes.take("a")
    await lanes.give_back("a", idle)
    await lanes.close()
    await lanes.give_back("a", busy)
    assert (idle.is_closed, busy.is_closed) == (True, True)


async def test_as_many_calls_at_once_as_before_need_no_new_connection():
    client = ProviderClient()
    async with serve(say(response())) as peer:
        request = Request(method="GET", url=f"{peer.url}/job")
        for _ in range(3):
            await asyncio.gather(*(client.send(request, timeout=seconds(10)) for _ in range(20)))
        assert len(peer.seen) == 60
        assert peer.connections <= 20
        await client.close()


async def test_a_call_that_broke_off_leaves_nothing_to_the_next():
    client = ProviderClient()
    async with serve(hang) as silent:
        request = Request(method="GET", url=f"{silent.url}/job")
        for number in (1, 2):
            calling = asyncio.create_task(client.send(request, timeout=seconds(10)))
            async with asyncio.timeout(10):
                while len(silent.seen) < number:
                    await asyncio.sleep(0.01)
            calling.cancel()
            await asyncio.wait({calling}, timeout=10)
            assert calling.cancelled()
        assert silent.connections == 2
        await client.close()
