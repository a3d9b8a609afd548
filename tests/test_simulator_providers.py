"""Each provider's protocol, held against literal bodies of its documents."""

import asyncio
import re

import httpx
import pytest

from receiver.simulator import Fault, Outcome, Scenario, Simulator, serve_simulator

QUICK = Scenario(seconds=0.05)
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
BEARER = {"authorization": "Bearer any"}


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def served(anyio_backend):
    async with serve_simulator(Simulator(QUICK)) as served:
        yield served


@pytest.fixture
async def simulator(served):
    yield served.simulator
    await served.simulator.reset()


@pytest.fixture
async def client(simulator):
    async with httpx.AsyncClient(headers=BEARER, trust_env=False, verify=False) as client:
        yield client


# Huzz


async def test_huzz_takes_a_prediction_and_shows_its_output(simulator, served, client):
    base = served.base_url("huzz")
    taken = await client.post(f"{base}/api/v3/kling/kling-v2.6-pro/text-to-video", json={"prompt": "city lights"})
    assert taken.status_code == 200
    assert taken.json() == {"id": taken.json()["id"], "status": "queued"}
    assert taken.json()["id"].startswith("pred_")
    await simulator.quiet()
    read = (await client.get(f"{base}/api/v3/predictions/{taken.json()['id']}/result")).json()
    assert read == {"id": taken.json()["id"], "status": "completed", "output": read["output"]}
    assert read["output"][0].endswith(".mp4")


async def test_huzz_tells_why_a_prediction_failed(simulator, served, client):
    simulator.plan("huzz", Scenario(seconds=0, outcome=Outcome.FAILED, error="upstream rejected the prompt"))
    base = served.base_url("huzz")
    taken = await client.post(f"{base}/api/v3/kling/kling-v2.6-pro/text-to-video", json={"prompt": "x"})
    await simulator.quiet()
    read = (await client.get(f"{base}/api/v3/predictions/{taken.json()['id']}/result")).json()
    error = {"message": "upstream rejected the prompt", "type": "server_error", "param": None, "code": "generation_failed"}
    assert read == {"id": taken.json()["id"], "status": "failed", "error": error}


async def test_huzz_refuses_in_the_envelope_of_openai(served, client):
    base = served.base_url("huzz")
    unknown = await client.get(f"{base}/api/v3/predictions/pred_none/result")
    expected = {"message": "no such job", "type": "invalid_request_error", "param": None, "code": "not_found"}
    assert (unknown.status_code, unknown.json()) == (404, {"error": expected})
    wrong = await client.get(f"{base}/api/v3/predictions/pred_none/result", headers={"authorization": "Bearer wrong"})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")
    model = await client.post(f"{base}/api/v3/kling/no-such-model/text-to-video", json={})
    assert (model.status_code, model.json()["error"]["code"]) == (404, "model_not_found")
    budget = await client.post(f"{base}/api/v3/a/b/c", json={"prompt": "[sim: balance]"})
    assert (budget.status_code, budget.json()["error"]["type"]) == (429, "rate_limit_error")


# Elk API


async def test_elkapi_answers_like_its_guide(simulator, served, client):
    base = served.base_url("elkapi")
    body = {"model": "kling-v3/text-to-video", "input": {"prompt": "paper boats", "duration": "5"}}
    taken = (await client.post(f"{base}/v1/task/submit", json=body)).json()
    assert taken == {"id": taken["id"], "status": "queued", "created_at": taken["created_at"]}
    assert isinstance(taken["created_at"], int)
    await simulator.quiet()
    read = (await client.get(f"{base}/v1/task/{taken['id']}")).json()
    assert set(read) == {"id", "status", "created_at", "completed_at", "outputs", "usage"}
    assert read["status"] == "completed"
    assert re.fullmatch(rf"{served.url}/files/[0-9a-f]+/0\.mp4", read["outputs"][0])


async def test_elkapi_tells_a_failure_as_a_text(simulator, served, client):
    base = served.base_url("elkapi")
    body = {"model": "flux-pro", "input": {"prompt": "x [sim: fail seconds=0]"}}
    taken = (await client.post(f"{base}/v1/task/submit", json=body)).json()
    await simulator.quiet()
    read = (await client.get(f"{base}/v1/task/{taken['id']}")).json()
    assert (read["status"], read["error"]) == ("failed", "content policy violation")
    assert "outputs" not in read


async def test_elkapi_refuses_what_is_malformed(served, client):
    url = f"{served.base_url('elkapi')}/v1/task/submit"
    for body in ({"input": {}}, {"model": "m"}, {"model": "m", "input": {}, "callback_url": "nowhere"}):
        assert (await client.post(url, json=body)).status_code == 400
    assert (await client.post(url, content=b"{")).json()["error"]["code"] == "invalid_request"
    balance = await client.post(url, json={"model": "m", "input": {"prompt": "[sim: balance]"}})
    assert (balance.status_code, balance.json()["error"]["code"]) == (403, "insufficient_user_quota")


# Oxen


async def test_oxen_fans_out_and_answers_rows(simulator, served, client):
    base = served.base_url("oxen")
    body = {"model": "kling-video-v2-6-pro-text-to-video", "prompt": "fog", "duration": 5, "num_generations": 2}
    taken = await client.post(f"{base}/ai/queue", json=body)
    generations = taken.json()["generations"]
    assert taken.status_code == 200
    assert [set(generation) for generation in generations] == [{"generation_id", "status"}] * 2
    assert all(re.fullmatch(UUID, generation["generation_id"]) for generation in generations)
    active = (await client.get(f"{base}/ai/queue", params={"model": body["model"]})).json()
    assert (active["count"], {row["generation_id"] for row in active["generations"]}) == (2, {g["generation_id"] for g in generations})
    await simulator.quiet()
    row = (await client.get(f"{base}/ai/queue/{generations[0]['generation_id']}")).json()
    assert row["result_url"].endswith(".mp4")
    assert isinstance(row["enqueued_at"], int)
    assert isinstance(row["started_at"], int)
    assert isinstance(row["completed_at"], int)
    same = {"generation_id": generations[0]["generation_id"], "model_name": body["model"], "prompt": "fog", "duration": 5}
    assert row | same | {"media_type": "video", "status": "succeeded", "error_message": None} == row
    assert (await client.get(f"{base}/ai/queue")).json() == {"count": 0, "generations": []}


async def test_oxen_keeps_a_history_with_costs(simulator, served, client):
    base = served.base_url("oxen")
    taken = await client.post(f"{base}/ai/queue", json={"model": "flux", "prompt": "a", "num_generations": 3})
    await simulator.quiet()
    history = (await client.get(f"{base}/ai/generations", params={"page": 2, "page_size": 2})).json()
    assert (history["count"], history["total_entries"], history["total_pages"], history["page_number"]) == (1, 3, 2, 2)
    assert history["generations"][0]["cost"] == "0.05"
    one = (await client.get(f"{base}/ai/generations/{taken.json()['generations'][0]['generation_id']}")).json()
    assert (one["status"], one["generation"]["status"]) == ("success", "succeeded")


async def test_oxen_cancels_an_open_job_and_leaves_a_finished_one(simulator, served, client):
    base = served.base_url("oxen")
    taken = await client.post(f"{base}/ai/queue", json={"model": "flux", "prompt": "[sim: stuck]"})
    job_id = taken.json()["generations"][0]["generation_id"]
    assert (await client.delete(f"{base}/ai/queue/{job_id}")).json() == {"status": "success", "generation_id": job_id}
    assert (await client.get(f"{base}/ai/queue/{job_id}")).json()["status"] == "cancelled"
    done = await client.post(f"{base}/ai/queue", json={"model": "flux", "prompt": "[sim: instant]"})
    done_id = done.json()["generations"][0]["generation_id"]
    assert (await client.delete(f"{base}/ai/queue/{done_id}")).status_code == 200
    assert (await client.get(f"{base}/ai/queue/{done_id}")).json()["status"] == "succeeded"
    unknown = await client.delete(f"{base}/ai/queue/nothing")
    assert (unknown.status_code, unknown.json()["status_message"]) == (404, "resource_not_found")


async def test_oxen_refuses_in_its_three_envelopes(served, client):
    url = f"{served.base_url('oxen')}/ai/queue"
    wrong = await client.post(url, json={}, headers={"authorization": ""})
    assert (wrong.status_code, wrong.json()) == (401, {"status": "error", "status_message": "unauthenticated"})
    many = await client.post(url, json={"model": "flux", "num_generations": 5})
    error = {
        "type": "invalid_params",
        "title": "Invalid parameters supplied",
        "detail": "num_generations must be an integer between 1 and 4",
    }
    assert (many.status_code, many.json()) == (400, {"error": error, "status": "error", "status_message": "invalid_params"})
    unknown = await client.post(url, json={"model": "no-such-model"})
    assert (unknown.status_code, unknown.json()) == (404, {"error": {"message": "Model not found: no-such-model"}})
    text = await client.post(url, json={"model": "gpt-5"})
    assert text.json()["status_message"] == "unsupported_media_type"


# Pixazo


async def test_pixazo_answers_202_with_a_polling_url_that_works(simulator, served, client):
    key = {"ocp-apim-subscription-key": "any"}
    url = f"{served.base_url('pixazo')}/hunyuan-image/v1/hunyuan-image/generateRequest"
    taken = await client.post(url, json={"prompt": "sunflowers", "num_images": 2}, headers=key)
    assert taken.status_code == 202
    body = taken.json()
    assert body == {
        "request_id": body["request_id"],
        "status": "QUEUED",
        "polling_url": f"{served.base_url('pixazo')}/v2/requests/status/{body['request_id']}",
    }
    assert re.fullmatch(f"hunyuan-image_{UUID}", body["request_id"])
    await simulator.quiet()
    read = (await client.get(body["polling_url"], headers=key)).json()
    assert set(read) == {"request_id", "status", "model_id", "error", "output", "created_at", "updated_at", "completed_at"}
    assert (read["status"], read["model_id"], read["error"]) == ("COMPLETED", "hunyuan-image", None)
    assert len(read["output"]["media_url"]) == 2
    assert read["output"]["media_type"] == "image/png"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", read["completed_at"])


async def test_pixazo_tells_an_error_of_its_own_without_times(simulator, served, client):
    simulator.plan("pixazo", Scenario(seconds=0, outcome=Outcome.ERROR, error="input image could not be fetched"))
    key = {"ocp-apim-subscription-key": "any"}
    url = f"{served.base_url('pixazo')}/hunyuan3d-3-0-api-294/v1/hunyuan3d-3-0-api-request"
    taken = (await client.post(url, json={"input_image_url": "https://example.org/cat.png"}, headers=key)).json()
    await simulator.quiet()
    read = (await client.get(taken["polling_url"], headers=key)).json()
    assert read == {
        "request_id": taken["request_id"],
        "status": "ERROR",
        "model_id": "hunyuan3d-3-0-api-294",
        "error": "input image could not be fetched",
        "output": None,
    }


async def test_pixazo_refuses_like_its_tables(served, client):
    base, key = served.base_url("pixazo"), {"ocp-apim-subscription-key": "any"}
    url = f"{base}/hunyuan-image/v1/hunyuan-image/generateRequest"
    assert (await client.post(url, json={"prompt": "x"})).status_code == 401  # a bearer key is none here
    balance = await client.post(url, json={"prompt": "[sim: balance]"}, headers=key)
    assert (balance.status_code, balance.json()["error"]) == (402, "Insufficient Balance")
    model = await client.post(f"{base}/hunyuan-imagex/v1/x", json={"prompt": "x"}, headers=key)
    expected = {"error": "Model not found", "message": "Model 'hunyuan-imagex' not found or is disabled"}
    assert (model.status_code, model.json()) == (400, expected)
    for body in ({}, {"prompt": "x", "num_images": 5}, {"prompt": "x", "output_format": "gif"}):
        assert (await client.post(url, json=body, headers=key)).status_code == 400


# Hoox


async def test_hoox_fans_assets_out_with_their_costs(simulator, served, client):
    base = served.base_url("hoox")
    body = {"type": "video", "model": "veo-3.1", "prompt": "tide pools", "duration": 8, "generation_count": 2}
    taken = await client.post(f"{base}/asset/start", json=body)
    ids = taken.json()["asset_ids"]
    assert taken.status_code == 201
    assert taken.json() == {"asset_ids": ids, "status": "generating", "count": 2, "cost_per_generation": 12, "total_cost": 24}
    assert len(set(ids)) == 2
    assert taken.headers["x-ratelimit-limit"] == "100"
    await simulator.quiet()
    read = (await client.get(f"{base}/asset/status/{ids[0]}")).json()
    assert read == {
        "asset_id": ids[0],
        "status": "completed",
        "type": "video",
        "url": read["url"],
        "thumbnail_url": read["thumbnail_url"],
        "width": 256,
        "height": 256,
        "duration_seconds": 3,
        "cost": 12,
        "created_at": read["created_at"],
        "generation_params": {"model": "veo-3.1", "prompt": "tide pools", "duration": 8},
    }
    assert (await client.get(read["thumbnail_url"])).headers["content-type"] == "image/png"


async def test_hoox_asset_is_pending_then_generating_then_failed(simulator, served, client):
    base = served.base_url("hoox")
    simulator.plan("hoox", Scenario(seconds=3600), Scenario(outcome=Outcome.STUCK, seconds=0), Scenario(outcome=Outcome.FAILED, seconds=0))
    ids = []
    for _ in range(3):
        ids += (await client.post(f"{base}/asset/start", json={"type": "image", "model": "m", "prompt": "x"})).json()["asset_ids"]
    reads = [(await client.get(f"{base}/asset/status/{job_id}")).json() for job_id in ids]
    assert [read["status"] for read in reads] == ["pending", "generating", "failed"]
    error = {"code": "GENERATION_FAILED", "message": "content policy violation"}
    assert reads[2] == {"asset_id": ids[2], "status": "failed", "type": "image", "error": error}


@pytest.mark.parametrize(
    ("start", "status", "progress", "found"),
    [("generation", "generation/status", "progress_step", "video_id"), ("export", "export/status", "progress", "video_url")],
)
async def test_hoox_makes_videos_and_exports(simulator, served, client, start, status, progress, found):
    base = served.base_url("hoox")
    taken = await client.post(f"{base}/{start}/start", json={"prompt": "a story"})
    assert taken.status_code == 201
    assert set(taken.json()) == {"job_id", "status", "estimated_credits"}
    await simulator.quiet()
    read = (await client.get(f"{base}/{status}/{taken.json()['job_id']}")).json()
    assert (read["status"], read[progress]) == ("completed", 100)
    assert {found, "thumbnail_url", "cost", "created_at"} <= set(read["result"])


async def test_hoox_makes_avatars_under_two_ids(simulator, served, client):
    base = served.base_url("hoox")
    created = (await client.post(f"{base}/avatar/create", json={"prompt": "a baker"})).json()
    assert set(created) == {"avatar_id", "look_id"}
    edited = (await client.post(f"{base}/avatar/edit", json={"avatar_id": created["avatar_id"], "prompt": "with a hat"})).json()
    assert edited["avatar_id"] == created["avatar_id"]
    assert edited["look_id"] != created["look_id"]
    await simulator.quiet()
    read = (await client.get(f"{base}/avatar/status", params=edited)).json()
    assert (read["status"], read["result"]["id"]) == ("completed", edited["look_id"])


async def test_hoox_refuses_in_its_two_envelopes(served, client):
    url = f"{served.base_url('hoox')}/asset/start"
    good = {"type": "video", "model": "veo-3.1", "prompt": "x"}
    cases = [
        ({**good, "type": "audio"}, "invalid_value", "type"),
        ({**good, "type": "image"}, "invalid_value", "type"),
        ({**good, "generation_count": 5}, "invalid_value", "generation_count"),
        ({**good, "webhook_url": "not a url"}, "invalid_webhook_url", "webhook_url"),
        ({"type": "video", "model": "veo-3.1"}, "missing_field", "prompt"),
        ({**good, "model": "kling-pro", "end_image": {"url": "https://e.org/a.png"}}, "missing_field", "start_image"),
        ({**good, "model": "veo-3.1-flf", "references": []}, "invalid_value", "references"),
        ({**good, "model": "no-such-model"}, "invalid_value", "model"),
    ]
    for body, code, field in cases:
        answer = await client.post(url, json=body)
        assert (answer.status_code, answer.json()["error"]) == (400, "Validation failed"), body
        assert (answer.json()["details"][0]["code"], answer.json()["details"][0]["field"]) == (code, field)
    unknown = await client.get(f"{served.base_url('hoox')}/asset/status/none")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "JOB_NOT_FOUND")
    balance = await client.post(url, json={**good, "prompt": "[sim: balance]"})
    assert (balance.status_code, balance.json()["code"]) == (402, "insufficient_credits")


async def test_hoox_tells_when_the_window_is_used_up(served, client):
    url = f"{served.base_url('hoox')}/asset/start"
    body = {"type": "image", "model": "m", "prompt": "[sim: 429 retry_after=7]"}
    answer = await client.post(url, json=body)
    assert (answer.status_code, answer.json()["code"], answer.headers["x-ratelimit-remaining"]) == (429, "rate_limit_exceeded", "0")


# All


async def test_every_provider_answers_at_the_root_too(served, client):
    assert (await client.get(f"{served.url}/v1/task/none")).json()["error"]["code"] == "task_not_found"
    assert (await client.get(f"{served.url}/api/v3/predictions/none/result")).status_code == 404
    assert (await client.get(f"{served.url}/api/ai/queue")).json()["count"] == 0
    assert (await client.get(f"{served.url}/api/public/v1/asset/status/none")).json()["code"] == "JOB_NOT_FOUND"
    key = {"ocp-apim-subscription-key": "any"}
    assert (await client.get(f"{served.url}/v2/requests/status/none", headers=key)).json()["error"] == "Not Found"


async def test_only_the_configured_key_is_good(client):
    simulator = Simulator(QUICK, keys={"elkapi": "right"})
    async with serve_simulator(simulator) as served:
        url = f"{served.base_url('elkapi')}/v1/task/none"
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, headers={"authorization": "Bearer right"})).status_code == 404


async def test_a_fan_out_takes_its_outcomes_in_turn(simulator, served, client):
    simulator.plan("oxen", Scenario(seconds=0, outcome=(Outcome.SUCCEEDED, Outcome.FAILED)))
    await client.post(f"{served.base_url('oxen')}/ai/queue", json={"model": "flux", "prompt": "x", "num_generations": 3})
    await simulator.quiet()
    assert [job.state for job in simulator.ledger.jobs] == ["succeeded", "failed", "succeeded"]


async def test_a_fan_out_may_answer_other_ids_than_asked_for(simulator, served, client):
    simulator.plan("hoox", Scenario(ids=1), Scenario(faults=frozenset({Fault.SAME_ID})))
    simulator.plan("oxen", Scenario(ids=0))
    body = {"type": "image", "model": "m", "prompt": "x", "generation_count": 2}
    fewer = (await client.post(f"{served.base_url('hoox')}/asset/start", json=body)).json()["asset_ids"]
    same = (await client.post(f"{served.base_url('hoox')}/asset/start", json=body)).json()["asset_ids"]
    assert (len(fewer), len(same), len(set(same))) == (1, 2, 1)
    none = await client.post(f"{served.base_url('oxen')}/ai/queue", json={"model": "flux"})
    assert none.json() == {"generations": []}


# Replicate


async def test_replicate_answers_like_its_reference(simulator, served, client):
    base = served.base_url("replicate")
    taken = await client.post(
        f"{base}/models/black-forest-labs/flux-schnell/predictions", json={"input": {"prompt": "x", "num_outputs": 2}}
    )
    assert taken.status_code == 201
    body = taken.json()
    assert (body["status"], body["output"], body["error"], body["input"]["prompt"]) == ("starting", None, None, "x")
    await simulator.quiet()
    read = (await client.get(f"{base}/predictions/{body['id']}")).json()
    assert (read["status"], len(read["output"])) == ("succeeded", 2)
    refused = await client.post(f"{base}/predictions", json={"version": "5c7d5dc6"})
    assert (refused.status_code, refused.json()["title"]) == (422, "Input validation failed")
    events = await client.post(f"{base}/predictions", json={"version": "5c7d5dc6", "input": {}, "webhook_events_filter": ["finished"]})
    assert events.status_code == 422
    assert (await client.get(f"{base}/predictions/none")).json()["status"] == 404


async def test_replicate_cancels(simulator, served, client):
    simulator.plan("replicate", Scenario(seconds=30))
    base = served.base_url("replicate")
    taken = (await client.post(f"{base}/deployments/acme/boats/predictions", json={"input": {}})).json()
    cancelled = (await client.post(f"{base}/predictions/{taken['id']}/cancel")).json()
    assert (cancelled["status"], cancelled["error"]) == ("canceled", None)


# fal


async def test_fal_keeps_the_result_apart_from_the_status(simulator, served):
    base = served.base_url("fal")
    async with httpx.AsyncClient(headers={"authorization": "Key any"}, trust_env=False, verify=False) as client:
        taken = (await client.post(f"{base}/fal-ai/flux/dev", json={"prompt": "x"})).json()
        url = f"{base}/fal-ai/flux/requests/{taken['request_id']}"  # without the subpath
        assert (taken["status"], taken["queue_position"]) == ("IN_QUEUE", 0)
        assert (taken["response_url"], taken["status_url"], taken["cancel_url"]) == (url, f"{url}/status", f"{url}/cancel")
        early = await client.get(url)
        assert (early.status_code, early.json()) == (400, {"detail": "Request is still in progress"})
        await simulator.quiet()
        assert (await client.get(f"{url}/status")).json()["status"] == "COMPLETED"
        image = (await client.get(url)).json()["images"][0]
        assert (image["content_type"], image["url"].endswith(".png")) == ("image/png", True)
        assert (await client.put(f"{url}/cancel")).status_code == 400


async def test_fal_tells_of_a_failure_by_a_completed_status_with_an_error(simulator, served):
    simulator.plan("fal", Scenario(seconds=0, outcome=Outcome.FAILED, error="it fell over"))
    base = served.base_url("fal")
    async with httpx.AsyncClient(headers={"authorization": "Key any"}, trust_env=False, verify=False) as client:
        taken = (await client.post(f"{base}/fal-ai/kling-video/v2/text-to-video", json={"prompt": "x"})).json()
        await simulator.quiet()
        status = (await client.get(taken["status_url"])).json()
        assert (status["status"], status["error"], status["error_type"]) == ("COMPLETED", "it fell over", "generation_failed")
        result = await client.get(taken["response_url"])
        assert (result.status_code, result.headers["x-fal-error-type"]) == (422, "generation_failed")


async def test_fal_wants_its_own_word_before_the_key_and_publishes_its_own(served, client):
    base = served.base_url("fal")
    assert (await client.post(f"{base}/fal-ai/flux", json={})).status_code == 401  # Bearer
    (key,) = (await client.get(served.settings("fal")["jwks_url"])).json()["keys"]
    assert (key["kty"], key["crv"], len(key["x"])) == ("OKP", "Ed25519", 43)


# OpenAI


async def test_openai_gives_the_video_at_an_address_of_its_own_and_for_a_key(simulator, served, client):
    base = served.base_url("openai")
    taken = (await client.post(f"{base}/videos", json={"model": "sora-2", "prompt": "x", "seconds": "4"})).json()
    assert (taken["object"], taken["status"], taken["error"], taken["completed_at"]) == ("video", "queued", None, None)
    content = f"{base}/videos/{taken['id']}/content"
    assert (await client.get(content)).status_code == 404
    await simulator.quiet()
    read = (await client.get(f"{base}/videos/{taken['id']}")).json()
    assert (read["status"], read["progress"]) == ("completed", 100)
    video = await client.get(content)
    assert (video.status_code, video.headers["content-type"]) == (200, "video/mp4")
    assert (await client.get(content, headers={"authorization": ""})).status_code == 401
    part = await client.get(content, headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, video.content[4:8])


async def test_openai_calls_back_where_the_account_was_registered(simulator, served, client):
    base = served.base_url("openai")
    answer = await client.post(f"{served.url}/_sim/webhooks", json={"provider": "openai", "url": f"{served.url}/nowhere"})
    assert answer.status_code == 204
    for wrong in ({"provider": "nobody", "url": None}, {"provider": "openai"}, []):
        assert (await client.post(f"{served.url}/_sim/webhooks", json=wrong)).status_code == 400
    await client.post(f"{base}/videos", json={"model": "sora-2", "prompt": "[sim: seconds=0 delay=0]"})
    async with asyncio.timeout(10):
        while not simulator.ledger.callbacks:
            await asyncio.sleep(0.01)
    assert simulator.ledger.submits[0].callback_url == f"{served.url}/nowhere"
