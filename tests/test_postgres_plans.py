"""How PostgreSQL goes about a batch of rows: a look for each, in a young database too, whose planner takes every table for small."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from receiver.model import DeliveryState
from receiver.stores import open_store
from receiver.stores.postgres import BY_INDEX
from receiver.stores.terms import NoticeBound, Settlement
from tests.benchmarks import plans
from tests.factories import NOW, make_delivery, make_event, make_notice, make_running_family
from tests.postgres import connect, get_server

BATCH = 40


async def test_each_row_of_a_batch_is_looked_up_by_itself():
    server = get_server()
    url = await server.take_database()
    async with open_store(url) as store, connect(url) as connection:
        families = [make_running_family(created_at=NOW) for _ in range(BATCH)]
        await asyncio.gather(*(store.create_submission(family) for family in families))
        async with plans.traced(store, url) as seen:
            notices = [make_notice(family.submission.id) for family in families]
            assert all(await asyncio.gather(*(store.keep_notice(notice, NoticeBound()) for notice in notices)))
            events = [make_event(family.jobs[0]) for family in families]
            drafts = [
                Settlement(submission=family.submission, version=0, events=(event,), deliveries=(make_delivery(event),))
                for family, event in zip(families, events, strict=True)
            ]
            assert all(await store.settle(drafts))
            claimed = await store.claim_deliveries(NOW, {"archive": BATCH})
            assert len(claimed) == BATCH
            assert all(await store.finish_deliveries([replace(delivery, state=DeliveryState.DONE) for delivery, _ in claimed]))
        for name, value in BY_INDEX.items():
            await connection.execute(f"SET {name} = {value}")
        found = {}
        for statement, values in seen.items():
            if plans.is_plannable(statement):
                found[statement] = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {statement}", *values))
    await server.give_back(url)

    (finish,) = [plan for statement, plan in found.items() if statement.startswith("UPDATE deliveries SET state")]
    assert "Index Scan using deliveries_pkey" in finish, finish
    assert "Bitmap" not in finish, f"that reads what was claimed and finished before, again with every batch:\n{finish}"
    keeps = [plan for statement, plan in found.items() if "INTO bodies" in statement]
    assert len(keeps) == 1
    assert "Join Filter" not in keeps[0], f"that compares each of a batch with each:\n{keeps[0]}"
