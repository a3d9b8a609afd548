"""What the overview says first: what is wrong, why, and the one press that may mend it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from receiver.clock import ManualClock
from receiver.model import Channel, DeliveryState, JobError, Outcome, Status, Update
from receiver.rules import apply_update
from receiver.stores.terms import NoticeBound
from tests.factories import make_notice
from tests.web.opened import ELK, Web, open_web
from tests.web.test_pages import HTML, KEYS, SAME, end_deliveries, read

PIXAZO = {"provider": "pixazo", "model": "hunyuan-image", "input": {"prompt": "a boat"}}


async def fail(web: Web, code: str, message: str, number: int, body: dict = ELK) -> None:
    """A job that comes home with this error."""
    submitted = await web.submit(body)
    await web.accept(submitted["submission_id"], f"remote-{number}")
    update = Update(remote_id=f"remote-{number}", status=Status.FAILED, error=JobError(code=code, message=message))
    now = web.services.clock.now()
    await web.settle(submitted["submission_id"], lambda family: apply_update(family, update, Channel.CALLBACK, now), Channel.CALLBACK)


async def troubles(web: Web) -> str:
    web.app.state.chart = None  # it is drawn again after some seconds only
    page = await read(web, "/")
    return page[page.index("Needs a person") : page.index("Jobs now")]


async def test_the_overview_says_why_jobs_of_a_provider_fail_until_one_succeeds(web: Web):
    await fail(web, "insufficient_balance", "You have 0 credits left.", 1)
    await fail(web, "insufficient_balance", "You have 0 credits left.", 2)
    said = await troubles(web)
    assert "Act The last 2 jobs of elkapi failed: there is no money left" in said
    assert "You have 0 credits left." in said
    await web.succeed(remote_id="remote-3")
    assert "The last" not in await troubles(web)


async def test_what_only_one_request_has_brought_upon_itself_is_no_trouble(web: Web):
    for number, code in enumerate(["content_rejected", "invalid_request", "cancelled", "provider_error", "rate_limited"]):
        await fail(web, code, "No.", number)
    assert "The last" not in await troubles(web)


async def test_jobs_of_one_provider_say_nothing_of_another(web: Web):
    await fail(web, "authentication", "Invalid token.", 1)
    await web.succeed(PIXAZO, remote_id="remote-2")
    said = await troubles(web)
    assert "The last job of elkapi failed: it does not know the key" in said
    assert "of pixazo" not in said


async def test_the_overview_replays_what_is_dead_and_tries_now_what_waits(web: Web):
    await web.succeed()
    for state, words in [(DeliveryState.DEAD, "Replay"), (DeliveryState.RETRYING, "Try now")]:
        count = await end_deliveries(web, state, "Traceback\nRuntimeError: the shop is closed")
        assert "RuntimeError: the shop is closed" in await troubles(web)  # though no handler of this process has said it
        text = (await web.client.get("/")).text
        form = re.search(r'<form method="post" action="\./deliveries/replay">(.*?)</form>', text, re.DOTALL)
        assert form, words
        assert words in form[1]
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form[1]))
        answer = await web.client.post("/deliveries/replay", data=fields, headers=SAME)
        assert answer.headers["location"] == f"../deliveries?replayed={count}"


async def test_a_provider_that_is_left_alone_says_until_when(web: Web):
    now = web.services.clock.now()
    await web.services.store.count_failure("huzz", now, "502 Bad Gateway")
    await web.services.store.leave_alone("huzz", now + timedelta(hours=1))
    assert re.search(r"502 Bad Gateway\. Asked again in [\d minsh]+, by itself\.", await troubles(web))


async def test_a_poll_that_failed_is_no_riddle_to_the_spec(web: Web):
    failed = make_notice(outcome=Outcome.UNREADABLE, reason="HTTP 500: oops", body=b"{}", channel=Channel.POLL, http_status=500, repeats=1)
    await web.services.store.keep_notice(failed, NoticeBound())
    assert "unreadable" not in await troubles(web)
    page = await read(web, "/notices")
    assert "and once more failed poll HTTP 500: oops" in page
    assert "Settle again" not in page
    await web.services.store.keep_notice(make_notice(outcome=Outcome.UNREADABLE, channel=Channel.CALLBACK), NoticeBound())
    assert "1 unreadable notice" in await troubles(web)
    page = await read(web, "/notices")
    assert page.index("Settle again") < page.index("failed poll")


@pytest.mark.parametrize("path", ["/nowhere", "/jobs/x/y/z"])
async def test_a_person_at_a_wrong_address_is_shown_a_page(web: Web, path: str):
    answer = await web.client.get(path, headers=HTML)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (404, "text/html")
    assert "There is nothing at this address." in answer.text
    assert 'href="' + "../" * (path.count("/") - 1) in answer.text
    for others in ({"Accept": "*/*"}, {"Accept": "application/json"}):
        assert (await web.client.get(path, headers=others)).json()["status"] == 404
    assert (await web.client.get("/v1/nowhere", headers=HTML)).json()["status"] == 404


async def test_a_person_who_came_through_a_tunnel_is_told_on_a_page_which_line_to_add(web: Web):
    answer = await web.client.get("/", headers=HTML | {"Host": "evil.example"})
    assert answer.status_code == 403
    assert "api_keys = [" in answer.text.replace("&#34;", '"')
    assert "<nav" not in answer.text
    assert "/live" not in answer.text


async def test_a_session_may_not_be_used_by_another_site_and_a_person_sees_why(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        answer = await web.client.post("/sign-in", data={"key": "x"}, headers=HTML | {"Sec-Fetch-Site": "cross-site"})
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (403, "text/html")
        assert "A page of another site may not do this." in answer.text


async def test_a_guide_table_carries_its_heads_for_a_phone(web: Web):
    assert '<td data-label="what to do">' in (await web.client.get("/guide/errors")).text


async def test_the_page_of_providers_agrees_with_the_overview(web: Web):
    await fail(web, "authentication", "Invalid token.", 1)
    page = await read(web, "/providers")
    assert "elkapi failing The last job of elkapi failed: it does not know the key. Look at them" in page
    assert "huzz well" in page


async def test_who_has_just_begun_is_told_how_to_go_on(web: Web):
    assert "There are no jobs yet. Submit one ." in await read(web, "/")
    await web.submit()
    assert "There are no jobs yet" not in await read(web, "/")
    web.app.state.services = replace(web.services, accounts={})
    assert "No provider is configured" in await troubles(web)


def later(web: Web, span: timedelta) -> None:
    web.app.state.services = replace(web.services, clock=ManualClock(web.services.clock.now() + span))


async def test_a_handler_that_hangs_is_named_with_what_waits_behind_it(web: Web):
    await web.succeed()
    await web.services.store.claim_deliveries(web.services.clock.now(), {"tell": 1})
    later(web, timedelta(minutes=4))
    assert "busy" not in await troubles(web)
    later(web, timedelta(hours=2))
    assert re.search(r"Look tell has been busy for 2 h( \d min)? with the same delivery 1 waits behind", await troubles(web))


async def test_callbacks_that_nobody_settles_are_told(web: Web):
    await web.services.store.keep_notice(make_notice(at=web.services.clock.now()), NoticeBound())
    assert "not settled" not in await troubles(web)
    later(web, timedelta(hours=1))
    assert "Act Callbacks are kept and not settled The oldest of 1 waits for 1 h. Does a process" in await troubles(web)
