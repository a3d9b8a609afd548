"""A whole installation for a test: the simulator, the server on a free port, a real database, all in this process."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from receiver.app import ROLES, check, run
from receiver.config import load
from receiver.services import Services
from receiver.simulator import Served
from receiver.simulator.serving import Server, open_listener
from receiver.web.application import create_app

BOUND = 60.0  # seconds: a wait that takes longer is a failure


@dataclass
class Home:
    """The running installation, seen from outside."""

    api: httpx.AsyncClient
    services: Services
    sim: Served
    folder: Path
    url: str

    async def submit(self, provider: str, model: str | None = "kling-v2", prompt: str = "a boat", **more: Any) -> list[dict[str, Any]]:
        body = {"provider": provider, "model": model, "input": {"prompt": prompt, **more.pop("input", {})}, **more}
        answer = await self.api.post("/v1/jobs", json={key: value for key, value in body.items() if value is not None})
        assert answer.status_code == 202, answer.text
        return answer.json()["jobs"]

    async def job(self, job_id: str) -> dict[str, Any]:
        return (await self.api.get(f"/v1/jobs/{job_id}")).json()

    async def final(self, job_id: str) -> dict[str, Any]:
        job = (await self.api.get(f"/v1/jobs/{job_id}", params={"wait": 20})).json()
        assert job["status"] in {"succeeded", "failed", "cancelled", "expired"}, job
        return job

    async def timeline(self, job_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        entries = (await self.api.get(f"/v1/jobs/{job_id}/timeline")).json()["entries"]
        return [entry for entry in entries if kind in (None, entry["kind"])]

    async def outcomes(self, job_id: str, channel: str = "callback") -> list[str | None]:
        return [entry["outcome"] for entry in await self.timeline(job_id, "notice") if entry["channel"] == channel]

    async def events(self, job_id: str) -> list[str]:
        return [entry["type"] for entry in await self.timeline(job_id, "event")]

    async def until(self, condition: Callable[[], Any]) -> Any:
        """The condition's first true value; asked again after every change in the store."""
        async with asyncio.timeout(BOUND):
            while True:
                seen = self.services.pulse.beat
                value = condition()
                value = await value if asyncio.iscoroutine(value) else value
                if value:
                    return value
                await self.services.pulse.wait(seen, 0.05)


def make_config(
    sim: Served,
    folder: Path,
    port: int,
    *,
    public: bool = True,
    url: str = "",
    more: str = "",
    providers: str = "",
    polling: str = "",
    store: str = "",
    server: str = "",
) -> str:
    """`store` is the URL of a database that several installations share; without it there is a file in the folder. `url` is a public
    URL that may lead elsewhere, and is tried. `server` is what else stands under [server]."""
    accounts = "\n".join(
        f'[providers.{name}]\napi_key = "key-of-{name}"\nbase_url = "{sim.base_url(name)}"'
        for name in ("huzz", "elkapi", "oxen", "pixazo", "hoox")
        if f"[providers.{name}]" not in providers
    )
    public_url = f'public_url = "{url or f"http://127.0.0.1:{port}"}"\nprobe_public_url = {str(bool(url)).lower()}' if public else ""
    return f"""
[server]
port = {port}
{public_url}
{server or ('secrets = ["a secret that all nodes of the story share"]' if store else "")}
[store]
url = "{store or f"sqlite:///{folder / 'receiver.db'}"}"
[network]
allow_private = ["127.0.0.0/8"]
[polling]
{polling or 'interval = "0.2s"'}
{accounts}
{providers}
{more}
"""


@asynccontextmanager
async def open_home(sim: Served, folder: Path, roles: Sequence[str] = ROLES, **config: Any) -> AsyncIterator[Home]:
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        text = make_config(sim, folder, port, **config)
        plan = check(load(text, os.environ, folder=folder))
        async with run(plan, roles) as services:
            server = Server(uvicorn_config(create_app(services)))
            serving = asyncio.create_task(server.serve([listener]))
            url = f"http://127.0.0.1:{port}"
            try:
                async with httpx.AsyncClient(base_url=url, timeout=65, trust_env=False) as api:
                    yield Home(api, services, sim, folder, url)
            finally:
                server.should_exit = True
                await serving


def uvicorn_config(app: Any) -> Any:
    import uvicorn

    return uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)


def recorder(folder: Path, name: str = "all", events: str = '["*"]', options: str = "") -> str:
    """A handler of the user's own that writes each event into a file."""
    module = f"recorder_{uuid.uuid4().hex}"  # Python imports a name only once in a process
    (folder / f"{module}.py").write_text(
        "import json, pathlib\n"
        "FILE = pathlib.Path(__file__).parent / 'events.jsonl'\n"
        "async def handle(event, context):\n"
        "    with FILE.open('a') as file:\n"
        "        file.write(json.dumps({'handler': context.name, 'id': event.id, 'type': event.type, 'job': event.subject,"
        " 'sequence': event.sequence, 'data': event.data}) + '\\n')\n"
    )
    return f'[[handlers]]\nname = "{name}"\nuse = "{module}:handle"\nevents = {events}\n{options}\n'


def recorded(folder: Path) -> list[dict[str, Any]]:
    file = folder / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
