"""`GET /v1/events`, over a real server: in memory a stream would be buffered whole."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
import uvicorn
from httpx_sse import ServerSentEvent, aconnect_sse

from receiver.errors import StoreUnavailable
from receiver.model import Output, Status
from receiver.web import events, views
from tests.web.opened import ELK, Web

DONE = [Output(index=0, url="https://cdn.example/1")]


@asynccontextmanager
async def serve(web: Web) -> AsyncIterator[tuple[httpx.AsyncClient, uvicorn.Server]]:
    """The application on a free port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(web.app, log_level="error", lifespan="off", timeout_graceful_shutdown=5))
        running = asyncio.create_task(server.serve(sockets=[listening]))
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=10) as client:
                yield client, server
        finally:
            server.should_exit = True
            async with asyncio.timeout(10):
                await running


async def take(count: int, stream: AsyncIterator[ServerSentEvent]) -> list[ServerSentEvent]:
    async with asyncio.timeout(10):
        return [await anext(stream) for _ in range(count)]


async def test_events_come_as_they_happen_and_in_order(web: Web):
    before = await web.succeed(remote_id="elk-0")
    async with serve(web) as (client, _), aconnect_sse(client, "GET", "/v1/events") as source:
        assert source.response.headers["content-type"].startswith("text/event-stream")
        assert source.response.headers["cache-control"] == "no-store"
        job = await web.succeed(ELK, DONE)
        assert job.id != before.id
        first, second = await take(2, source.aiter_sse())
    assert [first.event, second.event] == ["job.submitted", "job.succeeded"]
    envelope = msgspec.convert(json.loads(second.data), views.Envelope)
    assert (envelope.id, envelope.subject, envelope.source) == (second.id, job.id, "/providers/elkapi")
    assert envelope.data["job"]["status"] == "succeeded"


async def test_a_stream_is_resumed_after_the_last_event_seen(web: Web):
    job = await web.succeed(ELK, DONE)
    async with serve(web) as (client, _):
        ids = [event.id for _, event, _ in await web.services.store.read_events(0, 10)]
        async with aconnect_sse(client, "GET", "/v1/events", headers={"Last-Event-ID": ids[0]}) as source:
            [event] = await take(1, source.aiter_sse())
        assert (event.id, event.event) == (ids[1], "job.succeeded")
        assert json.loads(event.data)["subject"] == job.id


async def test_a_stream_says_where_it_begins(web: Web):
    """So that nothing is missed when it breaks off before its first event."""
    async with serve(web) as (client, _):
        async with aconnect_sse(client, "GET", "/v1/events") as source:
            first = source.response.headers["last-event-id"]
        await web.succeed(ELK, DONE)
        async with aconnect_sse(client, "GET", "/v1/events", headers={"Last-Event-ID": first}) as source:
            seen = await take(2, source.aiter_sse())
        async with aconnect_sse(client, "GET", "/v1/events") as source:
            assert source.response.headers["last-event-id"] == seen[-1].id


async def test_an_id_that_is_kept_no_more_starts_at_the_oldest(web: Web):
    await web.succeed(ELK, DONE)
    async with serve(web) as (client, _):
        async with aconnect_sse(client, "GET", "/v1/events", headers={"Last-Event-ID": "evt_" + "0" * 32}) as source:
            types = [event.event for event in await take(2, source.aiter_sse())]
        assert types == ["job.submitted", "job.succeeded"]


async def test_a_malformed_id_is_400(web: Web):
    for last in ["nope", "evt_", "evt_" + "0" * 31, "evt_" + "G" * 32, "job_" + "0" * 32, "0", "-1"]:
        answer = await web.client.get("/v1/events", headers={"Last-Event-ID": last})
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["parameter"] == "Last-Event-ID"


async def test_events_are_filtered(web: Web):
    elk = await web.succeed(ELK, DONE)
    pixazo = await web.succeed({"provider": "pixazo", "model": "hunyuan-image", "input": {}}, DONE, "pix-1")
    oldest = {"Last-Event-ID": "evt_" + "0" * 32}

    async def first(client: httpx.AsyncClient, **query: str) -> tuple[str, str]:
        async with aconnect_sse(client, "GET", "/v1/events", params=query, headers=oldest) as source:
            [event] = await take(1, source.aiter_sse())
        return event.event, json.loads(event.data)["subject"]

    async with serve(web) as (client, _):
        assert await first(client) == ("job.submitted", elk.id)
        assert await first(client, type="job.suc*") == ("job.succeeded", elk.id)
        assert await first(client, provider="pixazo") == ("job.submitted", pixazo.id)
        assert await first(client, job_id=pixazo.id, type="*.succeeded") == ("job.succeeded", pixazo.id)
        assert (await client.get("/v1/events?kind=x")).status_code == 400


async def test_an_odd_glob_holds_up_nobody(web: Web):
    await web.succeed(ELK, DONE)
    oldest = {"Last-Event-ID": "evt_" + "0" * 32}
    async with serve(web) as (client, _), asyncio.timeout(30):
        for glob in [
            "*" * 1024,
            "*j*o*b" * 150,
            "*[a-z]" * 150,
            "[!" * 500,
            "[a-" * 300,
            "?" * 1024,
            "[]-a]",
            "\\",
            "(?i).*",
            "\r\n\r\n",
            "é",
        ]:
            async with client.stream("GET", "/v1/events", params={"type": glob}, headers=oldest) as answer:
                assert answer.status_code == 200, glob
                assert await anext(answer.aiter_lines()) == ": connected"
        async with aconnect_sse(client, "GET", "/v1/events", headers=oldest) as source:
            assert [event.event for event in await take(2, source.aiter_sse())] == ["job.submitted", "job.succeeded"]


async def test_a_store_that_is_away_for_a_moment_ends_no_stream(web: Web, monkeypatch: pytest.MonkeyPatch):
    read, failures = web.services.store.read_events, 1

    async def fail_once(after: int, limit: int):
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailable
        return await read(after, limit)

    monkeypatch.setattr(web.services.store, "read_events", fail_once)
    monkeypatch.setattr(events, "PAUSE", 0.01)
    async with serve(web) as (client, _), aconnect_sse(client, "GET", "/v1/events") as source:
        await web.succeed(ELK, DONE)
        assert [event.event for event in await take(2, source.aiter_sse())] == ["job.submitted", "job.succeeded"]


async def test_a_quiet_stream_is_kept_alive(web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "PING", 0.02)
    async with serve(web) as (client, _), client.stream("GET", "/v1/events") as answer, asyncio.timeout(10):
        lines = answer.aiter_lines()
        while await anext(lines) != ": ping":
            pass


async def test_a_stop_ends_streams_and_waits_at_once(web: Web):
    submitted = await web.submit()
    async with serve(web) as (client, server):
        waiting = asyncio.create_task(client.get(f"/v1/jobs/{submitted['jobs'][0]['id']}?wait=60"))
        async with client.stream("GET", "/v1/events") as answer, asyncio.timeout(4):
            lines = answer.aiter_lines()
            await anext(lines)
            web.app.state.waiting.stop()
            async for _ in lines:
                pass
            server.should_exit = True
            assert (await waiting).json()["status"] == Status.SUBMITTING


async def test_a_server_that_stops_ends_streams(web: Web):
    async with serve(web) as (client, server), client.stream("GET", "/v1/events") as answer, asyncio.timeout(4):
        lines = answer.aiter_lines()
        await anext(lines)
        server.should_exit = True
        async for _ in lines:
            pass
