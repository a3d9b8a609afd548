"""The five providers on the same road."""

import json
from datetime import timedelta
from urllib.parse import urlsplit

import pytest

from receiver.simulator import Fault, Outcome, Scenario
from tests.loopback import response, say, serve
from tests.stories.home import open_home, recorded, recorder

QUICK = 'overdue_after = "0.8s"\ninterval = "0.2s"'
SUBMITS = {
    "huzz": {"model": "kling/kling-v2.6-pro/text-to-video"},
    "elkapi": {"model": "kling-v2"},
    "oxen": {"model": "kling-video-v2-6-pro-text-to-video"},
    "pixazo": {"model": "hunyuan-image"},
    "hoox": {"model": "veo-3.1", "media": "video"},
}
USUAL_WAY = {"huzz": "poll", "elkapi": "callback", "oxen": "stream", "pixazo": "callback", "hoox": "callback"}
CALL_BACK = ["elkapi", "pixazo", "hoox"]


def faulty(*faults: Fault, **more) -> Scenario:
    return Scenario(**{"seconds": 0.3, "delay": 0.6, **more}, faults=frozenset(faults))


@pytest.mark.parametrize("provider", SUBMITS)
async def test_a_job_comes_home_the_usual_way(sim, tmp_path, provider):
    sim.simulator.plan(provider, Scenario(seconds=1.5 if provider == "oxen" else 0.3))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit(provider, **SUBMITS[provider])
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"], done["error"]) == ("succeeded", USUAL_WAY[provider], None)
        assert done["outputs"][0]["url"].startswith(sim.url)
        events = await home.events(job["id"])
        assert (events[0], events[-1], events.count("job.succeeded")) == ("job.submitted", "job.succeeded", 1)
        assert sim.simulator.ledger.billed == 1


@pytest.mark.parametrize("provider", SUBMITS)
async def test_a_failed_generation_says_why_in_the_providers_words(sim, tmp_path, provider):
    sim.simulator.plan(provider, Scenario(seconds=0.3, outcome=Outcome.FAILED, error="the upstream model fell over"))
    async with open_home(sim, tmp_path, polling=QUICK) as home:
        (job,) = await home.submit(provider, **SUBMITS[provider])
        done = await home.final(job["id"])
        assert (done["status"], done["outputs"]) == ("failed", [])
        assert done["error"]["message"] == "the upstream model fell over"
        assert (await home.events(job["id"])).count("job.failed") == 1


@pytest.mark.parametrize("provider", CALL_BACK)
async def test_a_lost_callback_is_found_by_polling(sim, tmp_path, provider):
    sim.simulator.plan(provider, faulty(Fault.LOST))
    async with open_home(sim, tmp_path, polling=QUICK) as home:
        (job,) = await home.submit(provider, **SUBMITS[provider])
        assert (await home.final(job["id"]))["finished_by"] == "poll"


@pytest.mark.parametrize("provider", SUBMITS)
async def test_without_a_public_url_every_job_is_polled(sim, tmp_path, provider):
    async with open_home(sim, tmp_path, public=False) as home:
        (job,) = await home.submit(provider, **SUBMITS[provider])
        done = await home.final(job["id"])
        assert done["status"] == "succeeded"
        assert done["finished_by"] in {"poll", "stream"}
        assert [submit.callback_url for submit in sim.simulator.ledger.submits] == [None]


@pytest.mark.parametrize("provider", CALL_BACK)
@pytest.mark.parametrize("fault", [Fault.TWICE, Fault.REORDERED, Fault.EARLY, Fault.FORGED, Fault.GZIP, Fault.CHATTY, Fault.LATE])
async def test_a_job_ends_once_whatever_befalls_its_callback(sim, tmp_path, provider, fault):
    sim.simulator.plan(provider, faulty(fault))
    async with open_home(sim, tmp_path, polling=QUICK, more=recorder(tmp_path)) as home:
        (job,) = await home.submit(provider, **SUBMITS[provider])
        assert (await home.final(job["id"]))["status"] == "succeeded"
        await sim.simulator.quiet()
        answers = [callback.status for callback in sim.simulator.ledger.callbacks if callback.kind == "real"]
        assert answers
        assert set(answers) == {200}
        await home.until(lambda: settled(home))
        await home.until(lambda: "job.succeeded" in [event["type"] for event in recorded(tmp_path)])
        assert [event["type"] for event in recorded(tmp_path)].count("job.succeeded") == 1
        outcomes = await home.outcomes(job["id"])
        assert len(outcomes) == len(answers)
        assert None not in outcomes


async def settled(home) -> bool:
    return await home.services.store.inbox_depth() == 0


@pytest.mark.parametrize("provider", CALL_BACK)
@pytest.mark.parametrize(
    ("fault", "outcome"), [(Fault.GARBLED, "unreadable"), (Fault.TRUNCATED, "unreadable"), (Fault.FOREIGN, "mismatched")]
)
async def test_a_callback_that_cannot_be_used_is_kept_and_the_job_polled_at_once(sim, tmp_path, provider, fault, outcome):
    sim.simulator.plan(provider, faulty(fault))
    async with open_home(sim, tmp_path, polling='overdue_after = "30s"\ninterval = "0.2s"') as home:
        (job,) = await home.submit(provider, **SUBMITS[provider])
        assert (await home.final(job["id"]))["status"] == "succeeded"
        outcomes = await home.until(lambda: visible(home, job["id"], outcome))
        assert outcome in outcomes


async def visible(home, job_id, outcome):
    outcomes = await home.outcomes(job_id)
    return outcomes if outcome in outcomes else None


async def test_a_huge_callback_is_refused_and_the_job_polled_at_once(sim, tmp_path):
    sim.simulator.plan("pixazo", faulty(Fault.HUGE))
    async with open_home(sim, tmp_path, polling='overdue_after = "30s"\ninterval = "0.2s"') as home:
        (job,) = await home.submit("pixazo", **SUBMITS["pixazo"])
        assert (await home.final(job["id"]))["finished_by"] == "poll"
        await sim.simulator.quiet()
        assert [callback.status for callback in sim.simulator.ledger.callbacks] == [413]


async def test_a_forged_callback_is_refused_and_counted(sim, tmp_path):
    sim.simulator.plan("hoox", faulty(Fault.FORGED))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("hoox", **SUBMITS["hoox"])
        await home.final(job["id"])
        assert [callback.status for callback in sim.simulator.ledger.callbacks if callback.kind == "forged"] == [401]
        assert (await home.services.counters.read())["provider:hoox", "callbacks_refused"] == 1


@pytest.mark.parametrize("provider", ["oxen", "hoox"])
async def test_a_fan_out_brings_every_generation_home(sim, tmp_path, provider):
    field = {"oxen": "num_generations", "hoox": "generation_count"}[provider]
    sim.simulator.plan(provider, Scenario(seconds=0.5, outcome=(Outcome.SUCCEEDED, Outcome.FAILED, Outcome.SUCCEEDED)))
    async with open_home(sim, tmp_path, polling=QUICK) as home:
        jobs = await home.submit(provider, **{**SUBMITS[provider], "input": {field: 3}})
        assert len({job["remote_id"] for job in jobs}) == 3
        assert [(await home.final(job["id"]))["status"] for job in jobs] == ["succeeded", "failed", "succeeded"]
        assert sim.simulator.ledger.billed == 3


@pytest.mark.parametrize("faults", [(), (Fault.LOST,)])
async def test_a_job_comes_home_though_its_sibling_was_deleted(sim, tmp_path, faults):
    sim.simulator.plan("oxen", Scenario(seconds=1.5, faults=frozenset(faults)))
    async with open_home(sim, tmp_path, polling=QUICK) as home:
        first, second = await home.submit("oxen", **{**SUBMITS["oxen"], "input": {"num_generations": 2}})
        await home.api.post(f"/v1/jobs/{first['id']}/cancel")
        assert (await home.final(first["id"]))["status"] == "cancelled"
        assert (await home.api.delete(f"/v1/jobs/{first['id']}")).status_code == 204
        assert (await home.final(second["id"]))["status"] == "succeeded"


async def test_each_submit_has_a_connection_of_its_own(sim, tmp_path):
    """One that was kept may die under the request, and nobody could tell whether it was taken."""
    raw = response(200, b'{"id": "elk-1", "status": "queued"}', content_type="application/json")
    async with serve(say(raw)) as peer:
        account = f'[providers.elkapi]\napi_key = "k"\nbase_url = "{peer.url}"'
        async with open_home(sim, tmp_path, providers=account, polling='overdue_after = "0.3s"\ninterval = "0.2s"') as home:
            for _ in range(3):
                await home.submit("elkapi", **SUBMITS["elkapi"])
            await home.until(lambda: [seen for seen in peer.seen if seen.method == "GET"])
        submits = [seen for seen in peer.seen if seen.method == "POST"]
        assert [seen.headers.get("connection") for seen in submits] == ["close"] * 3
        assert peer.connections >= 4


async def test_a_cancelled_job_takes_what_the_poll_says(sim, tmp_path):
    sim.simulator.plan("oxen", Scenario(seconds=30))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("oxen", **SUBMITS["oxen"])
        answer = await home.api.post(f"/v1/jobs/{job['id']}/cancel")
        assert answer.status_code == 202
        done = await home.final(job["id"])
        assert (done["status"], done["error"]["code"]) == ("cancelled", "cancelled")
        assert sim.simulator.ledger.jobs[0].cancels == 1


async def test_a_provider_without_cancel_says_so(sim, tmp_path):
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("elkapi", **SUBMITS["elkapi"])
        assert (await home.api.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 409


async def test_a_lost_submit_answer_is_found_in_the_providers_list(sim, tmp_path):
    sim.simulator.plan("oxen", faulty(Fault.SUBMIT_LOST, seconds=3))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("oxen", **SUBMITS["oxen"])
        assert job["status"] == "unconfirmed"
        done = await home.final(job["id"])
        assert (done["status"], len(sim.simulator.ledger.submits)) == ("succeeded", 1)


async def test_an_unconfirmed_job_is_resolved_by_the_operator(sim, tmp_path):
    sim.simulator.plan("huzz", faulty(Fault.SUBMIT_502))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("huzz", **SUBMITS["huzz"])
        assert job["status"] == "unconfirmed"
        remote_id = sim.simulator.ledger.jobs[0].id
        answer = await home.api.post(f"/v1/jobs/{job['id']}/resolve", json={"remote_id": remote_id})
        assert (answer.status_code, answer.json()["status"]) == (200, "queued")
        assert (await home.final(job["id"]))["status"] == "succeeded"


async def test_an_abandoned_job_is_failed_by_the_operator(sim, tmp_path):
    sim.simulator.plan("huzz", faulty(Fault.SUBMIT_EMPTY))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("huzz", **SUBMITS["huzz"])
        answer = await home.api.post(f"/v1/jobs/{job['id']}/resolve", json={"abandon": True})
        gone = answer.json()
        assert (gone["status"], gone["finished_by"], gone["error"]["code"]) == ("failed", "operator", "submit_unknown")
        assert (await home.api.post(f"/v1/jobs/{job['id']}/resolve", json={"abandon": True})).status_code == 409


@pytest.mark.parametrize("fault", [Fault.TOO_MANY, Fault.UNAVAILABLE])
async def test_what_was_certainly_not_taken_is_sent_again(sim, tmp_path, fault):
    sim.simulator.plan("elkapi", faulty(fault, times=1, retry_after=1))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("elkapi", **SUBMITS["elkapi"])
        assert (await home.final(job["id"]))["status"] == "succeeded"
        assert [submit.status for submit in sim.simulator.ledger.submits].count(200) == 1
        assert [entry["http_status"] for entry in await home.timeline(job["id"], "submit")] == [int(fault), 200]


async def test_a_refusal_is_a_failed_job_with_the_providers_words(sim, tmp_path):
    sim.simulator.plan("pixazo", faulty(Fault.BALANCE))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("pixazo", **SUBMITS["pixazo"])
        assert (job["status"], job["error"]["code"], job["finished_by"]) == ("failed", "insufficient_balance", "submit")
        assert sim.simulator.ledger.billed == 0


@pytest.mark.parametrize("fault", [Fault.POLL_404, Fault.POLL_429, Fault.POLL_500, Fault.POLL_503, Fault.POLL_GARBLED, Fault.POLL_LOST])
async def test_failed_polls_are_polls_again(sim, tmp_path, fault):
    sim.simulator.plan("huzz", faulty(fault, polls=2))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("huzz", **SUBMITS["huzz"])
        assert (await home.final(job["id"]))["status"] == "succeeded"


@pytest.mark.long
async def test_one_list_call_answers_for_jobs_that_are_due_soon_as_well(sim, tmp_path):
    sim.simulator.plan("oxen", *[faulty(seconds=1000)] * 4)
    async with open_home(sim, tmp_path, polling='overdue_after = "0.4s"\ninterval = "0.4s"\nmax_interval = "0.4s"') as home:
        for _ in range(4):  # one after the other, so that they are due one after the other
            (job,) = await home.submit("oxen", **SUBMITS["oxen"])
            await home.until(lambda job=job: poll_after(home, job["id"], 1))
        asked_alone, calls = sim.simulator.ledger.polls, await count_polls(home, "oxen")
        await home.until(lambda: have_grown(home, "oxen", calls + 6))
        assert sim.simulator.ledger.polls - asked_alone <= 3


async def count_polls(home, provider):
    providers = (await home.api.get("/v1/providers")).json()["providers"]
    return next(each["counters"].get("polls", 0) for each in providers if each["name"] == provider)


async def have_grown(home, provider, calls):
    return await count_polls(home, provider) >= calls


@pytest.mark.long
async def test_a_lost_stream_is_opened_again_soon(sim, tmp_path):
    sim.simulator.plan("oxen", faulty(Fault.STREAM_DROPPED, seconds=2), Scenario(seconds=5))
    async with open_home(sim, tmp_path, polling='interval = "60s"\nmax_interval = "60s"') as home:
        (dropped,) = await home.submit("oxen", **SUBMITS["oxen"])
        (later,) = await home.submit("oxen", **SUBMITS["oxen"])
        assert (await home.final(later["id"]))["finished_by"] == "stream"
        assert (await home.final(dropped["id"]))["finished_by"] == "poll"


async def test_what_a_provider_says_again_of_our_key_is_masked(sim, tmp_path):
    sim.simulator.plan("huzz", Scenario(seconds=0.3, outcome=Outcome.FAILED, error="key-of-huzz has no credit"))
    async with open_home(sim, tmp_path, more=recorder(tmp_path)) as home:
        (job,) = await home.submit("huzz", **SUBMITS["huzz"])
        assert (await home.final(job["id"]))["error"]["message"] == "*** has no credit"
        failed = await home.until(lambda: [event for event in recorded(tmp_path) if event["type"] == "job.failed"])
        assert failed[0]["data"]["job"]["error"]["message"] == "*** has no credit"
        assert "key-of-huzz" not in json.dumps(await home.timeline(job["id"]))


async def test_an_id_that_the_provider_keeps_denying_is_not_found(sim, tmp_path):
    sim.simulator.plan("huzz", faulty(Fault.POLL_404, polls=1000))
    async with open_home(sim, tmp_path) as home:
        (job,) = await home.submit("huzz", **SUBMITS["huzz"])
        done = await home.final(job["id"])
        assert (done["status"], done["error"]["code"], done["finished_by"]) == ("failed", "not_found", "poll")


async def test_a_late_callback_replaces_expired(sim, tmp_path):
    sim.simulator.plan("elkapi", Scenario(seconds=2.5))
    async with open_home(sim, tmp_path, polling='overdue_after = "20s"', more=recorder(tmp_path)) as home:
        (job,) = await home.submit("elkapi", **SUBMITS["elkapi"], deadline_seconds=1)
        assert (await home.final(job["id"]))["status"] == "expired"
        await home.until(lambda: is_status(home, job["id"], "succeeded"))
        finals = await home.until(lambda: final_events(tmp_path, 2))
        assert finals == [("job.expired", False), ("job.succeeded", True)]


@pytest.mark.long
@pytest.mark.parametrize("fault", [Fault.POLL_500, Fault.POLL_LOST])
async def test_an_expired_job_is_asked_about_less_and_less_though_polls_fail(sim, tmp_path, fault):
    sim.simulator.plan("huzz", faulty(fault, polls=1000, seconds=1000))
    async with open_home(sim, tmp_path, polling='interval = "0.4s"\nmax_interval = "0.4s"') as home:
        (job,) = await home.submit("huzz", **SUBMITS["huzz"], deadline_seconds=1)
        assert (await home.final(job["id"]))["status"] == "expired"
        first = await home.until(lambda: poll_after(home, job["id"], 0))
        third = await home.until(lambda: poll_after(home, job["id"], 2))  # the second may have been under way when the job expired
        assert third.due_at - first.due_at >= timedelta(seconds=4)


async def poll_after(home, job_id, attempts):
    poll = (await home.services.store.load_polls([job_id])).get(job_id)
    return poll if poll is not None and poll.attempts == attempts and poll.failures == 0 else None


async def is_status(home, job_id, status):
    return (await home.job(job_id))["status"] == status


def final_events(folder, count):
    finals = [(event["type"], event["data"]["late"]) for event in recorded(folder) if event["type"] in {"job.expired", "job.succeeded"}]
    return finals if len(finals) >= count else None


async def test_with_confirm_a_final_callback_counts_once_a_poll_says_the_same(sim, tmp_path):
    account = f'[providers.elkapi]\napi_key = "key-of-elkapi"\nconfirm = true\nbase_url = "{sim.base_url("elkapi")}"'
    async with open_home(sim, tmp_path, providers=account) as home:
        (job,) = await home.submit("elkapi", **SUBMITS["elkapi"])
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"]) == ("succeeded", "poll")
        assert (await home.outcomes(job["id"]))[-1] == "applied"


async def test_a_second_account_of_a_provider_has_its_own_callback_path(sim, tmp_path):
    account = f'[providers.elkapi-eu]\nspec = "elkapi"\napi_key = "another-key"\nbase_url = "{sim.base_url("elkapi")}"'
    async with open_home(sim, tmp_path, providers=account) as home:
        (job,) = await home.submit("elkapi-eu", **SUBMITS["elkapi"])
        assert (await home.final(job["id"]))["finished_by"] == "callback"
        assert "/callbacks/elkapi-eu/" in sim.simulator.ledger.submits[0].callback_url


async def test_a_callback_for_an_account_that_left_the_configuration_counts_once_it_is_back(sim, tmp_path):
    sim.simulator.plan("elkapi", faulty(Fault.LOST))
    async with open_home(sim, tmp_path, polling='overdue_after = "60s"') as home:
        (job,) = await home.submit("elkapi", **SUBMITS["elkapi"])
    path = urlsplit(sim.simulator.ledger.submits[0].callback_url).path
    body = {"id": job["remote_id"], "status": "failed", "error": "no boats"}
    async with open_home(sim, tmp_path, polling='overdue_after = "60s"', providers="# no [providers.elkapi]") as home:
        assert (await home.api.post(path, json=body)).status_code == 200
        await home.until(lambda: has_outcomes(home, job["id"], ["unreadable"]))
    async with open_home(sim, tmp_path, polling='overdue_after = "60s"') as home:
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"], done["error"]["message"]) == ("failed", "callback", "no boats")


async def has_outcomes(home, job_id, outcomes):
    return await home.outcomes(job_id) == outcomes
