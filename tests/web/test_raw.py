"""Bytes on the wire that no HTTP library would send: no 500, and the server goes on, over each HTTP parser that is installed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.web.opened import choose_parser, listen, open_web

pytestmark = pytest.mark.long

BOUND = 10  # seconds
SHORT = 1.0  # seconds for an answer that may never come
END = b"\r\n\r\n"
HOST = b"Host: 127.0.0.1\r\n"
GET = b"GET /v1/jobs HTTP/1.1\r\n" + HOST
POST = b"POST /v1/jobs HTTP/1.1\r\n" + HOST
CALL = b"POST /callbacks/elkapi/x HTTP/1.1\r\n" + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n"

HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "a NUL": b"\0" * 100,
    "noise": bytes(range(256)) * 40,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 500,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "HTTP/0.9": b"GET /\r\n",
    "no version": b"GET /v1/jobs\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "bare LF": b"GET /v1/jobs HTTP/1.1\nHost: localhost\n\n",
    "bare CR": b"GET /v1/jobs HTTP/1.1\rHost: localhost\r\r",
    "absolute form": b"GET http://evil.example/v1/jobs HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form of another scheme": b"GET file:///etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "authority form": b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target without a slash": b"GET v1/jobs HTTP/1.1\r\n" + HOST + b"\r\n",
    "an empty target": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target of slashes": b"GET " + b"/" * 5000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long target": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes in the target": b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in the target": b"GET /v1/\0jobs HTTP/1.1\r\n" + HOST + b"\r\n",
    "escaped bytes": b"GET /%ff%fe%00%zz%/..%2f..%5c HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /v1/jobs#x HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes in the query": b"GET /v1/jobs?\xff=%ff&%00=%00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET /v1/jobs HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: evil.example\r\n\r\n",
    "a strange host": b"GET /v1/jobs HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "bytes in the host": b"GET /v1/jobs HTTP/1.1\r\nHost: \xff\r\n\r\n",
    "NUL in a header": GET + b"X: a\0b\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "a header without a name": GET + b": a\r\n\r\n",
    "a header without a colon": GET + b"nonsense\r\n\r\n",
    "a space before the colon": GET + b"X : a\r\n\r\n",
    "a thousand headers": GET + b"".join(b"X-%d: a\r\n" % n for n in range(1000)) + b"\r\n",
    "many headers": GET + b"X: a\r\n" * 20_000 + b"\r\n",
    "a long header": GET + b"X: " + b"a" * 300_000 + END,
    "a long name": GET + b"X" * 300_000 + b": a" + END,
    "a long cookie": GET + b"Cookie: " + b"a=b; " * 10_000 + END,
    "strange cookies": GET + b'Cookie: receiver_session="\\377; =; ;;; $Version=1; a' + END,
    "a strange key": GET + b"Authorization: Bearer \xff\xfe" + END,
    "strange forwarding": CALL + b'Forwarded: for="[::;\\\r\nX-Forwarded-For: ,,\xff,\r\nContent-Length: 0\r\n\r\n',
    "strange ranges": GET.replace(b"/v1/jobs", b"/v1/jobs/job_" + b"0" * 32 + b"/outputs/0") + b"Range: bytes=9-1,-,x" + END,
    "a strange place in the stream": GET.replace(b"/v1/jobs", b"/v1/events") + b"Last-Event-ID: \xff" + END,
    "an upgrade": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n",
    "an upgrade to h2c": GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA" + END,
    "an expectation": POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    "a strange expectation": POST + b"Expect: miracles\r\nContent-Length: 2\r\n\r\n{}",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n{}",
    "a length of words": CALL + b"Content-Length: two\r\n\r\n{}",
    "a huge length": CALL + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "length and chunks": POST + b"Content-Length: 2\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunks twice": POST + CHUNKED * 2 + b"\r\n0\r\n\r\n",
    "a strange coding": POST + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "a hidden coding": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "garbage for a chunk": POST + CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": POST + CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a huge chunk": CALL + CHUNKED + b"\r\n" + b"f" * 40 + b"\r\n{}\r\n",
    "a chunk without an end": CALL + CHUNKED + b"\r\n2\r\n{}0\r\n\r\n",
    "a chunk with NUL": POST + CHUNKED + b"\r\n2;\0=\0\r\n{}\r\n0\r\n\r\n",
    "half a body": POST + b"Content-Length: 100\r\n\r\n{}",
    "a body for a GET": GET + b"Content-Length: 2\r\n\r\n{}",
    "a second request in the body": POST + b"Content-Length: 0\r\n\r\n" + GET + b"\r\n",
    "a smuggled request": CALL + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
    "an unknown method": b"FROBNICATE /v1/jobs HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long method": b"G" * 70_000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a deep body": POST + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000,
    "a body of nothing": POST + b"Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\0",
    "a form of bytes": b"POST /try HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n\r\n\xff=%z",
    "a form of NULs": b"POST /sign-in HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nkey=%00%0",
}


@pytest.fixture(params=["h11", "httptools"])
async def port(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """Where the whole application answers as `receiver serve` would."""
    choose_parser(request.param, monkeypatch)
    async with open_web(tmp_path) as web, listen(web) as port:
        yield port


async def say(port: int, raw: bytes) -> bytes:
    """What comes back, until the other side ends it or has said nothing more for a while after our end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with suppress(OSError, TimeoutError):
        writer.write(raw)
        await asyncio.wait_for(writer.drain(), BOUND)
        writer.write_eof()
        while part := await asyncio.wait_for(reader.read(65_536), 0.3 if answer else SHORT):
            answer += part
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(line[9:12]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


async def is_alive(port: int) -> bool:
    return statuses(await say(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) == [200]


async def test_no_hostile_request_is_a_mistake_of_ours(port: int, caplog: pytest.LogCaptureFixture):
    async def try_one(name: str) -> list[int]:
        return statuses(await say(port, HOSTILE[name]))

    with capture_logs() as lines:
        found = dict(zip(HOSTILE, await asyncio.gather(*map(try_one, HOSTILE)), strict=True))
    assert {name: codes for name, codes in found.items() if any(code >= 500 for code in codes)} == {}
    assert found["two hosts"][0] in {400, 403}
    for name in ("absolute form", "no host", "a strange host", "bytes in the host"):
        assert not found[name] or found[name][0] in {200, 400, 403, 404}
    assert await is_alive(port)
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]
    assert not [line for line in lines if line["log_level"] == "error"]


async def test_a_stranger_in_the_target_is_no_host_of_ours(port: int):
    """The target may name any host: what is asked is whether the Host header is loopback."""
    for raw in (b"GET http://127.0.0.1/v1/jobs HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"GET /v1/jobs HTTP/1.0\r\n\r\n"):
        assert 200 not in statuses(await say(port, raw))


async def test_no_bytes_end_the_server(port: int):
    loop = asyncio.get_running_loop()
    lines = st.sampled_from([GET, POST, CALL, HOST, CHUNKED, b"\r\n", END, b"Content-Length: 3\r\n", b"{}", b"0\r\n\r\n", b"3\r\nabc\r\n"])

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(lines | st.binary(max_size=40), max_size=8).map(b"".join))
    def each(raw: bytes) -> None:
        answer = asyncio.run_coroutine_threadsafe(say(port, raw), loop).result(BOUND)
        assert not [status for status in statuses(answer) if status >= 500]

    await asyncio.to_thread(each)
    assert await is_alive(port)
