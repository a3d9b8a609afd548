"""Fan-in: outputs that the storage handler keeps, hashed and synced, beside bare httpx streams to disk; and what one large file needs."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from tempfile import TemporaryDirectory
from threading import Thread
from typing import NamedTuple

import msgspec

from receiver.model import Output, Status
from receiver.stores import open_store
from receiver.stores.terms import Settlement
from tests.benchmarks.lines import Line, Settings, median_ratio
from tests.benchmarks.servers import SECRET
from tests.factories import make_delivery, make_event, make_running_family

MIB = 2**20
CONCURRENCY = 4  # on both sides
ROUNDS, LARGE_ROUNDS = 5, 3
LARGE = 2048 * MIB
MOST_GROWTH = 30  # MiB, while a large file comes
GOAL = "0.9"
BOUND = 300.0  # seconds

BARE = """
import asyncio, httpx, json, os, pathlib, sys, time, uvicorn
urls, folder, connections, synced = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "synced"
async def main():
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        waiting = iter(urls)
        async def work():
            for url in waiting:
                async with client.stream("GET", url) as response:
                    with open(folder / url.rsplit("/", 1)[1], "wb") as file:
                        async for piece in response.aiter_bytes():
                            file.write(piece)
                        if synced:
                            file.flush()
                            await asyncio.to_thread(os.fsync, file.fileno())
        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(connections)))
        print(time.perf_counter() - start)
with asyncio.Runner(loop_factory=uvicorn.Config(app="").get_loop_factory()) as runner:
    runner.run(main())
"""


def measure(settings: Settings) -> Iterator[Line]:
    scale = settings.scale
    yield measure_many("fan-in, files of 16 MiB", 24, 16 * MIB, scale, GOAL)
    yield measure_many("fan-in, files of 64 KiB", 400, MIB // 16, scale, "")  # what each costs beside its bytes
    yield measure_large(round(LARGE * scale), scale)


class Lap(NamedTuple):
    """Three in a row, MiB per second. What is said to be stored has to be on disk, so the second reference syncs each file once."""

    ours: float
    bare: float
    synced: float


def measure_many(name: str, count: int, size: int, scale: float, goal: str) -> Line:
    """Files as many generations make them, several at once."""
    with Files() as files:
        laps = [run_lap(files, count, size) for _ in range(max(round(ROUNDS * scale), 1))]
    return make_line(name, laps, goal, f"{CONCURRENCY} at once; hashed, synced, recorded")


def measure_large(size: int, scale: float) -> Line:
    grown: list[float] = []
    with Files() as files:
        laps = [run_lap(files, 1, size, grown) for _ in range(max(round(LARGE_ROUNDS * scale), 1))]
    note = f"memory grew by {max(grown):.1f} MiB (goal: under {MOST_GROWTH})"
    line = make_line(f"fan-in, a file of {size / MIB / 1024:.2g} GiB", laps, f"{GOAL}, memory flat", note)
    return msgspec.structs.replace(line, details=line.details | {"grown_mib": max(grown)})


def run_lap(files: Files, count: int, size: int, grown: list[float] | None = None) -> Lap:
    seconds = keep(files, count, size, grown), fetch(files, count, size), fetch(files, count, size, "synced")
    return Lap(*(count * size / MIB / spent for spent in seconds))


def make_line(name: str, laps: list[Lap], goal: str, note: str) -> Line:
    beside_synced = median_ratio((lap.ours, lap.synced) for lap in laps)
    return Line(
        name=name,
        ours=statistics.median(lap.ours for lap in laps),
        unit="MiB/s",
        reference=statistics.median(lap.bare for lap in laps),
        reference_name="bare httpx to disk, not synced",
        ratio=median_ratio((lap.ours, lap.bare) for lap in laps),
        goal=goal,
        note=f"{note}; {beside_synced:.2f} of bare httpx that syncs each file",
        details={"laps": [lap._asdict() for lap in laps], "ratio_synced": beside_synced},
    )


class Answer(StreamRequestHandler):
    """`GET /SIZE/NAME`: so many bytes. As little as a server can be."""

    piece = memoryview(bytes(range(256)) * 4096)  # 1 MiB

    def handle(self) -> None:
        while (line := self.rfile.readline()).startswith(b"GET "):
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            self.server.first_at = self.server.first_at or time.time()
            size = int(line.split(b"/")[1])
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % size)
            while size > 0:
                self.wfile.write(self.piece[:size])
                size -= len(self.piece)


class Files(ThreadingTCPServer):
    """Serves files of any size while the block runs."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.first_at = 0.0
        Thread(target=self.serve_forever, daemon=True).start()

    def url(self, size: int, number: int) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{size}/{number}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def keep(files: Files, count: int, size: int, grown: list[float] | None = None) -> float:
    """Seconds from the first request until the last output is on disk and said to be; and how memory grew meanwhile."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(seed(f"sqlite:///{folder}/receiver.db", [files.url(size, number) for number in range(count)]))
        files.first_at = 0.0
        with storing(folder) as process:
            deadline = time.monotonic() + BOUND
            usual = 0.0
            while (done := read_done(folder))[0] < count:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{done[0]} of {count} outputs were kept")
                time.sleep(0.05)
                if grown is not None:
                    usual = usual or memory(process) * bool(files.first_at)
                    grown.append(memory(process) - usual if usual else 0.0)
        return done[1] - files.first_at


@contextmanager
def storing(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One process of ours that does nothing but deliver."""
    (folder / "receiver.toml").write_text(
        f'[server]\nsecrets = ["{SECRET}"]\n[store]\nurl = "sqlite:///receiver.db"\n[network]\nallow_private = ["127.0.0.0/8"]\n'
        f'[providers.elkapi]\napi_key = "none"\nbase_url = "http://127.0.0.1:9"\n'
        f'[[handlers]]\nname = "archive"\nuse = "storage"\nevents = ["job.succeeded"]\ntimeout = "10m"\nconcurrency = {CONCURRENCY}\n'
    )
    words = [sys.executable, "-m", "receiver", "--config", str(folder / "receiver.toml"), "-q", "poll", "--roles", "dispatch"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


async def seed(url: str, links: list[str]) -> None:
    """Jobs that succeeded just now, each with one output that nobody has kept yet."""
    now = datetime.now(UTC)
    settlements = []
    async with open_store(url) as store:
        for link in links:
            done = {"status": Status.SUCCEEDED, "outputs": (Output(index=0, url=link),), "finished_at": now, "updated_at": now}
            family = make_running_family(created_at=now, job=done)
            await store.create_submission(family)
            event = make_event(family.jobs[0], at=now)
            delivery = make_delivery(event, next_attempt_at=now)
            settlements.append(Settlement(submission=family.submission, version=0, events=(event,), deliveries=(delivery,)))
        await store.settle(settlements)


def read_done(folder: Path) -> tuple[int, float]:
    """How many deliveries are done, and when the last one was."""
    with sqlite3.connect(f"file:{folder}/receiver.db?mode=ro", uri=True) as connection:
        count, last = connection.execute("SELECT count(*), max(updated_at) FROM deliveries WHERE state = 'done'").fetchone()
    return count, (last or 0) / 1e6


def memory(process: subprocess.Popen[bytes]) -> float:
    """MiB that it holds, without what the system caches for it."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def fetch(files: Files, count: int, size: int, kind: str = "bare") -> float:
    """Seconds that the bare loop takes for the same."""
    with TemporaryDirectory() as folder:
        urls = json.dumps([files.url(size, number) for number in range(count)])
        words = [sys.executable, "-c", BARE, urls, folder, str(CONCURRENCY), kind]
        return float(subprocess.run(words, capture_output=True, text=True, check=True, timeout=BOUND).stdout)
