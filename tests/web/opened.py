"""A running web side without loops: the real store, tokens, inbox and settling; tests play the provider."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette

from receiver.app import Clients, House, Plan, check
from receiver.cli import service
from receiver.clock import SystemClock
from receiver.config import load
from receiver.decisions import Decision
from receiver.model import Channel, Family, Job, Output, Status, Update
from receiver.rules import Change, apply_accepted, apply_lost, apply_update
from receiver.services import Services
from receiver.stores import open_store
from receiver.tokens import Tokens
from receiver.web.application import create_app

SECRET = "a-secret-that-signs-callbacks"
HERE = "http://127.0.0.1:8080"
CONFIG = """
[server]
{server}

[store]
url = "sqlite:///receiver.db"

[providers.elkapi]
api_key = "elk-key-never-shown"

[providers.huzz]
api_key = "huzz-key-never-shown"

[providers.oxen]
api_key = "oxen-key-never-shown"

[providers.pixazo]
api_key = "pixazo-key-never-shown"

[[handlers]]
name = "tell"
use = "log"
events = ["*"]
where = {{provider = "elkapi"}}
"""
ELK = {"provider": "elkapi", "model": "flux", "input": {"prompt": "a moose"}}
SUBMIT_NOW = {"Prefer": "respond-async"}


@dataclass
class Web:
    """One application, a client of it, and hands on its store."""

    app: Starlette
    services: Services
    client: httpx.AsyncClient
    tokens: Tokens

    def callback_path(self, submission_id: str, provider: str = "elkapi") -> str:
        return f"/callbacks/{provider}/{self.tokens.make(provider, submission_id)}"

    async def submit(self, body: dict[str, Any] = ELK, **headers: str) -> dict[str, Any]:
        answer = await self.client.post("/v1/jobs", json=body, headers=SUBMIT_NOW | headers)
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def settle(self, submission_id: str, change: Callable[[Family], Change], channel: Channel = Channel.SUBMIT) -> None:
        written = await self.services.settling.settle(
            {submission_id: lambda family: Decision(change(family), channel)}, self.services.clock.now()
        )
        assert submission_id in written

    async def accept(self, submission_id: str, *remote_ids: str) -> None:
        """The provider took the submit and answered with these ids."""
        updates = [Update(remote_id=remote_id, status=Status.QUEUED) for remote_id in remote_ids]
        await self.settle(submission_id, lambda family: apply_accepted(family, updates, 10, self.services.clock.now()))

    async def lose(self, submission_id: str) -> None:
        """The provider's answer was lost."""
        await self.settle(submission_id, lambda family: apply_lost(family, "connection reset", self.services.clock.now()))

    async def say(self, submission_id: str, status: Status, remote_id: str, outputs: Sequence[Output] = ()) -> None:
        """The provider has news of a job."""
        update = Update(remote_id=remote_id, status=status, outputs=tuple(outputs))
        now = self.services.clock.now()
        await self.settle(submission_id, lambda family: apply_update(family, update, Channel.POLL, now), Channel.POLL)

    async def succeed(self, body: dict[str, Any] = ELK, outputs: Sequence[Output] = (), remote_id: str = "elk-1") -> Job:
        """A job that has come home."""
        submitted = await self.submit(body)
        await self.accept(submitted["submission_id"], remote_id)
        await self.say(submitted["submission_id"], Status.SUCCEEDED, remote_id, outputs)
        job = await self.services.store.read_job(submitted["jobs"][0]["id"])
        assert job is not None
        assert job.status is Status.SUCCEEDED
        return job


@cache
def make_plan(server: str) -> Plan:
    return check(load(CONFIG.format(server=server), {}))


@asynccontextmanager
async def open_web(folder: Path, server: str = "") -> AsyncIterator[Web]:
    plan = make_plan(server)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(f"sqlite:///{folder / 'receiver.db'}"))
        clients = Clients(*[cast("Any", None)] * 3)  # the web makes no calls: any would fail here
        tokens = Tokens([SECRET])
        services = House(plan, store, tokens, SystemClock(), clients).services
        watch = asyncio.create_task(services.pulse.run(store))
        stack.callback(watch.cancel)
        app = create_app(services)
        client = await stack.enter_async_context(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HERE))
        yield Web(app, services, client, tokens)


def choose_parser(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP parser of the servers that this test starts; where it is not installed, the test is skipped."""
    if name == "h11":
        monkeypatch.setitem(sys.modules, "httptools", None)
        for name in ("uvicorn.protocols.http.httptools_impl", "receiver.cli.connections_httptools"):
            monkeypatch.delitem(sys.modules, name, raising=False)
    elif importlib.util.find_spec("httptools") is None:
        pytest.skip("httptools is not installed")


@asynccontextmanager
async def listen(web: Web) -> AsyncIterator[int]:
    """The port where it answers as `receiver serve` would."""
    up = asyncio.Event()
    [listener] = service.open_sockets("127.0.0.1", 0, {}, "")
    server = service.Server(service.make_config(web.app), up.set)
    serving = asyncio.create_task(server.serve([listener]))
    await asyncio.wait_for(up.wait(), 10)
    try:
        yield listener.getsockname()[1]
    finally:
        web.app.state.waiting.stop()
        server.should_exit = server.force_exit = True
        await serving
        listener.close()
