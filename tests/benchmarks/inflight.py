"""Many jobs under way: how long a process takes to start, how large it grows, how soon it has the next polls, how soon a page is there."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import httpx

from receiver.stores import open_store
from tests.benchmarks.filling import Filling, fill_postgres, fill_sqlite
from tests.benchmarks.lines import Line, Settings
from tests.benchmarks.servers import database, receivers

OPEN = 1_000_000
ROLES = "web,submit,settle,poll,stream,dispatch"
PAGES = ("/", "/jobs", "/jobs?provider=pixazo&status=queued", "/deliveries", "/providers", "/metrics", "/v1/jobs?limit=100")
NAMES = ("pixazo", "oxen", "hoox", "huzz")  # elkapi is there
MORE = "".join(f'[providers.{name}]\napi_key = "none"\nbase_url = "http://127.0.0.1:9"\n' for name in NAMES) + (
    '[[handlers]]\nname = "archive"\nuse = "log"\n'
)
WATCHED = 15.0  # seconds for the loops to do their rounds


async def fill(url: str, jobs: int) -> None:
    async with open_store(url):
        pass
    if not jobs:
        return
    filling = Filling(jobs, datetime.now(UTC), "open")
    if url.startswith("sqlite:"):
        await asyncio.to_thread(fill_sqlite, Path(unquote(urlsplit(url).path)), filling)
    else:
        from tests.postgres import connect

        async with connect(url) as connection:
            await fill_postgres(connection, filling)


async def claim(url: str) -> float:
    """Seconds for the next 500 due polls of five accounts, claimed and given back."""
    laps = []
    async with open_store(url) as store:
        later = datetime.now(UTC) + timedelta(hours=2)
        for _ in range(20):
            before = time.perf_counter()
            claimed = await store.claim_polls(later, 500, ["elkapi", *NAMES])
            laps.append(time.perf_counter() - before)
            await store.release_polls([poll for poll, _ in claimed])
    return statistics.median(laps)


def look_at_server(url: str) -> dict[str, float]:
    """Of a real server: seconds until it answers, MiB at its largest, milliseconds of the first look at each page and of later ones."""
    seen: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        before = time.monotonic()
        with receivers(url, [ROLES], MORE, folder=Path(folder)) as (address,), httpx.Client(base_url=address, trust_env=False) as api:
            seen["start"] = time.monotonic() - before
            for page in PAGES:
                seen[page] = clock(api, page)
            time.sleep(WATCHED)
            for page in PAGES:
                seen[f"{page} again"] = statistics.median(clock(api, page) for _ in range(5))
            seen["memory"] = peak_memory(folder)
    return seen


def clock(api: httpx.Client, page: str) -> float:
    before = time.perf_counter()
    assert api.get(page, headers={"Accept": "text/html"}, timeout=60).status_code == 200, page
    return (time.perf_counter() - before) * 1000


def peak_memory(folder: str) -> float:
    """Of the process that was started with the configuration in this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if folder.encode() in (process / "cmdline").read_bytes():
                status = (process / "status").read_text()
                return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
        except OSError:
            continue
    raise ProcessLookupError(folder)


def measure(settings: Settings) -> Iterator[Line]:
    jobs = int(OPEN * settings.scale)
    for kind in settings.stores:
        found = []
        for count in (0, jobs):
            with database(kind) as url:
                asyncio.run(fill(url, count))
                found.append({"claim": asyncio.run(claim(url)) * 1000, **look_at_server(url)})
        yield from show(kind, jobs, *found)


def show(kind: str, jobs: int, none: dict[str, float], many: dict[str, float]) -> Iterator[Line]:
    lines = [
        ("memory at its largest", "memory", "MiB", "< 300"),
        ("start", "start", "s", "as with none"),
        ("next 500 due polls", "claim", "ms", "< 10"),
    ]
    for page in PAGES:
        lines.append((f"GET {page}, first", page, "ms", "< 300" if page in ("/", "/jobs") else ""))
        lines.append((f"GET {page}, later", f"{page} again", "ms", ""))
    for name, key, unit, goal in lines:
        yield Line(
            name=f"in flight: {name}",
            store=kind,
            ours=many[key],
            unit=unit,
            reference=none[key],
            reference_name="none open",
            ratio=many[key] / none[key],
            goal=goal,
            note=f"{jobs:,} open jobs",
        )
