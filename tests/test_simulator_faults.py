"""Every fault does what its name says."""

import asyncio
import gzip
import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from receiver.simulator import Fault, Outcome, Scenario, Simulator, serve_simulator
from receiver.simulator.serving import serve_app

SPEED = 100  # a simulated second takes 10 ms
KEYS = {"authorization": "Bearer any", "ocp-apim-subscription-key": "any"}


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def served(anyio_backend):
    async with serve_simulator(Simulator(speed=SPEED)) as served:
        yield served


@pytest.fixture
async def simulator(served):
    yield served.simulator
    await served.simulator.reset()


@pytest.fixture
async def client(simulator):
    async with httpx.AsyncClient(headers=KEYS, trust_env=False, verify=False) as client:
        yield client


@pytest.fixture(scope="module")
async def sink_server(anyio_backend):
    sink = SimpleNamespace(calls=[], answers=[])

    async def receive(request):
        sink.calls.append(SimpleNamespace(path=request.url.path, headers=request.headers, body=await request.body()))
        return Response(status_code=sink.answers.pop(0) if sink.answers else 200)

    async with serve_app(Starlette(routes=[Route("/{path:path}", receive, methods=["POST"])])) as url:
        sink.url = f"{url}/callbacks/elkapi/the-genuine-token"
        yield sink


@pytest.fixture
def sink(sink_server):
    sink_server.calls, sink_server.answers = [], []
    return sink_server


def with_faults(*faults: Fault, **settings) -> Scenario:
    return Scenario(faults=frozenset(faults), **settings)


async def submit_elkapi(served, client, scenario=None, prompt="a boat", callback_url=None, **options):
    if scenario is not None:
        served.simulator.plan("elkapi", scenario)
    body = {"model": "flux-pro", "input": {"prompt": prompt}, **({"callback_url": callback_url} if callback_url else {})}
    return await client.post(f"{served.base_url('elkapi')}/v1/task/submit", json=body, **options)


async def poll_elkapi(served, client, job_id=None):
    job_id = job_id or served.simulator.ledger.jobs[-1].id
    return await client.get(f"{served.base_url('elkapi')}/v1/task/{job_id}")


def statuses(sink):
    return [json.loads(call.body)["status"] for call in sink.calls]


# Callbacks


async def test_a_callback_comes_for_every_status_and_equals_the_poll(served, simulator, client, sink):
    taken = await submit_elkapi(served, client, callback_url=sink.url)
    await simulator.quiet()
    assert statuses(sink) == ["in_progress", "completed"]
    assert json.loads(sink.calls[-1].body) == (await poll_elkapi(served, client, taken.json()["id"])).json()
    assert sink.calls[-1].headers["content-type"] == "application/json"
    assert [(entry.kind, entry.status, entry.state) for entry in simulator.ledger.callbacks] == [
        ("real", 200, "processing"),
        ("real", 200, "succeeded"),
    ]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.LOST, []),
        (Fault.TWICE, ["in_progress", "in_progress", "completed", "completed"]),
        (Fault.REORDERED, ["completed", "queued", "in_progress"]),
        (Fault.CHATTY, ["queued", "in_progress", "completed"]),
        (Fault.UNKNOWN_STATUS, ["warming_up", "completed"]),
    ],
)
async def test_callbacks_are_lost_doubled_or_reordered(served, simulator, client, sink, fault, expected):
    await submit_elkapi(served, client, with_faults(fault), callback_url=sink.url)
    await simulator.quiet()
    assert statuses(sink) == expected
    assert (await poll_elkapi(served, client)).json()["status"] == "completed"


async def test_a_late_callback_comes_after_a_poll_could_know(served, simulator, client, sink):
    await submit_elkapi(served, client, with_faults(Fault.LATE, seconds=0, delay=20), callback_url=sink.url)
    async with asyncio.timeout(5):
        while (await poll_elkapi(served, client)).json()["status"] != "completed":
            pass
    await simulator.quiet()
    running, final = simulator.ledger.callbacks
    assert (running.state, final.state) == ("processing", "succeeded")
    assert (final.at - simulator.ledger.submits[0].at).total_seconds() * SPEED > 19


async def test_an_early_callback_comes_before_the_answer(served, client, sink):
    taken = await submit_elkapi(served, client, with_faults(Fault.EARLY), callback_url=sink.url)
    assert statuses(sink) == ["in_progress", "completed"]
    assert json.loads(sink.calls[0].body)["id"] == taken.json()["id"]


async def test_a_forged_callback_has_a_wrong_token(served, simulator, client, sink):
    await submit_elkapi(served, client, with_faults(Fault.FORGED), callback_url=sink.url)
    await simulator.quiet()
    assert statuses(sink) == ["in_progress", "completed", "completed"]
    forged, real = sink.calls[1:]
    assert forged.path.startswith("/callbacks/elkapi/")
    assert forged.path != real.path
    assert [entry.kind for entry in simulator.ledger.callbacks] == ["real", "forged", "real"]


async def test_a_foreign_callback_has_the_right_token_and_an_unknown_id(served, simulator, client, sink):
    taken = await submit_elkapi(served, client, with_faults(Fault.FOREIGN), callback_url=sink.url)
    await simulator.quiet()
    assert [call.path for call in sink.calls] == ["/callbacks/elkapi/the-genuine-token"] * 3
    assert [json.loads(call.body)["id"] == taken.json()["id"] for call in sink.calls] == [True, False, True]


async def test_callback_bodies_are_spoilt(served, simulator, client, sink):
    for fault in (Fault.GARBLED, Fault.TRUNCATED, Fault.HUGE, Fault.NO_ID, Fault.GZIP):
        await submit_elkapi(served, client, with_faults(fault), callback_url=sink.url)
        await simulator.quiet()
    garbled, truncated, huge, nameless, zipped = (call.body for call in sink.calls[1::2])
    for unreadable in (garbled, truncated):
        with pytest.raises(json.JSONDecodeError):
            json.loads(unreadable)
    assert len(huge) > 2 * 1024 * 1024
    assert "id" not in json.loads(nameless)
    assert sink.calls[-1].headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(zipped))["status"] == "completed"


async def test_elkapi_and_pixazo_do_not_repeat_a_callback(served, simulator, client, sink):
    sink.answers = [500, 500]
    await submit_elkapi(served, client, callback_url=sink.url)
    await simulator.quiet()
    assert len(sink.calls) == 2


async def test_pixazo_calls_back_at_the_end_only(served, simulator, client, sink):
    url = f"{served.base_url('pixazo')}/hunyuan-image/v1/hunyuan-image/generateRequest"
    taken = (await client.post(url, json={"prompt": "x"}, headers={"x-webhook-url": sink.url})).json()
    await simulator.quiet()
    assert [json.loads(call.body) for call in sink.calls] == [(await client.get(taken["polling_url"])).json()]


async def submit_asset(served, client, scenario, sink):
    served.simulator.plan("hoox", scenario)
    body = {"type": "video", "model": "veo-3.1", "prompt": "x", "webhook_url": sink.url}
    return (await client.post(f"{served.base_url('hoox')}/asset/start", json=body)).json()["asset_ids"][0]


async def test_hoox_tries_a_callback_four_times_with_its_markers(served, simulator, client, sink):
    sink.answers = [500, 404, 302]
    job_id = await submit_asset(served, client, Scenario(), sink)
    await simulator.quiet()
    assert [entry.status for entry in simulator.ledger.callbacks] == [500, 404, 302, 200]
    times = [entry.at for entry in simulator.ledger.callbacks]
    pauses = [(later - earlier).total_seconds() * SPEED for earlier, later in pairwise(times)]
    assert all(pause > 0.9 * least for pause, least in zip(pauses, (1, 2, 4), strict=True))
    assert sink.calls[0].headers["user-agent"] == "Hoox-API/1.0"
    assert sink.calls[0].headers["x-hoox-webhook"] == "true"
    result = json.loads(sink.calls[0].body)["result"]
    assert json.loads(sink.calls[0].body) == {
        "task": "asset_generation",
        "asset_id": job_id,
        "status": "completed",
        "result": {"asset_url": result["asset_url"], "asset_type": "video", "width": 256, "height": 256, "duration_seconds": 3},
    }


async def test_hoox_gives_up_after_four_attempts(served, simulator, client, sink):
    sink.answers = [503] * 9
    await submit_asset(served, client, Scenario(), sink)
    await simulator.quiet()
    assert len(sink.calls) == 4


async def test_hoox_speaks_three_revisions(served, simulator, client, sink):
    for revision in ("A", "B", "C"):
        await submit_asset(served, client, Scenario(revision=revision, outcome=Outcome.FAILED), sink)
        await simulator.quiet()
    a, b, c = (json.loads(call.body) for call in sink.calls)
    assert (set(a), a["error"]["code"]) == ({"job_id", "status", "error"}, "generation_failed")
    assert (set(b), b["error"]["code"]) == ({"task", "job_id", "status", "error"}, "GENERATION_FAILED")
    assert (set(c), c["task"]) == ({"task", "asset_id", "status", "error"}, "asset_generation")


@pytest.mark.parametrize(
    ("path", "task", "ids", "found"),
    [
        ("generation/start", "video_generate", {"job_id"}, "video_id"),
        ("export/start", "video_export", {"job_id"}, "video_url"),
        ("avatar/create", "avatar_create", {"avatar_id", "look_id"}, "thumbnail"),
        ("avatar/edit", "avatar_edit", {"avatar_id", "look_id"}, "thumbnail"),
    ],
)
async def test_hoox_calls_back_for_its_other_tasks(served, simulator, client, sink, path, task, ids, found):
    body = {"prompt": "x", "avatar_id": "avatar_1", "webhook_url": sink.url}
    await client.post(f"{served.base_url('hoox')}/{path}", json=body)
    await simulator.quiet()
    told = json.loads(sink.calls[0].body)
    assert set(told) == {"task", "status", "result"} | ids
    assert (told["task"], told["status"]) == (task, "completed")
    assert found in told["result"]


async def test_a_callback_to_nowhere_is_noted(served, simulator, client):
    await submit_elkapi(served, client, callback_url="http://127.0.0.1:9/nobody")
    await simulator.quiet()
    assert simulator.ledger.callbacks[-1].status is None
    assert "Connect" in simulator.ledger.callbacks[-1].error


# Submits


async def test_a_lost_answer_leaves_a_job_that_is_billed(served, simulator, client):
    with pytest.raises(httpx.RemoteProtocolError):
        await submit_elkapi(served, client, with_faults(Fault.SUBMIT_LOST))
    assert (simulator.ledger.billed, simulator.ledger.submits[0].status) == (1, None)
    await simulator.quiet()
    assert (await poll_elkapi(served, client)).json()["status"] == "completed"


async def test_a_slow_answer_comes_after_the_timeout_of_the_client(served, simulator, client):
    with pytest.raises(httpx.ReadTimeout):
        await submit_elkapi(served, client, with_faults(Fault.SUBMIT_SLOW, delay=3600), timeout=0.1)
    assert simulator.ledger.billed == 1


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        (Fault.SUBMIT_GARBLED, 200, b"<html><body>oops</body></html>"),
        (Fault.SUBMIT_EMPTY, 200, b"{}"),
        (Fault.SUBMIT_502, 502, b"<html><body>oops</body></html>"),
    ],
)
async def test_a_useless_answer_leaves_a_job_that_is_billed(served, simulator, client, fault, status, body):
    answer = await submit_elkapi(served, client, with_faults(fault))
    assert (answer.status_code, answer.content, simulator.ledger.billed) == (status, body, 1)


@pytest.mark.parametrize(("fault", "status"), [(Fault.TOO_MANY, 429), (Fault.UNAVAILABLE, 503), (Fault.BROKEN, 500)])
async def test_a_refused_submit_is_taken_after_some_times(served, simulator, client, fault, status):
    served.simulator.plan("elkapi", with_faults(fault, times=2), prompt="boat")
    answers = [await submit_elkapi(served, client) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status, status, 200]
    assert "retry-after" not in answers[0].headers
    assert simulator.ledger.billed == 1


async def test_a_refused_submission_keeps_its_scenario_while_others_come(served, simulator, client):
    served.simulator.plan("elkapi", with_faults(Fault.TOO_MANY, Fault.INSTANT, outcome=Outcome.FAILED))
    assert (await submit_elkapi(served, client, prompt="first")).status_code == 429
    assert (await submit_elkapi(served, client, prompt="second")).json()["status"] == "queued"
    again = (await submit_elkapi(served, client, prompt="first")).json()
    assert (again["status"], again["error"]) == ("failed", "content policy violation")


async def test_retry_after_is_told_in_seconds_or_as_a_date(served, client):
    seconds = await submit_elkapi(served, client, with_faults(Fault.TOO_MANY, retry_after=7), prompt="a")
    assert seconds.headers["retry-after"] == "7"
    date = await submit_elkapi(served, client, with_faults(Fault.UNAVAILABLE, retry_after=60, as_date=True), prompt="b")
    assert 50 < (parsedate_to_datetime(date.headers["retry-after"]) - datetime.now(UTC)).total_seconds() <= 60


async def test_times_zero_refuses_for_ever(served, simulator, client):
    for _ in range(4):
        assert (await submit_elkapi(served, client, prompt="[sim: 503 times=0]")).status_code == 503
    assert simulator.ledger.billed == 0


async def test_a_refusal_makes_no_job(served, simulator, client):
    assert (await submit_elkapi(served, client, with_faults(Fault.REFUSED))).status_code == 400
    assert (simulator.ledger.billed, simulator.ledger.jobs) == (0, [])


# Polls


@pytest.mark.parametrize(("fault", "status"), [(Fault.POLL_404, 404), (Fault.POLL_429, 429), (Fault.POLL_500, 500), (Fault.POLL_503, 503)])
async def test_the_first_polls_fail(served, simulator, client, fault, status):
    await submit_elkapi(served, client, with_faults(fault, Fault.INSTANT, polls=2, retry_after=3))
    answers = [await poll_elkapi(served, client) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status, status, 200]
    assert answers[0].headers.get("retry-after") == ("3" if status in (429, 503) else None)
    assert simulator.ledger.polls == 3


async def test_polls_are_garbled_or_closed_or_slow(served, simulator, client):
    await submit_elkapi(served, client, with_faults(Fault.POLL_GARBLED, polls=1))
    assert (await poll_elkapi(served, client)).text.startswith("<html>")
    await submit_elkapi(served, client, with_faults(Fault.POLL_LOST, polls=1))
    with pytest.raises(httpx.RemoteProtocolError):
        await poll_elkapi(served, client)
    await submit_elkapi(served, client, with_faults(Fault.POLL_SLOW, polls=1, delay=10))
    assert (await poll_elkapi(served, client)).elapsed.total_seconds() > 0.09


async def test_a_stuck_job_never_ends(served, simulator, client):
    await submit_elkapi(served, client, Scenario(outcome=Outcome.STUCK, seconds=0))
    await simulator.quiet()
    assert (await poll_elkapi(served, client)).json()["status"] == "in_progress"


# Outputs


async def output_urls(served, client, scenario):
    await submit_elkapi(served, client, scenario)
    await served.simulator.quiet()
    return (await poll_elkapi(served, client)).json()["outputs"]


async def test_outputs_are_served_whole_and_in_parts(served, simulator, client):
    [url] = await output_urls(served, client, None)
    whole = await client.get(url)
    assert whole.headers["content-length"] == str(len(whole.content))
    part = await client.get(url, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (
        206,
        whole.content[10:20],
        f"bytes 10-19/{len(whole.content)}",
    )
    assert (await client.get(url, headers={"range": "bytes=-5"})).content == whole.content[-5:]
    assert (await client.get(url, headers={"range": f"bytes={len(whole.content)}-"})).status_code == 416
    assert (await client.get(url, headers={"range": "bytes=5-", "if-range": '"other"'})).status_code == 200
    assert (await client.get(url, headers={"if-none-match": whole.headers["etag"]})).status_code == 304
    assert simulator.ledger.jobs[0].outputs[0].bytes == len(whole.content)


async def test_an_expired_link_is_replaced_by_a_fresh_poll(served, simulator, client):
    [url] = await output_urls(served, client, Scenario(expires=0))
    dead = await client.get(url)
    assert (dead.status_code, "expired" in dead.text, "Expires=" in url) == (403, True, True)
    [fresh] = (await poll_elkapi(served, client)).json()["outputs"]
    assert fresh.partition("?")[0] != url.partition("?")[0]
    [living] = await output_urls(served, client, Scenario(expires=3600))
    assert (await client.get(living)).status_code == 200


async def test_outputs_come_as_data_uris(served, simulator, client):
    uris = await output_urls(served, client, with_faults(Fault.DATA_URI, outputs=2))
    assert [uri.partition(",")[0] for uri in uris] == ["data:image/png;base64"] * 2


async def test_a_private_output_wants_the_key(served, simulator, client):
    [url] = await output_urls(served, client, with_faults(Fault.PRIVATE))
    async with httpx.AsyncClient(trust_env=False, verify=False) as stranger:
        assert (await stranger.get(url)).status_code == 401
    assert (await client.get(url)).status_code == 200
    assert [entry.has_key for entry in simulator.ledger.downloads] == [False, True]


async def test_an_output_redirects_to_another_host_name(served, simulator, client):
    [url] = await output_urls(served, client, with_faults(Fault.REDIRECTED))
    answer = await client.get(url)
    assert (answer.status_code, httpx.URL(answer.headers["location"]).host) == (302, "localhost")
    moved = answer.headers["location"].replace("localhost", "127.0.0.1")
    assert (await client.get(moved)).status_code == 200


async def test_a_first_download_breaks_off_and_a_range_brings_the_rest(served, simulator, client):
    [url] = await output_urls(served, client, with_faults(Fault.CUT))
    received = bytearray()

    async def download():
        async with client.stream("GET", url) as answer:
            async for piece in answer.aiter_bytes():
                received.extend(piece)

    with pytest.raises(httpx.RemoteProtocolError):
        await download()
    assert received
    rest = await client.get(url, headers={"range": f"bytes={len(received)}-"})
    assert bytes(received) + rest.content == (await client.get(url)).content


# Streams


async def submit_oxen(served, client, prompt):
    body = {"model": "kling-video", "prompt": prompt}
    return (await client.post(f"{served.base_url('oxen')}/ai/queue", json=body)).json()["generations"][0]["generation_id"]


async def read_stream(response, first, count):
    """Events whose first line is this one, until there are enough or the stream ends."""
    events, lines = [], []
    async with asyncio.timeout(10):
        async for line in response.aiter_lines():
            if line:
                lines.append(line)
                continue
            events += [lines] if lines[0] == first else []
            lines = []
            if len(events) == count:
                break
    return events


async def read_news(response, count):
    events = await read_stream(response, "event: media_generation_completed", count)
    return [json.loads(lines[1].removeprefix("data: ")) for lines in events]


async def test_the_stream_tells_how_jobs_ended(served, simulator, client):
    async with client.stream("GET", f"{served.base_url('oxen')}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        good = await submit_oxen(served, client, "x [sim: seconds=0]")
        await simulator.quiet()
        bad = await submit_oxen(served, client, "x [sim: fail seconds=0]")
        await simulator.quiet()
        told = await read_news(response, 2)
    assert told[0] == {
        "generation_id": good,
        "status": "succeeded",
        "media_type": "video",
        "model": "kling-video",
        "url": told[0]["url"],
    }
    assert told[1] == {"generation_id": bad, "status": "failed", "media_type": "video", "error": "content policy violation"}


async def test_the_stream_keeps_alive_and_repeats_nothing(served, simulator, client):
    await submit_oxen(served, client, "x [sim: instant]")
    await simulator.quiet()
    async with client.stream("GET", f"{served.base_url('oxen')}/events") as response:
        assert await read_stream(response, ": keep-alive", 2) == [[": keep-alive"], [": keep-alive"]]
    assert [entry.listeners for entry in simulator.ledger.streamed] == [0]


async def test_the_stream_says_nothing_of_cancelled_or_lost_jobs(served, simulator, client):
    async with client.stream("GET", f"{served.base_url('oxen')}/events") as response:
        cancelled = await submit_oxen(served, client, "x [sim: stuck]")
        await client.delete(f"{served.base_url('oxen')}/ai/queue/{cancelled}")
        await submit_oxen(served, client, "x [sim: lost seconds=0]")
        await submit_oxen(served, client, "x [sim: twice seconds=1]")
        await simulator.quiet()
        told = await read_news(response, 2)
    assert len({event["generation_id"] for event in told}) == 1
    assert len(simulator.ledger.streamed) == 2


async def test_a_dropped_stream_loses_its_event(served, simulator, client):
    async with client.stream("GET", f"{served.base_url('oxen')}/events") as response:
        await submit_oxen(served, client, "x [sim: stream-dropped seconds=0]")
        assert await read_news(response, 1) == []
    assert [entry.listeners for entry in simulator.ledger.streamed] == [0]
