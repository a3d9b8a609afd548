"""Published keys: fetched seldom, once at a time, and never taken from where they should not be."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from receiver.errors import Unavailable
from receiver.guarded import guarded_client
from receiver.jwks import LONGEST, MAX_BYTES, PAUSE, SHORTEST, USUAL, Jwks, read_lifetime
from receiver.simulator.serving import serve_app

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
URL = "https://keys.example.com/.well-known/jwks.json"


def make_document(*seeds: int) -> dict:
    keys = [Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32)).public_key().public_bytes_raw() for seed in seeds]
    return {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": base64.urlsafe_b64encode(key).decode().rstrip("=")} for key in keys]}


class Publisher:
    """A provider's key server; `answer` says what it does."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer: Callable[[], httpx.Response] = self.show(1)

    def show(self, *seeds: int, **headers: str) -> Callable[[], httpx.Response]:
        return lambda: httpx.Response(
            200, json=make_document(*seeds), headers={key.replace("_", "-"): value for key, value in headers.items()}
        )

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        await asyncio.sleep(0)
        return self.answer()


@pytest.fixture
async def publisher():
    return Publisher()


@pytest.fixture
async def jwks(publisher):
    async with httpx.AsyncClient(transport=httpx.MockTransport(publisher)) as client:
        yield Jwks(client)


def names(keys) -> list[bytes]:
    return [key.public_bytes_raw() for key in keys]


def public(seed: int) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32)).public_key().public_bytes_raw()


async def test_keys_are_fetched_once_and_kept_as_long_as_they_are_good(jwks, publisher):
    assert names(await jwks.read(URL, NOW)) == [public(1)]
    await jwks.read(URL, NOW + USUAL - timedelta(seconds=1))
    assert publisher.calls == 1
    await jwks.read(URL, NOW + USUAL)
    assert publisher.calls == 2


async def test_many_callers_at_once_make_one_fetch(jwks, publisher):
    found = await asyncio.gather(*(jwks.read(URL, NOW) for _ in range(50)))
    assert {tuple(names(keys)) for keys in found} == {(public(1),)}
    assert publisher.calls == 1


async def test_a_caller_that_goes_away_does_not_take_the_others_along(jwks, publisher):
    first = asyncio.create_task(jwks.read(URL, NOW))
    second = asyncio.create_task(jwks.read(URL, NOW + PAUSE))
    while not publisher.calls:
        await asyncio.sleep(0)
    first.cancel()
    assert names(await second) == [public(1)]


@pytest.mark.parametrize(
    ("said", "lifetime"),
    [
        ("", USUAL),
        ("no-store", USUAL),
        ("max-age=0", SHORTEST),
        ("max-age=1", SHORTEST),
        ("public, max-age=7200", timedelta(hours=2)),
        ("MAX-AGE=7200,public", timedelta(hours=2)),
        ('max-age="7200"', timedelta(hours=2)),
        ("max-age=999999999", LONGEST),
        ("max-age=99999999999999999999", USUAL),
        ("s-max-age=5", USUAL),
        ("max-age=-5", USUAL),
        ("max-age=abc", USUAL),
    ],
)
def test_the_answer_says_how_long_within_bounds(said, lifetime):
    assert read_lifetime(said) == lifetime


async def test_old_keys_serve_while_new_ones_cannot_be_had_for_a_day(jwks, publisher):
    await jwks.read(URL, NOW)
    publisher.answer = lambda: httpx.Response(500)
    later = NOW + USUAL
    assert names(await jwks.read(URL, later)) == [public(1)]
    assert names(await jwks.read(URL, later + timedelta(seconds=59))) == [public(1)]
    assert publisher.calls == 2  # and not again at once
    assert names(await jwks.read(URL, NOW + LONGEST)) == [public(1)]
    with pytest.raises(Unavailable):
        await jwks.read(URL, NOW + LONGEST + timedelta(seconds=1))


def fail(error: Exception) -> Callable[[], httpx.Response]:
    def answer() -> httpx.Response:
        raise error

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        lambda: httpx.Response(404),
        lambda: httpx.Response(301, headers={"location": "https://elsewhere.example/jwks.json"}),
        lambda: httpx.Response(200, text="<html>"),
        lambda: httpx.Response(200, json={"keys": []}),
        lambda: httpx.Response(200, json=[]),
        lambda: httpx.Response(200, content=b" " * (MAX_BYTES + 1)),
        lambda: httpx.Response(200, json={**make_document(1), "padding": "x" * MAX_BYTES}),
        fail(httpx.ConnectError("no route")),
        fail(httpx.ReadTimeout("too slow")),
    ],
    ids=["404", "redirect", "page", "no keys", "list", "blanks", "huge", "unreachable", "slow"],
)
async def test_whatever_is_no_set_of_keys_is_none_and_asked_for_again_after_a_pause(jwks, publisher, answer):
    publisher.answer = answer
    for seconds in (0, 1, 59):
        with pytest.raises(Unavailable):
            await jwks.read(URL, NOW + timedelta(seconds=seconds))
    assert publisher.calls == 1
    publisher.answer = publisher.show(1)
    assert names(await jwks.read(URL, NOW + PAUSE)) == [public(1)]


async def test_an_unknown_key_causes_one_fetch_a_minute_and_no_storm(jwks, publisher):
    await jwks.read(URL, NOW)
    for seconds in (0, 30, 59):
        assert await jwks.refresh(URL, NOW + timedelta(seconds=seconds)) is None
    assert publisher.calls == 1
    assert await asyncio.gather(*(jwks.refresh(URL, NOW + PAUSE) for _ in range(50))) == [None] * 50
    assert publisher.calls == 2


async def test_a_rotation_is_survived(jwks, publisher):
    await jwks.read(URL, NOW)
    publisher.answer = publisher.show(2, 1)
    found = await asyncio.gather(*(jwks.refresh(URL, NOW + PAUSE) for _ in range(10)))
    assert {tuple(names(keys)) for keys in found} == {(public(2), public(1))}
    assert publisher.calls == 2
    assert names(await jwks.read(URL, NOW + PAUSE)) == [public(2), public(1)]


async def test_a_failed_refresh_keeps_what_is_known(jwks, publisher):
    await jwks.read(URL, NOW)
    publisher.answer = lambda: httpx.Response(500)
    assert await jwks.refresh(URL, NOW + PAUSE) is None
    assert names(await jwks.read(URL, NOW + PAUSE)) == [public(1)]


async def test_each_address_has_its_own_keys(jwks, publisher):
    await jwks.read(URL, NOW)
    publisher.answer = publisher.show(2)
    assert names(await jwks.read("https://other.example/jwks.json", NOW)) == [public(2)]
    assert names(await jwks.read(URL, NOW)) == [public(1)]


async def test_a_clock_that_was_set_back_does_not_wait_for_long(jwks, publisher):
    publisher.answer = lambda: httpx.Response(500)
    with pytest.raises(Unavailable):
        await jwks.read(URL, NOW)
    publisher.answer = publisher.show(1)
    assert names(await jwks.read(URL, NOW - timedelta(days=1))) == [public(1)]


async def test_keys_come_through_the_guard_and_no_redirect_is_followed():
    calls = []

    async def keys(request):
        calls.append(request.url.path)
        return Response(json.dumps(make_document(1)))

    async def moved(request):
        calls.append(request.url.path)
        return RedirectResponse("/keys")

    async with serve_app(Starlette(routes=[Route("/keys", keys), Route("/moved", moved)])) as url:
        async with guarded_client() as guarded:
            with pytest.raises(Unavailable):
                await Jwks(guarded).read(f"{url}/keys", NOW)
        assert calls == []
        async with guarded_client(["127.0.0.0/8"]) as opened:
            with pytest.raises(Unavailable):
                await Jwks(opened).read(f"{url}/moved", NOW)
            assert calls == ["/moved"]
            assert names(await Jwks(opened).read(f"{url}/keys", NOW)) == [public(1)]
