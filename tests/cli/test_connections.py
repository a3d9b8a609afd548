"""What one connection may cost a server, over each HTTP parser that is installed."""

import asyncio
import importlib.util
import json
import socket
import sys
from contextlib import asynccontextmanager, suppress

import pytest

from receiver.cli import connections, service
from receiver.web.prepared import Prepared, exchange_of

pytestmark = pytest.mark.long

BOUND = 10  # seconds
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
READY = Prepared([(b"content-length", b"5")], b"ready")
ASK_READY = b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=["h11", "httptools"], autouse=True)
def parser(request, monkeypatch):
    if request.param == "h11":
        monkeypatch.setitem(sys.modules, "httptools", None)
        for name in ("uvicorn.protocols.http.httptools_impl", "receiver.cli.connections_httptools"):
            monkeypatch.delitem(sys.modules, name, raising=False)
    elif importlib.util.find_spec("httptools") is None:
        pytest.skip("httptools is not installed")
    return request.param


async def echo(scope, receive, send):
    """Answers with the number of bytes of the body; `/early` before it reads them, `/big` with more than anybody reads, `/ready` with
    what is ready, `/stream` without an end."""
    if scope["path"] == "/ready":
        assert exchange_of(scope) is not None
        await READY(scope, receive, send)
        return
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"transfer-encoding", b"chunked")]})
        await send({"type": "http.response.body", "body": b"xx", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"x" * 100_000_000 if scope["path"] == "/big" else str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving():
    async with running() as (port, _):
        yield port


@asynccontextmanager
async def running():
    up = asyncio.Event()
    listener = service.open_sockets("127.0.0.1", 0, {}, "")[0]
    server = service.Server(service.make_config(echo), up.set)
    task = asyncio.create_task(server.serve([listener]))
    await asyncio.wait_for(up.wait(), BOUND)
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = server.force_exit = True
        await task
        listener.close()


@asynccontextmanager
async def connected(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def everything(reader):
    """What comes until the other side ends it."""
    try:
        return await asyncio.wait_for(reader.read(), BOUND)
    except ConnectionResetError:
        return b""


async def ask(reader, writer, raw=HEAD + b"\r\n"):
    writer.write(raw)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head[9:12], await reader.readexactly(length)


async def trickle(reader, writer):
    """Send a little again and again until the other side ends it: what it said meanwhile."""
    ended = asyncio.create_task(everything(reader))
    while not ended.done():
        writer.write(b"x")
        await asyncio.wait([ended], timeout=0.02)
    return await ended


async def answers(reader, count):
    """So many answers: status and body."""
    found = []
    for _ in range(count):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append((head[9:12], await reader.readexactly(length)))
    return found


async def is_well(port):
    async with connected(port) as (reader, writer):
        return await ask(reader, writer) == (b"200", b"0")


@pytest.mark.parametrize("sent", [b"", b"G", HEAD])
async def test_a_head_that_does_not_come_is_waited_for_so_long(monkeypatch, sent):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(sent)
        assert await everything(reader) == b""
        assert await is_well(port)


async def test_a_head_that_trickles_gains_no_time(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    async with serving() as port, connected(port) as (reader, writer):
        assert await ask(reader, writer) == (b"200", b"0")  # on a connection that was good once

        writer.write(HEAD + b"X: ")
        assert await trickle(reader, writer) == b""


async def test_a_body_that_trickles_after_its_answer_gains_no_time(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    async with serving() as port, connected(port) as (reader, writer):
        assert (await ask(reader, writer, b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"))[0] == b"200"
        assert await trickle(reader, writer) == b""


async def test_an_answer_that_takes_long_is_not_cut(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(POST + b"1\r\nx\r\n")
        async with connected(port) as (silent, _):  # its time ends after the other's would have
            assert await everything(silent) == b""
        assert await ask(reader, writer, b"0\r\n\r\n") == (b"200", b"1")


async def test_a_connection_that_asks_no_more_is_closed_after_a_while(monkeypatch):
    monkeypatch.setattr(service, "KEEP_ALIVE", 0.5)
    async with serving() as port, connected(port) as often, connected(port) as once, connected(port) as gone:
        for connection in (often, once, gone):
            assert await ask(*connection) == (b"200", b"0")
        gone[1].close()
        assert await ask(*often) == (b"200", b"0")
        assert [await everything(reader) for reader, _ in (once, often)] == [b"", b""]
        assert await is_well(port)


async def test_a_client_that_does_not_read_is_cut(monkeypatch):
    monkeypatch.setattr(connections, "READER_SECONDS", 0.2)
    async with running() as (port, server), connected(port) as (reader, writer):
        writer.write(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(BOUND):
            while not server.server_state.connections:
                await asyncio.sleep(0)
            while server.server_state.connections:
                await asyncio.sleep(0.01)
        assert len(await everything(reader)) < 100_000_000


@pytest.mark.parametrize(
    ("begin", "part"),
    [
        (HEAD, b"X-%d: " + b"a" * 1000 + b"\r\n"),
        (HEAD + b"X: ", b"a" * 1000),
        (b"GET /", b"a" * 1000),
        (POST, b"1;%d=" + b"a" * 1000 + b"\r\nx\r\n"),
        (POST + b"1;x=", b"a" * 1000),
        (POST + b"1\r\nx\r\n0\r\n", b"X-%d: " + b"a" * 1000 + b"\r\n"),
        (POST + b"1\r\nx\r\n0\r\nX: ", b"a" * 1000),
    ],
    ids=["headers", "a header", "a path", "chunk extensions", "a chunk extension", "trailers", "a trailer"],
)
async def test_what_is_no_body_is_bounded(begin, part, parser):
    if parser == "h11" and part.startswith(b"1;"):
        pytest.skip("h11 drops each extension as it comes")
    async with serving() as port:
        async with connected(port) as (reader, writer):
            writer.write(begin)
            answer = asyncio.create_task(everything(reader))
            sent = 0
            while not answer.done() and sent < 5_000_000:
                writer.write(part.replace(b"%d", str(sent).encode()))
                sent += len(part)
                try:
                    await writer.drain()
                except ConnectionError:
                    break
                await asyncio.sleep(0)
            assert (await answer)[9:12] in {b"", b"400", b"431"}
            assert sent < 3_000_000
        assert await is_well(port)


async def test_a_body_of_tiny_chunks_and_one_of_a_megabyte_are_taken():
    async with serving() as port, connected(port) as (reader, writer):
        assert await ask(reader, writer, POST + b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n") == (b"200", b"200000")
        assert await ask(reader, writer, POST + b"100000\r\n" + b"x" * 0x100000 + b"\r\n0\r\n\r\n") == (b"200", b"1048576")


async def test_beyond_so_many_connections_a_new_one_is_told_to_come_back(monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    async with serving() as port, connected(port) as first, connected(port):
        assert await ask(*first) == (b"200", b"0")
        async with connected(port) as (reader, _):
            answer = await everything(reader)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after" in answer
        assert await ask(*first) == (b"200", b"0")


async def test_thousands_of_requests_in_one_breath_do_no_harm():
    async with serving() as port:
        async with connected(port) as (reader, writer):
            writer.write((HEAD + b"\r\n") * 5_000)
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(1), BOUND)
        assert await is_well(port)


async def test_an_answer_that_is_ready_is_one_answer_among_others():
    async with serving() as port, connected(port) as (reader, writer):
        for _ in range(3):
            assert await ask(reader, writer, ASK_READY) == (b"200", b"ready")
            assert await ask(reader, writer, POST + b"1\r\nx\r\n0\r\n\r\n") == (b"200", b"1")


async def test_an_answer_that_is_ready_has_a_date():
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(ASK_READY)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND)
        assert sorted(line.split(b":")[0] for line in head.split(b"\r\n")[1:-2]) == [b"content-length", b"date"]


async def test_requests_that_came_together_are_answered_in_turn():
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(ASK_READY + ASK_READY + HEAD + b"\r\n" + ASK_READY)
        assert [(await ask(reader, writer, b""))[1] for _ in range(4)] == [b"ready", b"ready", b"0", b"ready"]


@pytest.mark.parametrize("came", [1, 20, len(ASK_READY) - 1])
async def test_the_beginning_of_the_next_request_may_come_before_the_answer(came):
    async with serving() as port, connected(port) as (reader, writer):
        assert await ask(reader, writer, ASK_READY + ASK_READY[:came]) == (b"200", b"ready")
        assert await ask(reader, writer, ASK_READY[came:]) == (b"200", b"ready")


@pytest.mark.parametrize("asked", [b"GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"GET /ready HTTP/1.0\r\n\r\n"])
async def test_who_asks_for_one_answer_gets_the_end_after_it(asked):
    async with serving() as port, connected(port) as (reader, writer):
        assert await ask(reader, writer, asked) == (b"200", b"ready")
        assert await everything(reader) == b""


async def test_an_answer_that_is_ready_before_the_body_came_is_given_all_the_same():
    async with serving() as port, connected(port) as (reader, writer):
        head = b"POST /ready HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        assert await ask(reader, writer, head) == (b"200", b"ready")
        writer.write(b"xyz")
        assert await ask(reader, writer, ASK_READY) == (b"200", b"ready")


async def test_what_is_no_http_after_an_answer_that_is_ready_ends_the_connection():
    async with serving() as port:
        async with connected(port) as (reader, writer):
            assert await ask(reader, writer, ASK_READY) == (b"200", b"ready")
            writer.write(b"nonsense\r\n\r\n")
            assert (await everything(reader))[9:12] == b"400"
        assert await is_well(port)


SWITCH = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
NEXT = b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n"
COUNTED = b"POST / HTTP/1.1\r\nHost: a\r\n" + SWITCH + b"Content-Length: %d\r\n\r\n%s" % (len(NEXT), NEXT)
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\n" + SWITCH + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(NEXT), NEXT)
BARE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize(("asked", "size"), [(COUNTED, len(NEXT)), (CHUNKED, len(NEXT)), (BARE, 0)], ids=["counted", "chunked", "bare"])
@pytest.mark.parametrize("step", [1, 37, 10_000])
async def test_who_would_like_another_protocol_has_a_body_all_the_same_and_what_stands_in_it_is_no_request(asked, size, step):
    """Java's client asks for HTTP/2 so with its first request."""
    async with serving() as port, connected(port) as (reader, writer):
        raw = asked + ASK_READY + asked
        for begin in range(0, len(raw), step):
            writer.write(raw[begin : begin + step])
            await writer.drain()
            await asyncio.sleep(0)
        expected = (b"200", str(size).encode())
        assert await answers(reader, 3) == [expected, (b"200", b"ready"), expected]
        assert await ask(reader, writer, ASK_READY) == (b"200", b"ready")


async def test_thousands_who_would_like_another_protocol_in_one_breath_do_no_harm():
    async with serving() as port:
        async with connected(port) as (reader, writer):
            writer.write(BARE * 5_000)
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(1), BOUND)
        assert await is_well(port)


async def test_what_is_no_http_behind_an_early_answer_gets_no_second_one(caplog):
    async with serving() as port:
        async with connected(port) as (reader, writer):
            early = b"POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            assert (await ask(reader, writer, early))[0] == b"200"
            writer.write(b"zz\r\n")
            assert await everything(reader) == b""
        assert await is_well(port)
    assert [record for record in caplog.records if record.exc_info] == []


async def test_an_answer_under_way_has_no_other_in_its_middle(parser):
    if parser == "h11":
        pytest.skip("h11 reads one request after the other")
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"\r\nno http\r\n\r\n")
        assert await everything(reader) == b"2\r\nxx\r\n"


async def test_what_is_no_http_is_told_so_as_all_else():
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(b"nonsense\r\n\r\n")
        head, _, body = (await everything(reader)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/problem+json" in head
        assert json.loads(body)["status"] == 400


async def test_a_target_may_name_its_host():
    async with serving() as port, connected(port) as (reader, writer):
        assert await ask(reader, writer, b"GET http://a/ready HTTP/1.1\r\nHost: a\r\n\r\n") == (b"200", b"ready")


async def test_a_closed_connection_that_nobody_reads_from_is_cut(monkeypatch):
    """Less stands in the buffer than makes a transport say that it is full."""
    monkeypatch.setattr(connections, "READER_SECONDS", 0.2)
    async with running() as (port, server):
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(BOUND):
                while not server.server_state.connections:
                    await asyncio.sleep(0)
                (connection,) = server.server_state.connections
                while connection.transport.get_write_buffer_size() == 0:  # as much as the system takes, and a little more
                    connection.transport.write(b"x" * 30_000)
                    await asyncio.sleep(0)
                connection.transport.close()
                while server.server_state.connections:
                    await asyncio.sleep(0.01)
