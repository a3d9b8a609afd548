"""A burst at 0.30 of what the bare application answers, with settling and dispatching behind it; then drained."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from tests.benchmarks.flow import ALL, APART, installation
from tests.benchmarks.lines import Line, Settings
from tests.benchmarks.servers import bare, database, press

SECONDS = 60.0
PART = 0.30
DRAIN = 300.0  # seconds


def measure(settings: Settings) -> Iterator[Line]:
    for store in settings.stores:
        yield measure_one("burst", store, (ALL,), max(SECONDS * settings.scale, 2.0))
        yield measure_one("burst, roles apart", store, APART, max(SECONDS * settings.scale, 2.0))


def measure_one(name: str, store: str, roles: Sequence[str], seconds: float) -> Line:
    with bare() as urls:
        reference = press(urls, 3.0, 1_000)["per_second"]
    rate = PART * reference
    jobs = int(rate * seconds) + 1
    with database(store) as url, installation(url, jobs, roles) as (addresses, marks):
        load = press(addresses, seconds, jobs, connections=256, rate=rate, status="completed", once=True)
        accepted = load["statuses"].get("200", 0)
        backlog, ended_at = accepted - marks.count(), time.monotonic()
        has_drained = marks.wait_for(accepted, DRAIN)
        drained_in = time.monotonic() - ended_at
    return Line(
        name=f"{name}, {seconds:.0f} s",
        store=store,
        processes=len(roles),
        ours=accepted / load["seconds"],
        unit="/s",
        reference=reference,
        reference_name="bare Starlette",
        ratio=accepted / load["seconds"] / reference,
        goal=f"{PART:.2f}",
        note=f"answered p99 {load['p99_ms']:.0f} ms; {backlog:,} not handled yet at its end, "
        + (f"drained {drained_in:.0f} s later" if has_drained else f"not drained in {DRAIN:.0f} s"),
        details={"offered": rate, "backlog": backlog, "drained_in": drained_in, "statuses": load["statuses"]},
    )
