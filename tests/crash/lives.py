"""The lives of a server that is killed again and again: how soon after a start work goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from receiver.simulator.ledger import Ledger
from tests.crash.ledger import Books


@dataclass
class Life:
    """One run of the server, in seconds since 1970."""

    started: float
    answered: float = 0.0
    ended: float = float("inf")


@dataclass
class Lives:
    """All runs, in their order."""

    all: list[Life] = field(default_factory=list)

    @contextmanager
    def live(self):
        """One more, which ends with the block."""
        life = Life(time.time())
        self.all.append(life)
        try:
            yield life
        finally:
            life.ended = time.time()

    def first_work(self, work: Iterable[float]) -> list[float]:
        """How long after each start the first of these moments of work came; of a life that did none, how long it was."""
        moments = sorted(work)
        waits = []
        for life in self.all:
            inside = [moment for moment in moments if life.started <= moment < life.ended]
            waits.append((inside[0] if inside else life.ended) - life.started)
        return waits

    def wait_after_kill(self, due: float, done: float) -> float | None:
        """Of work that was due in one life and done in a later one: how long a server answered between the kill and the work."""
        killed = next((life.ended for life in self.all if life.ended > due), None)
        if killed is None or done <= killed:
            return None
        return sum(max(0.0, min(life.ended, done) - max(life.answered, killed)) for life in self.all if life.answered)


def count_restarts(
    books: Books,
    lives: Lives,
    ledger: Ledger,
    handled: list[dict[str, Any]],
    *,
    events: Mapping[str, str],
    created: Mapping[str, str],
    longest: float,
) -> None:
    """`events`: when each was made, by id; `created`: when each submission was kept, by prompt. Both as the API tells it."""
    runs: dict[str, float] = {}
    for run in handled:
        runs.setdefault(run["id"], run["at"])
    sent: dict[str, float] = {}
    for entry in ledger.submits:
        sent.setdefault(entry.prompt, entry.at.timestamp())
    work = [*(run["at"] for run in handled), *sent.values(), *(entry.at.timestamp() for entry in ledger.downloads)]
    left = [lives.wait_after_kill(seconds_of(at), runs[one]) for one, at in events.items() if one in runs]
    left += [lives.wait_after_kill(seconds_of(at), sent[prompt]) for prompt, at in created.items() if prompt in sent]
    waits = [wait for wait in left if wait is not None]
    books.counts["work left by kills"] = len(waits)
    books.counts["slowest of it in ms"] = round(max(waits, default=0.0) * 1000)  # it may be the last of a long queue
    starts = {
        "slowest start in ms": max(life.answered - life.started for life in lives.all),
        "slowest first work in ms": max(lives.first_work(work)),
    }
    for name, seconds in starts.items():
        books.counts[name] = round(seconds * 1000)
        if seconds > longest:
            books.faults.append(f"{name}: {seconds:.1f} s is over {longest:g} s")


def seconds_of(time_of_api: str) -> float:
    return datetime.fromisoformat(time_of_api).timestamp()
