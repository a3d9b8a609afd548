"""How often the database is asked for one callback, from its acceptance until a handler has done its work on what came of it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from receiver.model import Status
from receiver.stores.terms import Settlement
from tests.factories import make_poll, make_running_family
from tests.postgres import connect, get_server
from tests.stories.home import Home, open_home
from tests.wire import open_wire

TOGETHER = 64
ROUNDS = 3  # the passes that look around now and then fall into some
MORE = f'[[handlers]]\nname = "trivial"\nuse = "trivial:handle"\nconcurrency = {TOGETHER}\n'
DONE = "SELECT count(*) FROM deliveries WHERE state = 'done'"
Ask = Callable[[str], Awaitable[int]]


async def bring_home(home: Home, ask: Ask, before: Callable[[], None]) -> None:
    """So many callbacks at once, until every final event is delivered. Nothing but the installation itself asks its connections."""
    now = datetime.now(UTC)
    families = [make_running_family(created_at=now, job={"submitted_at": now, "status": Status.PROCESSING}) for _ in range(TOGETHER)]
    store, tokens = home.services.store, home.services.tokens
    await asyncio.gather(*(store.create_submission(family) for family in families))
    drafts = [
        Settlement(submission=family.submission, version=0, polls=(make_poll(family.jobs[0], due_at=family.jobs[0].deadline_at),))
        for family in families
    ]
    assert all(await store.settle(drafts))
    wanted = await ask(DONE) + TOGETHER

    inbox = home.services.inbox

    async def call_back(job: Any) -> None:
        token = tokens.make("elkapi", job.submission_id)
        body = {"id": job.remote_id, "status": "completed", "outputs": ["https://cdn.example.net/r/1.mp4"]}
        await inbox.keep("elkapi", token, inbox.prove("elkapi", token), {}, json.dumps(body).encode())

    async def is_done() -> bool:
        return await ask(DONE) == wanted

    before()
    await asyncio.gather(*(call_back(family.jobs[0]) for family in families))
    await home.until(is_done)


async def test_a_callback_takes_ten_statements_of_sqlite(sim, tmp_path):
    (tmp_path / "trivial.py").write_text("async def handle(event, context):\n    pass\n")
    async with open_home(sim, tmp_path, more=MORE) as home:
        seen = Counter[str]()
        inside: Any = home.services.store
        for connection in (inside._writer, *(reader.connection for reader in inside._readers)):
            await connection.run(lambda db: db.set_trace_callback(lambda statement: seen.update([statement])))
        with sqlite3.connect(tmp_path / "receiver.db") as beside:

            async def ask(statement: str) -> int:
                return int(beside.execute(statement).fetchone()[0])

            counts = []
            for _ in range(ROUNDS):
                await bring_home(home, ask, seen.clear)
                counts.append(seen.total() / TOGETHER)
        beside.close()
    assert sorted(counts)[ROUNDS // 2] <= 10, f"{counts}\n{show(seen)}"


async def test_a_callback_takes_three_round_trips_to_postgresql(sim, tmp_path):
    (tmp_path / "trivial.py").write_text("async def handle(event, context):\n    pass\n")
    server = get_server()
    database = await server.take_database()
    async with open_wire(database) as wire, connect(database) as beside, open_home(sim, tmp_path, more=MORE, store=wire.url) as home:
        counts = []
        begun = 0

        def begin() -> None:
            nonlocal begun
            begun = wire.asked

        for _ in range(ROUNDS):
            await bring_home(home, beside.fetchval, begin)
            counts.append((wire.asked - begun) / TOGETHER)
    await server.give_back(database)
    assert sorted(counts)[ROUNDS // 2] <= 3, counts


def show(seen: Counter[str]) -> str:
    """Statements by how they begin."""
    alike = Counter[str]()
    for statement, count in seen.items():
        alike[statement[:60]] += count
    return "\n".join(f"{count:5} {statement}" for statement, count in alike.most_common())
