"""The client of the HTTP API, against servers that answer as a test wants."""

import asyncio
import json

import httpx
import msgspec
import pytest

import receiver.client.calls
from receiver.client import ApiError, Client, NotReachable, SyncClient
from tests.loopback import by_path, free_port, response, serve

JOB = {"id": "job_1", "status": "succeeded"}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(receiver.client.calls, "FIRST_PAUSE", 0.001)


class Answers(httpx.AsyncBaseTransport):
    """Gives one answer after the other; keeps the requests."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []

    async def handle_async_request(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        return httpx.Response(status, content=body if isinstance(body, bytes) else json.dumps(body).encode())


def client_of(*answers, key=None):
    transport = Answers(*answers)
    return Client("http://receiver.test", key, transport=transport), transport.requests


async def test_a_submit_says_what_was_given_and_leaves_out_the_rest():
    client, requests = client_of((202, {"submission_id": "sub_1", "jobs": []}))
    await client.submit("pixazo", "hunyuan-image", {"prompt": "a boat"}, metadata={"user": "42"}, deadline=90, idempotency_key='say "a"')
    assert json.loads(requests[0].content) == {
        "provider": "pixazo",
        "model": "hunyuan-image",
        "input": {"prompt": "a boat"},
        "metadata": {"user": "42"},
        "deadline_seconds": 90,
    }
    assert requests[0].headers["idempotency-key"] == '"say \\"a\\""'
    assert "prefer" not in requests[0].headers


@pytest.mark.parametrize(("key", "header"), [("secret-key", "Bearer secret-key"), (None, None)])
async def test_the_key_is_sent_where_there_is_one(key, header):
    client, requests = client_of((200, {"providers": []}), key=key)
    await client.providers()
    assert requests[0].headers.get("authorization") == header


async def test_ids_and_filters_are_escaped():
    client, requests = client_of((200, JOB), (200, {"jobs": [], "next_cursor": None}))
    await client.job("../x?y")
    await client.jobs(model="a&b", metadata={"team": "red blue"}, limit=5)
    assert requests[0].url.raw_path == b"/v1/jobs/..%2Fx%3Fy"
    assert dict(requests[1].url.params) == {"model": "a&b", "metadata.team": "red blue", "limit": "5"}


async def test_a_refusal_tells_every_mistake_with_its_place():
    problem = {
        "status": 400,
        "detail": "bad",
        "errors": [{"pointer": "/model", "detail": "is missing"}, {"parameter": "limit", "detail": "is no number"}],
    }
    client, _ = client_of((400, problem))
    with pytest.raises(ApiError) as caught:
        await client.providers()
    assert (caught.value.status, caught.value.problem) == (400, problem)
    assert str(caught.value) == "/model: is missing\nlimit: is no number"


@pytest.mark.parametrize(
    ("status", "body"), [(502, b"<html>Bad gateway</html>"), (404, b""), (200, b"<html>Welcome</html>"), (500, b"[1]")]
)
async def test_an_answer_that_is_not_ours_is_an_api_error(status, body):
    client, _ = client_of((status, body))
    with pytest.raises(ApiError) as caught:
        await client.providers()
    assert caught.value.status == status


async def test_where_nobody_listens_nothing_is_reachable():
    async with Client(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(NotReachable, match=r"there is no server at http://127\.0\.0\.1:"):
            await client.providers()


@pytest.mark.parametrize("url", ["nonsense", "ftp://example.com", "http://", "http://[::1", "http://x:port"])
def test_an_address_that_is_none_is_not_reachable(url):
    with pytest.raises(NotReachable, match="is not the address of a server"):
        Client(url)


async def test_waiting_outlives_a_restart_of_the_server():
    refused = httpx.ConnectError("refused")
    client, requests = client_of((200, JOB | {"status": "queued"}), refused, (503, {"detail": "starting"}), (200, JOB))
    assert (await client.wait("job_1"))["status"] == "succeeded"
    assert all(request.url.params["wait"] for request in requests)


async def test_waiting_for_a_server_that_never_answered_ends_at_once():
    client, requests = client_of(httpx.ConnectError("refused"))
    with pytest.raises(NotReachable):
        await client.wait("job_1")
    assert len(requests) == 1


async def test_waiting_ends_with_the_timeout():
    client, _ = client_of(*[(200, JOB | {"status": "queued"})] * 1000)
    with pytest.raises(TimeoutError, match="job_1 is still queued"):
        await client.wait("job_1", timeout=0)


async def test_every_job_comes_over_all_pages():
    client, requests = client_of((200, {"jobs": [JOB], "next_cursor": "c"}), (200, {"jobs": [JOB | {"id": "job_2"}], "next_cursor": None}))
    assert [job["id"] async for job in client.every_job(provider="oxen")] == ["job_1", "job_2"]
    assert [dict(request.url.params).get("cursor") for request in requests] == [None, "c"]


async def test_every_job_comes_to_programs_without_a_loop_too():
    pages = [{"jobs": [JOB], "next_cursor": "c"}, {"jobs": [JOB | {"id": "job_2"}], "next_cursor": None}]

    def ask(url):
        with SyncClient(url) as client:
            first = next(client.every_job())  # who has seen enough leaves
            return [first["id"], *(job["id"] for job in client.every_job(limit=1))]

    async def talk(seen, writer):
        page = pages["cursor=c" in seen.target]
        writer.write(response(200, json.dumps(page).encode(), content_type="application/json"))

    async with serve(talk) as peer:
        assert await asyncio.to_thread(ask, peer.url) == ["job_1", "job_1", "job_2"]


async def test_a_bulk_replay_says_how_many():
    client, requests = client_of((202, {"replayed": 3}))
    assert await client.replay_all(state="dead") == 3
    assert json.loads(requests[0].content) == {"state": "dead"}


def stream(*ids, after=""):
    """Events as the server sends them, whose stream then breaks off."""
    begins = f"last-event-id: {after}\r\n" if after else ""
    events = "".join(f"id: {each}\nevent: job.succeeded\ndata: {json.dumps({'id': each})}\n\n" for each in ids)
    body = f": connected\n\n{events}".encode()
    return f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n{begins}connection: close\r\n\r\n".encode() + body


def streams(*answers):
    """One answer per connection, the last one for ever."""
    left = list(answers)

    async def talk(seen, writer):
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()
        writer.close()

    return talk


async def take(count, events):
    found = []
    async for event in events:
        found.append(event["id"])
        if len(found) == count:
            break
    await events.aclose()
    return found


async def test_a_stream_goes_on_after_the_last_event_seen():
    async with serve(streams(stream("evt_1", "evt_2"), stream(), response(503), stream("evt_3"))) as peer, Client(peer.url) as client:
        assert await take(3, client.events(type="job.*", job_id="job_1")) == ["evt_1", "evt_2", "evt_3"]
    assert [seen.headers.get("last-event-id") for seen in peer.seen] == [None, "evt_2", "evt_2", "evt_2"]
    assert {seen.target for seen in peer.seen} == {"/v1/events?type=job.%2A&job_id=job_1"}


async def test_a_stream_that_broke_off_before_its_first_event_goes_on_where_it_began():
    async with serve(streams(stream(after="evt_0"), stream("evt_1", after="evt_0"))) as peer, Client(peer.url) as client:
        assert await take(1, client.events()) == ["evt_1"]
    assert [seen.headers.get("last-event-id") for seen in peer.seen] == [None, "evt_0"]


async def test_a_stream_that_was_never_open_raises():
    async with Client(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(NotReachable):
            await take(1, client.events())


async def test_a_stream_ends_when_the_key_is_refused_later():
    refusal = response(401, msgspec.json.encode({"detail": "no key"}), content_type="application/problem+json")
    async with serve(streams(stream("evt_1"), refusal)) as peer, Client(peer.url) as client:
        with pytest.raises(ApiError, match="no key"):
            await take(2, client.events())


async def test_a_page_of_somebody_else_is_no_stream():
    async with serve(by_path({"/v1/events": response(200, b"hello", content_type="text/html")})) as peer, Client(peer.url) as client:
        with pytest.raises(ApiError, match="is it a Receiver"):
            await take(1, client.events())


async def test_a_program_without_an_event_loop_has_the_same_methods():
    def ask(url):
        with SyncClient(url) as client:
            events = client.events()
            found = (client.job("job_1")["status"], next(events)["id"], next(events)["id"])
            events.close()
            return found

    talks = by_path({"/v1/jobs/job_1": response(200, json.dumps(JOB).encode(), content_type="application/json")})
    broken_off = streams(stream("evt_1"), stream("evt_2"))

    async def talk(seen, writer):
        await (broken_off if seen.target.startswith("/v1/events") else talks)(seen, writer)

    async with serve(talk) as peer:
        assert await asyncio.to_thread(ask, peer.url) == ("succeeded", "evt_1", "evt_2")


def test_both_clients_have_the_same_methods():
    both = [{name for name in vars(client) if not name.startswith("_")} for client in (Client, SyncClient)]
    assert both[0] - both[1] == {"not_reachable"}
