"""Calls to providers: what may be repeated and what may not, on real connections."""

import asyncio
import gzip
import logging
import socket
import ssl
import traceback
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from receiver import net
from receiver.errors import AnswerLost, NotTaken, ProviderFault
from receiver.model import Request
from receiver.net import ProviderClient, ServerEvent, StreamRefused, plain_client
from tests.loopback import free_port, hang, make_tls, reset, response, say, say_and_close, serve

SECRET = "sk-canary-0123456789"


def seconds(count):
    return timedelta(seconds=count)


def ask(url, **fields):
    return Request(**{"method": "POST", "url": url, "headers": {"Authorization": f"Bearer {SECRET}"}, "body": b"{}"} | fields)


@asynccontextmanager
async def provider_client(**fields):
    client = ProviderClient(**fields)
    try:
        yield client
    finally:
        await client.close()


async def fail(request, *, timeout=5.0, fresh=True, **fields):
    """The fault of a call that must fail; nothing secret may be in it."""
    async with provider_client(**fields) as client:
        with pytest.raises(ProviderFault) as caught:
            await client.send(request, timeout=seconds(timeout), fresh=fresh)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in told
    return caught.value


async def test_an_answer_comes_back_whole_with_lower_case_headers():
    async with serve(say(response(402, b'{"no": "money"}', X_RateLimit_Reset="7"))) as peer, provider_client() as client:
        answer = await client.send(ask(f"{peer.url}/v1/task?a=b%20c"), timeout=seconds(5))
    assert (answer.status, answer.body, answer.headers["x-ratelimit-reset"]) == (402, b'{"no": "money"}', "7")
    seen = peer.seen[0]
    assert (seen.method, seen.target, seen.body) == ("POST", "/v1/task?a=b%20c", b"{}")
    assert seen.headers["authorization"] == f"Bearer {SECRET}"
    assert seen.headers["user-agent"].startswith("receiver/")


async def test_a_refused_connection_is_not_taken():
    fault = await fail(ask(f"http://127.0.0.1:{free_port()}/v1?token={SECRET}"))
    assert type(fault) is NotTaken


async def test_a_host_that_does_not_exist_is_not_taken():
    assert type(await fail(ask("http://no-such-host.invalid/"))) is NotTaken
    assert type(await fail(ask(f"http://{'a' * 64}.example/"))) is NotTaken


async def test_a_connection_that_is_never_accepted_is_not_taken():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        fault = await fail(ask(f"http://127.0.0.1:{full.getsockname()[1]}/"), timeout=0.3)
        for filler in fillers:
            filler.close()
    assert type(fault) is NotTaken
    assert "timed out" in str(fault)


async def test_a_certificate_that_is_not_trusted_is_not_taken(tmp_path):
    server, _ = make_tls(tmp_path)
    async with serve(say(response()), tls=server) as peer:
        assert type(await fail(ask(peer.url))) is NotTaken
    assert peer.seen == []


async def test_a_peer_that_does_not_speak_tls_is_not_taken():
    async with serve(say(response())) as peer:
        assert type(await fail(ask(peer.url.replace("http:", "https:")), timeout=1)) is NotTaken
    assert peer.seen == []


async def test_a_tls_handshake_that_never_ends_is_not_taken():
    async with serve(hang) as peer:
        fault = await fail(ask(peer.url.replace("http:", "https:")), timeout=0.2)
    assert type(fault) is NotTaken


async def test_tls_to_a_trusted_provider_works(tmp_path):
    server, client_tls = make_tls(tmp_path)
    async with serve(say(response(body=b"ok")), tls=server) as peer, provider_client(tls=client_tls) as client:
        assert (await client.send(ask(peer.url), timeout=seconds(5), fresh=True)).body == b"ok"


@pytest.mark.parametrize(
    "request_",
    [
        ask("ftp://127.0.0.1/"),
        ask("http://"),
        ask("/v1/task"),
        ask("http://127.0.0.1:99999/"),
        ask("http://exa mple.com/"),
        ask("http://[::1/"),
        ask("http://127.0.0.1/", headers={"Authorization": f"Bearer {SECRET}\n"}),
        ask("http://127.0.0.1/", headers={"Authorization": f" {SECRET}"}),
        ask("http://127.0.0.1/", headers={"Authorization": f"{SECRET}ü"}),
        ask("http://127.0.0.1/", headers={"bad name": "x"}),
    ],
)
async def test_a_request_that_cannot_be_made_is_not_taken(request_):
    assert type(await fail(request_)) is NotTaken


async def test_a_user_in_the_url_is_refused_and_not_forgotten():
    async with serve(say(response())) as peer:
        assert type(await fail(ask(peer.url.replace("//", f"//user:{SECRET}@")))) is NotTaken
    assert peer.seen == []


BAD_ANSWERS = {
    "closes": say_and_close(b""),
    "resets": reset,
    "garbage": say_and_close(b"\x00\x01\x02 this is not HTTP\r\n\r\n"),
    "half a head": say_and_close(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "half a body": say_and_close(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    "half a chunk": say_and_close(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
    "a broken chunk": say_and_close(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n"),
    "two lengths": say_and_close(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    "an endless head": say_and_close(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n"),
    "switches": say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "huge": say(response(body=b"a" * (16 * 2**20 + 1))),
    "a bomb": say(response(body=gzip.compress(b"\0" * (64 * 2**20)), content_encoding="gzip")),
    "a bomb in a bomb": say(response(body=gzip.compress(gzip.compress(b"\0" * (16 * 2**20))), content_encoding="gzip, gzip")),
    "cut gzip": say(response(body=gzip.compress(b"{}" * 100)[:-9], content_encoding="gzip")),
    "no gzip": say(response(body=b"{}", content_encoding="gzip")),
    "brotli": say(response(body=b"{}", content_encoding="br")),
}


@pytest.mark.parametrize("talk", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
@pytest.mark.parametrize("fresh", [True, False])
async def test_what_goes_wrong_after_the_request_left_is_an_answer_lost(talk, fresh):
    async with serve(talk) as peer:
        fault = await fail(ask(f"{peer.url}/v1?token={SECRET}"), fresh=fresh)
    assert type(fault) is AnswerLost
    assert len(peer.seen) == 1  # never sent twice


async def test_an_answer_that_never_comes_is_lost():
    async with serve(hang) as peer:
        assert type(await fail(ask(peer.url), timeout=0.2)) is AnswerLost
    assert len(peer.seen) == 1


async def test_a_request_that_is_never_read_is_lost():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        fault = await fail(ask(f"http://127.0.0.1:{deaf.getsockname()[1]}/", body=b"a" * 30_000_000), timeout=0.3)
    assert type(fault) is AnswerLost


async def test_the_time_limit_holds_for_an_answer_that_trickles():
    async def trickle(seen, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serve(trickle) as peer:
        assert type(await fail(ask(peer.url), timeout=0.3)) is AnswerLost


async def test_a_cap_of_the_callers_own_holds_for_the_decoded_body():
    packed = response(body=gzip.compress(b"a" * 5000), content_encoding="gzip")
    async with serve(say(packed)) as peer, provider_client() as client:
        assert len((await client.send(ask(peer.url), timeout=seconds(5), max_bytes=5000)).body) == 5000
        with pytest.raises(AnswerLost):
            await client.send(ask(peer.url), timeout=seconds(5), max_bytes=4999)


async def test_a_compressed_answer_is_decoded():
    body = gzip.compress(b'{"a":') + gzip.compress(b" 1}")
    async with serve(say(response(body=body, content_encoding="gzip"))) as peer, provider_client() as client:
        answer = await client.send(ask(peer.url), timeout=seconds(5))
    assert answer.body == b'{"a": 1}'
    assert "content-encoding" not in answer.headers


async def test_fresh_calls_never_share_a_connection():
    async with serve(say(response())) as peer, provider_client() as client:
        for _ in range(3):
            await client.send(ask(peer.url), timeout=seconds(5))
        assert peer.connections == 1
        for _ in range(3):
            await client.send(ask(peer.url), timeout=seconds(5), fresh=True)
        assert peer.connections == 4
        await asyncio.gather(*(client.send(ask(peer.url), timeout=seconds(5), fresh=True) for _ in range(20)))
    assert peer.connections == 24
    assert [seen.headers.get("connection") for seen in peer.seen[3:]] == ["close"] * 23


async def test_a_kept_connection_that_dies_under_a_request_is_an_answer_lost():
    count = 0

    async def once(seen, writer):
        nonlocal count
        count += 1
        if count == 2:
            writer.close()
        else:
            writer.write(response())

    async with serve(once) as peer, provider_client() as client:
        await client.send(ask(peer.url), timeout=seconds(5))
        with pytest.raises(AnswerLost):
            await client.send(ask(peer.url), timeout=seconds(5))
        assert (peer.connections, len(peer.seen)) == (1, 2)


@pytest.mark.parametrize("location", ["http://{other}/", "/again", "http://[broken/", "http://%01/", "//", "ftp://x/"])
async def test_a_redirect_is_an_answer_and_is_not_followed(location):
    async with serve(say(response())) as other:
        target = location.replace("{other}", f"127.0.0.1:{other.port}")
        async with serve(say(response(307, location=target))) as peer, provider_client() as client:
            answer = await client.send(ask(peer.url), timeout=seconds(5))
    assert (answer.status, answer.headers["location"]) == (307, target)
    assert (len(peer.seen), other.connections) == (1, 0)


async def test_cookies_are_not_kept_and_the_environment_is_not_asked(monkeypatch, tmp_path):
    async with serve(say(response(set_cookie="session=1"))) as peer, serve(say(response())) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        async with provider_client() as client, plain_client() as plain:
            for _ in range(2):
                await client.send(ask(peer.url, headers={}), timeout=seconds(5))
            await plain.get(peer.url)
    assert (proxy.connections, len(peer.seen)) == (0, 3)
    assert all("cookie" not in seen.headers and "authorization" not in seen.headers for seen in peer.seen)


async def test_no_url_is_logged(caplog):
    caplog.set_level(logging.INFO)
    async with serve(say(response())) as peer, provider_client() as client, plain_client() as plain:
        await client.send(ask(f"{peer.url}/?token={SECRET}"), timeout=seconds(5))
        await plain.get(f"{peer.url}/{SECRET}")
    assert SECRET not in caplog.text


async def test_a_cancelled_call_stays_cancelled():
    async with serve(hang) as peer, provider_client() as client:
        call = asyncio.create_task(client.send(ask(peer.url), timeout=seconds(30)))
        while not peer.seen:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait([call], timeout=5)
        assert call.cancelled()


# Event streams

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(text):
    data = text.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def collect(talk):
    async with serve(talk) as peer, provider_client() as client, client.stream_events(ask(f"{peer.url}/events?key={SECRET}")) as events:
        return [event async for event in events], peer


async def test_a_stream_gives_its_events_until_the_provider_ends_it():
    raw = HEAD + chunk(': hello\n\nevent: media.completed\ndata: {"a":\ndata: 1}\n\ndata: zwölf\n\nid: 7\n\n') + b"0\r\n\r\n"
    events, peer = await collect(say_and_close(raw))
    assert events == [ServerEvent("media.completed", '{"a":\n1}'), ServerEvent("message", "zwölf")]
    assert peer.seen[0].headers["accept"] == "text/event-stream"
    assert peer.seen[0].headers["authorization"] == f"Bearer {SECRET}"


async def test_an_event_is_given_as_soon_as_it_is_there():
    async def talk(seen, writer):
        writer.write(HEAD + chunk("data: 1\n\n"))
        await hang(seen, writer)

    async with serve(talk) as peer, provider_client() as client, client.stream_events(ask(peer.url)) as events, asyncio.timeout(5):
        assert await anext(events) == ServerEvent("message", "1")


@pytest.mark.parametrize(
    ("raw", "status", "retry_after"),
    [
        (response(401, b"{}"), 401, None),
        (response(429, b"{}", retry_after="12"), 429, 12.0),
        (response(503, retry_after="Sat, 21 Nov 2026 01:00:30 GMT", date="Sat, 21 Nov 2026 01:00:00 GMT"), 503, 30.0),
        (response(503, retry_after="Sat, 21 Nov 2026 01:00:30 GMT"), 503, None),
        (response(503, retry_after="soon"), 503, None),
        (response(307, location="http://127.0.0.1/"), 307, None),
        (response(200, b"{}", content_type="application/json"), 200, None),
        (response(200, b"", content_type="text/event-stream", content_encoding="gzip"), 200, None),
    ],
)
async def test_a_stream_that_is_not_opened_says_why(raw, status, retry_after):
    with pytest.raises(StreamRefused) as caught:
        await collect(say(raw))
    assert (caught.value.status, caught.value.retry_after) == (status, retry_after)
    assert SECRET not in str(caught.value)


async def test_a_stream_that_breaks_is_an_answer_lost():
    with pytest.raises(AnswerLost):
        await collect(say_and_close(HEAD + chunk("data: 1\n\n") + b"5\r\nab"))


async def test_a_stream_that_is_silent_is_an_answer_lost(monkeypatch):
    monkeypatch.setattr(net, "STREAM_SILENCE_SECONDS", 0.1)
    with pytest.raises(AnswerLost):
        await collect(say(HEAD + chunk("data: 1\n\n")))


async def test_an_event_that_does_not_end_is_cut_off():
    async def talk(seen, writer):
        writer.write(HEAD)
        for _ in range(20):
            writer.write(chunk("data: " + "a" * 2**20 + "\n"))
            await writer.drain()

    with pytest.raises(AnswerLost, match="does not end"):
        await collect(talk)


async def test_a_stream_without_a_connection_is_not_taken():
    async with provider_client() as client:
        with pytest.raises(NotTaken):
            async with client.stream_events(ask(f"http://127.0.0.1:{free_port()}/")):
                pass


async def test_an_error_of_the_holder_passes_through_a_stream():
    async def fail_at_the_first_event(url):
        async with provider_client() as client, client.stream_events(ask(url)) as events:
            async for _ in events:
                raise KeyError

    async with serve(say(HEAD + chunk("data: 1\n\n"))) as peer:
        with pytest.raises(KeyError):
            await fail_at_the_first_event(peer.url)


async def test_paths_are_shown_and_queries_are_not():
    fault = await fail(ask(f"http://127.0.0.1:{free_port()}/v1/task?token={SECRET}#{SECRET}"))
    assert "/v1/task:" in str(fault)


async def test_a_context_of_ones_own_is_used(tmp_path):
    server, _ = make_tls(tmp_path)
    strict = ssl.create_default_context()
    async with serve(say(response()), tls=server) as peer:
        assert type(await fail(ask(peer.url), tls=strict)) is NotTaken
