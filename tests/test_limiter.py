"""How often a provider is called."""

from datetime import timedelta

import pytest

from receiver.config import PollingConfig, ProviderConfig, RateLimit
from receiver.herald import Herald
from receiver.limiter import TRIP_AFTER, Limiter
from receiver.providers.account import make_account
from receiver.providers.loader import load_specs
from receiver.stores import open_store
from tests.factories import NOW

SECOND = timedelta(seconds=1)


@pytest.fixture
async def store(tmp_path):
    async with open_store(f"sqlite:///{tmp_path / 'receiver.db'}") as opened:
        yield opened


def make(rate_limit=None):
    return make_account("elkapi", ProviderConfig(rate_limit=rate_limit), PollingConfig(), load_specs()["elkapi"])


def make_limiter(store):
    return Limiter(store, Herald(store, ()))


async def calls_within(limiter, account, seconds, *, for_poll):
    """How many calls a caller makes that asks again as soon as there is room."""
    now, calls = NOW, 0
    while now < NOW + timedelta(seconds=seconds):
        room_at = await limiter.take(account, now, for_poll=for_poll)
        calls += room_at is None
        now = room_at or now
    return calls


@pytest.mark.parametrize("for_poll", [True, False])
async def test_no_window_sees_more_calls_than_the_limit(store, for_poll):
    calls = await calls_within(make_limiter(store), make(RateLimit(count=60, seconds=60)), 60, for_poll=for_poll)
    assert 50 <= calls <= 60


async def test_two_processes_share_one_limit(store, tmp_path):
    account = make(RateLimit(count=10, seconds=60))
    async with open_store(f"sqlite:///{tmp_path / 'receiver.db'}") as other:
        here, there = make_limiter(store), make_limiter(other)
        taken = [await limiter.take(account, NOW, for_poll=False) is None for limiter in (here, there) * 10]
    assert sum(taken) == 1


async def test_a_submit_finds_room_that_polls_must_leave(store):
    limiter, account = make_limiter(store), make(RateLimit(count=100, seconds=100))
    while await limiter.take(account, NOW, for_poll=True) is None:
        pass
    assert await limiter.take(account, NOW, for_poll=False) is None


async def test_without_a_limit_every_call_is_made(store):
    assert await make_limiter(store).take(make(), NOW, for_poll=True) is None


async def test_a_provider_that_asks_for_a_pause_gets_it(store):
    limiter, account = make_limiter(store), make()
    limiter.pause(account, NOW, 30)
    assert await limiter.take(account, NOW + 29 * SECOND, for_poll=True) == NOW + 30 * SECOND
    assert await limiter.take(account, NOW + 30 * SECOND, for_poll=True) is None


async def test_a_provider_that_keeps_failing_is_left_alone_and_tried_again(store, tmp_path):
    limiter, account = make_limiter(store), make()
    for _ in range(TRIP_AFTER):
        assert not limiter.is_open("elkapi", NOW)
        await limiter.failed(account, NOW, "HTTP 500")
    assert limiter.is_open("elkapi", NOW)
    assert not limiter.is_open("elkapi", NOW + 6 * SECOND)
    assert limiter.is_probing("elkapi")
    other = make_limiter(store)
    await other.refresh()
    assert other.is_open("elkapi", NOW)
    await limiter.succeeded(account)
    assert not limiter.is_open("elkapi", NOW)
    assert not limiter.is_probing("elkapi")


async def test_failures_that_two_processes_see_count_together(store, tmp_path):
    account = make()
    async with open_store(f"sqlite:///{tmp_path / 'receiver.db'}") as other:
        here, there = make_limiter(store), make_limiter(other)
        for number in range(TRIP_AFTER):
            assert not here.is_open("elkapi", NOW)
            await (there, here)[number % 2].failed(account, NOW, "HTTP 500")
        await here.refresh()
        assert here.is_open("elkapi", NOW)


async def test_one_failure_of_who_has_heard_of_no_other_opens_nothing_that_is_shut(store, tmp_path):
    account = make()
    async with open_store(f"sqlite:///{tmp_path / 'receiver.db'}") as other:
        here, there = make_limiter(store), make_limiter(other)
        for _ in range(TRIP_AFTER):
            await there.failed(account, NOW, "HTTP 500")
        await here.failed(account, NOW, "HTTP 500")
        await there.refresh()
        assert here.is_open("elkapi", NOW)
        assert there.is_open("elkapi", NOW)
