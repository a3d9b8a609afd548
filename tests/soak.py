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
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx

from receiver.simulator import Scenario, Simulator, serve_simulator
from tests.crash.house import PROVIDERS, House, Process, open_house, until
from tests.crash.ledger import Books, balance
from tests.crash.lives import Lives, count_restarts
from tests.crash.operator import Operator

# In the simulator's words; a prompt carries them. Two are left out: `foreign`, because a stranger's id behind a good token, while the
# submit answer is lost to a kill, is taken for ours as the rules want it; `private`, because this machine is no host that gets a key.
REFUSALS = ("429 retry_after=1", "429", "503 retry_after=1", "503", "500", "refused", "balance")
LOST_ANSWERS = ("submit-lost", "submit-garbled", "submit-empty", "submit-502", "submit-slow")
POLLS = ("poll-404", "poll-429", "poll-500", "poll-503 retry_after=1", "poll-garbled", "poll-lost", "poll-slow", "unknown-status")
FILES = ("cut", "redirected", "data-uri", "expires=4")
PUSHED = ("lost", "late", "twice", "garbled", "truncated", "gzip", "lost poll-404", "twice late")
UNREAD = ("no-id", "early no-id")  # whose job only a token tells
CALLED_BACK = (*PUSHED, "reordered", "chatty", "early", "forged", "huge", "instant", "stuck", "cancelled")
STREAMED = ("lost", "late", "twice", "garbled", "stream-dropped", "instant", "stuck", "cancelled")
ALL = (*REFUSALS, *LOST_ANSWERS, *POLLS)
FAULTS = {
    "huzz": (*ALL, *FILES, "stuck", "error"),
    "elkapi": (*ALL, *FILES, *CALLED_BACK, *UNREAD),
    "oxen": (*ALL, *FILES, *STREAMED),
    "pixazo": (*ALL, *FILES, *CALLED_BACK, *UNREAD, "error"),
    "hoox": (*ALL, *FILES, *CALLED_BACK, *UNREAD),
    "replicate": (*ALL, *FILES, *CALLED_BACK, *UNREAD),
    "fal": (*ALL, *FILES, *CALLED_BACK, *UNREAD),
    "openai": (
        *ALL,
        "cut",
        "lost",
        "late",
        "twice",
        "gzip",
        "early",
        "forged",
        "huge",
        "instant",
        "stuck",
    ),  # nothing but its id tells the job
}
COUNTS = {"oxen": "num_generations", "hoox": "generation_count"}
PER_JOB = 2  # steps that the simulator sees of a job: it is submitted, pushed, fetched
AT_ONCE = 16
LONGEST = 10.0
MEDDLING = 0.15  # seconds between two requests of somebody who presses buttons
BUTTONS = ("poll", "poll", "cancel")
Order = tuple[str, str, dict[str, Any]]


def make_orders(count: int, rng: random.Random) -> list[Order]:
    """Half of them meet a fault, one in six fails, some fan out, a few have less time than they take."""
    orders = []
    for number in range(count):
        provider = PROVIDERS[number % len(PROVIDERS)]
        words = [f"seconds={rng.uniform(0.2, 1.5):.2f}", f"delay={rng.uniform(0.2, 1.0):.2f}", "polls=1"]
        more: dict[str, Any] = {}
        fault = rng.choice(FAULTS[provider]) if rng.random() < 0.5 else ""
        if fault:
            words.append(fault)
        elif provider in COUNTS and rng.random() < 0.3:
            more["input"] = {COUNTS[provider]: rng.randint(2, 4)}
            words += ["same-id"] if rng.random() < 0.2 else []
        elif provider == "elkapi" and rng.random() < 0.2:
            words = ["seconds=2.5"]
            more["deadline_seconds"] = 1
        if fault == "stuck":
            more["deadline_seconds"] = 3
        elif fault not in {"error", "cancelled"} and rng.random() < 0.17:
            words.append("failed")
        orders.append((provider, f"boat {number} [sim: {' '.join(words)}]", more))
    return orders


class Soak:
    """One run: who submits, who kills, who presses buttons, and the operator at the end."""

    def __init__(self, house: House, rng: random.Random, *, fork: bool, longest: float) -> None:
        self.house, self.rng, self.fork, self.longest = house, rng, fork, longest
        self.operator, self.lives = Operator(house), Lives()
        self.ledger = house.sim.simulator.ledger  # its lists grow
        self.pressed: Counter[str] = Counter()

    async def run(self, orders: list[Order], kills: int) -> Books:
        steps = sorted(self.rng.sample(range(1, max(PER_JOB * len(orders), kills + 1)), kills))
        async with AsyncExitStack() as stack:
            submitting = asyncio.create_task(self.house.submit_all(orders, at_once=AT_ONCE))
            stack.callback(submitting.cancel)
            meddling = asyncio.create_task(self.meddle())
            stack.callback(meddling.cancel)
            for step in steps:
                await self.live_until(lambda step=step: self.steps_seen() >= step or (submitting.done() and self.operator.sees_all_home()))
            with self.lives.live() as life:
                async with self.house.serve(fork=self.fork):
                    life.answered = time.time()
                    return await self.come_home(await submitting, meddling)

    async def come_home(self, known: dict[str, str], meddling: asyncio.Task[None]) -> Books:
        assert not meddling.done(), meddling.exception()
        meddling.cancel()
        await until(self.operator.sees_all_home, 60 + len(known) / 10, self.operator.tell)
        await asyncio.wait_for(self.house.sim.simulator.quiet(), 60)
        await until(self.operator.sees_all_home, 60, self.operator.tell)
        books = await balance(self.house, known, stores=True)
        events = {entry["id"]: entry["at"] for _, entries in books.timelines for entry in entries if entry["kind"] == "event"}
        created = {known[job["submission_id"]]: job["created_at"] for job, _ in books.timelines}
        handled = self.house.handled()
        count_restarts(books, self.lives, self.ledger, handled, events=events, created=created, longest=self.longest)
        return books

    async def live_until(self, condition: Any) -> None:
        """One life of the server, from its start to kill -9."""
        with self.lives.live() as life:
            async with self.house.serve(fork=self.fork) as server:
                life.answered = time.time()
                await until(lambda: survives(server, condition), 600, server.tail)
                server.kill()
                await server.died()

    async def meddle(self) -> None:
        """Somebody polls and cancels what is under way, whether a server is there or not."""
        while True:
            await asyncio.sleep(MEDDLING)
            with suppress(httpx.TransportError):
                answer = await self.house.api.get("/v1/jobs", params={"status": "processing", "limit": "20"})
                if answer.status_code != 200 or not answer.json()["jobs"]:
                    continue
                button, job = self.rng.choice(BUTTONS), self.rng.choice(answer.json()["jobs"])
                answer = await self.house.api.post(f"/v1/jobs/{job['id']}/{button}")
                assert answer.status_code in {202, 409, 503}, answer.text
                self.pressed[f"{button}s asked for, {'taken' if answer.status_code == 202 else 'refused'}"] += 1

    def steps_seen(self) -> int:
        return len(self.ledger.submits) + len(self.ledger.callbacks) + len(self.ledger.downloads)


async def survives(server: Process, condition: Any) -> bool:
    assert server.code is None, server.tail()
    value = condition()
    return bool(await value if asyncio.iscoroutine(value) else value)


async def soak(jobs: int, kills: int, seed: int, folder: Path, *, fork: bool = False, longest: float = LONGEST) -> Books:
    """The ledger of one run. Work goes on in less than `longest` seconds after each start."""
    rng = random.Random(seed)
    orders = make_orders(jobs, rng)
    async with serve_simulator(Simulator(Scenario(outputs=1))) as sim, open_house(sim, folder, storage=True) as house:
        run = Soak(house, rng, fork=fork, longest=longest)
        sim.simulator.register_webhook("openai", f"http://127.0.0.1:{house.port}/callbacks/openai")
        began = time.monotonic()
        async with asyncio.timeout(300 + jobs / 4 + 10 * kills):
            books = await run.run(orders, kills)
        faults = Counter(entry.kind for entry in sim.simulator.ledger.callbacks)
    books.counts.update(run.operator.said + run.pressed)
    books.counts["callbacks refused as forged"] = faults["forged"]
    books.counts["kill -9"] = kills
    books.counts["seconds"] = round(time.monotonic() - began)
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
