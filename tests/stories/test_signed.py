"""The providers that sign, on the whole road: Replicate, fal and OpenAI."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from receiver.app import check
from receiver.config import load
from receiver.errors import ConfigError
from receiver.model import Outcome as NoticeOutcome
from receiver.simulator import Fault, Outcome, Scenario
from receiver.simulator.fal import Fal
from receiver.simulator.signing import make_key
from receiver.stores.terms import NoticeFilter
from tests.stories.home import open_home, recorded, recorder

pytestmark = pytest.mark.long

SLOW = 'overdue_after = "30s"\ninterval = "0.2s"'  # nothing is polled unless something asks for it
QUICK = 'overdue_after = "0.8s"\ninterval = "0.2s"'
SUBMITS = {
    "replicate": {"model": "black-forest-labs/flux-schnell"},
    "fal": {"model": "fal-ai/flux/dev"},
    "openai": {"model": "sora-2"},
}
USUAL_WAY = {"replicate": "callback", "fal": "callback", "openai": "poll"}  # an event of OpenAI says no more than that it ended


def accounts(sim, **more) -> str:
    text = []
    for name in SUBMITS:
        settings = {"api_key": f"key-of-{name}", **sim.settings(name), **more.get(name, {})}
        text += [f"[providers.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    return "\n".join(text)


def open_signed(sim, folder, more="", polling=SLOW, **config):
    return open_home(sim, folder, providers=accounts(sim, **config), more=more, polling=polling)


def register(sim, home):
    sim.simulator.register_webhook("openai", f"{home.url}/callbacks/openai")


def faulty(*faults: Fault, **more) -> Scenario:
    return Scenario(**{"seconds": 0.3, "delay": 0.6, **more}, faults=frozenset(faults))


def callbacks(sim, kind="real"):
    return [callback.status for callback in sim.simulator.ledger.callbacks if callback.kind == kind]


@pytest.mark.parametrize("provider", SUBMITS)
async def test_a_job_comes_home_by_a_signed_callback(sim, tmp_path, provider):
    async with open_signed(sim, tmp_path) as home:
        register(sim, home)
        (job,) = await home.submit(provider, **SUBMITS[provider])
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"], done["error"]) == ("succeeded", USUAL_WAY[provider], None)
        assert done["outputs"][0]["url"].startswith(sim.url)
        assert callbacks(sim) == [200]
        await home.until(lambda: has_outcomes(home, job["id"], ["applied"]))
        assert (await home.events(job["id"])).count("job.succeeded") == 1


async def has_outcomes(home, job_id, wanted):
    return await home.outcomes(job_id) == wanted


@pytest.mark.parametrize("provider", SUBMITS)
async def test_a_failed_job_says_why(sim, tmp_path, provider):
    sim.simulator.plan(provider, Scenario(seconds=0.3, outcome=Outcome.FAILED, error="the upstream model fell over"))
    async with open_signed(sim, tmp_path) as home:
        register(sim, home)
        (job,) = await home.submit(provider, **SUBMITS[provider])
        done = await home.final(job["id"])
        assert (done["status"], done["error"]["message"], done["outputs"]) == ("failed", "the upstream model fell over", [])


@pytest.mark.parametrize("provider", SUBMITS)
async def test_a_lost_callback_is_found_by_polling(sim, tmp_path, provider):
    sim.simulator.plan(provider, faulty(Fault.LOST))
    async with open_signed(sim, tmp_path, polling=QUICK) as home:
        register(sim, home)
        (job,) = await home.submit(provider, **SUBMITS[provider])
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"]) == ("succeeded", "poll")
        assert done["outputs"][0]["url"].startswith(sim.url)


@pytest.mark.parametrize("provider", SUBMITS)
@pytest.mark.parametrize("fault", [Fault.TWICE, Fault.REORDERED, Fault.EARLY, Fault.GZIP, Fault.CHATTY, Fault.LATE])
async def test_a_job_ends_once_whatever_befalls_its_callback(sim, tmp_path, provider, fault):
    sim.simulator.plan(provider, faulty(fault))
    async with open_signed(sim, tmp_path, polling=QUICK, more=recorder(tmp_path)) as home:
        register(sim, home)
        (job,) = await home.submit(provider, **SUBMITS[provider])
        done = await home.final(job["id"])
        assert (done["status"], len(done["outputs"])) == ("succeeded", 1)
        await sim.simulator.quiet()
        assert set(callbacks(sim)) == {200}
        await home.until(lambda: all_settled(home, job["id"], len(callbacks(sim))))
        await home.until(lambda: "job.succeeded" in [event["type"] for event in recorded(tmp_path)])
        assert [event["type"] for event in recorded(tmp_path)].count("job.succeeded") == 1


async def all_settled(home, job_id, count):
    outcomes = await home.outcomes(job_id)
    return len(outcomes) == count and not {None, "orphan"} & set(outcomes)


@pytest.mark.parametrize("provider", SUBMITS)
async def test_a_forged_callback_is_refused_and_the_job_still_ends_once(sim, tmp_path, provider):
    sim.simulator.plan(provider, faulty(Fault.FORGED))
    async with open_signed(sim, tmp_path) as home:
        register(sim, home)
        (job,) = await home.submit(provider, **SUBMITS[provider])
        assert (await home.final(job["id"]))["status"] == "succeeded"
        await sim.simulator.quiet()
        assert callbacks(sim, "forged") == [401]
        assert len(await home.outcomes(job["id"])) == 1
        assert (await home.services.counters.read())[f"provider:{provider}", "callbacks_refused"] == 1


@pytest.mark.parametrize("provider", ["replicate", "fal"])
async def test_behind_a_good_token_a_wrong_signature_has_the_jobs_polled_at_once(sim, tmp_path, provider):
    sim.simulator.plan(provider, faulty(Fault.FORGED, Fault.LOST, seconds=30))
    async with open_signed(sim, tmp_path) as home:
        (job,) = await home.submit(provider, **SUBMITS[provider])
        await asyncio.sleep(0)
        path = sim.simulator.ledger.submits[0].callback_url
        answer = await home.api.post(path, json={"id": job["remote_id"], "request_id": job["remote_id"], "status": "succeeded"})
        assert answer.status_code == 401
        assert "signature" not in answer.text.lower()  # nobody is told what to do better
        await home.until(lambda: sim.simulator.ledger.job(job["remote_id"]).polls > 0)
        assert await home.outcomes(job["id"]) == []
        assert (await home.job(job["id"]))["status"] in {"queued", "processing"}


async def test_a_callback_for_the_account_that_comes_before_the_answer_waits_for_it(sim, tmp_path):
    sim.simulator.plan("openai", faulty(Fault.SUBMIT_SLOW, seconds=0.1, delay=1.5))
    async with open_signed(sim, tmp_path) as home:
        register(sim, home)
        submitting = asyncio.create_task(home.submit("openai", **SUBMITS["openai"]))
        orphan = await home.until(lambda: first_orphan(home))
        (job,) = await submitting
        done = await home.final(job["id"])
        assert (done["status"], done["remote_id"]) == ("succeeded", orphan.remote_id)
        await home.until(lambda: has_outcomes(home, job["id"], ["duplicate"]))  # this late the answer knew the end itself
        assert await first_orphan(home) is None


async def first_orphan(home):
    rows = (await home.services.store.read_notices(NoticeFilter(outcome=NoticeOutcome.ORPHAN), 10, None)).rows
    return rows[0] if rows else None


async def test_a_callback_about_somebody_elses_job_is_a_visible_orphan(sim, tmp_path):
    sim.simulator.plan("openai", faulty(Fault.FOREIGN))
    async with open_signed(sim, tmp_path) as home:
        register(sim, home)
        (job,) = await home.submit("openai", **SUBMITS["openai"])
        assert (await home.final(job["id"]))["status"] == "succeeded"
        orphan = await home.until(lambda: first_orphan(home))
        assert orphan.remote_id not in (None, job["remote_id"])
        listed = (await home.api.get("/v1/notices", params={"outcome": "orphan"})).json()["notices"]
        assert [row["id"] for row in listed] == [orphan.id]


async def test_without_a_signature_nothing_comes_in_for_the_account(sim, tmp_path):
    async with open_signed(sim, tmp_path) as home:
        for path, status in {
            "openai": 401,
            "openai/": 401,
            "openai/token": 401,
            "replicate": 401,
            "fal": 401,
            "elkapi": 401,
            "huzz": 404,
        }.items():
            answer = await home.api.post(f"/callbacks/{path}", json={"type": "video.completed", "data": {"id": "x"}})
            assert answer.status_code == status, path
        assert (await home.services.store.read_notices(NoticeFilter(), 10, None)).rows == ()


async def test_an_output_that_wants_the_key_is_stored_with_it(sim, tmp_path):
    handler = '[[handlers]]\nname = "archive"\nuse = "storage"\n[handlers.options]\npath = "outputs"'
    async with open_signed(sim, tmp_path, more=handler) as home:
        register(sim, home)
        (job,) = await home.submit("openai", **SUBMITS["openai"])
        stored = await home.until(lambda: stored_output(home, job["id"]))
        assert stored["media_type"] == "video/mp4"
        assert [output.sha256 for output in sim.simulator.ledger.job(job["remote_id"]).outputs] == [stored["sha256"]]


async def stored_output(home, job_id):
    outputs = (await home.job(job_id))["outputs"]
    return outputs[0].get("stored") if outputs else None


@pytest.mark.parametrize("provider", ["replicate", "fal"])
async def test_a_cancelled_job_takes_what_the_poll_says(sim, tmp_path, provider):
    sim.simulator.plan(provider, Scenario(seconds=30, faults=frozenset({Fault.LOST})))
    async with open_signed(sim, tmp_path) as home:
        (job,) = await home.submit(provider, **SUBMITS[provider])
        assert (await home.api.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 202
        assert (await home.final(job["id"]))["status"] == "cancelled"
        assert sim.simulator.ledger.jobs[0].cancels == 1


@pytest.mark.parametrize("operation", ["model", "version", "deployment"])
async def test_replicate_takes_models_versions_and_deployments(sim, tmp_path, operation):
    async with open_signed(sim, tmp_path) as home:
        (job,) = await home.submit("replicate", "a/b" if operation != "version" else "5c7d5dc6", operation=operation)
        assert (await home.final(job["id"]))["status"] == "succeeded"
        (submit,) = sim.simulator.ledger.submits
        assert submit.operation == operation


async def test_two_secrets_verify_while_one_is_changed_for_the_other(sim, tmp_path):
    both = {"callback_secrets": ["whsec_bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3", *sim.settings("replicate")["callback_secrets"]]}
    async with open_signed(sim, tmp_path, replicate=both) as home:
        (job,) = await home.submit("replicate", **SUBMITS["replicate"])
        assert (await home.final(job["id"]))["finished_by"] == "callback"


async def test_keys_that_cannot_be_fetched_refuse_nothing_for_good(sim, tmp_path):
    away = {"jwks_url": f"{sim.url}/fal/.well-known/nothing.json"}
    async with open_signed(sim, tmp_path, polling=QUICK, fal=away) as home:
        (job,) = await home.submit("fal", **SUBMITS["fal"])
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"]) == ("succeeded", "poll")
        assert callbacks(sim)[:1] == [503]  # not 401: it may be genuine


async def test_new_keys_of_a_provider_are_taken_when_the_old_ones_do_not_fit(sim, tmp_path, monkeypatch):
    monkeypatch.setattr("receiver.jwks.PAUSE", timedelta(0))
    async with open_signed(sim, tmp_path) as home:
        for name in ("fal", "fal, a year later"):
            monkeypatch.setattr(Fal, "signing_key", make_key(name))
            (job,) = await home.submit("fal", **SUBMITS["fal"])
            assert (await home.final(job["id"]))["finished_by"] == "callback"
        assert callbacks(sim) == [200, 200]


async def test_a_success_without_outputs_is_asked_for_them_where_they_are_kept_elsewhere(sim, tmp_path):
    sim.simulator.plan("fal", Scenario(seconds=0.3, outputs=0))
    async with open_signed(sim, tmp_path) as home:
        (job,) = await home.submit("fal", **SUBMITS["fal"])
        done = await home.final(job["id"])
        assert (done["status"], done["finished_by"], done["outputs"]) == ("succeeded", "poll", [])


@pytest.mark.parametrize("provider", ["replicate", "openai"])
def test_a_missing_or_malformed_secret_is_a_mistake_in_the_configuration(provider):
    def mistakes(line: str) -> list[tuple[str, str]]:
        with pytest.raises(ConfigError) as caught:
            check(load(f'[providers.{provider}]\napi_key = "k"\n{line}\n', {}))
        return [(mistake.key, mistake.detail) for mistake in caught.value.mistakes]

    key = f"providers.{provider}.callback_secrets"
    assert [place for place, _ in mistakes("")] == [key]
    assert [place for place, _ in mistakes("callback_secrets = []")] == [key]
    found = mistakes('callback_secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "not base64!", "whsk_AAAA", "whpk_AAAA"]')
    assert [place for place, _ in found] == [f"{key}[{n}]" for n in (1, 2, 3, 4)]
    assert not any("not base64!" in detail or "AAAA" in detail for _, detail in found)


def test_a_provider_that_publishes_its_keys_takes_no_secret_and_others_no_keys():
    with pytest.raises(ConfigError) as caught:
        check(load('[providers.fal]\ncallback_secrets = ["x"]\n[providers.pixazo]\njwks_url = "https://x.example/jwks"\n', {}))
    assert [mistake.key for mistake in caught.value.mistakes] == ["providers.fal.callback_secrets", "providers.pixazo.jwks_url"]


def test_a_secret_for_a_provider_that_does_not_sign_is_a_mistake(tmp_path):
    """Who sets it believes that callbacks are checked by it."""
    text = '[providers.pixazo]\napi_key = "k"\ncallback_secrets = ["a-secret-for-nothing"]\n'
    with pytest.raises(ConfigError, match="does not sign its callbacks"):
        check(load(text, {}, folder=tmp_path))
