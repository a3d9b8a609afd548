"""What a benchmark hands back: one line of the table, with its reference from the same run."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec


class Settings(msgspec.Struct, frozen=True):
    """What was asked for on the command line. A benchmark takes of it what it understands."""

    stores: tuple[str, ...] = ("sqlite", "postgres")
    processes: tuple[int, ...] = (1, 2, 4)
    scale: float = 1.0  # of every duration and size: 0.1 to try things, 1 to publish


class Line(msgspec.Struct, frozen=True):
    """One figure. `ours` and `reference` have the same unit; what has no reference has a goal only."""

    name: str
    ours: float
    unit: str
    store: str = "–"
    processes: int = 1
    reference: float | None = None
    reference_name: str = ""
    ratio: float | None = None  # the median over pairs that were measured one after the other; not always ours / reference
    goal: str = ""
    note: str = ""
    details: dict[str, Any] = {}  # kept in the JSON, not shown


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured: figures of two machines do not compare."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    server: str  # what uvicorn runs on, ours and the reference's

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB, {self.system}, Python {self.python}, {self.server}"


def this_machine() -> Machine:
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return Machine(
        processor=models[0] if models else platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=memory / 2**20,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        server=f"uvicorn on {'httptools' if find_spec('httptools') else 'h11'} and {'uvloop' if find_spec('uvloop') else 'asyncio'}",
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def median_ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """Of ours to the reference, pair by pair: a machine that is busy for a while is so for both of a pair."""
    return statistics.median(ours / reference for ours, reference in pairs)


def show(lines: Sequence[Line]) -> str:
    """The table, in Markdown."""
    rows = [
        (
            line.name,
            line.store,
            str(line.processes),
            f"{line.ours:,.4g} {line.unit}" if abs(line.ours) < 1000 else f"{line.ours:,.0f} {line.unit}",
            "" if line.reference is None else f"{line.reference:,.0f} ({line.reference_name})",
            "" if line.ratio is None else f"{line.ratio:.2f}",
            line.goal,
            line.note,
        )
        for line in lines
    ]
    head = ("what", "store", "processes", "ours", "reference", "ratio", "goal", "note")
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def tell(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)
