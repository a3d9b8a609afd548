"""What a store does again and again takes no more work when there are more finished jobs: every one of its methods, both databases.

Counted is what was really run. A plan that is explained for a statement with its values written in may be another one than that for
values that are bound.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from receiver.stores import listings, open_store, postgres_reading, sqlite_reading
from receiver.stores.base import Store
from tests.benchmarks import plans
from tests.benchmarks.filling import Filling, fill_postgres, fill_sqlite
from tests.benchmarks.steps import Step, make_steps
from tests.postgres import connect, get_server

FEW, MANY = 300, 3_000
SLACK = 1_500  # instructions of SQLite's machine, rows of PostgreSQL: a few rows more in the answer; a look at all of MANY is twice that
PAGE = 20  # what a page that was looked at counts, in rows
LARGE = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off"
NOT_REPEATED = {"close", "backup", "wait_for_change"}


class Counting:
    """A store that notes which of its methods were used."""

    def __init__(self, store: Store) -> None:
        self._store, self.used = store, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.used.add(name)
        return getattr(self._store, name)


class Machine:
    """Counts the instructions that SQLite runs for a store."""

    def __init__(self) -> None:
        self.count = 0

    async def watch(self, store: Any) -> None:
        for connection in (store._writer, *(reader.connection for reader in store._readers)):
            await connection.run(lambda db: db.set_progress_handler(self.tick, 1))

    def tick(self) -> int:
        self.count += 1
        return 0


Measure = Callable[[Step], Awaitable[tuple[int, Any]]]


async def run_all(store: Store, filling: Filling, measure: Measure) -> tuple[dict[str, int], set[str]]:
    """How much work each step was, and which methods of the store they used."""
    counting: Any = Counting(store)
    work = {}
    for name, step in (await make_steps(counting, filling, live=40, limit=5)).items():
        work[name], undo = await measure(step)
        if callable(undo):
            await undo()
    return work, counting.used


async def count_sqlite(folder: Path, jobs: int) -> tuple[dict[str, int], set[str]]:
    file = folder / f"{jobs}.db"
    filling = Filling(jobs, datetime.now(UTC))
    async with open_store(f"sqlite:///{file}"):
        pass
    fill_sqlite(file, filling)
    machine = Machine()

    async def measure(step: Step) -> tuple[int, Any]:
        machine.count = 0
        undo = await step()
        return machine.count, undo

    async with open_store(f"sqlite:///{file}") as store:
        await machine.watch(store)
        return await run_all(store, filling, measure)


async def count_postgres(url: str, jobs: int) -> tuple[dict[str, int], set[str]]:
    """The statements of each step are explained after it, as they would be run in tables that are too large to be read whole."""
    filling = Filling(jobs, datetime.now(UTC))
    async with connect(url) as connection, open_store(url) as store, plans.traced(store, url) as seen:
        await fill_postgres(connection, filling)
        await connection.execute(LARGE)

        async def measure(step: Step) -> tuple[int, Any]:
            seen.clear()
            undo = await step()
            return sum([await count_rows(connection, *asked) for asked in seen.items() if plans.is_plannable(asked[0])]), undo

        return await run_all(store, filling, measure)


async def count_rows(connection: Any, statement: str, values: tuple[Any, ...]) -> int:
    """Rows that the plan's nodes have touched. What it writes is taken back."""
    from asyncpg import UniqueViolationError

    transaction = connection.transaction()
    await transaction.start()
    try:
        answer = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *values)
    except UniqueViolationError:  # what was inserted cannot be so again
        return 0
    finally:
        await transaction.rollback()
    return sum(touched(node) for node in nodes(json.loads(answer)[0]["Plan"]))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def touched(node: dict[str, Any]) -> int:
    rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    pages = 0 if node.get("Plans") else node["Shared Hit Blocks"] + node["Shared Read Blocks"]  # of an index that was read through
    return int(rows * node["Actual Loops"] + PAGE * pages)


@pytest.fixture(autouse=True)
def look_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks at 10,000 rows and no more would look like growth here."""
    monkeypatch.setattr(listings, "LOOKED_AT", FEW)
    for module in (sqlite_reading, postgres_reading):
        monkeypatch.setattr(module, "LAST_CALLBACK", module.LAST_CALLBACK.replace("10000", str(FEW)))


@pytest.fixture(scope="module")
def promised() -> set[str]:
    return {name for name in dir(Store) if not name.startswith("_") and callable(getattr(Store, name))} - NOT_REPEATED


class TestSQLite:
    async def test_nothing_takes_more_work_with_more_finished_jobs(self, tmp_path, promised):
        (few, used), (many, _) = await count_sqlite(tmp_path, FEW), await count_sqlite(tmp_path, MANY)
        assert used >= promised, f"not measured: {sorted(promised - used)}"
        check(few, many)


class TestPostgres:
    async def test_nothing_takes_more_work_with_more_finished_jobs(self, promised):
        server = get_server()
        measured = []
        for jobs in (FEW, MANY):
            url = await server.make_database()
            measured.append(await count_postgres(url, jobs))
        (few, used), (many, _) = measured
        assert used >= promised, f"not measured: {sorted(promised - used)}"
        check(few, many)


def check(few: dict[str, int], many: dict[str, int]) -> None:
    grown = [f"{name}: {few[name]} → {work}" for name, work in many.items() if work > few[name] + SLACK]
    if grown:
        pytest.fail("\n".join(grown), pytrace=False)
