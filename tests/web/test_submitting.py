"""`POST /v1/jobs`."""

from __future__ import annotations

import asyncio
import json

import pytest

from receiver.errors import StoreUnavailable
from receiver.model import Status
from tests.web.opened import ELK, SUBMIT_NOW, Web


def pointers(answer) -> set[str]:
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["pointer"] for error in answer.json()["errors"]}


async def answer_when_asked(web: Web, *remote_ids: str) -> None:
    """Wait for a submission, then answer it as the submitter would."""
    async with asyncio.timeout(5):
        while not (jobs := (await web.client.get("/v1/jobs")).json()["jobs"]):
            await asyncio.sleep(0.01)
    await web.accept(jobs[0]["submission_id"], *remote_ids)


async def test_a_submit_answers_with_what_the_provider_said(web: Web):
    post = asyncio.create_task(web.client.post("/v1/jobs", json=ELK))
    await answer_when_asked(web, "elk-7")
    answer = await post
    assert answer.status_code == 202
    [job] = answer.json()["jobs"]
    assert (job["status"], job["remote_id"]) == ("queued", "elk-7")
    assert answer.json()["submission_id"] == job["submission_id"]


async def test_respond_async_answers_at_once(web: Web):
    answer = await web.client.post("/v1/jobs", json=ELK, headers={"Prefer": "wait=5, Respond-Async"})
    assert answer.headers["preference-applied"] == "respond-async"
    [job] = answer.json()["jobs"]
    assert job["status"] == "submitting"
    assert job["provider"] == "elkapi"
    assert job["operation"] == "default"


async def test_a_fan_out_makes_as_many_jobs_as_asked_for(web: Web):
    body = {"provider": "oxen", "model": "flux", "input": {"prompt": "an ox", "num_generations": 3}, "metadata": {"user": "42"}}
    submitted = await web.submit(body)
    assert len({job["id"] for job in submitted["jobs"]}) == 3
    assert all(job["metadata"] == {"user": "42"} for job in submitted["jobs"])


async def test_the_deadline_is_as_asked_for(web: Web):
    [job] = (await web.submit(ELK | {"deadline_seconds": 90}))["jobs"]
    found = await web.services.store.read_job(job["id"])
    assert found is not None
    assert (found.deadline_at - found.created_at).total_seconds() == 90


async def test_all_mistakes_are_named_at_once(web: Web):
    body = {
        "provider": "nobody",
        "model": 3,
        "inputs": {},
        "media": "smell",
        "metadata": {"a": 1, "b/~": "x" * 257, "c": "fine"},
        "deadline_seconds": 0,
    }
    answer = await web.client.post("/v1/jobs", json=body)
    assert pointers(answer) == {"/provider", "/model", "/input", "/inputs", "/media", "/metadata/a", "/metadata/b~1~0", "/deadline_seconds"}


async def test_a_malformed_request_is_400_with_a_pointer(web: Web):
    for body, pointer in [
        ({"provider": "elkapi", "input": {}}, "/model"),
        ({"provider": "elkapi", "model": "flux", "input": []}, "/input"),
        ({"provider": "elkapi", "model": "flux", "input": None}, "/input"),
        (ELK | {"operation": "dance"}, "/operation"),
        (ELK | {"deadline_seconds": True}, "/deadline_seconds"),
        (ELK | {"deadline_seconds": "90"}, "/deadline_seconds"),
        (ELK | {"deadline_seconds": 30 * 86400 + 1}, "/deadline_seconds"),
        (ELK | {"metadata": {str(n): "" for n in range(17)}}, "/metadata"),
        (ELK | {"metadata": ["a"]}, "/metadata"),
        (ELK | {"metadata": {"a": "\0"}}, "/metadata"),
        (ELK | {"input": {"prompt": "x" * 1024 * 1024}}, "/input"),
        ({"provider": "pixazo", "model": "no-such-model", "input": {}}, "/model"),
        ({"provider": "pixazo", "model": "hunyuan-image", "input": {"sync_mode": True}}, "/input/sync_mode"),
        ({"provider": "oxen", "model": "flux", "input": {"num_generations": 99}}, "/input/num_generations"),
        ({"provider": "hoox", "model": "flux", "input": {}}, "/provider"),
        ([], ""),
        ("text", ""),
    ]:
        assert pointers(await web.client.post("/v1/jobs", json=body)) == {pointer}
        assert (await web.client.get("/v1/jobs")).json()["jobs"] == []


async def test_what_is_no_json_is_400(web: Web):
    for raw in [
        b"",
        b"{",
        b"nope",
        b'{"provider": NaN}',
        b'{"input": {"a": 1e999}}',
        b'{"input": "\\ud800"}',
        b'{"input": "\xff"}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"input":' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"input": {"n": ' + b"9" * 5000 + b"}}",
        b"\xef\xbb\xbf{}",
    ]:
        assert pointers(await web.client.post("/v1/jobs", content=raw, headers={"Content-Type": "application/json"})) == {""}


async def test_the_input_of_a_form_is_held_to_the_same(web: Web):
    for text in ["{", '{"a": 1e999}', '{"a": "\\ud800"}', '{"a":' * 900 + "1" + "}" * 900, "[" * 100_000]:
        answer = await web.client.post("/try", data={"provider": "elkapi", "model": "flux", "input": text})
        assert answer.status_code == 400, (text[:20], answer.headers.get("location"))
        assert ("is not JSON" in answer.text) or ("levels deep" in answer.text)
    assert (await web.client.get("/v1/jobs")).json()["jobs"] == []


async def test_input_counts_as_what_it_is_and_not_as_it_was_escaped(web: Web):
    """Python's json escapes each letter beyond ASCII, which takes three times the room."""
    body = json.dumps({**ELK, "input": {"prompt": "\u044f" * 500_000}})
    assert len(body) > 2_900_000
    assert (await web.client.post("/v1/jobs", content=body, headers=SUBMIT_NOW)).status_code == 202


async def test_a_body_over_the_cap_is_413(web: Web):
    answer = await web.client.post("/v1/jobs", content=b" " * (4 * 1024 * 1024 + 1))
    assert answer.status_code == 413

    async def chunks():
        for _ in range(5):
            yield b" " * 1024 * 1024

    assert (await web.client.post("/v1/jobs", content=chunks())).status_code == 413


async def test_a_field_of_null_is_a_field_left_out(web: Web):
    body = ELK | dict.fromkeys(("operation", "media", "metadata", "deadline_seconds"))
    [job] = (await web.submit(body))["jobs"]
    assert job["metadata"] == {}


async def test_the_same_key_and_body_give_the_same_submission(web: Web):
    first = await web.submit(ELK | {"input": {"prompt": "a moose", "n": 1}}, **{"Idempotency-Key": '"k-1"'})
    await web.accept(first["submission_id"], "elk-1")
    reordered = b'{"input":{"n":1.0,"prompt":"a m\\u006fose"},  "model":"flux","provider":"elkapi"}'
    again = await web.client.post("/v1/jobs", content=reordered, headers={"Idempotency-Key": "k-1"})
    assert again.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["submission_id"] == first["submission_id"]
    assert again.json()["jobs"][0]["status"] == "queued"
    assert len((await web.client.get("/v1/jobs")).json()["jobs"]) == 1


async def test_the_same_key_with_another_body_is_422(web: Web):
    await web.submit(ELK, **{"Idempotency-Key": "k"})
    again = await web.client.post("/v1/jobs", json=ELK | {"model": "other"}, headers={"Idempotency-Key": "k"})
    assert again.status_code == 422
    assert again.json()["status"] == 422


async def test_a_key_whose_first_request_still_waits_is_409(web: Web):
    headers = {"Idempotency-Key": "k"}
    first = asyncio.create_task(web.client.post("/v1/jobs", json=ELK, headers=headers))
    async with asyncio.timeout(5):
        while not (await web.client.get("/v1/jobs")).json()["jobs"]:
            await asyncio.sleep(0.01)
    assert (await web.client.post("/v1/jobs", json=ELK, headers=headers)).status_code == 409
    other = await web.client.post("/v1/jobs", json=ELK | {"model": "other"}, headers=headers)
    assert other.status_code == 422
    await answer_when_asked(web, "elk-1")
    assert (await first).json()["jobs"][0]["status"] == "queued"
    assert (await web.client.post("/v1/jobs", json=ELK, headers=headers)).headers["idempotency-replayed"] == "true"


async def test_a_key_whose_first_request_did_not_wait_is_answered_at_once(web: Web):
    first = await web.submit(ELK, **{"Idempotency-Key": "k"})
    again = await web.client.post("/v1/jobs", json=ELK, headers={"Idempotency-Key": "k"} | SUBMIT_NOW)
    assert again.status_code == 202
    assert again.json() == first


async def test_a_malformed_key_is_400(web: Web):
    for key in (b"", b'""', b"x" * 256, b'"open', b"two words", "é".encode(), b"\x7f"):
        answer = await web.client.post("/v1/jobs", json=ELK, headers=[(b"Idempotency-Key", key)])
        assert answer.status_code == 400, key
        assert answer.json()["errors"][0]["parameter"] == "Idempotency-Key"


async def test_many_with_one_key_at_once_make_one_submission(web: Web):
    answers = await asyncio.gather(
        *(web.client.post("/v1/jobs", json=ELK, headers={"Idempotency-Key": "k"} | SUBMIT_NOW) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["submission_id"] for answer in answers if answer.status_code == 202}) == 1
    assert len((await web.client.get("/v1/jobs")).json()["jobs"]) == 1


async def test_a_submit_that_is_on_disk_is_never_answered_by_a_refusal(web: Web, monkeypatch: pytest.MonkeyPatch):
    async def fail(_):
        web.app.state.waiting.has_stopped = True  # one look is enough
        raise StoreUnavailable

    monkeypatch.setattr(web.services.store, "load_families", fail)
    answer = await web.client.post("/v1/jobs", json=ELK)
    assert answer.status_code == 202
    assert answer.json()["jobs"][0]["status"] == "submitting"


async def test_a_stop_lets_waiting_requests_answer(web: Web):
    post = asyncio.create_task(web.client.post("/v1/jobs", json=ELK))
    async with asyncio.timeout(5):
        while not (await web.client.get("/v1/jobs")).json()["jobs"]:
            await asyncio.sleep(0.01)
        web.app.state.waiting.stop()
        assert (await post).json()["jobs"][0]["status"] == Status.SUBMITTING
