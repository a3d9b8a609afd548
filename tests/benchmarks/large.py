"""Large tables: every hot statement of the store with few finished jobs and with many; what an intake feels while old ones are pruned.

`python -m tests.benchmarks.large --rows 10000000 --store sqlite --plans` also shows how the database goes about each statement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from receiver.stores import open_store
from receiver.stores.base import Store
from tests.benchmarks import plans
from tests.benchmarks.filling import SPAN, Filling, fill_postgres, fill_sqlite
from tests.benchmarks.lines import Line, Settings
from tests.benchmarks.servers import database
from tests.benchmarks.steps import BOUND, DAY, make_steps
from tests.factories import make_notice

SMALL = 100_000  # finished jobs of the reference: enough to fill every page
LONGEST = 0.5  # seconds for the repetitions of one statement


@asynccontextmanager
async def filled(url: str, filling: Filling) -> AsyncIterator[Store]:
    """A store with so many finished jobs."""
    async with open_store(url):
        pass
    if url.startswith("sqlite:"):
        await asyncio.to_thread(fill_sqlite, Path(unquote(urlsplit(url).path)), filling)
    else:
        from tests.postgres import connect

        async with connect(url) as connection:
            await fill_postgres(connection, filling)
    async with open_store(url) as store:
        yield store


async def measure_steps(store: Store, filling: Filling) -> dict[str, float]:
    """Seconds, by statement: the median of some runs, each in turn with what undoes it."""
    took: dict[str, float] = {}
    for name, step in (await make_steps(store, filling)).items():
        laps: list[float] = []
        ends_at = time.monotonic() + LONGEST
        while len(laps) < 3 or (time.monotonic() < ends_at and len(laps) < 25):
            before = time.perf_counter()
            undo = await step()
            laps.append(time.perf_counter() - before)
            if callable(undo):
                await undo()
        took[name] = statistics.median(laps)
    return took


async def intake_while_pruning(store: Store, now: datetime, seconds: float) -> tuple[list[float], list[float], int]:
    """Seconds that single notices took to be kept, alone and beside a prune that never ends; and how many rows were pruned."""

    async def keep(laps: list[float], ends_at: float, number: int) -> None:
        while time.monotonic() < ends_at:
            before = time.perf_counter()
            await store.keep_notice(make_notice(f"sub_{number}_{len(laps)}", at=now), BOUND)
            laps.append(time.perf_counter() - before)
            await asyncio.sleep(0.01)

    async def prune(ends_at: float) -> int:
        pruned = 0
        while time.monotonic() < ends_at:
            pruned += await store.prune(now, SPAN / 2, SPAN / 2, DAY, 200)
        return pruned

    alone: list[float] = []
    beside: list[float] = []
    await asyncio.gather(*(keep(alone, time.monotonic() + seconds, number) for number in range(16)))
    ends_at = time.monotonic() + seconds
    pruned, *_ = await asyncio.gather(prune(ends_at), *(keep(beside, ends_at, number) for number in range(16)))
    return sorted(alone), sorted(beside), pruned


async def run(url: str, rows: int, seconds: float, show: bool) -> tuple[dict[str, float], tuple[list[float], list[float], int]]:
    filling = Filling(rows, datetime.now(UTC))
    async with filled(url, filling) as store:
        if show:
            async with plans.traced(store, url) as seen:
                took = await measure_steps(store, filling)
            for statement, plan in (await plans.explain(url, seen)).items():
                print(f"{statement}\n{plan}\n")
        else:
            took = await measure_steps(store, filling)
        return took, await intake_while_pruning(store, filling.now, seconds)


def p99(laps: list[float]) -> float:
    return laps[int(len(laps) * 0.99)] * 1000


def compare(kind: str, rows: int, seconds: float = 10.0, show: bool = False) -> Iterator[Line]:
    with database(kind) as url:
        small, _ = asyncio.run(run(url, SMALL, 1.0, False))
    with database(kind) as url:
        large, (alone, beside, pruned) = asyncio.run(run(url, rows, seconds, show))
    for name, took in large.items():
        yield Line(
            name=name,
            store=kind,
            ours=took * 1000,
            unit="ms",
            reference=small[name] * 1000,
            reference_name=f"{SMALL:,} jobs",
            ratio=took / small[name],
            note=f"{rows:,} finished jobs",
        )
    yield Line(
        name="intake while pruning, p99",
        store=kind,
        ours=p99(beside),
        unit="ms",
        reference=p99(alone),
        reference_name="alone",
        ratio=p99(beside) / p99(alone),
        note=f"{pruned:,} rows pruned in {seconds:g} s; longest {beside[-1] * 1000:.0f} ms",
    )


def measure(settings: Settings) -> Iterator[Line]:
    """One line for each kind of statement: the one that grew most."""
    rows = int(1_000_000 * settings.scale)
    for kind in settings.stores:
        lines = list(compare(kind, rows, max(10.0 * settings.scale, 2.0)))
        groups: dict[str, list[Line]] = {}
        for line in lines[:-1]:
            groups.setdefault(line.name.partition(":")[0] if ":" in line.name else "single rows and claims", []).append(line)
        for name, group in groups.items():
            worst = max(group, key=lambda line: line.ratio or 0)
            yield replace(worst, name=f"large tables: {name} (the worst of {len(group)}: {worst.name})", goal="≤ 2")
        yield lines[-1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.large")
    parser.add_argument("--rows", type=int, default=1_000_000, help="finished jobs; default: %(default)s")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--plans", action="store_true", help="show the plan of every statement")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    lines = []
    for line in compare(asked.store, asked.rows, show=asked.plans):
        lines.append(line)
        print(f"{line.name:<55} {line.reference:>10.2f} → {line.ours:>10.2f} ms  × {line.ratio:.2f}  {line.note}", flush=True)
    print(f"median × {statistics.median(line.ratio or 0 for line in lines):.2f}")
    if asked.json is not None:
        asked.json.write_text(json.dumps([{field: getattr(line, field) for field in line.__struct_fields__} for line in lines], indent=1))


if __name__ == "__main__":
    main()
