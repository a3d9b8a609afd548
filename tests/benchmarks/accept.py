"""Durable accept: callback POST → proven → on disk with fsync → 200, beside a bare application that reads the body and answers 200."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from receiver.tokens import Tokens

SECRET = "a-secret-for-the-benchmark"
CONNECTIONS = 64
SUBMISSIONS = 2_000  # so that no submission passes its bound of callbacks

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
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise TimeoutError(url)


@contextmanager
def running(arguments: list[str], url: str):
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(url)
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def bare():
    port = free_port()
    with running([sys.executable, "-c", BARE.replace("PORT", str(port))], f"http://127.0.0.1:{port}/"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def receiver(store: str | None = None, roles: str = "web", more: str = ""):
    """The real server. With the role `web` alone it keeps and does not settle."""
    port = free_port()
    with TemporaryDirectory(dir=os.environ.get("RECEIVER_BENCH_DIR")) as folder:
        config = Path(folder) / "receiver.toml"
        config.write_text(
            f'[server]\nport = {port}\nsecrets = ["{SECRET}"]\n[store]\nurl = "{store or f"sqlite:///{folder}/receiver.db"}"\n'
            f'[providers.elkapi]\napi_key = "none"\nbase_url = "http://127.0.0.1:9"\n{more}'
        )
        arguments = [sys.executable, "-m", "receiver", "--config", str(config), "-q", "serve", "--roles", roles]
        with running(arguments, f"http://127.0.0.1:{port}/healthz"):
            yield f"http://127.0.0.1:{port}"


def callbacks(count: int = SUBMISSIONS) -> list[tuple[str, str]]:
    """Callbacks of two kilobytes, each of its own submission."""
    tokens = Tokens([SECRET])
    filler = "x" * 1800
    return [
        (
            f"/callbacks/elkapi/{tokens.make('elkapi', f'sub_{number:032x}')}",
            json.dumps({"id": f"task_{number}", "status": "in_progress", "created_at": 1767225600, "note": filler}),
        )
        for number in range(count)
    ]


def press(url: str, seconds: float, connections: int = CONNECTIONS) -> dict[str, float]:
    asked = {"url": url, "bodies": callbacks(), "connections": connections, "seconds": seconds}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.load"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 60,
    )
    return json.loads(done.stdout)


def main(seconds: float = 5.0, rounds: int = 3) -> None:
    ratios = []
    for number in range(rounds):
        with bare() as url:
            reference = press(url, seconds)
        with receiver() as url:
            ours = press(url, seconds)
        ratios.append(ours["per_second"] / reference["per_second"])
        print(
            f"round {number + 1}: bare {reference['per_second']:.0f}/s p99 {reference['p99_ms']:.1f} ms · "
            f"durable {ours['per_second']:.0f}/s p99 {ours['p99_ms']:.1f} ms {ours['statuses']} · "
            f"ratio {ratios[-1]:.2f} · p99 ratio {ours['p99_ms'] / reference['p99_ms']:.1f}"
        )
    print(f"durable accept: {sorted(ratios)[len(ratios) // 2]:.2f} of a bare Starlette application (median of {rounds})")


if __name__ == "__main__":
    main()
