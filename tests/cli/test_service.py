"""`receiver serve` and `receiver poll` as processes: where they listen, how they start and stop."""

import asyncio
import json
import signal
import socket
import urllib.request

import pytest

from receiver.cli.bounds import Bounded
from receiver.cli.sockets import open_sockets
from tests.cli.running import PATIENCE, call, running
from tests.loopback import free_port


def read(url):
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return answer.status, dict(answer.headers), json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_stops_in_order(tmp_path, number):
    with running(tmp_path, "serve", "--port", 0) as server:
        url = server.line().removeprefix("Receiver listens on ")
        status, headers, body = read(f"{url}/healthz")
        assert (status, body, "server" in {name.lower() for name in headers}) == (200, {"status": "ok"}, False)
        assert server.stop(number) == 0


def test_tokens_and_secrets_stand_in_no_log_line(tmp_path):
    (tmp_path / "receiver.toml").write_text('[server]\nsecrets = ["a-long-secret-of-mine"]\napi_keys = ["rcv_0123456789abcdef"]\n')
    with running(tmp_path, "serve", "--port", 0, "-v") as server:
        url = server.line().removeprefix("Receiver listens on ")
        request = urllib.request.Request(f"{url}/callbacks/pixazo/a-token-in-the-path", b"{}", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=PATIENCE)
        server.stop()
        said = "\n".join(server.errors)
        assert "receiver.stopping" in said
        assert not any(word in said for word in ("a-token-in-the-path", "a-long-secret-of-mine", "rcv_0123456789abcdef"))


def test_the_socket_can_come_from_systemd(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        shell = ("bash", "-c", f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&{listener.fileno()}', "bash")
        with running(tmp_path, "serve", "--port", free_port(), prefix=shell, pass_fds=(listener.fileno(),)) as server:
            assert server.line() == f"Receiver listens on http://127.0.0.1:{port}"
            assert read(f"http://127.0.0.1:{port}/healthz")[0] == 200
            assert server.stop() == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_answer_does_not_wait_for_the_receipt_of_the_one_before(host):
    """On asyncio's own loop, for which it is the listening socket that says so."""
    [listener] = open_sockets(host, 0, {}, "receiver.toml")
    is_prompt = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        is_prompt.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
        writer.close()

    async with await asyncio.start_server(serve, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        assert await asyncio.wait_for(is_prompt, PATIENCE)
        writer.close()


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(PATIENCE)
        with running(tmp_path, "poll", environ={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as daemon:
            assert notified.recv(100) == b"READY=1"
            assert daemon.stop() == 0
            assert notified.recv(100) == b"STOPPING=1"


def test_sockets_meant_for_another_process_are_left_alone(tmp_path):
    with running(tmp_path, "serve", "--port", 0, environ={"LISTEN_FDS": "1", "LISTEN_PID": "1"}) as server:
        assert "http://127.0.0.1:" in server.line()


def test_the_daemon_does_everything_but_http(tmp_path):
    with running(tmp_path, "poll") as daemon:
        assert daemon.line() == "Receiver runs: submit, settle, poll, stream, dispatch"
        assert daemon.stop() == 0


def test_a_server_without_the_web_does_not_listen(tmp_path):
    with running(tmp_path, "serve", "--roles", "dispatch,settle") as server:
        assert server.line() == "Receiver runs: dispatch, settle"
        assert server.stop() == 0


def test_a_port_that_is_taken_is_exit_code_2(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, errors = call(tmp_path, "serve", "--port", taken.getsockname()[1])
    assert (code, "cannot listen on 127.0.0.1:" in errors, "Traceback" in errors) == (2, True, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("serve", "--host", "0.0.0.0"), "server.host"),
        (("serve", "--roles", "wbe"), "wbe is no role"),
        (("poll", "--roles", "web"), "web is no role"),
        (("serve", "--port", "70000"), "70000"),
    ],
)
def test_what_may_not_be_is_refused_before_anything_is_opened(receiver, tmp_path, words, said):
    result = receiver(*words)
    assert (result.exit_code, said in result.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_neither_a_handler_that_cannot_be_closed_nor_one_that_lets_nothing_end_it_keeps_the_process(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import asyncio\n\n\nclass Raises:\n    def __init__(self, options, context):\n        pass\n\n"
        "    async def handle(self, event):\n        pass\n\n"
        "    async def close(self):\n        raise RuntimeError('half closed')\n\n\n"
        "async def stay():\n    while True:\n        try:\n            await asyncio.Event().wait()\n"
        "        except asyncio.CancelledError:\n            pass\n\n\n"
        "class Stays(Raises):\n    async def start(self):\n        self.task = asyncio.create_task(stay(), name='stubborn')\n\n"
        "    async def close(self):\n        pass\n"
    )
    (tmp_path / "receiver.toml").write_text(
        '[[handlers]]\nname = "raises"\nuse = "odd:Raises"\n[[handlers]]\nname = "stays"\nuse = "odd:Stays"\n'
    )
    with running(tmp_path, "poll") as daemon:
        daemon.line("Receiver runs")
        assert daemon.stop() == 0
        said = "\n".join(daemon.errors)
        assert "handler.not_closed" in said
        assert "half closed" in said
        assert "left_behind" in said
        assert "stubborn" in said


def test_the_second_signal_ends_it_at_once(tmp_path):
    """A handler that does not let go would keep an orderly stop for seconds."""
    (tmp_path / "stubborn.py").write_text(
        "import asyncio\n\n\nclass Stubborn:\n    def __init__(self, options, context):\n        pass\n\n"
        "    async def handle(self, event):\n        pass\n\n"
        "    async def close(self):\n        print('closing', flush=True)\n        await asyncio.Event().wait()\n"
    )
    (tmp_path / "receiver.toml").write_text('[[handlers]]\nname = "stubborn"\nuse = "stubborn:Stubborn"\n')
    with running(tmp_path, "poll") as daemon:
        daemon.line("Receiver runs")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.line("closing")
        assert daemon.stop(signal.SIGTERM) == 128 + signal.SIGTERM


async def test_what_is_too_much_is_told_to_come_back():
    async def app(scope, receive, send):
        under_way.set()
        await let_go.wait()

    async def send(message):
        sent.append(message)

    sent, under_way, let_go = [], asyncio.Event(), asyncio.Event()
    bounded = Bounded(app, most=1)
    first = asyncio.create_task(bounded({"type": "http"}, None, send))
    await under_way.wait()
    await bounded({"type": "http"}, None, send)
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"retry-after"]) == (503, b"5")
    let_go.set()
    await first
    sent.clear()
    await bounded({"type": "http"}, None, send)
    assert sent == []
