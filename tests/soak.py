"""Many jobs, every fault, kill -9 at random: `python -m tests.soak --jobs 10000 --kills 50` prints a ledger; exit 1 if it shows a loss."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from receiver.simulator import Scenario, Simulator, serve_simulator
from tests.crash.house import PROVIDERS, House, Process, open_house, until
from tests.crash.ledger import Books, balance
from tests.crash.operator import Operator

# In the simulator's words; a prompt carries them. `foreign` is left out: a stranger's id behind a good token, while the submit answer
# is lost to a kill, is taken for ours as the rules want it.
REFUSALS = ("429 retry_after=1", "429", "503 retry_after=1", "500", "refused", "balance")
LOST_ANSWERS = ("submit-lost", "submit-garbled", "submit-empty", "submit-502")
POLLS = ("poll-404", "poll-429", "poll-500", "poll-garbled", "poll-lost")
PUSHED = ("lost", "late", "twice", "garbled", "truncated", "gzip")
CALLED_BACK = (*PUSHED, "reordered", "chatty", "early", "forged", "no-id", "huge", "instant", "lost poll-404", "twice late", "early no-id")
STREAMED = ("lost", "late", "twice", "garbled", "stream-dropped", "instant")
FAULTS = {
    "huzz": (*REFUSALS, *LOST_ANSWERS, *POLLS, "unknown-status", "cut"),
    "elkapi": (*REFUSALS, *LOST_ANSWERS, *CALLED_BACK, "unknown-status", "cut"),
    "oxen": (*REFUSALS, *LOST_ANSWERS, *STREAMED, "cut"),
    "pixazo": (*REFUSALS, *LOST_ANSWERS, *CALLED_BACK, "cut"),
    "hoox": (*REFUSALS, *LOST_ANSWERS, *CALLED_BACK, "cut"),
}
COUNTS = {"oxen": "num_generations", "hoox": "generation_count"}
PER_JOB = 2  # steps that the simulator sees of a job: it is submitted, pushed, fetched
Order = tuple[str, str, dict[str, Any]]


def make_orders(count: int, rng: random.Random) -> list[Order]:
    """Half of them meet a fault, one in six fails, some fan out, a few have less time than they take."""
    orders = []
    for number in range(count):
        provider = PROVIDERS[number % len(PROVIDERS)]
        words = [f"seconds={rng.uniform(0.2, 1.5):.2f}", f"delay={rng.uniform(0.2, 1.0):.2f}", "polls=1"]
        more: dict[str, Any] = {}
        if rng.random() < 0.5:
            words.append(rng.choice(FAULTS[provider]))
        elif provider in COUNTS and rng.random() < 0.3:
            more["input"] = {COUNTS[provider]: rng.randint(2, 4)}
        elif provider == "elkapi" and rng.random() < 0.2:
            words, more["deadline_seconds"] = ["seconds=2.5"], 1
        if rng.random() < 0.17:
            words.append("failed")
        orders.append((provider, f"boat {number} [sim: {' '.join(words)}]", more))
    return orders


class Soak:
    """One run: who submits, who kills, and the operator at the end."""

    def __init__(self, house: House, rng: random.Random, *, fork: bool) -> None:
        self.house, self.rng, self.fork = house, rng, fork
        self.operator = Operator(house)
        self.slowest_start = 0.0

    async def run(self, orders: list[Order], kills: int) -> Books:
        steps = sorted(self.rng.sample(range(1, max(PER_JOB * len(orders), kills + 1)), kills))
        async with AsyncExitStack() as stack:
            submitting = asyncio.create_task(self.house.submit_all(orders, at_once=8))
            stack.callback(submitting.cancel)
            for step in steps:
                await self.live_until(lambda step=step: self.steps_seen() >= step or (submitting.done() and self.operator.sees_all_home()))
            async with self.house.serve(fork=self.fork):
                known = await submitting
                await until(self.operator.sees_all_home, 60 + len(orders) / 10, self.operator.tell)
                await asyncio.wait_for(self.house.sim.simulator.quiet(), 60)
                await until(self.operator.sees_all_home, 60, self.operator.tell)
                return await balance(self.house, known, stores=True)

    async def live_until(self, condition: Any) -> None:
        """One life of the server, from its start to kill -9."""
        began = time.monotonic()
        async with self.house.serve(fork=self.fork) as server:
            self.slowest_start = max(self.slowest_start, time.monotonic() - began)
            await until(lambda: survives(server, condition), 600, server.tail)
            server.kill()
            await server.died()

    def steps_seen(self) -> int:
        ledger = self.house.sim.simulator.ledger
        return len(ledger.submits) + len(ledger.callbacks) + len(ledger.downloads)


async def survives(server: Process, condition: Any) -> bool:
    assert server.code is None, server.tail()
    value = condition()
    return bool(await value if asyncio.iscoroutine(value) else value)


async def soak(jobs: int, kills: int, seed: int, folder: Path, *, fork: bool = False) -> Books:
    """The ledger of one run."""
    rng = random.Random(seed)
    orders = make_orders(jobs, rng)
    async with serve_simulator(Simulator(Scenario(outputs=1))) as sim, open_house(sim, folder, storage=True) as house:
        run = Soak(house, rng, fork=fork)
        began = time.monotonic()
        books = await run.run(orders, kills)
        faults = Counter(entry.kind for entry in sim.simulator.ledger.callbacks)
    books.counts.update(run.operator.said)
    books.counts["callbacks refused as forged"] = faults["forged"]
    books.counts["kill -9"] = kills
    books.counts["slowest start in ms"] = round(run.slowest_start * 1000)
    books.counts["seconds"] = round(time.monotonic() - began)
    if run.slowest_start > 10:
        books.faults.append(f"a start took {run.slowest_start:.1f} s")
    return books


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="submissions")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="receiver-soak-"))  # it stays where something went wrong
    books = asyncio.run(soak(asked.jobs, asked.kills, asked.seed, folder))
    print(f"--jobs {asked.jobs} --kills {asked.kills} --seed {asked.seed}\n{books.table()}")
    if books.faults:
        print(f"its database and logs are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
