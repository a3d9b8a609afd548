"""The command line against a running server and the simulator, as a user has them."""

import asyncio
import json
import signal
import socket
import subprocess
import sys

import pytest
from standardwebhooks import Webhook

from tests.cli.running import PATIENCE, call, running
from tests.loopback import free_port, response, say, serve

CONFIG = """
[server]
port = {port}
public_url = "http://127.0.0.1:{port}"
api_keys = ["{key}"]

[providers.pixazo]
api_key = "any-key-of-mine"
base_url = "{simulator}/pixazo"

[providers.oxen]
api_key = "any-key-of-mine"
base_url = "{simulator}/oxen/api"

[network]
allow_private = ["127.0.0.0/8"]

[[handlers]]
name = "nobody"
use = "webhook"
retry = {{attempts = 1}}
[handlers.options]
url = "http://127.0.0.1:{nobody}/"
"""
KEY = "rcv_0123456789abcdef"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a configuration, whose server runs."""
    folder = tmp_path_factory.mktemp("home")
    with running(folder, "simulate", "--port", 0, "--speed", 10) as simulator:
        url = simulator.line("listens on").split("listens on ")[1].split(". ")[0]
        port = free_port()
        (folder / "receiver.toml").write_text(CONFIG.format(port=port, key=KEY, simulator=url, nobody=free_port()))
        with running(folder, "serve") as server:
            assert server.line() == f"Receiver listens on http://127.0.0.1:{port}"
            yield folder
            assert server.stop() == 0
        assert simulator.stop(signal.SIGINT) == 0


def ask(folder, *words):
    """The JSON that a command prints; it must go well."""
    code, output, errors = call(folder, *words, "--json")
    assert code == 0, errors
    return json.loads(output)


@pytest.fixture(scope="module")
def done(home):
    """A job that succeeded."""
    return ask(home, "submit", "pixazo", "hunyuan-image", "-i", "prompt=a boat", "--metadata", "team=red", "--wait")["jobs"][0]


def test_a_job_is_submitted_and_waited_for(done):
    assert (done["status"], done["finished_by"], done["metadata"]) == ("succeeded", "callback", {"team": "red"})


def test_a_fan_out_is_shown_with_all_its_outputs(home):
    code, output, _ = call(home, "submit", "oxen", "flux", "-i", "prompt=a boat", "-i", "num_generations=2", "--wait")
    assert (code, output.count("succeeded"), output.count("http://")) == (0, 2, 2)
    assert "\x1b" not in output


def test_a_job_that_failed_is_exit_code_1_with_its_reason(home):
    code, output, _ = call(home, "submit", "pixazo", "hunyuan-image", "-i", "prompt=x [sim: failed]", "--wait")
    assert (code, "content_rejected: content policy violation" in output) == (1, True)


def test_a_mistake_in_the_request_is_exit_code_2_with_its_place(home):
    code, _, errors = call(home, "submit", "pixazo", "hunyuan-imag", "-i", "prompt=x")
    assert (code, "/model: " in errors) == (2, True)


def test_jobs_are_found_by_what_they_are(home, done):
    assert [job["id"] for job in ask(home, "jobs", "--metadata", "team=red", "--status", "succeeded", "--since", "1h")["jobs"]] == [
        done["id"]
    ]
    assert ask(home, "jobs", "--until", "1h") == {"jobs": [], "next_cursor": None}
    code, output, _ = call(home, "jobs", "--provider", "pixazo")
    assert (code, output.splitlines()[0].split()[:2], done["id"] in output) == (0, ["JOB", "STATUS"], True)


def test_a_page_that_is_not_the_last_says_so(home, done):
    call(home, "submit", "pixazo", "hunyuan-image", "-i", "prompt=second")
    code, output, errors = call(home, "jobs", "--limit", 1)
    assert (code, len(output.splitlines()), "There are more" in errors) == (0, 2, True)


def test_a_job_is_shown_with_its_timeline(home, done):
    code, output, _ = call(home, "show", done["id"])
    assert code == 0
    assert all(word in output for word in ("HTTP 202", "callback: applied", "job.succeeded", "team=red"))
    assert ask(home, "show", done["id"], "--raw")["entries"][-1]["kind"] in ("event", "delivery", "notice")


@pytest.mark.parametrize("words", [("show", "job_0"), ("cancel", "job_0"), ("replay", "dlv_0")])
def test_what_is_not_there_is_exit_code_2(home, words):
    code, _, errors = call(home, *words)
    assert (code, "Traceback" in errors) == (2, False)


def test_a_final_job_is_not_cancelled(home, done):
    code, _, errors = call(home, "cancel", done["id"])
    assert (code, "succeeded already" in errors) == (2, True)


def test_dead_deliveries_are_listed_and_replayed(home, done):
    listed = ask(home, "dead", "--job", done["id"])["deliveries"]
    assert [(each["handler"], each["state"]) for each in listed] == [("nobody", "dead")]
    assert listed[0]["id"] in call(home, "dead")[1]
    assert ask(home, "replay", listed[0]["id"])["event_id"] == listed[0]["event_id"]


def test_a_bulk_replay_asks_a_person_and_needs_a_yes_of_a_program(home, done):
    code, _, errors = call(home, "replay", "--handler", "nobody", "--type", "job.succeeded")
    assert (code, "--yes" in errors) == (2, True)
    assert ask(home, "replay", "--handler", "nobody", "--job", done["id"], "--yes")["replayed"] in (0, 1)
    assert call(home, "replay")[0] == 2


def test_providers_and_handlers_are_listed(home, done):
    assert {each["name"] for each in ask(home, "providers")["providers"] if each["configured"]} == {"pixazo", "oxen"}
    assert [each["name"] for each in ask(home, "handlers")["handlers"]] == ["nobody"]
    assert all(word in call(home, "providers")[1] for word in ("pixazo", "callback, poll", "stream, poll"))
    assert "webhook" in call(home, "handlers")[1]


def test_the_key_can_come_from_the_environment_and_a_wrong_one_is_exit_code_2(home):
    code, _, errors = call(home, "jobs", environ={"RECEIVER_API_KEY": "wrong"})
    assert (code, "$RECEIVER_API_KEY" in errors) == (2, True)


def submit_until(home, has_come):
    """Submit until something has come of it: a stream shows only what happens after it was opened."""
    for _ in range(PATIENCE):
        ask(home, "submit", "pixazo", "hunyuan-image", "-i", "prompt=is anyone there", "--wait")
        if has_come():
            return
    raise AssertionError("nothing came")


def test_events_are_watched_as_they_happen(home):
    with running(home, "watch", "--json", "--type", "job.succeed*") as watch:
        submit_until(home, lambda: not watch.lines.empty())
        event = json.loads(watch.line())
        assert (event["specversion"], event["type"], event["data"]["job"]["status"]) == ("1.0", "job.succeeded", "succeeded")
        assert watch.stop(signal.SIGINT) == 130
        assert "".join(watch.errors) == ""


async def test_events_are_forwarded_signed_and_again_when_the_address_failed(home):
    failures = [response(500)]

    async def talk(seen, writer):
        writer.write(failures.pop() if failures else response(204))

    words = ("watch", "--type", "job.succeeded", "--secret", SECRET, "--forward")
    async with serve(talk) as peer:
        with running(home, *words, f"{peer.url}/hook") as watch:
            await asyncio.to_thread(submit_until, home, lambda: len(peer.seen) > 1)
            assert await asyncio.to_thread(watch.line, "→ ok")
            await asyncio.to_thread(watch.stop, signal.SIGINT)
    first, second = peer.seen[:2]
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == json.loads(second.body)["id"]
    assert second.headers["content-type"].startswith("application/cloudevents+json")
    Webhook(SECRET).verify(second.body, second.headers)


async def test_what_receiver_says_about_itself_is_shown_and_forwarded(home):
    async with serve(say(response(204))) as peer:
        with running(home, "watch", "--type", "receiver.*", "--forward", f"{peer.url}/hook") as watch:
            await asyncio.to_thread(submit_until, home, lambda: bool(peer.seen))
            assert "receiver.dead_letter" in await asyncio.to_thread(watch.line, "→ ok")
            await asyncio.to_thread(watch.stop, signal.SIGINT)
    assert "subject" not in json.loads(peer.seen[0].body)


def test_a_secret_is_made_and_told_when_none_is_given(home):
    with running(home, "watch", "--forward", f"http://127.0.0.1:{free_port()}") as watch:
        submit_until(home, lambda: bool(watch.errors))
        assert watch.errors[0].startswith("Signed with whsec_")


@pytest.mark.parametrize(
    "words", [("--forward", "nonsense"), ("--secret", "whsec_x"), ("--forward", "http://127.0.0.1:1", "--secret", "?")]
)
def test_a_forward_that_cannot_work_is_a_usage_error(home, words):
    code, _, errors = call(home, "watch", *words)
    assert (code, "Traceback" in errors) == (2, False)


def test_the_doctor_finds_a_running_installation_well_but_for_what_is_dead(home, done):
    code, output, _ = call(home, "doctor", "--json")
    checks = {check["check"]: check for check in json.loads(output)["checks"]}
    assert {
        name: checks[name]["state"] for name in ("configuration", "database", "server", "public URL", "provider pixazo", "deliveries")
    } == {
        "configuration": "ok",
        "database": "ok",
        "server": "ok",
        "public URL": "ok",
        "provider pixazo": "ok",
        "deliveries": "warn",
    }
    assert (code, checks["handler nobody"]["state"]) == (2, "fail")
    assert KEY not in output


@pytest.mark.parametrize("reader", ["head -1 > /dev/null", "true"])
def test_who_stops_reading_is_not_shouted_at(home, done, reader):
    command = f"{sys.executable} -m receiver show {done['id']} --raw --json | {reader}"
    found = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=home, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_a_stop_ends_open_streams_and_long_polls_in_order(tmp_path):
    with running(tmp_path, "serve", "--port", 0) as server:
        url = server.line().removeprefix("Receiver listens on ")
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as stream:
            stream.sendall(f"GET /v1/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            assert b"200 OK" in stream.recv(4096)
            assert server.stop() == 0
        said = [json.loads(line)["event"] for line in server.errors]
        assert [event for event in said if not event.startswith("loop.")] == ["receiver.stopping"]  # a busy machine may stall the loop


@pytest.mark.parametrize("words", [("jobs", "--server", "foo"), ("show", "job_1", "--server", "ftp://x"), ("watch", "--forward", "nourl")])
def test_what_is_no_address_is_a_mistake_of_the_one_who_types(home, words):
    code, _, errors = call(home, *words)
    assert (code, words[-2] in errors or "is not the address" in errors) == (2, True)


def test_a_file_that_cannot_be_read_is_told_by_its_option(home):
    _, _, errors = call(home, "submit", "pixazo", "hunyuan-image", "--input", "nowhere.json")
    assert "--input" in errors
    assert "nowhere.json cannot be read" in errors


def test_a_cancelled_job_is_shown_as_it_became(home):
    (job,) = ask(home, "submit", "oxen", "flux", "-i", "prompt=x [sim: stuck]")["jobs"]
    code, output, _ = call(home, "cancel", job["id"])
    assert (code, output.split()[:2]) == (0, [job["id"], "cancelled"])
