"""Durable accept: callback POST → proven → on disk with fsync → 200, beside a bare application that reads the body and answers 200."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from tests.benchmarks.lines import Line, Settings, median_ratio
from tests.benchmarks.servers import bare, database, press, receivers

SUBMISSIONS = 20_000  # so that no submission passes its bound of callbacks
SLICE = 1.5  # seconds; both sides take turns
SLICES = 3  # on one database: more would fill the inbox up to its bound, since nobody settles
ROUNDS = 4
GOALS = {"sqlite": "0.60, at least 0.45", "postgres": "0.60, at least 0.50"}


def measure(settings: Settings) -> Iterator[Line]:
    for store in settings.stores:
        for processes in settings.processes:
            yield measure_one(store, processes, settings.scale)


def measure_one(store: str, processes: int, scale: float) -> Line:
    pairs: list[tuple[dict, dict]] = []
    for _ in range(max(round(ROUNDS * scale), 1)):
        with bare(processes) as bare_urls, database(store) as url, receivers(url, ("web",) * processes) as our_urls:
            press(bare_urls, 0.5, SUBMISSIONS)  # both are warm before it counts
            press(our_urls, 0.5, SUBMISSIONS)
            for _ in range(SLICES):
                pairs.append((press(our_urls, SLICE, SUBMISSIONS), press(bare_urls, SLICE, SUBMISSIONS)))
    for ours, _ in pairs:
        assert set(ours["statuses"]) == {"200"}, ours
    p99 = median_ratio((ours["p99_ms"], reference["p99_ms"]) for ours, reference in pairs)
    return Line(
        name="durable accept",
        store=store,
        processes=processes,
        ours=statistics.median(ours["per_second"] for ours, _ in pairs),
        unit="/s",
        reference=statistics.median(reference["per_second"] for _, reference in pairs),
        reference_name="bare Starlette",
        ratio=median_ratio((ours["per_second"], reference["per_second"]) for ours, reference in pairs),
        goal=GOALS.get(store, "") if processes == 1 else "",
        note=f"p99 {statistics.median(ours['p99_ms'] for ours, _ in pairs):.1f} ms, {p99:.1f} × the reference's",
        details={"pairs": pairs, "p99_ratio": p99},
    )
