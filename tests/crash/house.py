"""An installation that may die: the server is a process of its own, the simulator lives on in the test's."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

import receiver
from receiver.simulator import Served
from tests.crash import seams

BOUND = 60.0  # seconds: a wait that takes longer is a failure
PROVIDERS = ("huzz", "elkapi", "oxen", "pixazo", "hoox", "replicate", "fal", "openai")
RECORDER = "crash_recorder"
ROOT = Path(receiver.__file__).resolve().parents[1]

# A process that is forked from one that has imported everything starts in a tenth of the time.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    [
        *("receiver.app", "receiver.cli.root", "receiver.cli.service", "receiver.handlers.storage_folder", "receiver.logs"),
        *("receiver.web.application", "anyio._backends._asyncio", "uvicorn.loops.auto", "uvicorn.protocols.http.auto"),
    ]
)


async def until(condition: Callable[[], Any], seconds: float = BOUND, tell: Callable[[], str] = str) -> Any:
    """The condition's first true value, asked for again and again. `tell` says what to show when it never comes."""
    ends_at = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        value = condition()
        value = await value if asyncio.iscoroutine(value) else value
        if value:
            return value
        assert time.monotonic() < ends_at, f"waited {seconds:g} s in vain; {tell()}"
        await asyncio.sleep(min(2.0, max(0.02, 3 * (time.monotonic() - began))))  # a question that costs much is asked less often


class Process:
    """One run of `receiver …`."""

    def __init__(self, process: Any, log: Path) -> None:
        self._process, self.log = process, log

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode if hasattr(self._process, "exitcode") else self._process.poll()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Its exit code once it has ended."""
        await until(lambda: self.code is not None, tell=self.tail)
        assert self.code is not None
        return self.code

    async def died(self) -> None:
        assert await self.ended() == -signal.SIGKILL, self.tail()

    def tail(self) -> str:
        return "its log ends with:\n" + self.log.read_text()[-3000:]


class House:
    """Folder, configuration, port and client of one installation; its processes come and go."""

    def __init__(self, sim: Served, folder: Path, api: httpx.AsyncClient, port: int) -> None:
        self.sim, self.folder, self.api, self.port = sim, folder, api, port
        self.file = folder / "receiver.toml"
        self.events = folder / "events.jsonl"
        self.prompts: dict[str, str] = {}  # by submission id
        self._runs = 0

    # Processes

    @asynccontextmanager
    async def run(self, *words: str, seam: str = "", fork: bool = False) -> AsyncIterator[Process]:
        """`receiver --config FILE WORDS…` while the block runs; killed at its end. With a seam it dies there by itself."""
        self._runs += 1
        log = self.folder / f"log-{self._runs}.txt"
        words = ("--config", str(self.file), *words)
        process = Process(self._fork(words, seam, log) if seam or fork else start(words, log), log)
        try:
            yield process
        finally:
            if process.code is None:
                process.kill()
            await process.ended()

    def _fork(self, words: tuple[str, ...], seam: str, log: Path) -> Any:
        process = forks.Process(target=seams.run, args=(words, seam, log), daemon=True)
        process.start()
        return process

    @asynccontextmanager
    async def serve(self, *words: str, seam: str = "", fork: bool = False) -> AsyncIterator[Process]:
        """The server, once it answers."""
        async with self.run("serve", *words, seam=seam, fork=fork) as process:
            await until(lambda: self.answers(process), tell=process.tail)
            yield process

    async def answers(self, process: Process) -> bool:
        assert process.code is None, process.tail()
        return await self.is_up()

    async def is_up(self) -> bool:
        try:
            return (await self.api.get("/healthz")).status_code == 200
        except httpx.HTTPError:
            return False

    # What a user does

    async def submit(self, provider: str, prompt: str, **more: Any) -> str:
        """A submission's id, once it is on disk. A server that dies meanwhile is asked again: the key makes it one submission."""

        async def ask() -> Any:
            try:
                return await self.ask_for(provider, prompt, **more)
            except httpx.TransportError:
                return None

        submission_id = str((await until(ask, 60))["submission_id"])
        self.prompts[submission_id] = prompt
        return submission_id

    async def ask_for(self, provider: str, prompt: str, **more: Any) -> dict[str, Any] | None:
        """What the server answers; None where it asks for patience."""
        body = {"provider": provider, "input": {"prompt": prompt, **more.pop("input", {})}, **MODELS[provider], **more}
        headers = {"Prefer": "respond-async", "Idempotency-Key": f'"{prompt}"'}
        answer = await self.api.post("/v1/jobs", json=body, headers=headers)
        assert answer.status_code in (202, 409, 503), answer.text
        return dict(answer.json()) if answer.status_code == 202 else None

    async def submit_all(self, orders: Sequence[tuple[str, str, dict[str, Any]]], at_once: int = 16) -> dict[str, str]:
        """(provider, prompt, more) for each; submission id → prompt."""
        turns = asyncio.Semaphore(at_once)

        async def submit(provider: str, prompt: str, more: dict[str, Any]) -> tuple[str, str]:
            async with turns:
                return await self.submit(provider, prompt, **more), prompt

        return dict(await asyncio.gather(*(submit(*order) for order in orders)))

    async def jobs(self, **filters: str) -> list[dict[str, Any]]:
        """All jobs, oldest first."""
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = (await self.api.get("/v1/jobs", params={"limit": "1000", **filters, **cursor})).json()
            found += page["jobs"]
            if page["next_cursor"] is None:
                return found[::-1]
            cursor = {"cursor": page["next_cursor"]}

    async def open_jobs(self) -> Counter[str]:
        """How many jobs are not final, by status."""
        counts: Counter[str] = Counter()
        for provider in (await self.api.get("/v1/providers")).json()["providers"]:
            counts.update(provider["open_jobs"])
        return counts

    async def timeline(self, job_id: str) -> list[dict[str, Any]]:
        answer = await self.api.get(f"/v1/jobs/{job_id}/timeline", params={"raw": "false"})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["entries"])

    async def open_deliveries(self) -> int:
        """Deliveries that are under way or waiting."""
        handlers = (await self.api.get("/v1/handlers")).json()["handlers"]
        return sum(count for handler in handlers for state, count in handler["deliveries"].items() if state != "dead")

    def handled(self) -> list[dict[str, Any]]:
        """What the recording handler was given, every attempt."""
        return [json.loads(line) for line in self.events.read_text().splitlines()] if self.events.exists() else []


MODELS: dict[str, dict[str, Any]] = {
    "huzz": {"model": "kling/kling-v2.6-pro/text-to-video"},
    "elkapi": {"model": "kling-v2"},
    "oxen": {"model": "kling-video-v2-6-pro-text-to-video"},
    "pixazo": {"model": "hunyuan-image"},
    "hoox": {"model": "veo-3.1", "media": "video"},
    "replicate": {"model": "black-forest-labs/flux-schnell"},
    "fal": {"model": "fal-ai/flux/dev"},
    "openai": {"model": "sora-2"},
}
RECORDING = """import json, pathlib, time

FILE = pathlib.Path(__file__).parent / "events.jsonl"

async def handle(event, context):
    error = event.data["job"]["error"]
    run = {"id": event.id, "type": event.type, "job": event.subject, "code": error and error["code"], "at": time.time()}
    with FILE.open("a") as file:
        file.write(json.dumps(run) + "\\n")
"""


def start(words: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RECEIVER_")}
    with log.open("w") as file:
        command = [sys.executable, "-m", "receiver", *words]
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file, stdin=subprocess.DEVNULL)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@asynccontextmanager
async def open_house(
    sim: Served, folder: Path, *, database: Path | None = None, storage: bool = False, polling: str = ""
) -> AsyncIterator[House]:
    """An installation that is ready to run, with a handler that records and, if wanted, one that stores."""
    port = free_port()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as api:
        house = House(sim, folder, api, port)
        (folder / f"{RECORDER}.py").write_text(RECORDING)
        address = f'port = {port}\npublic_url = "http://127.0.0.1:{port}"'
        url = f"sqlite:///{database or folder / 'receiver.db'}"
        house.file.write_text(configuration(sim, address, url, polling, outputs="outputs" if storage else ""))
        yield house


def configuration(sim: Served, server: str, url: str, polling: str, *, outputs: str) -> str:
    limits = {"rate_limit": "100000/m", "submit_attempts": 3}
    accounts = "\n".join(
        "\n".join([f"[providers.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())])
        for name, settings in ((name, {"api_key": f"key-of-{name}", **sim.settings(name), **limits}) for name in PROVIDERS)
    )
    retry = 'retry = {attempts = 100, first = "0.2s", max = "1s"}'
    archive = f'''[[handlers]]
name = "archive"
use = "storage"
events = ["job.succeeded"]
concurrency = 16
{retry}
options = {{path = "{outputs}"}}'''
    return f"""
[server]
{server}
probe_public_url = false
[store]
url = "{url}"
[network]
allow_private = ["127.0.0.0/8"]
[polling]
{polling or 'overdue_after = "1s"'}
interval = "0.2s"
max_interval = "1s"
{accounts}
[[handlers]]
name = "record"
use = "{RECORDER}:handle"
events = ["job.*"]
concurrency = 20
{retry}
{archive if outputs else ""}
"""
