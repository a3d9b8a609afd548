"""Polling: answers per second about jobs that all are due, written where they belong, beside a bare httpx loop against the same server."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from receiver.model import Family
from receiver.stores import open_store
from receiver.stores.terms import Settlement
from tests.benchmarks.lines import Line, Settings, median_ratio
from tests.benchmarks.servers import SECRET, database, free_port, running
from tests.factories import make_poll, make_running_family

JOBS = 3_000  # more than can be asked about within the shortest interval
CONCURRENCY = 50  # calls at once, on both sides
START, WARM, SLICE, ROUNDS = 30.0, 1.0, 4.0, 4  # seconds, the last one times; both sides take turns
GOAL = "0.7"

# Every job runs for ever. As little as a server can be: it must not be what is measured.
PROVIDER = """
import json, sys, uvicorn
row = lambda id: {"id": id, "generation_id": id, "status": "processing" if id[0] == "o" else "in_progress", "model_name": "elk-1",
                  "created_at": 1767225600, "progress": 40, "media_type": "image/png"}
listed = json.dumps({"generations": [row(f"o{n}") for n in range(JOBS)]}).encode()
async def app(scope, receive, send):
    last = scope["path"].rsplit("/", 1)[1]
    body = listed if last == "queue" else json.dumps(row(last)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="critical", access_log=False, lifespan="off")
"""

# On the event loop that we run on, too.
BARE = """
import asyncio, httpx, sys, time, uvicorn
url, connections, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
async def main():
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
        calls, start = 0, time.perf_counter()
        async def ask():
            nonlocal calls
            while time.perf_counter() - start < seconds:
                (await client.get(url)).json()
                calls += 1
        await asyncio.gather(*(ask() for _ in range(connections)))
        print(calls / (time.perf_counter() - start))
with asyncio.Runner(loop_factory=uvicorn.Config(app="").get_loop_factory()) as runner:
    runner.run(main())
"""


def measure(settings: Settings) -> Iterator[Line]:
    port = free_port()
    script = PROVIDER.replace("PORT", str(port)).replace("JOBS", str(JOBS))
    with running([sys.executable, "-c", script], f"http://127.0.0.1:{port}/up"):
        for store in settings.stores:
            for provider in ("elkapi", "oxen"):
                yield measure_one(store, provider, f"http://127.0.0.1:{port}", settings.scale)


def measure_one(store: str, provider: str, base_url: str, scale: float) -> Line:
    pairs: list[tuple[float, float]] = []
    with database(store) as url:
        asyncio.run(seed(url, provider))
        for _ in range(max(round(ROUNDS * scale), 1)):
            known = count_answers(url)
            with poller(url, provider, base_url):
                deadline = time.monotonic() + START
                while count_answers(url) == known and time.monotonic() < deadline:
                    time.sleep(0.1)
                time.sleep(WARM)
                before, start = count_answers(url), time.perf_counter()
                time.sleep(SLICE)
                ours = (count_answers(url) - before) / (time.perf_counter() - start)
            pairs.append((ours, bare(f"{base_url}/v1/task/e1")))
    return Line(
        name="polling, one call for many" if provider == "oxen" else "polling, one call for each",
        store=store,
        ours=statistics.median(ours for ours, _ in pairs),
        unit="/s",
        reference=statistics.median(reference for _, reference in pairs),
        reference_name="bare httpx loop",
        ratio=median_ratio(pairs),
        goal=GOAL,
        note=f"{CONCURRENCY} calls at once",
        details={"pairs": pairs},
    )


async def seed(url: str, provider: str) -> None:
    """Jobs of this account that run, and are due."""
    now = datetime.now(UTC)
    async with open_store(url) as store:
        families = [
            make_running_family(provider=provider, created_at=now, deadline_seconds=86_400.0, job={"remote_id": f"{provider[0]}{number}"})
            for number in range(JOBS)
        ]
        await asyncio.gather(*(store.create_submission(family) for family in families))
        await store.settle([start_polling(family, now) for family in families])


def start_polling(family: Family, now: datetime) -> Settlement:
    polls = tuple(make_poll(job, due_at=now) for job in family.jobs)
    return Settlement(submission=family.submission, version=0, polls=polls)


@contextmanager
def poller(url: str, provider: str, base_url: str) -> Iterator[None]:
    """One process of ours that does nothing but poll."""
    with TemporaryDirectory() as folder:
        config = Path(folder, "receiver.toml")
        config.write_text(
            f'[server]\nsecrets = ["{SECRET}"]\n[store]\nurl = "{url}"\n[providers.{provider}]\napi_key = "none"\nbase_url = "{base_url}"\n'
            f'[polling]\ninterval = "0.1s"\nmax_interval = "0.1s"\nconcurrency = {CONCURRENCY}\ndeadline = "1d"\n'
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "receiver", "--config", str(config), "-q", "poll", "--roles", "poll"], stdout=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def count_answers(url: str) -> int:
    """Poll answers that are on disk; one that equals the last one about its job is counted there."""
    query = "SELECT sum(repeats + 1) FROM notices WHERE channel = 'poll'"
    if url.startswith("sqlite"):
        with sqlite3.connect(f"file:/{urlsplit(url).path.lstrip('/')}?mode=ro", uri=True) as connection:
            return connection.execute(query).fetchone()[0] or 0
    return int(asyncio.run(ask_postgres(url, query)) or 0)


async def ask_postgres(url: str, query: str) -> int:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def bare(url: str) -> float:
    words = [sys.executable, "-c", BARE, url, str(CONCURRENCY), str(SLICE)]
    return float(json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout))
