"""A kept callback is answered by bytes that are ready: they say what any answer of ours says, over each HTTP parser that is installed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.stores.terms import NoticeFilter
from receiver.web.guard import SECURITY_HEADERS
from tests.web.opened import Web, choose_parser, listen, open_web

BODY = b'{"id": "elk-1", "status": "in_progress"}'
KEPT = b'{"ok":true}'
BOUND = 10  # seconds


class Line:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        self.reader, self.writer, self.path = reader, writer, path

    def request(self, *headers: str, version: str = "1.1") -> bytes:
        lines = [f"POST {self.path} HTTP/{version}", "Host: 127.0.0.1", f"Content-Length: {len(BODY)}", *headers]
        return "\r\n".join([*lines, "", ""]).encode()

    async def read(self) -> tuple[bytes, dict[str, str], bytes]:
        """Status line, headers, body."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), BOUND)
        first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        headers = dict(line.decode().lower().split(": ", 1) for line in lines)
        return first, headers, await asyncio.wait_for(self.reader.readexactly(int(headers.get("content-length", 0))), BOUND)

    async def has_ended(self) -> bool:
        return await asyncio.wait_for(self.reader.read(1), BOUND) == b""


@pytest.fixture(params=["h11", "httptools"])
async def web(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Web]:
    choose_parser(request.param, monkeypatch)
    async with open_web(tmp_path) as web:
        yield web


@pytest.fixture
async def line(web: Web) -> AsyncIterator[Line]:
    submitted = await web.submit()
    async with listen(web) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        yield Line(reader, writer, web.callback_path(submitted["submission_id"]))
        writer.close()


async def test_it_has_the_headers_of_every_answer_and_the_connection_stays(line: Line):
    for _ in range(2):
        line.writer.write(line.request() + BODY)
        status, headers, body = await line.read()
        assert (status, body) == (b"HTTP/1.1 200 OK", KEPT)
        assert headers.keys() == {"date", "content-type", "content-length", *(name.lower() for name, _ in SECURITY_HEADERS)}
        assert (headers["content-type"], headers["cache-control"]) == ("application/json", "no-store")


async def test_requests_that_come_at_once_are_answered_one_by_one(line: Line, web: Web):
    line.writer.write((line.request() + BODY) * 5)
    assert [(await line.read())[2] for _ in range(5)] == [KEPT] * 5
    assert await web.services.store.inbox_depth() == 5


async def test_who_wants_the_connection_closed_has_it_closed(line: Line):
    line.writer.write(line.request("Connection: close") + BODY)
    status, headers, body = await line.read()
    assert (status, headers["connection"], body) == (b"HTTP/1.1 200 OK", "close", KEPT)
    assert await line.has_ended()


async def test_who_speaks_the_older_http_has_the_connection_closed(line: Line):
    line.writer.write(line.request(version="1.0") + BODY)
    assert (await line.read())[2] == KEPT
    assert await line.has_ended()


async def test_who_asks_before_it_sends_is_told_to_go_on(line: Line):
    line.writer.write(line.request("Expect: 100-continue"))
    assert (await line.read())[0] == b"HTTP/1.1 100 Continue"
    line.writer.write(BODY)
    assert (await line.read())[2] == KEPT


async def test_a_body_is_kept_as_it_came_with_its_head_or_after_it(line: Line, web: Web):
    line.writer.write(line.request() + BODY)
    await line.read()
    line.writer.write(line.request("Expect: 100-continue"))
    await line.read()
    line.writer.write(BODY)
    await line.read()
    page = await web.services.store.read_notices(NoticeFilter(), 9, None, most_raw=1_000)
    assert [notice.body for notice in page.rows] == [BODY] * 2


@pytest.mark.parametrize("parser", ["h11", "httptools"])
async def test_a_body_that_comes_with_its_head_is_bounded(parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    choose_parser(parser, monkeypatch)
    async with open_web(tmp_path, "max_body_bytes = 1024") as web:
        submitted = await web.submit()
        async with listen(web) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            line = Line(reader, writer, web.callback_path(submitted["submission_id"]))
            for size, status in ((1024, b"200"), (1025, b"413")):  # in chunks: no header says how long it is
                head = line.request("Transfer-Encoding: chunked").replace(b"Content-Length: 40\r\n", b"")
                line.writer.write(head + b"%x\r\n%s\r\n0\r\n\r\n" % (size, b" " * size))
                assert (await line.read())[0].split()[1] == status
            writer.close()
        assert await web.services.store.inbox_depth() == 1


async def test_a_request_that_was_answered_leaves_nothing_for_the_garbage_collector(line: Line):
    def count() -> int:
        return sum(type(each).__name__ == "RequestResponseCycle" for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            line.writer.write(line.request() + BODY)
            await line.read()
        assert count() <= 2  # of the connection that stays, and maybe one that is on its way out
    finally:
        gc.enable()
