"""One trace from the request that submits to the last handler, seen by a collector."""

import json
import time

import pytest

from receiver.simulator import Fault, Scenario
from tests.loopback import response, say, serve
from tests.stories.home import open_home

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SLOW = 'overdue_after = "60s"\ninterval = "60s"'
QUICK = 'overdue_after = "0.5s"\ninterval = "0.2s"'


async def submit(home, **headers):
    answer = await home.api.post(
        "/v1/jobs", json={"provider": "elkapi", "model": "kling-v2", "input": {"prompt": "a boat"}}, headers=headers
    )
    assert answer.status_code == 202, answer.text
    return answer.json()["jobs"][0]


def names(spans):
    return {span.name for span in spans}


def way(spans, span):
    """The names from a span up to the one that has no parent here."""
    by_id = {each.id: each for each in spans}
    found = [span.name]
    while span.parent in by_id:
        span = by_id[span.parent]
        found.append(span.name)
    return found


def ways(spans, name):
    return [way(spans, span) for span in spans if span.name == name]


def handlers(hook):
    return (
        '[[handlers]]\nname = "archive"\nuse = "storage"\nevents = ["job.succeeded"]\n'
        f'[[handlers]]\nname = "hook"\nuse = "webhook"\nevents = ["job.succeeded", "job.stored"]\noptions = {{url = "{hook.url}/"}}\n'
    )


async def test_one_trace_leads_from_the_submit_over_the_callback_to_the_last_handler(sim, tmp_path, collector):
    async with serve(say(response())) as hook, open_home(sim, tmp_path, more=handlers(hook), polling=SLOW) as home:
        job = await submit(home, **TRACEPARENT)
        assert (await home.final(job["id"]))["finished_by"] == "callback"
        spans = await collector.until(lambda spans: len(ways(spans, "deliver hook")) == 2)
        callback_urls = [submit.callback_url for submit in sim.simulator.ledger.submits]
    assert {span.trace for span in spans} == {TRACE}
    (first,) = [span for span in spans if span.name == "submit"]
    assert (first.parent, first.kind, first.said["http.response.status_code"]) == (CALLER, "server", 202)
    assert ways(spans, "call submit") == [["call submit", "send", "submit"]]
    assert ways(spans, "event job.submitted") == [["event job.submitted", "settle", "send", "submit"]]
    home_by_callback = ["event job.succeeded", "settle", "callback", "submit"]
    assert ways(spans, "event job.succeeded") == [home_by_callback]
    assert ways(spans, "deliver archive") == [["deliver archive", *home_by_callback]]
    assert sorted(ways(spans, "deliver hook"), key=len) == [
        ["deliver hook", *home_by_callback],
        ["deliver hook", "event job.stored", "deliver archive", *home_by_callback],
    ]
    assert not [span for span in spans if span.failed]
    assert collector.service == "receiver"
    assert_in_the_designs_words(spans, job)
    delivered = {seen.headers["traceparent"].split("-")[2] for seen in hook.seen}
    assert delivered == {span.id for span in spans if span.name == "deliver hook"}
    assert {json.loads(seen.body)["traceparent"][3:35] for seen in hook.seen} == {TRACE}
    assert_holds_no_secret(collector, callback_urls)


def assert_in_the_designs_words(spans, job):
    said = {span.name: span.said for span in spans}
    for name in ("callback", "deliver archive", "event job.succeeded"):
        assert said[name]["receiver.job_id"] == job["id"]
    last = [span for span in spans if span.name == "callback"][-1]
    assert (last.said["receiver.provider"], last.said["receiver.channel"]) == ("elkapi", "callback")
    assert (last.said["receiver.status"], last.said["receiver.outcome"]) == ("succeeded", "applied")
    assert last.end > last.start
    assert (said["send"]["receiver.submission_id"], said["send"]["receiver.model"]) == (job["submission_id"], "kling-v2")
    assert (said["deliver archive"]["receiver.handler"], said["deliver archive"]["receiver.state"]) == ("archive", "done")
    assert said["call submit"]["http.response.status_code"] == 200


def assert_holds_no_secret(collector, callback_urls):
    sent = b"".join(request.SerializeToString() for request in collector.requests).decode("latin-1")
    for url in callback_urls:
        token = url.rsplit("/", 1)[1]
        assert len(token) > 20
        assert token not in sent
    assert "key-of-elkapi" not in sent
    assert "a boat" not in sent
    assert "/callbacks/" not in sent


async def test_a_lost_callback_shows_as_the_poll_that_brought_the_job_home(sim, tmp_path, collector):
    sim.simulator.plan("elkapi", Scenario(seconds=0.2, faults=frozenset({Fault.LOST})))
    async with serve(say(response())) as hook, open_home(sim, tmp_path, more=handlers(hook), polling=QUICK) as home:
        job = await submit(home, **TRACEPARENT)
        assert (await home.final(job["id"]))["finished_by"] == "poll"
        spans = await collector.until(lambda spans: len(ways(spans, "deliver hook")) == 2)
    assert {span.trace for span in spans} == {TRACE}
    assert "callback" not in names(spans)
    assert ["call poll", "poll", "submit"] in ways(spans, "call poll")
    assert ways(spans, "event job.succeeded") == [["event job.succeeded", "settle", "poll", "submit"]]
    assert ways(spans, "deliver archive") == [["deliver archive", "event job.succeeded", "settle", "poll", "submit"]]


async def test_what_a_stream_brings_home_belongs_to_the_submits_trace(sim, tmp_path, collector):
    sim.simulator.plan("oxen", Scenario(seconds=1.5))
    async with open_home(sim, tmp_path, polling=SLOW) as home:
        (job,) = await home.submit("oxen", "kling-video-v2-6-pro-text-to-video")
        assert (await home.final(job["id"]))["finished_by"] == "stream"
        spans = await collector.until(lambda spans: "event job.succeeded" in names(spans))
    assert ways(spans, "event job.succeeded") == [["event job.succeeded", "settle", "submit"]]
    assert "stream" in [span.said.get("receiver.channel") for span in spans if span.name == "settle"]


async def test_a_trace_goes_on_after_a_restart(sim, tmp_path, collector):
    sim.simulator.plan("elkapi", Scenario(seconds=60, faults=frozenset({Fault.LOST})))
    async with serve(say(response())) as hook:
        async with open_home(sim, tmp_path, more=handlers(hook), polling=SLOW) as home:
            job = await submit(home, **TRACEPARENT)
        (told,) = sim.simulator.ledger.submits
        async with open_home(sim, tmp_path, more=handlers(hook), polling=SLOW) as home:
            path = told.callback_url.split("/", 3)[3]
            body = {"id": job["remote_id"], "status": "failed", "error": "content policy violation"}
            assert (await home.api.post(f"/{path}", json=body)).status_code == 200
            assert (await home.final(job["id"]))["finished_by"] == "callback"
            spans = await collector.until(lambda spans: "event job.failed" in names(spans))
    assert {span.trace for span in spans} == {TRACE}
    assert ways(spans, "event job.failed") == [["event job.failed", "settle", "callback", "submit"]]


async def test_jobs_that_one_list_answers_for_keep_their_own_traces(sim, tmp_path, collector):
    sim.simulator.plan("oxen", Scenario(seconds=0.5, faults=frozenset({Fault.STREAM_DROPPED})))
    async with open_home(sim, tmp_path, polling='interval = "0.2s"', roles=("web", "submit", "poll", "settle")) as home:
        jobs = await home.submit("oxen", "kling-video-v2-6-pro-text-to-video", input={"num_generations": 4})
        for job in jobs:
            await home.final(job["id"])
        spans = await collector.until(lambda spans: len(ways(spans, "event job.succeeded")) == len(jobs) and "list" in names(spans))
    (first,) = [span for span in spans if span.name == "submit"]
    lists = [span for span in spans if span.name == "list"]
    assert {link for span in lists for link in span.links} == {first.id}
    assert {span.trace for span in spans if span.name == "event job.succeeded"} == {first.trace}
    assert {span.trace for span in lists}.isdisjoint({first.trace})


async def test_a_handler_that_fails_shows_without_its_words(sim, tmp_path, collector):
    (tmp_path / "story_traced.py").write_text("async def handle(event, context):\n    raise RuntimeError('the password is hunter2')\n")
    broken = '[[handlers]]\nname = "broken"\nuse = "story_traced:handle"\nretry = {attempts = 2, first = "0.1s", max = "0.1s"}\n'
    async with open_home(sim, tmp_path, more=broken) as home:
        job = await submit(home)
        await home.final(job["id"])
        spans = await collector.until(lambda spans: len(ways(spans, "deliver broken")) == 2)
    attempts = [span for span in spans if span.name == "deliver broken"]
    assert [(span.failed, span.said["error.type"], span.said["receiver.attempt"]) for span in attempts] == [
        (True, "RuntimeError", 1),
        (True, "RuntimeError", 2),
    ]
    assert [span.said["receiver.state"] for span in attempts] == ["retrying", "dead"]
    assert b"hunter2" not in b"".join(request.SerializeToString() for request in collector.requests)


async def test_a_traceparent_that_is_none_is_ignored(sim, tmp_path, collector):
    async with open_home(sim, tmp_path, polling=SLOW) as home:
        await submit(home, traceparent=f"00-{TRACE}-0000000000000000-01")
        spans = await collector.until(lambda spans: "submit" in names(spans))
    (first,) = [span for span in spans if span.name == "submit"]
    assert (first.parent, first.trace == TRACE) == ("", False)


async def test_a_trace_that_its_caller_does_not_keep_is_not_kept_here(sim, tmp_path, collector):
    async with open_home(sim, tmp_path) as home:
        unwanted = await submit(home, traceparent=f"00-{TRACE}-{CALLER}-00")
        await home.final(unwanted["id"])
        await home.final((await submit(home))["id"])
        spans = await collector.until(lambda spans: "event job.succeeded" in names(spans))
    assert TRACE not in {span.trace for span in spans}


@pytest.mark.long
async def test_a_collector_that_is_away_harms_nothing(sim, tmp_path, monkeypatch):
    async with serve(say(response(503))) as away:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", away.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        async with open_home(sim, tmp_path) as home:
            assert (await home.final((await submit(home))["id"]))["status"] == "succeeded"
            stopped_at = time.monotonic()
        assert time.monotonic() - stopped_at < 30


async def test_without_a_collector_nothing_is_kept(sim, tmp_path, monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    async with serve(say(response())) as hook, open_home(sim, tmp_path, more=handlers(hook)) as home:
        job = await submit(home, **TRACEPARENT)
        await home.final(job["id"])
        await home.until(lambda: len(hook.seen) == 2)
        kept = await home.services.store.read_job(job["id"])
    assert kept.traceparent is None
    assert all("traceparent" not in seen.headers and "traceparent" not in json.loads(seen.body) for seen in hook.seen)
