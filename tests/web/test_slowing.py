"""Bad tokens and keys are counted by address and slowed; good ones never."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from receiver.addresses import parse_networks
from receiver.clock import ManualClock
from receiver.errors import TooMany
from receiver.web import slowing
from receiver.web.slowing import DELAY, FREE, WINDOW, Slowing
from tests.web.opened import Web, open_web

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROXY = "10.0.0.1"
GOOD = "a-key-that-is-good"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def slow(clock: ManualClock) -> Slowing:
    return Slowing(clock, parse_networks(["10.0.0.0/8"]))


def scope_of(client: str, forwarded_for: str | None = None) -> dict:
    headers = [] if forwarded_for is None else [(b"x-forwarded-for", forwarded_for.encode())]
    return {"type": "http", "client": (client, 1), "headers": headers}


async def is_held(slow: Slowing, clock: ManualClock, scope: dict) -> bool:
    """Whether it is only answered once the clock has gone on."""
    answer = asyncio.create_task(slow.hold(scope))
    await asyncio.sleep(0)
    was_waiting = not answer.done()
    clock.advance(DELAY)
    assert await answer is was_waiting
    return was_waiting


async def test_the_first_ones_are_answered_at_once_and_later_ones_wait(slow, clock):
    held = [await is_held(slow, clock, scope_of("198.51.100.7")) for _ in range(FREE + 3)]
    assert held == [False] * FREE + [True] * 3
    assert not await is_held(slow, clock, scope_of("198.51.100.8"))


async def test_after_a_quiet_minute_it_begins_anew(slow, clock):
    for _ in range(FREE + 1):
        await is_held(slow, clock, scope_of("198.51.100.7"))
    clock.advance(WINDOW)
    assert not await is_held(slow, clock, scope_of("198.51.100.7"))


async def test_ipv6_is_counted_by_64(slow, clock):
    held = [await is_held(slow, clock, scope_of(f"2001:db8:1:2::{number:x}")) for number in range(FREE + 1)]
    assert held[-1]
    assert not await is_held(slow, clock, scope_of("2001:db8:1:3::1"))


async def test_behind_a_trusted_proxy_the_caller_is_slowed_and_nobody_else(slow, clock):
    held = [await is_held(slow, clock, scope_of(PROXY, f"{number}.1.1.1, 198.51.100.7")) for number in range(FREE + 1)]
    assert held[-1]
    assert not await is_held(slow, clock, scope_of(PROXY, "198.51.100.8"))


async def test_behind_an_unknown_proxy_nobody_is_slowed(slow, clock):
    assert not any([await is_held(slow, clock, scope_of("198.51.100.7", "1.2.3.4")) for _ in range(FREE + 5)])


async def test_only_so_many_wait(slow, clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slowing, "MOST_WAITING", 3)
    for _ in range(FREE):
        await slow.hold(scope_of("198.51.100.7"))
    waiting = [asyncio.create_task(slow.hold(scope_of("198.51.100.7"))) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(TooMany):
        await slow.hold(scope_of("198.51.100.7"))
    clock.advance(DELAY)
    assert await asyncio.gather(*waiting) == [True] * 3
    assert await is_held(slow, clock, scope_of("198.51.100.7"))


async def test_memory_is_bounded_and_the_quietest_are_forgotten(slow, clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slowing, "MOST_REMEMBERED", 50)
    for _ in range(FREE + 1):
        await is_held(slow, clock, scope_of("198.51.100.7"))
    for number in range(49):
        await slow.hold(scope_of(f"203.0.113.{number}"))
    assert await is_held(slow, clock, scope_of("198.51.100.7"))
    for number in range(200):
        await slow.hold(scope_of(f"192.0.2.{number}"))
    assert len(slow._seen) == 50
    assert not await is_held(slow, clock, scope_of("198.51.100.7"))


async def test_a_clock_that_was_set_back_slows_nobody_for_long(slow, clock):
    for _ in range(FREE + 1):
        await is_held(slow, clock, scope_of("198.51.100.7"))
    clock.advance(timedelta(days=-1))
    assert not await is_held(slow, clock, scope_of("198.51.100.7"))


async def test_good_callbacks_from_the_same_address_are_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with open_web(tmp_path) as web:
        clock = ManualClock(NOW)
        [guard] = web.app.user_middleware
        monkeypatch.setattr(guard.kwargs["callbacks"]._slowing, "_clock", clock)
        submitted = await web.submit()
        good, bad = web.callback_path(submitted["submission_id"]), "/callbacks/elkapi/x"
        for _ in range(FREE):
            assert (await web.client.post(bad)).status_code == 401
        slowed = asyncio.create_task(web.client.post(bad))
        async with asyncio.timeout(5):
            for _ in range(3):
                assert (await web.client.post(good, content=b"{}")).status_code == 200
            assert not slowed.done()
            clock.advance(DELAY)
            assert (await slowed).status_code == 401
        assert (await web.services.counters.read())["receiver", "callbacks_slowed"] == 1


async def with_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Web, str], Awaitable[httpx.Response]]) -> None:
    """Wrong keys wait after some, right ones from the same address never."""
    async with open_web(tmp_path, f'api_keys = ["{GOOD}"]') as web:
        clock = ManualClock(NOW)
        monkeypatch.setattr(web.app.state.slowing, "_clock", clock)
        for _ in range(FREE):
            assert (await ask(web, "a-wrong-key")).status_code == 401
        slowed = asyncio.create_task(ask(web, "a-wrong-key"))
        async with asyncio.timeout(20):
            while not (await web.services.counters.read()).get(("receiver", "keys_slowed")):
                await asyncio.sleep(0.01)
            for _ in range(3):
                assert (await ask(web, GOOD)).status_code in {200, 303}
            assert (await web.client.get("/v1/jobs")).status_code == 401, "who presents none guesses none"
            assert not slowed.done()
            clock.advance(DELAY)
            assert (await slowed).status_code == 401
        assert (await web.services.counters.read())["receiver", "keys_slowed"] == 1
        monkeypatch.setattr(slowing, "MOST_WAITING", 0)
        refused = await ask(web, "a-wrong-key")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")


async def test_wrong_api_keys_are_slowed_and_good_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def ask(web: Web, key: str) -> httpx.Response:
        return await web.client.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"})

    await with_keys(tmp_path, monkeypatch, ask)


async def test_wrong_sign_ins_are_slowed_and_good_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def ask(web: Web, key: str) -> httpx.Response:
        answer = await web.client.post("/sign-in", data={"key": key}, headers={"Sec-Fetch-Site": "same-origin"})
        web.client.cookies.clear()
        return answer

    await with_keys(tmp_path, monkeypatch, ask)


async def test_wrong_keys_and_wrong_tokens_are_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slowing, "MOST_WAITING", 0)
    async with open_web(tmp_path, f'api_keys = ["{GOOD}"]') as web:
        for _ in range(FREE):
            assert (await web.client.post("/callbacks/elkapi/x")).status_code == 401
        assert (await web.client.post("/callbacks/elkapi/x")).status_code == 429
        assert (await web.client.get("/v1/jobs", headers={"Authorization": "Bearer wrong"})).status_code == 401


async def test_the_address_that_a_trusted_proxy_names_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slowing, "MOST_WAITING", 0)
    async with open_web(tmp_path, 'trusted_proxies = ["127.0.0.0/8"]') as web:
        for _ in range(FREE):
            assert (await post_from(web, "198.51.100.7")).status_code == 401
        refused = await post_from(web, "198.51.100.7")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
        assert (await post_from(web, "198.51.100.8")).status_code == 401


async def post_from(web: Web, address: str) -> httpx.Response:
    return await web.client.post("/callbacks/elkapi/x", headers={"X-Forwarded-For": address})
