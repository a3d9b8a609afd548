"""`python -m tests.benchmarks [LINE …]`: all benchmarks, or those named; a table, and JSON with `--json FILE`."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import msgspec

from tests.benchmarks.lines import Line, Settings, show, tell, this_machine

# Each is a module beside this one with `measure(settings: Settings) -> Iterator[Line]`.
LINES = {
    "accept": "callback → proven → on disk with fsync → 200",
    "burst": "callbacks at 0.30 of a bare application for a minute, then drained",
    "whole": "accepted, settled, event written, handler done",
    "latency": "from a callback's first byte to the handler's call",
    "polling": "answers about jobs that run, settled and on disk",
    "fanin": "outputs that the storage handler keeps; memory for a large one",
    "large": "what the store does with a million finished jobs, and with few",
    "inflight": "a million jobs under way: start, memory, next polls, pages",
    "paint": "the pages with a million jobs, from the wish to the first paint in Chromium",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", epilog=", ".join(f"{name}: {what}" for name, what in LINES.items()))
    parser.add_argument("lines", nargs="*", metavar="LINE", help=f"what to measure: {', '.join(LINES)}. Default: all")
    parser.add_argument("--stores", default="sqlite,postgres", help="default: %(default)s")
    parser.add_argument("--processes", default="1,2,4", help="how many of ours share one store; default: %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="of durations and sizes: 0.1 for a quick try")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep machine and lines there")
    asked = parser.parse_args()
    unknown = set(asked.lines) - set(LINES)
    if unknown:
        parser.error(f"no line is called {', '.join(sorted(unknown))}")
    settings = Settings(tuple(asked.stores.split(",")), tuple(map(int, asked.processes.split(","))), asked.scale)
    machine, lines = this_machine(), list[Line]()
    tell(str(machine))
    for name in asked.lines or LINES:
        for line in import_module(f"tests.benchmarks.{name}").measure(settings):
            tell(
                f"  {line.name} {line.store} ×{line.processes}: {line.ours:.4g} {line.unit}" + (f", {line.ratio:.2f}" if line.ratio else "")
            )
            lines.append(line)
            if asked.json is not None:  # after each: a run that is stopped keeps what it has
                asked.json.write_bytes(msgspec.json.format(msgspec.json.encode({"machine": machine, "lines": lines})))
    print(f"{machine}\n\n{show(lines)}")


if __name__ == "__main__":
    main()
