"""Where providers that sign call back: the answers, and what becomes of what was kept."""

from __future__ import annotations

import base64
import gzip
import hmac
import json
from pathlib import Path

import pytest

from receiver.inflow import WINDOW, Inflow
from receiver.model import Outcome, Status
from receiver.rush import Rush
from receiver.settler import Settler
from receiver.stores.terms import NoticeBound, NoticeFilter
from tests.factories import NOW
from tests.web.opened import Web, open_web

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OPENAI = {"provider": "openai", "model": "sora-2", "input": {"prompt": "a moose"}}
REPLICATE = {"provider": "replicate", "model": "a/b", "input": {"prompt": "a moose"}}
ASKED = """
base_url = "https://api.example.com"
[operations.default.submit]
path = "/jobs"
[poll]
path = "/jobs/{id}"
[callback]
account_wide = true
handshake = "cloudevents"
kept_headers = ["Ce-Id"]
[callback.signature]
scheme = "static"
header = "X-Secret"
[status]
succeeded = ["done"]
failed = ["broken"]
[read]
id = "id"
status = "status"
"""


@pytest.fixture
async def signed(tmp_path: Path):
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "asked.toml").write_text(ASKED)
    accounts = "".join(
        f'\n[providers.{name}]\napi_key = "key-of-it"\ncallback_secrets = ["{secret}"]\n'
        for name, secret in {"openai": SECRET, "replicate": SECRET, "asked": "a-shared-secret"}.items()
    )
    async with open_web(tmp_path, f'provider_specs = ["{tmp_path / "specs"}"]\n{accounts}') as web:
        yield web


def sign(web: Web, body: bytes, *, id: str = "wh_1", seconds: int = 0) -> dict[str, str]:
    timestamp = str(int(web.services.clock.now().timestamp()) + seconds)
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    digest = base64.b64encode(hmac.digest(key, f"{id}.{timestamp}.".encode() + body, "sha256")).decode()
    return {"webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{digest}"}


def event(remote_id: str, type: str = "video.completed") -> bytes:
    return json.dumps({"id": "evt_1", "object": "event", "type": type, "data": {"id": remote_id}}).encode()


async def notices(web: Web, outcome: Outcome | None = None):
    return (await web.services.store.read_notices(NoticeFilter(outcome=outcome), 100, None)).rows


async def settle(web: Web) -> None:
    settler = Settler(web.services.settling, web.services.clock, lambda: None, Rush(web.services.clock))
    while await web.services.store.inbox_depth():
        await settler.run_pass(web.services.clock.now())


async def refused(web: Web, provider: str) -> int:
    return (await web.services.counters.read()).get((f"provider:{provider}", "callbacks_refused"), 0)


async def test_a_good_token_is_not_enough_where_the_provider_signs(signed: Web):
    submitted = await signed.submit(REPLICATE)
    await signed.accept(submitted["submission_id"], "r-1")
    path = signed.callback_path(submitted["submission_id"], "replicate")
    body = b'{"id": "r-1", "status": "succeeded", "output": "https://replicate.delivery/1.png"}'
    good = sign(signed, body)
    later = (await signed.services.store.load_polls([submitted["jobs"][0]["id"]]))[submitted["jobs"][0]["id"]]
    assert later.due_at > signed.services.clock.now()
    for headers in ({}, sign(signed, body + b" "), sign(signed, body, seconds=-301), {**good, "webhook-id": "wh_2"}):
        answer = await signed.client.post(path, content=body, headers=headers)
        assert answer.status_code == 401
    assert await notices(signed) == ()
    assert await refused(signed, "replicate") == 4
    soon = (await signed.services.store.load_polls([submitted["jobs"][0]["id"]]))[submitted["jobs"][0]["id"]]
    assert soon.due_at <= signed.services.clock.now()
    assert (await signed.client.post(path, content=body, headers=good)).status_code == 200


async def test_a_good_signature_is_not_enough_where_the_token_is_wrong(signed: Web):
    body = b'{"id": "r-1", "status": "succeeded"}'
    for path in ("/callbacks/replicate", "/callbacks/replicate/x"):
        assert (await signed.client.post(path, content=body, headers=sign(signed, body))).status_code == 401


async def test_the_signature_is_checked_before_the_body_is_unpacked(signed: Web):
    body = event("video_1")
    packed = gzip.compress(body)
    headers = {"content-encoding": "gzip"}
    assert (await signed.client.post("/callbacks/openai", content=packed, headers=headers | sign(signed, body))).status_code == 401
    assert (await signed.client.post("/callbacks/openai", content=packed, headers=headers | sign(signed, packed))).status_code == 200
    assert [notice.body for notice in await notices(signed)] == [body]


async def test_a_header_that_came_twice_proves_nothing(signed: Web):
    body = event("video_1")
    good = list(sign(signed, body).items())
    for headers in ([*good, ("webhook-id", "wh_2")], [("webhook-id", "wh_2"), *good], [*good, ("webhook-timestamp", "1")]):
        assert (await signed.client.post("/callbacks/openai", content=body, headers=headers)).status_code == 401


async def test_the_id_of_an_event_is_kept_and_its_signature_is_not(signed: Web):
    body = event("video_1")
    headers = sign(signed, body, id="wh_7")
    await signed.client.post("/callbacks/openai", content=body, headers=headers)
    (notice,) = await notices(signed)
    assert (notice.headers["webhook-id"], notice.headers["webhook-timestamp"]) == ("wh_7", headers["webhook-timestamp"])
    assert "webhook-signature" not in notice.headers
    assert (notice.submission_id, notice.outcome) == (None, None)


async def test_a_callback_for_the_account_finds_its_job_by_the_id(signed: Web):
    first, second = await signed.submit(OPENAI), await signed.submit(OPENAI)
    await signed.accept(first["submission_id"], "video_1")
    await signed.accept(second["submission_id"], "video_2")
    await signed.client.post("/callbacks/openai", content=event("video_2"), headers=sign(signed, event("video_2")))
    await settle(signed)
    (notice,) = await notices(signed)
    assert (notice.outcome, notice.job_id, notice.status) == (Outcome.WAITING, second["jobs"][0]["id"], Status.SUCCEEDED)
    polls = await signed.services.store.load_polls([submitted["jobs"][0]["id"] for submitted in (first, second)])
    now = signed.services.clock.now()
    assert [polls[submitted["jobs"][0]["id"]].due_at <= now for submitted in (first, second)] == [False, True]


async def test_one_that_comes_before_the_answer_is_adopted_by_it(signed: Web):
    submitted = await signed.submit(OPENAI)
    body = event("video_1")
    assert (await signed.client.post("/callbacks/openai", content=body, headers=sign(signed, body))).status_code == 200
    await settle(signed)
    (notice,) = await notices(signed, Outcome.ORPHAN)
    assert notice.remote_id == "video_1"
    assert "video_1" in notice.reason
    await signed.accept(submitted["submission_id"], "video_1")
    await settle(signed)
    (notice,) = await notices(signed)
    assert (notice.outcome, notice.job_id) == (Outcome.WAITING, submitted["jobs"][0]["id"])
    entries = (await signed.client.get(f"/v1/jobs/{notice.job_id}/timeline")).json()["entries"]
    assert [entry["headers"]["webhook-id"] for entry in entries if entry["kind"] == "notice"] == ["wh_1"]


async def test_a_job_that_gets_its_id_just_while_nobody_is_found_for_it_is_found(signed: Web, monkeypatch: pytest.MonkeyPatch):
    submitted = await signed.submit(OPENAI)
    body = event("video_1")
    await signed.client.post("/callbacks/openai", content=body, headers=sign(signed, body))
    find_jobs = signed.services.store.find_jobs

    async def find_too_early(*asked):
        found = await find_jobs(*asked)
        monkeypatch.undo()
        await signed.accept(submitted["submission_id"], "video_1")
        return found

    monkeypatch.setattr(signed.services.store, "find_jobs", find_too_early)
    await settle(signed)
    (notice,) = await notices(signed)
    assert (notice.outcome, notice.job_id) == (Outcome.WAITING, submitted["jobs"][0]["id"])


async def test_one_that_was_left_when_a_process_died_is_found_at_the_next_start(signed: Web, monkeypatch: pytest.MonkeyPatch):
    submitted = await signed.submit(OPENAI)
    body = event("video_1")
    await signed.client.post("/callbacks/openai", content=body, headers=sign(signed, body))
    await settle(signed)
    with monkeypatch.context() as died:
        died.setattr(signed.services.settling, "_look_for_orphans", nothing)
        await signed.accept(submitted["submission_id"], "video_1")
    assert await notices(signed, Outcome.ORPHAN) != ()
    restarted = Settler(signed.services.settling, signed.services.clock, lambda: None, Rush(signed.services.clock))
    await restarted.run_pass(signed.services.clock.now())
    (notice,) = await notices(signed)
    assert notice.job_id == submitted["jobs"][0]["id"]


async def nothing(*_) -> None:
    pass


async def test_two_jobs_with_the_same_id_both_hear_of_it(signed: Web):
    ids = []
    for _ in range(2):
        submitted = await signed.submit(OPENAI)
        await signed.accept(submitted["submission_id"], "video_1")
        ids.append(submitted["jobs"][0]["id"])
    await signed.client.post("/callbacks/openai", content=event("video_1"), headers=sign(signed, event("video_1")))
    await settle(signed)
    kept = await notices(signed)
    assert sorted(notice.job_id for notice in kept) == sorted(ids)
    assert {notice.outcome for notice in kept} == {Outcome.WAITING}


async def test_news_of_a_job_that_is_final_shows_as_what_it_is(signed: Web):
    job = await signed.succeed(OPENAI, remote_id="video_1")
    for word in ("video.completed", "video.failed"):
        await signed.client.post("/callbacks/openai", content=event("video_1", word), headers=sign(signed, event("video_1", word)))
    await settle(signed)
    assert {(notice.job_id, notice.outcome) for notice in await notices(signed)} == {(job.id, Outcome.DUPLICATE), (job.id, Outcome.LATE)}


async def test_an_authentic_body_that_cannot_be_read_is_kept(signed: Web):
    for body in (b"", b"not json", b'{"type": "video.completed"}', b'{"data": {"id": "video_1"}}'):
        assert (await signed.client.post("/callbacks/openai", content=body, headers=sign(signed, body))).status_code == 200
    await settle(signed)
    assert [notice.outcome for notice in await notices(signed)] == [Outcome.UNREADABLE] * 4


async def test_an_event_of_another_family_is_an_orphan(signed: Web):
    body = event("resp_1", "response.completed")
    await signed.client.post("/callbacks/openai", content=body, headers=sign(signed, body))
    await settle(signed)
    assert [notice.outcome for notice in await notices(signed)] == [Outcome.ORPHAN]
    assert (await signed.services.counters.read()).get(("provider:openai", "unknown_statuses")) is None


async def test_a_signed_provider_that_is_not_configured_accepts_nothing(tmp_path: Path):
    async with open_web(tmp_path) as web:
        body = event("video_1")
        for path in ("/callbacks/openai", web.callback_path("sub_" + "1" * 32, "openai")):
            assert (await web.client.post(path, content=body, headers=sign(web, body))).status_code == 401


async def test_a_body_that_is_too_large_is_413_for_the_account_too(signed: Web):
    assert (await signed.client.post("/callbacks/openai", content=b"x" * (1024 * 1024 + 1))).status_code == 413


async def test_what_signs_no_body_waits_for_a_poll(signed: Web):
    submitted = await signed.submit({"provider": "asked", "input": {}})
    await signed.accept(submitted["submission_id"], "a-1")
    headers = {"X-Secret": "a-shared-secret", "Ce-Id": "ce-1"}
    body = b'{"id": "a-1", "status": "done"}'
    assert (await signed.client.post("/callbacks/asked", content=body, headers=headers)).status_code == 200
    await settle(signed)
    (notice,) = await notices(signed)
    assert (notice.outcome, notice.headers["ce-id"]) == (Outcome.WAITING, "ce-1")
    assert "x-secret" not in notice.headers


async def test_callbacks_for_an_account_are_bounded_and_those_with_a_token_are_not_touched(signed: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signed.services.inbox, "_inflow", Inflow(NoticeBound(callbacks=2, bytes=1_000)))
    body = event("video_1")
    answers = [await signed.client.post("/callbacks/openai", content=body, headers=sign(signed, body)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[2].headers["retry-after"]) <= WINDOW.total_seconds()
    assert len(await notices(signed)) == 2
    path = signed.callback_path((await signed.submit(REPLICATE))["submission_id"], "replicate")
    assert (await signed.client.post(path, content=body, headers=sign(signed, body))).status_code == 200


def test_room_for_callbacks_of_an_account_comes_back_with_time_and_is_its_own():
    inflow = Inflow(NoticeBound(callbacks=2, bytes=100))
    assert inflow.take("a", 60, NOW) is None
    assert inflow.take("a", 60, NOW + WINDOW / 2) == WINDOW / 2
    assert inflow.take("b", 60, NOW) is None
    assert inflow.take("a", 60, NOW + WINDOW) is None
    assert inflow.take("a", 40, NOW + WINDOW) is None
    assert inflow.take("a", 0, NOW + WINDOW) == WINDOW
    assert inflow.take("a", 1, NOW - WINDOW) is None, "a clock that was set back refuses nobody for long"


async def test_the_handshake_of_cloudevents_is_answered_where_the_spec_asks_for_it(signed: Web):
    asked = {"WebHook-Request-Origin": "eventemitter.example.com", "WebHook-Request-Rate": "120"}
    for path in ("/callbacks/asked", signed.callback_path("sub_" + "1" * 32, "asked")):
        answer = await signed.client.options(path, headers=asked)
        assert answer.status_code == 200
        assert answer.headers["webhook-allowed-origin"] == "eventemitter.example.com"
        assert answer.headers["webhook-allowed-rate"] == "*"
        assert answer.headers["allow"] == "POST, OPTIONS"
    assert (await signed.client.options("/callbacks/asked/wrong", headers=asked)).status_code == 401
    plain = await signed.client.options("/callbacks/asked")
    assert (plain.status_code, "webhook-allowed-origin" in plain.headers) == (200, False)
    odd = await signed.client.options("/callbacks/asked", headers={"WebHook-Request-Origin": "a b\tc"})
    assert (odd.status_code, "webhook-allowed-origin" in odd.headers) == (200, False)
    for method in ("GET", "PUT", "DELETE", "HEAD"):
        answer = await signed.client.request(method, "/callbacks/asked")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST, OPTIONS")
    for provider in ("openai", "replicate", "elkapi"):
        answer = await signed.client.options(f"/callbacks/{provider}", headers=asked)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
