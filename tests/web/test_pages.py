"""The pages as they are made on the server: what they say, what their buttons do, and whom they let in."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import timedelta
from html import unescape
from pathlib import Path

import msgspec
import pytest

from receiver.model import Channel, DeliveryState, JobError, Outcome, Output, Status, Update
from receiver.probing import Cause, Fault
from receiver.rules import apply_update
from receiver.stores.terms import DeliveryFilter, NoticeBound
from receiver.web.pages_frame import STATIC, prepare, show_span, static_marks, templates
from tests.factories import make_notice
from tests.web.opened import ELK, Web, open_web

KEYS = 'public_url = "https://hooks.example.com"\napi_keys = ["first-api-key", "second-api-key"]'
HTML = {"Accept": "text/html,*/*"}
SAME = {"Sec-Fetch-Site": "same-origin"}
PATHS = ("/", "/jobs", "/deliveries", "/notices", "/providers", "/handlers", "/costs", "/try")


async def read(web: Web, path: str, status: int = 200) -> str:
    """The words of a page."""
    answer = await web.client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    body = answer.text[answer.text.index("<main") :]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


async def lose_job(web: Web) -> str:
    submitted = await web.submit()
    await web.lose(submitted["submission_id"])
    return submitted["jobs"][0]["id"]


async def end_deliveries(web: Web, state: DeliveryState, error: str | None = None) -> int:
    now = web.services.clock.now()
    claimed = await web.services.store.claim_deliveries(now, {"tell": 10})
    for delivery, _ in claimed:
        ended = msgspec.structs.replace(delivery, state=state, next_attempt_at=None, last_error=error, updated_at=now)
        await web.services.store.finish_deliveries([ended])
    return len(claimed)


# Signing in


async def test_a_person_is_led_to_the_form_and_a_program_is_told_what_to_send(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        for path, place in [
            ("/", "./sign-in"),
            ("/jobs?status=failed", "./sign-in?next=jobs%3Fstatus%3Dfailed"),
            ("/jobs/job_1", "../sign-in?next=jobs%2Fjob_1"),
            ("/v1/jobs/job_1/outputs/0", "../../../../sign-in?next=v1%2Fjobs%2Fjob_1%2Foutputs%2F0"),
        ]:
            answer = await web.client.get(path, headers=HTML | {"Sec-Fetch-Mode": "navigate"})
            assert (answer.status_code, answer.headers["location"]) == (303, place)
            assert (await web.client.get(path)).status_code == 401
        for path in ("/v1/jobs", "/metrics", "/openapi.json", "/v1/events"):  # programs take HTML too, and follow redirects
            answer = await web.client.get(path, headers={"Accept": "application/json, text/html;q=0.1"})
            assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
        for path in ("/", "/jobs"):
            answer = await web.client.get(path, headers=HTML)
            assert answer.status_code == 303
            assert (await web.client.get(path, headers=HTML | {"Authorization": "Bearer wrong"})).status_code == 401
        again = await web.client.get("/jobs", headers=HTML | {"HX-Request": "true"})
        assert (again.status_code, again.headers["hx-redirect"]) == (401, "./sign-in")
        assert (await web.client.post("/jobs/job_1/poll", headers=HTML)).status_code == 401
        assert (await web.client.get("/sign-in")).status_code == 200
        assert (await web.client.get("/static/pages.css")).status_code == 200


async def sign_in(web: Web, key: str = "second-api-key", next: str = "") -> str:
    answer = await web.client.post("/sign-in", data={"key": key, "next": next}, headers=SAME)
    assert answer.status_code == 303, answer.text
    web.client.cookies.clear()
    return answer.headers["set-cookie"]


async def test_a_session_opens_pages_and_outputs_and_changes_nothing_of_the_api(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        cookie = await sign_in(web)
        assert {"HttpOnly", "SameSite=lax", "Secure", "Path=/", "Max-Age=604800"} <= set(cookie.split("; "))
        assert "second-api-key" not in cookie
        session = {"Cookie": cookie.partition(";")[0]}
        for path in (*PATHS, "/docs", "/openapi.json", "/v1/jobs"):
            assert (await web.client.get(path, headers=session)).status_code == 200, path
        assert (await web.client.post("/v1/jobs", json=ELK, headers=session | SAME)).status_code == 401
        form = {"provider": "elkapi", "model": "flux", "input": '{"prompt": "a moose"}', "token": "t"}
        for headers, status in [
            (SAME, 303),
            ({}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "https://hooks.example.com"}, 303),
        ]:
            assert (await web.client.post("/try", data=form, headers=session | headers)).status_code == status, headers


async def test_a_session_that_was_not_made_here_or_has_ended_opens_nothing(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        good = (await sign_in(web)).partition(";")[0].partition("=")[2]
        now = web.services.clock.now()
        key_id = good.partition(".")[0]
        sessions = web.services.tokens.sessions
        for value in [
            sessions.make(key_id, now - timedelta(seconds=2)),
            sessions.make("0" * 32, now + timedelta(hours=1)),
            good[:-5] + ("A" if good[-5] != "A" else "B") + good[-4:],  # not the last letter: some of its bits say nothing
            "1" + good,
            web.tokens.make("elkapi", "sub_1"),
            "",
            "." * 300,
        ]:
            assert (await web.client.get("/jobs", headers={"Cookie": f"receiver_session={value}"})).status_code == 401, value
        assert (await web.client.get("/jobs", headers={"Cookie": f"other=1; receiver_session={good}"})).status_code == 200


async def test_a_key_that_is_wrong_opens_no_session(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        for data in ({"key": "first-api-ke"}, {"key": ""}, {}):
            answer = await web.client.post("/sign-in", data=data, headers=SAME)
            assert answer.status_code == 401
            assert "set-cookie" not in answer.headers
        foreign = await web.client.post("/sign-in", data={"key": "first-api-key"}, headers={"Sec-Fetch-Site": "cross-site"})
        assert foreign.status_code == 403


@pytest.mark.parametrize(
    "next", ["//evil.example/", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "\r\nSet-Cookie: a=b"]
)
async def test_signing_in_leads_nowhere_else(tmp_path: Path, next):
    async with open_web(tmp_path, KEYS) as web:
        answer = await web.client.post("/sign-in", data={"key": "first-api-key", "next": next}, headers=SAME)
        assert answer.headers["location"].startswith("./")
        assert "\n" not in answer.headers["location"]


async def test_signing_out_takes_the_cookie_back(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        session = {"Cookie": (await sign_in(web)).partition(";")[0]}
        answer = await web.client.post("/sign-out", headers=session | SAME)
        assert (answer.status_code, answer.headers["location"]) == (303, "./sign-in")
        assert "Max-Age=0" in answer.headers["set-cookie"]


async def test_without_keys_there_is_no_form(web: Web):
    answer = await web.client.get("/sign-in")
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    assert "Sign out" not in await read(web, "/")


# What pages say


async def test_the_overview_is_calm_when_nothing_needs_a_person(web: Web):
    await web.submit()
    page = await read(web, "/")
    assert "1 submitting" in page
    assert "No public URL" in page


async def test_the_overview_tells_first_what_needs_a_person(web: Web):
    job_id = await lose_job(web)
    await web.succeed(remote_id="elk-2")
    await end_deliveries(web, DeliveryState.DEAD, "the shop is closed")
    now = web.services.clock.now()
    await web.services.store.count_failure("huzz", now, "502 Bad Gateway")
    await web.services.store.leave_alone("huzz", now + timedelta(minutes=1))
    await web.services.store.keep_notice(make_notice(), NoticeBound())
    page = await read(web, "/")
    for words in ["dead deliveries to tell", "1 unconfirmed job at elkapi", "huzz is left alone for a while", "502 Bad Gateway"]:
        assert words in page
    assert page.index("dead deliveries") < page.index("No public URL")
    assert job_id in (await web.client.get("/jobs?status=unconfirmed")).text


async def test_the_overview_tells_when_the_public_url_leads_elsewhere(web: Web):
    fault = Fault(Cause.REWRITTEN, "Bodies are changed on the way.", "Turn it off.", is_proven=True)
    web.app.state.services = replace(web.services, is_reachable=lambda: False, public_fault=lambda: fault)
    page = await read(web, "/")
    for words in ["The public URL is not reachable", "jobs are polled instead", "Bodies are changed on the way. Turn it off."]:
        assert words in page


@pytest.mark.parametrize(("is_proven", "words"), [(True, "Not every callback may come home"), (False, "cannot be tried from here")])
async def test_the_overview_tells_what_the_probe_met_though_callbacks_arrive(web: Web, is_proven: bool, words: str):
    fault = Fault(Cause.HEADERS, "webhook-id does not arrive.", "Let it pass.", is_proven=is_proven)
    web.app.state.services = replace(web.services, public_fault=lambda: fault)
    page = await read(web, "/")
    assert words in page
    assert "webhook-id does not arrive." in page
    assert "not reachable" not in page


async def test_the_last_callback_of_a_provider_is_shown(web: Web):
    submitted = await web.submit()
    await web.client.post(web.callback_path(submitted["submission_id"]), content=b"{}")
    text = (await web.client.get("/providers")).text
    assert re.search(r"<dt>Last callback</dt><dd><time", text)


async def test_a_list_has_its_filters_in_its_address(web: Web):
    elk = await web.succeed(ELK | {"metadata": {"user": "42"}})
    other = (await web.submit({"provider": "oxen", "model": "flux", "input": {"prompt": "a boat"}}))["jobs"][0]["id"]
    for query, shown in [
        ("", {elk.id, other}),
        ("status=&provider=&model=&q=", {elk.id, other}),
        ("status=succeeded", {elk.id}),
        ("provider=oxen", {other}),
        ("metadata.user=42", {elk.id}),
        ("q=user%3D42", {elk.id}),
        ("q=user%3D42&provider=oxen", set()),
        (f"q={elk.submission_id}", {elk.id}),
        ("created_before=2000-01-01T00:00:00Z", set()),
    ]:
        text = (await web.client.get(f"/jobs?{query}")).text
        assert set(re.findall(r'id="row-(job_\w+)"', text)) == shown, query
    for query in (f"q={elk.id}", f"q={elk.remote_id}"):
        assert (await web.client.get(f"/jobs?{query}")).headers["location"] == f"./jobs/{elk.id}"
    assert "is none of" in await read(web, "/notices?outcome=no", 400)
    assert "status is none of submitting, unconfirmed," in await read(web, "/jobs?status=no", 400)
    for query in ("colour=red", "cursor=no", "created_after=yesterday"):
        assert "That did not work" in await read(web, f"/jobs?{query}", 400)


async def test_a_long_list_goes_on_with_its_filters(web: Web):
    for _ in range(51):
        await web.submit(ELK | {"metadata": {"user": "42"}})
    first = (await web.client.get("/jobs?metadata.user=42")).text
    (older,) = re.findall(r'href="\./(jobs\?[^"]*)" rel="next"', first)
    second = (await web.client.get("/" + unescape(older))).text
    assert (first.count('id="row-'), second.count('id="row-')) == (50, 1)
    assert "Older" not in second


async def test_a_job_tells_everything(web: Web):
    job = await web.succeed(
        ELK | {"metadata": {"user": "<b>42</b>"}}, outputs=[Output(index=0, url="https://cdn.example.com/a.mp4", media_type="video/mp4")]
    )
    answer = await web.client.get(f"/jobs/{job.id}")
    assert "<video" in answer.text
    assert "media-src 'self' https://cdn.example.com;" in answer.headers["content-security-policy"]
    page = await read(web, f"/jobs/{job.id}")
    for words in ["succeeded", "elk-1", '"prompt": "a moose"', "Event job.succeeded", "Delivery job.succeeded → tell", "<b>42</b>"]:
        assert words in page
    assert "There is no such job" in await read(web, "/jobs/job_" + "0" * 32, 404)


async def test_a_page_that_needs_media_of_a_new_origin_is_loaded_anew(web: Web):
    job = await web.succeed(outputs=[Output(index=0, url="https://cdn.example.com/a.mp4", media_type="video/mp4")])
    narrow = await web.client.get(f"/jobs/{job.id}", headers={"HX-Request": "true", "Page-Media": "'self'"})
    assert (narrow.headers["hx-refresh"], narrow.text) == ("true", "")
    wide = await web.client.get(f"/jobs/{job.id}", headers={"HX-Request": "true", "Page-Media": "'self' https://cdn.example.com"})
    assert "hx-refresh" not in wide.headers


@pytest.mark.parametrize("url", ["https://cdn.example.com;script-src *", "https://a b/", "data:x", "https://'self'/", "http://[", "//x"])
async def test_a_hostile_link_does_not_widen_the_policy(web: Web, url):
    job = await web.succeed(outputs=[Output(index=0, url=url, media_type="image/png")])
    policy = (await web.client.get(f"/jobs/{job.id}")).headers["content-security-policy"]
    assert "img-src 'self'; media-src 'self';" in policy


async def test_pages_show_words_of_strangers_as_words(web: Web):
    submitted = await web.submit(ELK | {"model": "<script>alert(1)</script>", "metadata": {"<i>": '"><script>'}})
    job_id = submitted["jobs"][0]["id"]
    for path in ("/jobs", f"/jobs/{job_id}", "/jobs?q=<script>alert(1)</script>", "/jobs?<script>=1", "/try?input=</textarea><script>"):
        text = (await web.client.get(path)).text
        assert not re.search(r"<script(?! src)|<i>|style=|onerror|javascript:", text), path


async def test_notices_that_could_not_be_used_are_shown_and_settled_again(web: Web):
    notice = make_notice(outcome=Outcome.UNREADABLE, reason="the body is no JSON", body=b"<oops>", channel=Channel.CALLBACK)
    await web.services.store.keep_notice(notice, NoticeBound())
    page = await read(web, "/notices")
    assert "the body is no JSON" in page
    assert "<oops>" in page
    assert "Settle again" in page
    raw = await web.client.get(f"/notices/{notice.id}/raw")
    assert (raw.content, raw.headers["content-disposition"].partition(";")[0]) == (b"<oops>", "attachment")
    assert (await web.client.get("/notices/ntc_0/raw")).status_code == 404


async def test_a_provider_says_where_its_webhook_is_set(tmp_path: Path):
    account = '\n[providers.openai]\napi_key = "k"\ncallback_secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]'
    async with open_web(tmp_path, KEYS + account) as web:
        web.client.headers["Authorization"] = "Bearer first-api-key"
        text = await read(web, "/providers")
    assert "its webhook is https://hooks.example.com/callbacks/openai, and" in text
    assert "each submit carries its own URL, https://hooks.example.com/callbacks/elkapi/…" in text
    assert "callbacks/openai/" not in text


async def test_providers_and_handlers_are_shown_with_how_they_do(web: Web):
    await web.succeed()
    page = await read(web, "/providers")
    for words in ["elkapi", "well", "because public_url is not set", "its event stream is held open", "never-shown"]:
        assert (words in page) == (words != "never-shown")
    page = await read(web, "/handlers")
    assert "tell log" in page
    assert "provider = elkapi" in page


async def test_no_page_shows_a_secret(web: Web):
    job = await web.succeed()
    for path in (*PATHS, f"/jobs/{job.id}"):
        text = (await web.client.get(path)).text
        assert "never-shown" not in text
        assert "a-secret-that-signs" not in text


# What buttons do


async def press(web: Web, path: str, **fields: str) -> str:
    answer = await web.client.post(path, data=fields, headers=SAME)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


async def test_buttons_of_a_job_lead_back_to_it(web: Web):
    job_id = await lose_job(web)
    assert await press(web, f"/jobs/{job_id}/resolve", remote_id="elk-7") == f"../../jobs/{job_id}?done=resolve"
    assert await press(web, f"/jobs/{job_id}/poll") == f"../../jobs/{job_id}?done=poll"
    job = await web.services.store.read_job(job_id)
    assert job is not None
    assert (job.status, job.remote_id) == (Status.QUEUED, "elk-7")
    assert "is being asked" in await read(web, f"/jobs/{job_id}?done=poll")
    given_up = await lose_job(web)
    await press(web, f"/jobs/{given_up}/abandon")
    waiting = (await web.submit())["jobs"][0]["id"]
    await press(web, f"/jobs/{waiting}/cancel")
    for each, status in [(given_up, Status.FAILED), (waiting, Status.CANCELLED)]:
        job = await web.services.store.read_job(each)
        assert job is not None
        assert job.status is status


async def test_what_a_button_cannot_do_is_said_on_a_page(web: Web):
    job = await web.succeed()
    answer = await web.client.post(f"/jobs/{job.id}/cancel", headers=SAME)
    assert answer.status_code == 409
    assert "The job is succeeded already." in answer.text
    assert "<html" in answer.text
    for path, fields, status in [
        (f"/jobs/{await lose_job(web)}/resolve", {}, 400),
        ("/jobs/job_" + "0" * 32 + "/poll", {}, 404),
        ("/deliveries/dlv_0/replay", {}, 404),
        ("/deliveries/replay", {}, 400),
        ("/deliveries/replay", {"state": "no"}, 400),
        ("/notices/ntc_" + "0" * 32 + "/settle", {}, 404),
        ("/handlers/nobody/test", {}, 404),
    ]:
        assert (await web.client.post(path, data=fields, headers=SAME)).status_code == status, path


async def test_dead_deliveries_are_replayed_one_by_one_or_all_that_match(web: Web):
    job = await web.succeed()
    count = await end_deliveries(web, DeliveryState.DEAD, "Traceback\nRuntimeError: the shop is closed")
    assert "the shop is closed" in await read(web, "/deliveries")
    page = await web.services.store.read_deliveries(DeliveryFilter(), 10, None)
    first = page.rows[0]
    assert await press(web, f"/deliveries/{first.id}/replay", **{"back.state": "dead"}) == "../../deliveries?replayed=1&state=dead"
    assert await press(web, f"/deliveries/{page.rows[1].id}/replay", back="job") == f"../../jobs/{job.id}?done=replay"
    assert await press(web, "/deliveries/replay", state="dead", handler="tell") == f"../deliveries?replayed={count - 2}"
    assert await web.services.store.count_deliveries() == {("tell", "pending"): count}


async def test_deliveries_are_chosen_by_event_and_replayed_by_it(web: Web):
    job = await web.succeed()
    await end_deliveries(web, DeliveryState.DONE)
    page = await read(web, "/deliveries?event_type=job.submitted&state=done")
    assert "event_type: job.submitted" in page
    assert "job.succeeded tell" not in page
    assert "Replay all… All that match start anew" in page
    assert "Replay all…" not in await read(web, "/deliveries")
    assert await press(web, "/deliveries/replay", state="done", event_type="job.submitted", **{"back.state": "done"}) == (
        "../deliveries?replayed=1&state=done"
    )
    ((delivery, _),) = await web.services.store.claim_deliveries(web.services.clock.now(), {"tell": 5})
    assert (delivery.event_type, delivery.job_id) == ("job.submitted", job.id)


async def test_those_that_are_tried_again_can_all_be_tried_now(web: Web):
    await web.succeed()
    count = await end_deliveries(web, DeliveryState.RETRYING, "ValueError: no boat")
    assert f"Replay all {count} retrying" in await read(web, "/deliveries")
    assert "Replay all retrying" in await read(web, "/deliveries?event_type=job.succeeded")
    assert await press(web, "/deliveries/replay", state="retrying") == f"../deliveries?replayed={count}"


async def test_a_handler_tells_how_much_came_to_it_lately(web: Web):
    assert "Throughput 0 in the last 5 minutes, 0 in the last hour" in await read(web, "/handlers")
    await web.succeed()
    assert "Throughput 2 in the last 5 minutes (0.4 a minute) , 2 in the last hour (0.0333 a minute)" in await read(web, "/handlers")


async def test_a_long_timeline_leaves_out_its_middle(web: Web, monkeypatch: pytest.MonkeyPatch):
    job = await web.succeed()
    whole = await read(web, f"/jobs/{job.id}")
    assert "left out" not in whole
    monkeypatch.setattr("receiver.web.pages_jobs.FIRST_STEPS", 1)
    monkeypatch.setattr("receiver.web.pages_jobs.LAST_STEPS", 1)
    steps = len(re.findall(r'id="step-', (await web.client.get(f"/jobs/{job.id}")).text))
    assert steps == 2
    assert re.search(r"\d+ more are left out here. All of them as JSON", await read(web, f"/jobs/{job.id}"))


async def test_a_handler_is_given_a_test_event(web: Web):
    assert await press(web, "/handlers/tell/test") == "../../handlers?tested=tell"
    ((delivery, event),) = await web.services.store.claim_deliveries(web.services.clock.now(), {"tell": 5})
    assert (event.type, event.source, event.subject, delivery.handler) == ("receiver.test", "/receiver", None, "tell")
    assert delivery.attempts == web.services.handlers["tell"].retry.attempts  # the last one
    assert "on its way to tell" in await read(web, "/handlers?tested=tell")


async def test_a_job_is_submitted_by_the_form_once(web: Web):
    form = {"provider": "elkapi", "model": "flux", "input": '{"prompt": "a moose"}', "metadata": "user=42\nteam = red", "token": "abc"}
    first = await press(web, "/try", **form)
    assert await press(web, "/try", **form) == first
    job = await web.services.store.read_job(first.rpartition("/")[2])
    assert job is not None
    assert job.metadata == {"user": "42", "team": "red"}
    for wrong, words in [
        ({"input": "{"}, "is not JSON"),
        ({"input": "[]"}, "input"),
        ({"provider": "nobody"}, "There is no such provider"),
        ({"metadata": "user"}, "key=value"),
    ]:
        answer = await web.client.post("/try", data=form | {"token": "other"} | wrong, headers=SAME)
        assert answer.status_code == 400
        assert words in answer.text
        assert "a moose" in answer.text or "input" in wrong, "what was typed stays"


async def test_each_example_of_the_form_can_be_submitted_as_it_is(web: Web):
    links = re.findall(r'href="\./(try\?[^"]+)"', (await web.client.get("/try")).text)
    assert len(links) == 11  # elkapi, huzz, oxen, and eight models of pixazo
    for link in links:
        source = (await web.client.get(f"/{unescape(link)}")).text
        form = {name: unescape(re.search(rf'name="{name}" value="([^"]*)"', source)[1]) for name in ("model", "operation", "token")}
        form["provider"] = re.search(r'<option value="(\w+)" selected>', source)[1]
        form["input"] = unescape(re.search(r"<textarea name=\"input\"[^>]*>(.*?)</textarea>", source, re.DOTALL)[1])
        assert (await press(web, "/try", **form)).startswith("./jobs/job_"), link


# Weight


async def test_pages_stay_light_however_much_there_is_to_tell(web: Web):
    """With all the files that a page needs."""
    for number in range(55):
        submitted = await web.submit(ELK | {"metadata": {f"key-{each}": "x" * 60 for each in range(4)}})
        await web.accept(submitted["submission_id"], f"elk-{number}")
    job = await web.succeed(ELK | {"input": {"prompt": "x" * 2_000}}, remote_id="elk-heavy")
    now = web.services.clock.now()
    for number in range(30):
        body = msgspec.json.encode({"id": "nobody", "status": f"word {number}", "notes": ["a" * 100] * 30})
        for outcome, place in ((Outcome.UNREADABLE, None), (Outcome.ORPHAN, None), (Outcome.UNREADABLE, job.submission_id)):
            notice = make_notice(place, outcome=outcome, reason="r" * 200, body=body, at=now)
            assert await web.services.store.keep_notice(notice, NoticeBound())
    for state in (*[DeliveryState.DEAD] * 3, *[DeliveryState.RETRYING] * 3):
        await end_deliveries(web, state, "ValueError: " + "e" * 980)
    for path in (*PATHS, f"/jobs/{job.id}", "/deliveries?state=dead", "/notices?outcome=unreadable"):
        source = (await web.client.get(path)).text
        files = {unescape(link) for link in re.findall(r'(?:src|href)="[./]*(static/[^"]+)"', source)}
        weight = len(source.encode()) + sum([len((await web.client.get(f"/{file}")).content) for file in files])
        assert weight < 200_000, path


# Files


def test_what_is_vendored_is_what_was_published():
    known = json.loads((STATIC / "vendor" / "VENDORED.json").read_text())
    named = {name: each["sha256"] for package in known for name, each in package["files"].items()}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (STATIC / "vendor").iterdir() if path.suffix != ".json"}
    assert named == found
    assert all(package["version"] in package["url"] and package["license"] for package in known)


async def test_a_file_named_by_its_content_may_be_kept_for_ever(web: Web):
    mark = static_marks()["pages.css"]
    assert "immutable" in (await web.client.get(f"/static/pages.css?v={mark}")).headers["cache-control"]
    assert (await web.client.get("/static/pages.css?v=0")).headers["cache-control"] == "no-cache"
    assert (await web.client.get("/static/pages.css")).headers["cache-control"] == "no-cache"


def test_what_is_prepared_at_the_start_is_not_compiled_under_a_look(monkeypatch: pytest.MonkeyPatch):
    prepare()
    monkeypatch.setattr(templates().loader, "load", None)
    for path in (STATIC.parent / "templates").glob("*.html"):
        assert templates().get_template(path.name)


async def test_a_page_weighs_little(web: Web):
    """With all files that it brings; a phone on a bad line has it soon."""
    job = await web.succeed()
    guide = re.findall(r'<a href="(guide/\w+)"', (await web.client.get("/guide")).text)
    for path in (*PATHS, f"/jobs/{job.id}", "/sign-in", "/docs", "/openapi.json", "/guide", *(f"/{place}" for place in guide)):
        text = (await web.client.get(path, follow_redirects=True)).text
        links = re.findall(r'(?:src|href)="(?:\.\.?/)*(static/[^"]+)"', text)
        assert links or path == "/openapi.json", path
        weight = len(text.encode()) + sum([len((await web.client.get("/" + link)).content) for link in links])
        assert weight < 200_000, (path, weight)


async def test_links_hold_below_the_path_of_the_public_url(tmp_path: Path):
    async with open_web(tmp_path, 'public_url = "http://127.0.0.1:8080/in/box"') as web:
        for path, start in [("/in/box", "./box/"), ("/in/box/", "./"), ("/in/box/jobs", "./"), ("/jobs", "./")]:
            assert f'href="{start}deliveries"' in (await web.client.get(path)).text, path
        job = await web.succeed()
        assert 'href="../deliveries"' in (await web.client.get(f"/in/box/jobs/{job.id}")).text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 ms"),
        (0.42, "420 ms"),
        (12.34, "12.3 s"),
        (20, "20 s"),
        (59.96, "1 min"),
        (200, "3 min 20 s"),
        (7200, "2 h"),
        (93_600, "1 d 2 h"),
        (-1, "0 ms"),
    ],
)
def test_durations_are_told_as_people_tell_them(seconds, words):
    assert show_span(seconds) == words


async def test_a_failed_job_shows_its_error_in_full(web: Web):
    submitted = await web.submit()
    await web.accept(submitted["submission_id"], "elk-1")
    error = JobError(code="content_rejected", message="No <moose> allowed.", provider_code="E42")
    update = Update(remote_id="elk-1", status=Status.FAILED, error=error)
    now = web.services.clock.now()
    await web.settle(submitted["submission_id"], lambda family: apply_update(family, update, Channel.CALLBACK, now), Channel.CALLBACK)
    page = await read(web, f"/jobs/{submitted['jobs'][0]['id']}")
    for words in ["content_rejected", "No <moose> allowed.", "E42"]:
        assert words in page


@pytest.mark.parametrize(("server", "is_shown"), [("", False), ('public_url = "http://127.0.0.1:8080"', True)])
async def test_no_callback_is_called_lost_where_nobody_was_asked_to_call_back(tmp_path: Path, server: str, is_shown: bool):
    async with open_web(tmp_path, server) as web:
        web.services.counters.add("provider:elkapi", "finished_by_poll", 3)
        await web.services.counters.flush()
        assert ('<span class="warned">100.0 %' in (await web.client.get("/", headers=HTML)).text) is is_shown
        known = {row["name"]: row["calls_back"] for row in (await web.client.get("/v1/providers")).json()["providers"]}
        assert known["elkapi"] is is_shown
