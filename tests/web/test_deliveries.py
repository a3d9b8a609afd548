"""Deliveries and notices: looking at them, and doing them again."""

from __future__ import annotations

import asyncio

import msgspec

from receiver.model import DeliveryState, Outcome
from receiver.stores.terms import NoticeOutcome
from receiver.web import views
from tests.web.opened import Web

NO_DELIVERY = "dlv_" + "0" * 32


async def end_deliveries(web: Web, state: DeliveryState) -> None:
    """Run all that is due, with this result."""
    while claimed := await web.services.store.claim_deliveries(web.services.clock.now(), {"tell": 10}):
        for delivery, _ in claimed:
            ended = msgspec.structs.replace(delivery, state=state, next_attempt_at=None)
            assert await web.services.store.finish_deliveries([ended]) == [True]


async def test_deliveries_are_listed_and_filtered(web: Web):
    job = await web.succeed()
    answer = await web.client.get("/v1/deliveries")
    page = msgspec.convert(answer.json(), views.DeliveryPage)
    assert [(delivery.handler, delivery.event_type) for delivery in page.deliveries] == [
        ("tell", "job.succeeded"),
        ("tell", "job.submitted"),
    ]
    for query, count in {
        f"job_id={job.id}": 2,
        "handler=tell": 2,
        "handler=x": 0,
        "state=pending": 2,
        "state=dead": 0,
        "limit=1": 1,
    }.items():
        assert len((await web.client.get(f"/v1/deliveries?{query}")).json()["deliveries"]) == count, query
    for query in ("state=lost", "limit=0", "event_type=x", "cursor=x"):
        assert (await web.client.get(f"/v1/deliveries?{query}")).status_code == 400, query


async def test_a_delivery_is_replayed_under_its_event_id(web: Web):
    await web.succeed()
    await end_deliveries(web, DeliveryState.DEAD)
    [dead, *_] = (await web.client.get("/v1/deliveries?state=dead")).json()["deliveries"]
    answer = await web.client.post(f"/v1/deliveries/{dead['id']}/replay")
    assert answer.status_code == 202
    shown = msgspec.convert(answer.json(), views.Delivery)
    assert (shown.id, shown.event_id, shown.state, shown.attempts) == (dead["id"], dead["event_id"], DeliveryState.PENDING, 0)
    assert (await web.client.post(f"/v1/deliveries/{dead['id']}/replay")).status_code == 409


async def test_a_delivery_that_is_not_there_is_404(web: Web):
    for delivery_id in [NO_DELIVERY, "nope", "%00"]:
        assert (await web.client.post(f"/v1/deliveries/{delivery_id}/replay")).status_code == 404


async def test_deliveries_are_replayed_in_bulk(web: Web):
    job = await web.succeed()
    await end_deliveries(web, DeliveryState.DONE)
    for wrong in ({}, [], {"state": "lost"}, {"handler": 3}, {"id": "x"}, {"state": None}):
        assert (await web.client.post("/v1/deliveries/replay", json=wrong)).status_code == 400, wrong
    answer = await web.client.post("/v1/deliveries/replay", json={"state": "done", "job_id": job.id, "event_type": "job.succeeded"})
    assert (answer.status_code, answer.json()) == (202, {"replayed": 1})
    assert (await web.client.post("/v1/deliveries/replay", json={"handler": "tell"})).json() == {"replayed": 1}
    assert (await web.client.post("/v1/deliveries/replay", json={"handler": "x"})).json() == {"replayed": 0}


# Notices


async def test_notices_that_found_no_job_can_be_seen(web: Web):
    orphan = "sub_" + "3" * 32
    await web.client.post(web.callback_path(orphan), content=b"\xff secret-free body")
    [notice] = await web.services.store.claim_notices(10)
    await web.services.store.set_aside_notices([NoticeOutcome(id=notice.id, outcome=Outcome.ORPHAN)])
    page = (await web.client.get("/v1/notices?outcome=orphan&provider=elkapi&channel=callback")).json()
    msgspec.convert(page, views.NoticePage)
    [shown] = page["notices"]
    assert (shown["id"], shown["submission_id"]) == (notice.id, orphan)
    assert "raw" not in shown
    [with_raw] = (await web.client.get("/v1/notices?raw=true&outcome=orphan")).json()["notices"]
    assert with_raw["raw"] == "\ufffd secret-free body"
    assert (await web.client.get("/v1/notices?outcome=lost")).status_code == 400
    assert (await web.client.get("/v1/notices?outcome=unreadable")).json()["notices"] == []


async def test_only_an_unreadable_notice_is_settled_again(web: Web):
    submitted = await web.submit()
    await web.client.post(web.callback_path(submitted["submission_id"]), content=b"garbled")
    [notice] = await web.services.store.claim_notices(10)
    path = f"/v1/notices/{notice.id}/settle"
    assert (await web.client.post(path)).status_code == 409
    await web.services.store.set_aside_notices([NoticeOutcome(id=notice.id, outcome=Outcome.UNREADABLE, reason="not JSON")])
    settling = asyncio.create_task(web.client.post(path))
    async with asyncio.timeout(5):
        while not (claimed := await web.services.store.claim_notices(10)):
            await asyncio.sleep(0.01)
        outcome = NoticeOutcome(id=claimed[0].id, outcome=Outcome.DUPLICATE, job_id=submitted["jobs"][0]["id"])
        await web.services.store.set_aside_notices([outcome])
        answer = await settling
    assert (answer.status_code, answer.json()["id"]) == (200, submitted["jobs"][0]["id"])
    for unknown in ("ntc_" + "0" * 32, "nope"):
        assert (await web.client.post(f"/v1/notices/{unknown}/settle")).status_code == 404
