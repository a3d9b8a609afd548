"""All of it: accepted, settled, event written, one trivial handler done; from the first callback to the last call of the handler."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from tests.benchmarks.flow import installation
from tests.benchmarks.lines import Line, Settings
from tests.benchmarks.servers import bare, database, press

SECONDS = 10.0
REFERENCE_SLICE = 2.0
MOST_JOBS = 60_000  # that wait for a callback: a load that has used them up ends
DRAIN = 120.0  # seconds


def measure(settings: Settings) -> Iterator[Line]:
    for store in settings.stores:
        for processes in settings.processes:
            yield measure_one(store, processes, settings.scale)


def measure_one(store: str, processes: int, scale: float) -> Line:
    seconds, jobs = SECONDS * scale, int(MOST_JOBS * scale)
    with bare(processes) as bare_urls, database(store) as url, installation(url, jobs, processes) as (addresses, marks):
        references = [press(bare_urls, REFERENCE_SLICE, 1_000)["per_second"]]
        load = press(addresses, seconds, jobs, status="completed", once=True)
        accepted = load["statuses"].get("200", 0)
        backlog = accepted - marks.count()
        has_drained = marks.wait_for(accepted, DRAIN)
        references.append(press(bare_urls, REFERENCE_SLICE, 1_000)["per_second"])
        called = marks.read()
    took = (max(called.values()) - load["began"]) / 1e9
    reference = statistics.mean(references)
    return Line(
        name="all of it",
        store=store,
        processes=processes,
        ours=len(called) / took,
        unit="/s",
        reference=reference,
        reference_name="bare Starlette",
        ratio=len(called) / took / reference,
        goal="0.20" if processes == 1 else "",
        note=f"accepted {load['per_second']:,.0f}/s meanwhile, then drained" + ("" if has_drained else f": not all of it in {DRAIN:.0f} s"),
        details={"statuses": load["statuses"], "backlog": backlog, "handled": len(called), "seconds": took, "references": references},
    )
