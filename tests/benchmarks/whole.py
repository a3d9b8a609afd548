"""All of it: accepted, settled, event written, one trivial handler done; from the first callback to the last call of the handler."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from tests.benchmarks.flow import ALL, APART, installation
from tests.benchmarks.lines import Line, Settings
from tests.benchmarks.servers import bare, database, press

SECONDS = 10.0
REFERENCE_SLICE = 2.0
MOST_JOBS = 60_000  # that wait for a callback: a load that has used them up ends
DRAIN = 120.0  # seconds
ROUNDS = 3


def measure(settings: Settings) -> Iterator[Line]:
    for store in settings.stores:
        for processes in settings.processes:
            yield measure_one("all of it", store, (ALL,) * processes, settings.scale)
        yield measure_one("all of it, roles apart", store, APART, settings.scale)


def measure_one(name: str, store: str, roles: Sequence[str], scale: float) -> Line:
    """The reference of processes that share the work by roles is one bare process: only one of them answers callbacks."""
    rounds = [measure_round(store, roles, scale) for _ in range(ROUNDS)]
    ratio = statistics.median(one["per_second"] / one["reference"] for one in rounds)
    drained = all(one["has_drained"] for one in rounds)
    return Line(
        name=name,
        store=store,
        processes=len(roles),
        ours=statistics.median(one["per_second"] for one in rounds),
        unit="/s",
        reference=statistics.median(one["reference"] for one in rounds),
        reference_name="bare Starlette" + (", one process" if roles == APART else ""),
        ratio=ratio,
        goal="0.20" if len(roles) == 1 or roles == APART else "",
        note=f"accepted {statistics.median(one['accepted_per_second'] for one in rounds):,.0f}/s meanwhile, then drained"
        + ("" if drained else f": not all of it in {DRAIN:.0f} s"),
        details={"rounds": rounds},
    )


def measure_round(store: str, roles: Sequence[str], scale: float) -> dict[str, Any]:
    seconds, jobs = SECONDS * scale, int(MOST_JOBS * scale)
    webs = sum("web" in role.split(",") for role in roles)
    with bare(webs) as bare_urls, database(store) as url, installation(url, jobs, roles) as (addresses, marks):
        references = [press(bare_urls, REFERENCE_SLICE, 1_000)["per_second"]]
        load = press(addresses, seconds, jobs, status="completed", once=True)
        accepted = load["statuses"].get("200", 0)
        backlog = accepted - marks.count()
        has_drained = marks.wait_for(accepted, DRAIN)
        references.append(press(bare_urls, REFERENCE_SLICE, 1_000)["per_second"])
        called = marks.read()
    took = (max(called.values()) - load["began"]) / 1e9
    return {
        "per_second": len(called) / took,
        "accepted_per_second": load["per_second"],
        "reference": statistics.mean(references),
        "references": references,
        "has_drained": has_drained,
        "statuses": load["statuses"],
        "backlog": backlog,
        "handled": len(called),
        "seconds": took,
    }
