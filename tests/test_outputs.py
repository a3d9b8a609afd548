"""Outputs are read from wherever they are: real peers on loopback, a real store."""

import base64
import gzip
import json
from contextlib import asynccontextmanager

import pytest

from receiver.clock import ManualClock
from receiver.config import PollingConfig, ProviderConfig
from receiver.errors import Denied, NotFound, ProviderFault, Unreadable
from receiver.guarded import guarded_client
from receiver.model import Status
from receiver.net import HTTPError, ProviderClient
from receiver.outputs import OutputGone, Outputs
from receiver.providers.account import make_account
from receiver.providers.loader import load_specs
from receiver.stores import open_store
from receiver.stores.terms import NoticeBound
from tests.factories import NOW, make_family, make_notice, make_output
from tests.loopback import by_path, free_port, response, say, say_and_close, serve

FILE = bytes(range(256)) * 1000
KEY = "Bearer sk-canary-0123456789"
SPECS = load_specs()


@pytest.fixture
async def store(tmp_path):
    async with open_store(f"sqlite:///{tmp_path}/receiver.db") as opened:
        yield opened


async def keep_job(store, *outputs, provider="oxen", notice=None, **fields):
    """A job that succeeded, in the store, with these outputs."""
    job_fields = {"status": Status.SUCCEEDED, "remote_id": "gen-1", "outputs": outputs} | fields
    family = make_family(job=job_fields, provider=provider)
    await store.create_submission(family)
    if notice is not None:
        await store.keep_notice(notice, NoticeBound())
    return family.jobs[0]


@asynccontextmanager
async def opened(store, provider="oxen", base_url="http://127.0.0.1:1/api", allow=("127.0.0.0/8",)):
    config = ProviderConfig(api_key=KEY.removeprefix("Bearer "), base_url=base_url)
    accounts = {provider: make_account(provider, config, PollingConfig(), SPECS[provider])}
    client = ProviderClient()
    async with guarded_client(allow) as guarded:
        yield Outputs(store, accounts, client, guarded, ManualClock(NOW))
    await client.close()


async def read(outputs, job, index=0, offset=0):
    async with outputs.open(job.id, index, offset) as stream:
        return stream, b"".join([chunk async for chunk in stream])


def link(peer, path="/clip.mp4", **fields):
    return make_output(url=f"{peer.url}{path}", media_type="video/mp4", **fields)


def ranged(body, **headers):
    """A server that knows ranges."""

    async def talk(seen, writer):
        start = int(seen.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if "range" not in seen.headers:
            writer.write(response(200, body, **headers))
        elif start >= len(body):
            writer.write(response(416, content_range=f"bytes */{len(body)}"))
        else:
            writer.write(response(206, body[start:], content_range=f"bytes {start}-{len(body) - 1}/{len(body)}", **headers))

    return talk


def poll_answer(url, status=200, **fields):
    return response(status, json.dumps({"generation_id": "gen-1", "status": "succeeded", "result_url": url, **fields}).encode())


async def test_an_output_is_streamed_from_the_providers_link(store):
    async with serve(say(response(200, FILE, content_type="Video/MP4; x=y"))) as peer, opened(store) as outputs:
        stream, body = await read(outputs, await keep_job(store, link(peer, expires_at=NOW)))
    assert body == FILE
    assert (stream.media_type, stream.offset, stream.total, stream.expires_at) == ("video/mp4", 0, len(FILE), NOW)
    assert "authorization" not in peer.seen[0].headers
    assert peer.seen[0].headers["user-agent"].startswith("receiver/")
    assert peer.seen[0].headers["accept-encoding"] == "identity"


async def test_the_index_picks_the_output(store):
    async with serve(by_path({"/a": response(200, b"a"), "/b": response(200, b"b")})) as peer, opened(store) as outputs:
        job = await keep_job(store, link(peer, "/a"), link(peer, "/b", index=1))
        assert (await read(outputs, job, index=1))[1] == b"b"


async def test_there_is_no_such_output(store):
    async with serve(say(response())) as peer, opened(store) as outputs:
        job = await keep_job(store, link(peer))
        with pytest.raises(NotFound):
            await read(outputs, job, index=1)
        with pytest.raises(NotFound):
            async with outputs.open("job_0", 0):
                pass


async def test_a_download_goes_on_where_it_stopped(store):
    async with serve(ranged(FILE)) as peer, opened(store) as outputs:
        job = await keep_job(store, link(peer))
        stream, body = await read(outputs, job, offset=1000)
        assert (stream.offset, stream.total, body) == (1000, len(FILE), FILE[1000:])
        stream, body = await read(outputs, job, offset=len(FILE))
        assert (stream.offset, stream.total, body, stream.media_type) == (len(FILE), len(FILE), b"", "video/mp4")
        stream, body = await read(outputs, job, offset=len(FILE) + 1)
        assert (stream.offset, body) == (0, FILE)


@pytest.mark.parametrize(
    "partial",
    [
        response(206, FILE, content_range=f"bytes 0-{len(FILE) - 1}/{len(FILE)}"),
        response(206, FILE),
        response(206, FILE, content_range="bytes x"),
        response(206, gzip.compress(FILE)[1000:], content_range="bytes 1000-2000/2001", content_encoding="gzip"),
        response(416),
        response(200, FILE),
    ],
)
async def test_a_peer_that_cannot_go_on_is_read_from_the_start(store, partial):
    async def talk(seen, writer):
        writer.write(partial if "range" in seen.headers else response(200, FILE))

    async with serve(talk) as peer, opened(store) as outputs:
        stream, body = await read(outputs, await keep_job(store, link(peer)), offset=1000)
    assert (stream.offset, stream.total, body) == (0, len(FILE), FILE)


async def test_a_compressed_output_is_decoded_and_its_size_unknown(store):
    raw = response(200, gzip.compress(FILE), content_encoding="gzip", content_type="application/octet-stream")
    async with serve(say(raw)) as peer, opened(store) as outputs:
        stream, body = await read(outputs, await keep_job(store, link(peer)))
    assert (stream.total, stream.media_type, body) == (None, "video/mp4", FILE)


async def test_the_key_goes_to_a_host_that_asks_and_that_the_spec_names(store):
    async def talk(seen, writer):
        writer.write(response(200, FILE) if seen.headers.get("authorization") == KEY else response(401))

    async with serve(talk) as peer, opened(store, base_url=f"{peer.url}/api") as outputs:
        assert (await read(outputs, await keep_job(store, link(peer))))[1] == FILE
    assert [seen.headers.get("authorization") for seen in peer.seen] == [None, KEY]


async def test_the_key_goes_nowhere_else(store):
    async with serve(say(response(401))) as thief, serve(by_path({})) as peer, opened(store, base_url=f"{peer.url}/api") as outputs:
        with pytest.raises(OutputGone, match=r"HTTP 401.*output_hosts"):
            await read(outputs, await keep_job(store, link(thief)))
    assert all("authorization" not in seen.headers for seen in thief.seen)


async def test_the_key_is_dropped_on_a_redirect_to_another_host(store):
    async with serve(say(response(200, FILE))) as cdn:

        async def talk(seen, writer):
            writer.write(response(302, location=f"{cdn.url}/x") if "authorization" in seen.headers else response(403))

        async with serve(talk) as peer, opened(store, base_url=f"{peer.url}/api") as outputs:
            assert (await read(outputs, await keep_job(store, link(peer)), offset=0))[1] == FILE
    assert "authorization" not in cdn.seen[0].headers


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_a_dead_link_is_asked_for_once_more(store, status):
    async with serve(ranged(FILE)) as cdn:
        talks = {"/api/ai/queue/gen-1": poll_answer(f"{cdn.url}/fresh.mp4")}
        async with serve(by_path(talks)) as peer, serve(say(response(status))) as old, opened(store, base_url=f"{peer.url}/api") as outputs:
            stream, body = await read(outputs, await keep_job(store, link(old)), offset=5)
    assert (stream.offset, body) == (5, FILE[5:])
    assert [seen.target for seen in peer.seen] == ["/api/ai/queue/gen-1"]
    assert peer.seen[0].headers["authorization"] == KEY


async def test_an_output_is_gone_when_the_fresh_link_is_dead_too(store):
    async with (
        serve(say(response(404))) as cdn,
        serve(say(poll_answer(f"{cdn.url}/fresh"))) as peer,
        opened(store, base_url=f"{peer.url}/api") as outputs,
    ):
        with pytest.raises(OutputGone):
            await read(outputs, await keep_job(store, link(cdn)))
    assert (len(cdn.seen), len(peer.seen)) == (2, 1)


async def test_an_output_is_gone_when_there_is_no_fresh_link(store):
    nowhere = {"/api/ai/queue/gen-1": poll_answer(None)}
    async with serve(say(response(404))) as cdn, serve(by_path(nowhere)) as peer, opened(store, base_url=f"{peer.url}/api") as outputs:
        for job in (
            await keep_job(store, link(cdn)),
            await keep_job(store, link(cdn), remote_id=None),
            await keep_job(store, link(cdn), remote_id="gen-unknown"),
            await keep_job(store, link(cdn), provider="elkapi"),  # not configured any more
        ):
            with pytest.raises(OutputGone):
                await read(outputs, job)


async def test_a_finished_job_that_left_the_queue_is_looked_up(store):
    async with serve(say(response(200, FILE))) as cdn:
        row = {"generation": {"generation_id": "gen-1", "status": "succeeded", "result_url": f"{cdn.url}/fresh"}}
        talks = {"/api/ai/generations/gen-1": response(200, json.dumps(row).encode())}
        async with serve(by_path(talks)) as peer, serve(say(response(410))) as old, opened(store, base_url=f"{peer.url}/api") as outputs:
            assert (await read(outputs, await keep_job(store, link(old))))[1] == FILE


@pytest.mark.parametrize("raw", [response(500), response(429, retry_after="9")])
async def test_a_provider_that_cannot_say_now_is_no_verdict(store, raw):
    async with serve(say(response(403))) as cdn, serve(say(raw)) as peer, opened(store, base_url=f"{peer.url}/api") as outputs:
        with pytest.raises(ProviderFault) as caught:
            await read(outputs, await keep_job(store, link(cdn)))
    assert caught.value.provider == "oxen"


async def test_a_provider_that_is_away_is_no_verdict(store):
    async with serve(say(response(403))) as cdn, opened(store, base_url=f"http://127.0.0.1:{free_port()}/api") as outputs:
        with pytest.raises(ProviderFault):
            await read(outputs, await keep_job(store, link(cdn)))


@pytest.mark.parametrize(
    ("raw", "retry_after"),
    [(response(503, retry_after="7"), 7.0), (response(500), None), (response(206, b"x"), None), (response(204), None)],
)
async def test_a_host_that_does_not_give_the_file_now_is_tried_later(store, raw, retry_after):
    async with serve(say(raw)) as peer, opened(store) as outputs:
        with pytest.raises(ProviderFault) as caught:
            await read(outputs, await keep_job(store, link(peer)))
    assert caught.value.retry_after == retry_after


async def test_a_download_that_breaks_off_is_an_http_error(store):
    raw = response(200, FILE, content_length=str(len(FILE) + 1))
    async with serve(say_and_close(raw)) as peer, opened(store) as outputs:
        with pytest.raises(HTTPError):
            await read(outputs, await keep_job(store, link(peer)))


async def test_what_came_before_a_download_broke_off_is_handed_on(store):
    async with serve(say_and_close(response(200, FILE)[:-200_000])) as peer, opened(store) as outputs:
        job = await keep_job(store, link(peer))
        came = bytearray()

        async def collect():
            async with outputs.open(job.id, 0) as stream:
                async for chunk in stream:
                    came.extend(chunk)

        with pytest.raises(HTTPError):
            await collect()
        assert bytes(came) == FILE[:-200_000]


async def test_a_private_address_is_denied(store):
    async with serve(say(response(200, FILE))) as peer, opened(store, allow=()) as outputs:
        with pytest.raises(Denied):
            await read(outputs, await keep_job(store, link(peer)))
    assert peer.connections == 0


# Inside a notice


def picture(body):
    uri = "data:image/png;base64," + base64.b64encode(body).decode()
    return make_notice(body=json.dumps({"id": "gen-1", "status": "completed", "outputs": [{"url": uri}]}).encode())


async def test_an_output_that_came_as_a_data_uri_is_read_from_its_notice(store):
    notice = picture(FILE)
    output = make_output(url=None, notice_id=notice.id)
    async with opened(store, provider="elkapi") as outputs:
        job = await keep_job(store, output, provider="elkapi", notice=notice)
        stream, body = await read(outputs, job)
        assert (stream.media_type, stream.offset, stream.total, body) == ("image/png", 0, len(FILE), FILE)
        stream, body = await read(outputs, job, offset=1000)
        assert (stream.offset, body) == (1000, FILE[1000:])
        stream, body = await read(outputs, job, offset=len(FILE) + 1)
        assert (stream.offset, body) == (len(FILE), b"")


async def test_an_output_whose_notice_is_not_kept_is_gone(store):
    async with opened(store, provider="elkapi") as outputs:
        empty = make_notice(body=b"")
        for job in (
            await keep_job(store, make_output(url=None, notice_id="ntc_0"), provider="elkapi"),
            await keep_job(store, make_output(url=None), provider="elkapi"),
            await keep_job(store, make_output(url=None, notice_id=empty.id), provider="elkapi", notice=empty),
        ):
            with pytest.raises(OutputGone):
                await read(outputs, job)


async def test_a_notice_that_does_not_hold_the_output_is_unreadable(store):
    notice = make_notice(body=b'{"id": "gen-1", "status": "completed", "outputs": []}')
    async with opened(store, provider="elkapi") as outputs:
        job = await keep_job(store, make_output(url=None, notice_id=notice.id), provider="elkapi", notice=notice)
        with pytest.raises(Unreadable):
            await read(outputs, job)
