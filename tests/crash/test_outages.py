"""The database goes away: the disk is full, the file cannot be written, another process holds the lock. And it comes back."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from receiver.simulator import Fault, Scenario
from tests.crash.house import open_house, until
from tests.crash.ledger import balance
from tests.crash.operator import Operator

pytestmark = pytest.mark.long

QUIET = Scenario(seconds=0.1, faults=frozenset({Fault.LOST}))  # it ends, and we are not told
MIXED = ("huzz", "elkapi", "hoox", "pixazo")
SLOW = 'overdue_after = "60s"'


@contextmanager
def small_disk(folder: Path):
    """A file system of 3 MiB."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"only root can mount a small disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """All that is left of the disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (65536, 4096, 1):
            try:
                while os.write(file, bytes(size)):
                    pass
            except OSError:
                continue
    finally:
        os.close(file)


def callback_of(sim, number=0):
    """Where the provider would call back, and what it would say."""
    entry = sim.simulator.ledger.submits[number]
    return entry.callback_url, {"id": entry.job_ids[0], "status": "completed"}


async def has_ended(sim, count=1):
    """The provider is done with so many jobs: only then are its callbacks the truth."""
    await until(lambda: sum(job.state == "succeeded" for job in sim.simulator.ledger.jobs) == count)


async def call_back(house, sim, number=0):
    url, body = callback_of(sim, number)
    return await house.api.post(url, json=body | {"padding": "x" * 20_000})


async def is_refused(house, sim):
    answer = await call_back(house, sim)
    assert answer.status_code in (200, 503), answer.text
    return answer if answer.status_code == 503 else None


async def is_kept(house, sim, number=0):
    return (await call_back(house, sim, number)).status_code == 200


async def test_on_a_full_disk_callbacks_are_refused_and_it_recovers_by_itself(sim, tmp_path):
    sim.simulator.plan("elkapi", QUIET, QUIET)
    with small_disk(tmp_path / "disk") as disk:
        async with open_house(sim, tmp_path, database=disk / "receiver.db", polling=SLOW) as house, house.serve(fork=True) as server:
            orders = await house.submit_all([("elkapi", "a boat", {})])
            await has_ended(sim)
            ballast = disk / "ballast"
            fill(ballast)
            refused = await until(lambda: is_refused(house, sim), tell=server.tail)
            assert int(refused.headers["retry-after"]) > 0
            assert (await house.api.get("/healthz")).status_code == 200
            ready = await until(lambda: is_unready(house), tell=server.tail)
            assert "store" in ready["failing"]
            ballast.unlink()
            await until(lambda: is_kept(house, sim), tell=server.tail)
            orders |= await house.submit_all([("elkapi", "another boat", {})])
            await has_ended(sim, 2)
            await until(lambda: is_kept(house, sim, 1))
            await until(Operator(house).sees_all_home, tell=server.tail)
            await until(lambda: is_ready(house))
            books = await balance(house, orders)
    assert books.faults == [], books.table()


async def is_unready(house):
    answer = await house.api.get("/readyz")
    return answer.json() if answer.status_code == 503 else None


async def is_ready(house):
    return (await house.api.get("/readyz")).status_code == 200


async def test_with_a_file_that_cannot_grow_callbacks_are_refused_and_it_recovers_by_itself(sim, tmp_path):
    sim.simulator.plan("elkapi", QUIET)
    async with open_house(sim, tmp_path, polling=SLOW) as house, house.serve(fork=True) as server:
        orders = await house.submit_all([("elkapi", "a boat", {})])
        await has_ended(sim)
        before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        refused = await until(lambda: is_refused(house, sim), tell=server.tail)
        assert int(refused.headers["retry-after"]) > 0
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)
        await until(lambda: is_kept(house, sim), tell=server.tail)
        await until(Operator(house).sees_all_home, tell=server.tail)
        await until(lambda: is_ready(house))
        books = await balance(house, orders)
    assert books.faults == [], books.table()


async def test_while_another_process_holds_the_lock_nothing_is_acknowledged_and_nothing_lost(sim, tmp_path):
    sim.simulator.plan("elkapi", QUIET)
    async with open_house(sim, tmp_path, polling=SLOW) as house, house.serve(fork=True) as server:
        orders = await house.submit_all([("elkapi", "a boat", {})])
        await has_ended(sim)
        url, body = callback_of(sim)
        with (tmp_path / "receiver.db.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = asyncio.create_task(house.api.post(url, json=body))
            with pytest.raises(httpx.ReadTimeout):
                await house.api.post(url, json=body, timeout=0.5)
            assert (await house.api.get("/healthz")).status_code == 200
            assert [job["status"] for job in await house.jobs()] != ["succeeded"]
            assert not waiting.done()
        assert (await waiting).status_code == 200
        await until(Operator(house).sees_all_home, tell=server.tail)
        books = await balance(house, orders)
    assert books.faults == [], books.table()


async def test_a_daemon_brings_home_what_the_web_process_took_in_and_another_one_goes_on(sim, tmp_path):
    async with open_house(sim, tmp_path) as house, house.serve("--roles", "web"):
        orders = {}
        for turn in range(2):  # each time another daemon, which is killed in the middle of its work
            async with house.run("poll", fork=True) as daemon:
                orders |= await house.submit_all([(provider, f"{provider} {turn}", {}) for provider in MIXED])
                await until(lambda turn=turn: len(sim.simulator.ledger.submits) > 4 * turn + 1, tell=daemon.tail)
                daemon.kill()
                await daemon.died()
        async with house.run("poll", fork=True) as daemon:
            await until(Operator(house).sees_all_home, tell=daemon.tail)
            books = await balance(house, orders)
    assert books.faults == [], books.table()
