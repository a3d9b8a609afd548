"""The command line as a person has it: on a terminal, with a running server and the simulator."""

import asyncio
import json
import re
import signal
from contextlib import contextmanager

import pytest

from tests.cli.running import PATIENCE, call, running
from tests.cli.terminal import BOUND, Terminal
from tests.cli.test_live import CONFIG, KEY
from tests.loopback import free_port, response, say, serve

pytestmark = pytest.mark.long

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a configuration, whose server runs. Its one handler's deliveries end up dead."""
    folder = tmp_path_factory.mktemp("home")
    with running(folder, "simulate", "--port", 0, "--speed", 4) as simulator:
        url = simulator.line("listens on").split("listens on ")[1].split(". ")[0]
        (folder / "receiver.toml").write_text(CONFIG.format(port=free_port(), key=KEY, simulator=url, nobody=free_port()))
        with running(folder, "serve") as server:
            server.line("listens on")
            yield folder


@contextmanager
def on_terminal(folder, *words):
    terminal = Terminal(folder, *words)
    try:
        yield terminal
    finally:
        terminal.close()


def submit(home, *words):
    code, output, errors = call(home, "submit", *words, "--json")
    assert code in (0, 1), errors
    return [job["id"] for job in json.loads(output)["jobs"]]


def submit_until(home, watch, prompt, said):
    """Submit until a job is spoken of: a stream shows only what happens after it was opened. That job."""
    for _ in range(PATIENCE):
        (job,) = submit(home, "pixazo", "hunyuan-image", "-i", prompt, "--wait")
        words = said(job)
        try:
            watch.read_until(lambda text, words=words: words in ESCAPES.sub("", text), 1)
        except AssertionError:
            continue
        return job
    raise AssertionError(watch.text)


def words_of(terminal):
    return ESCAPES.sub("", terminal.text)


def test_jobs_and_events_are_watched_live(home):
    """Those that were open before, those that come, how they end, and what happens to the handlers."""
    before = submit(home, "oxen", "flux", "-i", "prompt=a boat [sim: seconds=600]", "-i", "num_generations=2")
    with on_terminal(home, "watch") as watch:
        watch.read_until(lambda text: all(job in text for job in before))
        after = submit_until(home, watch, "prompt=x [sim: failed]", lambda job: f"✗ {job}")
        watch.read_until(lambda text: "receiver.dead_letter" in text)
        watch.read_until(lambda text: re.search(rf"✗ {after} failed .*content_rejected", ESCAPES.sub("", text)))
        watch.process.send_signal(signal.SIGINT)
        assert watch.process.wait(BOUND) == 130
        shown = words_of(watch)
    assert re.search(rf"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] {before[0]} queued", shown)
    assert re.search(rf"job.submitted +{after} · pixazo · hunyuan-image", shown)
    assert "handler=nobody" in shown
    assert "2 queued" in shown
    assert "Traceback" not in shown


def test_only_events_that_are_asked_for_scroll_by_and_the_table_has_all_jobs(home):
    with on_terminal(home, "watch", "--type", "job.failed") as watch:
        submit_until(home, watch, "prompt=x", lambda job: f"✓ {job}")
        (bad,) = submit(home, "pixazo", "hunyuan-image", "-i", "prompt=x [sim: failed]")
        watch.read_until(lambda text: re.search(rf"job.failed +{bad}", ESCAPES.sub("", text)))
        assert "job.succeeded" not in watch.text


async def test_what_is_forwarded_goes_on_where_it_stopped(home):
    async with serve(say(response(204))) as peer:
        second = await asyncio.to_thread(forward_one_and_miss_one, home, f"{peer.url}/hook")
        (first,) = {json.loads(seen.body)["subject"] for seen in peer.seen}
    assert first != second[0]
    assert second[1] == second[0]


def forward_one_and_miss_one(home, address):
    """The job whose end nobody was there to forward, and the one that is told first to who goes on."""
    with on_terminal(home, "watch", "--forward", address, "--type", "job.succeeded") as watch:
        submit_until(home, watch, "prompt=x", lambda job: "→ ok")
        watch.process.send_signal(signal.SIGINT)
        watch.read_until(lambda text: "goes on from here" in text)
        (after,) = re.findall(r"--after (evt_[0-9a-f]{32})", watch.text)
        assert watch.process.wait(BOUND) == 130
    (missed,) = submit(home, "pixazo", "hunyuan-image", "-i", "prompt=x", "--wait")
    with running(home, "watch", "--json", "--type", "job.succeeded", "--after", after) as again:
        return missed, json.loads(again.line())["subject"]


@pytest.mark.parametrize("after", ["evt_1", "nonsense"])
def test_an_event_that_is_none_is_a_usage_error(home, after):
    code, _, errors = call(home, "watch", "--json", "--after", after)
    assert (code, "evt_ and 32 hexadecimal digits" in errors) == (2, True)


def test_each_job_that_is_waited_for_has_a_line_that_moves(home):
    with on_terminal(
        home, "submit", "oxen", "flux", "-i", "prompt=a boat [sim: seconds=4]", "-i", "num_generations=2", "--wait"
    ) as waiting:
        waiting.read_until(lambda text: len(re.findall("by (?:stream|poll)", text)) == 2)
        assert waiting.process.wait(BOUND) == 0
        shown = words_of(waiting)
        jobs = set(re.findall(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] (job_[0-9a-f]{32}) (?:queued|processing)", shown))
        assert jobs == set(re.findall(r"(job_[0-9a-f]{32}) succeeded · .* · by (?:stream|poll)", shown))
        assert len(jobs) == 2


def test_a_replay_of_many_asks_with_their_number(home):
    (job,) = submit(home, "pixazo", "hunyuan-image", "-i", "prompt=x", "--wait")
    words = ("replay", "--state", "dead", "--job", job, "--type", "job.succeeded")
    question = f"Deliver again all with state dead, job {job}, event type job.succeeded (1)? [y/N]"
    wait_for_dead(home, job)
    with on_terminal(home, *words) as asking:
        asking.read_until(lambda text: question in text.replace("\r\n", ""))
        asking.type("n\n")
        assert asking.process.wait(BOUND) == 130
    with on_terminal(home, *words) as asking:
        asking.read_until(lambda text: question in text.replace("\r\n", ""))
        asking.type("y\n")
        asking.read_until(lambda text: "1 delivery starts anew" in text)


def wait_for_dead(home, job):
    for _ in range(200):
        code, output, errors = call(home, "dead", "--job", job, "--json")
        assert code == 0, errors
        if json.loads(output)["deliveries"]:
            return
    raise AssertionError("no dead delivery")
