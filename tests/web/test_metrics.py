"""What `/metrics` says, and that its labels come from closed sets."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from receiver.clock import ManualClock
from receiver.counters import Counters
from receiver.decisions import Decision
from receiver.errors import StoreUnavailable
from receiver.model import Channel, Status, Update
from receiver.rules import apply_update
from receiver.rush import Rush
from receiver.settler import Settler
from tests.web.opened import HERE, Web, open_web

PUBLIC = f'public_url = "{HERE}"'


async def samples(web: Web) -> dict[tuple[str, ...], float]:
    """Value by name and label values, those in the order of their names."""
    answer = await web.client.get("/metrics")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_refusals_have_their_reason(web: Web, monkeypatch: pytest.MonkeyPatch):
    await web.client.post("/callbacks/elkapi/forged")
    path = web.callback_path("sub_" + "4" * 32)
    await web.client.post(path)
    await web.client.post(path, content=b"x" * (1024 * 1024 + 1))

    async def fail(*_: object) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(web.services.store, "keep_notice", fail)
    await web.client.post(path)
    await web.client.post("/callbacks/nobody-we-know/" + path.rpartition("/")[2])
    found = await samples(web)
    assert found["receiver_callbacks_accepted_total", "elkapi"] == 1
    refused = {key[2]: value for key, value in found.items() if key[:2] == ("receiver_callbacks_refused_total", "elkapi")}
    assert refused == {"token": 1, "signature": 0, "too_large": 1, "too_many": 0, "unavailable": 1}
    assert {key[1] for key in found if key[0] == "receiver_callbacks_refused_total"} == set(web.services.accounts)


async def test_what_waits_shows_its_age(web: Web):
    assert (await samples(web))["receiver_inbox_oldest_seconds",] == 0
    await web.client.post(web.callback_path("sub_" + "4" * 32))
    object.__setattr__(web.services, "clock", ManualClock(web.services.clock.now() + timedelta(seconds=90)))
    found = await samples(web)
    assert found["receiver_inbox_notices",] == 1
    assert found["receiver_inbox_oldest_seconds",] == pytest.approx(90, abs=5)


async def test_settling_shows_how_long_callbacks_waited(web: Web):
    for _ in range(2):
        await web.client.post(web.callback_path("sub_" + "4" * 32))
    clock = ManualClock(web.services.clock.now() + timedelta(seconds=4))
    await Settler(web.services.settling, clock, lambda: None, Rush(clock)).run_pass(clock.now())
    found = await samples(web)
    assert found["receiver_settle_lag_seconds_count",] == 2
    assert (found["receiver_settle_lag_seconds_bucket", "2.5"], found["receiver_settle_lag_seconds_bucket", "5.0"]) == (0, 2)
    assert found["receiver_settle_lag_seconds_sum",] == pytest.approx(8, abs=1)


async def test_the_ways_home_and_the_time_it_took_are_counted(tmp_path):
    async with open_web(tmp_path, PUBLIC) as web:
        for channel in (Channel.CALLBACK, Channel.POLL, Channel.POLL, Channel.POLL):
            submitted = await web.submit()
            await web.accept(submitted["submission_id"], "elk-1")
            update = Update(remote_id="elk-1", status=Status.SUCCEEDED)
            now = web.services.clock.now() + timedelta(seconds=25)

            def decide(family, update=update, channel=channel, now=now):
                return Decision(apply_update(family, update, channel, now), channel)

            assert await web.services.settling.settle({submitted["submission_id"]: decide}, now)
        found = await samples(web)
    assert found["receiver_jobs_finished_total", "callback", "elkapi"] == 1
    assert found["receiver_jobs_finished_total", "poll", "elkapi"] == 3
    assert found["receiver_callback_loss_ratio", "elkapi"] == 0.75
    assert found["receiver_job_events_total", "elkapi", "job.succeeded"] == 4
    assert (found["receiver_job_seconds_bucket", "20.0", "elkapi"], found["receiver_job_seconds_bucket", "30.0", "elkapi"]) == (0, 4)
    assert found["receiver_job_seconds_sum", "elkapi"] == pytest.approx(100, abs=5)
    assert found["receiver_open_deliveries", "tell", "pending"] == 8
    assert found["receiver_dead_letters", "tell"] == 0


async def test_counts_are_there_before_anything_happened(web: Web):
    found = await samples(web)
    for outcome in ("done", "retrying", "dead"):
        assert found["receiver_deliveries_total", "tell", outcome] == 0
    for outcome in ("answered", "failed"):
        assert found["receiver_polls_total", outcome, "pixazo"] == 0
    assert found["receiver_cost_today", "pixazo"] == 0
    assert found["receiver_public_url_reachable",] == 1
    assert found["receiver_public_url_fault", "rewritten"] == 0
    assert found["receiver_job_seconds_bucket", "+Inf", "pixazo"] == 0


@pytest.mark.parametrize(("seconds", "name"), [(-3, "up_to_1"), (1, "up_to_1"), (1.01, "up_to_5"), (6, "up_to_inf")])
async def test_a_time_is_counted_under_the_first_bound_that_holds_it(web: Web, seconds: float, name: str):
    counters = Counters(web.services.store)
    counters.observe("duration:oxen", seconds, (1.0, 5.0))
    assert await counters.read() == {("duration:oxen", name): 1, ("duration:oxen", "milliseconds"): max(round(seconds * 1000), 0)}
