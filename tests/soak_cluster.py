"""Many jobs on several nodes of one PostgreSQL: `python -m tests.soak_cluster --nodes 3 --jobs 3000 --kills 30 --restarts 3`.

Nodes are killed with kill -9 or stand still at random, the database is restarted in immediate mode, every fault happens; the ledger
tells. With `--calm` nothing of that happens, and whatever is done twice is a fault. Exit 1 if the ledger shows one.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from receiver.simulator import Scenario, Simulator, serve_simulator
from receiver.simulator.ledger import Ledger
from tests.crash.cluster import Cluster, open_cluster
from tests.crash.house import until
from tests.crash.ledger import Books, balance
from tests.crash.operator import Operator
from tests.postgres import Server, own_server
from tests.soak import Order, make_orders

AT_ONCE = 24
CALL_BACK = ("pixazo", "hoox", "elkapi")
QUIET_SECONDS = 3.0  # a kill waits no longer than this for more to happen
STALL_SECONDS = 18.0  # longer than a node may be silent: the others take its work, and it has to find that out
PATIENT = 'overdue_after = "5s"'
STREAM = "oxen"


class Storm:
    """What befalls a cluster: kills and restarts of the database, each at a random moment of the providers' work."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng
        self.counts: Counter[str] = Counter()

    async def rage(self, kills: int, stalls: int, restarts: int, steps: int) -> None:
        blows = ["kill"] * kills + ["stall"] * stalls + ["restart"] * (restarts if self.cluster.can_restart_postgres else 0)
        self.rng.shuffle(blows)
        async with asyncio.TaskGroup() as stalled:
            await self._strike(blows, steps, stalled)

    async def _strike(self, blows: Sequence[str], steps: int, stalled: asyncio.TaskGroup) -> None:
        for step, blow in zip(sorted(self.rng.choices(range(1, steps), k=len(blows))), blows, strict=True):
            await self._wait_for(step)
            if blow == "kill":
                await until(lambda: self.rng.choice(self.cluster.nodes).kill())
                self.counts["kill -9"] += 1
            elif blow == "stall":
                stalled.create_task(self.rng.choice(self.cluster.nodes).stall(STALL_SECONDS))
                self.counts["nodes that stood still"] += 1
            else:
                await self.cluster.restart_postgres()
                self.counts["restarts of PostgreSQL"] += 1

    async def _wait_for(self, step: int) -> None:
        """Until so much has happened; if nothing more happens, not for ever."""
        seen, since = -1, time.monotonic()
        while (now := steps_seen(self.cluster.front.sim.simulator.ledger)) < step and time.monotonic() - since < QUIET_SECONDS:
            if now != seen:
                seen, since = now, time.monotonic()
            await asyncio.sleep(0.05)


def steps_seen(ledger: Ledger) -> int:
    return len(ledger.submits) + len(ledger.callbacks) + len(ledger.downloads)


async def storm(
    nodes: int, jobs: int, seed: int, folder: Path, postgres: Server, *, kills: int, stalls: int, restarts: int, fork: bool = False
) -> Books:
    """Every fault of the providers, and ours: nothing is lost, nothing is submitted twice, one final event for each job."""
    rng = random.Random(seed)
    orders = make_orders(jobs, rng)
    async with (
        serve_simulator(Simulator(Scenario(outputs=1))) as sim,
        open_cluster(sim, folder, postgres, nodes, rng, fork=fork) as cluster,
        cluster.running(),
    ):
        began = time.monotonic()
        submitting = asyncio.create_task(cluster.front.submit_all(orders, at_once=AT_ONCE))
        try:
            bad = Storm(cluster, rng)
            await bad.rage(kills, stalls, restarts, 2 * jobs)
            known = await submitting
        finally:
            submitting.cancel()
        books = await come_home(cluster, known)
        books.counts.update(bad.counts)
        books.counts["starts that found no database"] = sum(node.gave_up for node in cluster.nodes)
        books.counts["seconds"] = round(time.monotonic() - began)
    return books


async def calm(nodes: int, jobs: int, seed: int, folder: Path, postgres: Server, *, fork: bool = False) -> Books:
    """Nobody dies: no poll, no delivery and no download happens twice, and a stream is held once."""
    rng = random.Random(seed)
    orders = make_calm_orders(jobs)
    async with (
        serve_simulator(Simulator(Scenario(outputs=1))) as sim,
        open_cluster(sim, folder, postgres, nodes, rng, fork=fork, polling=PATIENT) as cluster,
        cluster.running(),
    ):
        began = time.monotonic()
        books = await come_home(cluster, await cluster.front.submit_all(orders, at_once=AT_ONCE))
        check_once(books, cluster)
        books.counts["seconds"] = round(time.monotonic() - began)
    return books


def make_calm_orders(count: int) -> list[Order]:
    """A third comes home by callback, a third by one poll, which takes much longer than the pause between polls, a third by stream."""
    orders: list[Order] = []
    for number in range(count):
        provider = STREAM if number % 3 == 2 else CALL_BACK[number // 3 % len(CALL_BACK)]
        fault = " lost poll-slow polls=1 delay=1" if number % 3 == 1 else ""
        orders.append((provider, f"boat {number} [sim: seconds=0.1{fault}]", {}))
    return orders


async def come_home(cluster: Cluster, known: dict[str, str]) -> Books:
    """The books, once nothing is open any more."""
    await cluster.all_up()
    operator = Operator(cluster.front)
    await until(operator.sees_all_home, 90 + len(known) / 5, operator.tell)
    await asyncio.wait_for(cluster.front.sim.simulator.quiet(), 60)
    await until(operator.sees_all_home, 60, operator.tell)
    books = await balance(cluster.front, known, stores=True)
    books.counts.update(operator.said)
    return books


def check_once(books: Books, cluster: Cluster) -> None:
    """By what the providers saw and by what the handler was given."""
    ledger = cluster.front.sim.simulator.ledger
    polls = {job.id: job.polls for job in ledger.jobs if job.provider != STREAM}
    books.counts["polls"] = sum(polls.values())
    books.counts["polls doubled"] = sum(count > 1 for count in polls.values())
    books.counts["handler runs doubled"] = books.counts["of them again, same event id"]
    books.counts["downloads doubled"] = count_doubled([(entry.job_id, entry.index) for entry in ledger.downloads])
    books.counts["streams held beside another"] = sum(entry.listeners > 1 for entry in ledger.streamed)
    for name in ("polls doubled", "handler runs doubled", "downloads doubled", "streams held beside another"):
        if books.counts[name]:
            books.faults.append(f"{name}: {books.counts[name]}")


def count_doubled(seen: Sequence[object]) -> int:
    return sum(count > 1 for count in Counter(seen).values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak_cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=3000, help="submissions")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stalls", type=int, default=3, help="of nodes, longer than their lease")
    parser.add_argument("--restarts", type=int, default=3, help="of PostgreSQL, in immediate mode")
    parser.add_argument("--calm", action="store_true", help="none of that: nothing may happen twice")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="receiver-soak-"))  # it stays where something went wrong
    postgres = own_server()
    if asked.calm:
        books = asyncio.run(calm(asked.nodes, asked.jobs, asked.seed, folder, postgres))
    else:
        blows = {"kills": asked.kills, "stalls": asked.stalls, "restarts": asked.restarts}
        books = asyncio.run(storm(asked.nodes, asked.jobs, asked.seed, folder, postgres, **blows))
    print(f"{' '.join(sys.argv[1:])}\n{books.table()}")
    if books.faults:
        print(f"logs are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
