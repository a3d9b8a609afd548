"""Whatever comes by whatever channel in whatever order, and wherever the process dies: the same final jobs, told once."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from receiver.app import Plan, check
from receiver.config import load
from receiver.errors import AnswerLost, NotTaken
from receiver.model import Answer, Channel, Family, Request, Status
from receiver.net import ServerEvent
from receiver.stores.terms import NoticeFilter
from tests.factories import NOW, make_family
from tests.stage import Stage

SPEC = """
base_url = "https://api.acme.example"
[operations.default]
media = ["image"]
[operations.default.submit]
path = "/make"
count = {field = "count", max = 4}
callback = {body = "hook"}
[poll]
path = "/made/{id}"
[list]
path = "/made"
[stream]
path = "/events"
events = ["made"]
[callback]
[status]
queued = ["queued"]
processing = ["running"]
succeeded = ["done"]
failed = ["error"]
[read]
id = "id"
status = "state"
outputs = "urls[]"
error_message = "why"
progress = "progress"
[read.submit]
items = "made[]"
[read.list]
items = "made[]"
"""
CONFIG = """
[server]
public_url = "https://hooks.example.com"
probe_public_url = false
provider_specs = ["specs"]
api_keys = ["a-key-of-the-story"]
[polling]
deadline = "1d"
interval = "5s"
overdue_after = "60s"
[providers.acme]
api_key = "key-of-acme"
confirm = {confirm}
submit_attempts = 1000
[[handlers]]
name = "tell"
use = "log"
events = ["job.*"]
retry = {{attempts = 1000, first = "1s", max = "2s"}}
"""
MEMORY = Path("/dev/shm")  # a crash of ours loses nothing there, and a flush takes no time
FINALS = {"job.succeeded", "job.failed", "job.cancelled", "job.expired"}
OUTCOMES = st.sampled_from(["done", "error"])


class Acme:
    """The provider: it takes a submission once, and each of its generations ends as it ends, whoever is told."""

    def __init__(self, ends: list[str]) -> None:
        self.ends = ends
        self.answers: list[str] = []  # to the next submits, from the front; then they are taken and answered
        self.told_early: list[tuple[int, str]] = []  # what is called back while the submit is under way
        self.taken = 0
        self.token = ""
        self.state = ["queued"] * len(ends)
        self.call_back: Any = None

    async def reply(self, request: Request) -> Answer:
        path = urlsplit(request.url).path
        if request.method == "POST":
            return await self._take(json.loads(request.body))
        if not self.taken:
            return Answer(status=404, body=b"{}")
        if path == "/made":
            return answer({"made": [self.show(number) for number in range(len(self.ends)) if self.state[number] in ("queued", "running")]})
        return answer(self.show(int(path.rpartition("-")[2])))

    async def _take(self, body: dict[str, Any]) -> Answer:
        how = self.answers.pop(0) if self.answers else "answered"
        if how == "unreachable":
            raise NotTaken("no connection")
        if how == "too many":
            return Answer(status=429, headers={"retry-after": "1"})
        self.taken += 1
        self.token = body["hook"].rpartition("/")[2]
        for number, state in self.told_early:
            await self.call_back(self.say(number, state))
        if how == "lost":
            raise AnswerLost("the connection broke")
        if how == "garbled":
            return Answer(status=200, body=b"<html>")
        return answer({"made": [self.show(number) for number in range(body["count"])]})

    def show(self, number: int) -> dict[str, Any]:
        return self.speak(number, self.state[number])

    def say(self, number: int, state: str) -> bytes:
        """News of a generation; once it was said to have ended, it has."""
        state = self.ends[number] if state == "end" else state
        if state in ("done", "error") or self.state[number] == "queued":
            self.state[number] = state
        return json.dumps(self.speak(number, state)).encode()

    def speak(self, number: int, state: str) -> dict[str, Any]:
        said: dict[str, Any] = {"id": f"made-{number}", "state": state}
        match state:
            case "running":
                said["progress"] = 0.5
            case "done":
                said["urls"] = [f"https://cdn.acme.example/{number}.png"]
            case "error":
                said["why"] = f"no boats for {number}"
        return said


def answer(document: Any) -> Answer:
    return Answer(status=200, body=json.dumps(document).encode())


NEWS = st.tuples(st.integers(0, 2), st.sampled_from(["queued", "running", "end"]))
POISON = st.binary(max_size=40) | st.sampled_from(
    [
        b"[" * 5_000,
        b'{"id": "made-0", "state": null}',
        b'{"id": ["made-0"], "state": "running"}',
        b'{"id": "made-9", "state": "done"}',
        b'{"id": "made-0", "state": "running", "urls": {"a": [1e999]}}',
        b'{"id": "\\ud800", "state": "running", "why": "\\u0000"}',
    ]
)


class Interleaving(RuleBasedStateMachine):
    """Each rule is one thing that happens, or one pass; `dies` puts a crash before the next writes."""

    @initialize(ends=st.lists(OUTCOMES, min_size=1, max_size=3), confirm=st.booleans(), dies=st.integers(-1, 5), before=st.booleans())
    def begin(self, ends: list[str], confirm: bool, dies: int, before: bool) -> None:
        self.runner = asyncio.Runner()
        self.runner.get_loop().set_exception_handler(lambda loop, context: None)  # tasks of a process that was killed
        self.folder = Path(tempfile.mkdtemp(prefix="interleaving-", dir=MEMORY if MEMORY.is_dir() else None))
        self.acme, self.kept, self.handled = Acme(ends), 0, Counter[str]()
        self.fails = 0
        self.stage = Stage(make_plan(self.folder, confirm), NOW, self.acme.reply, self.handle)
        self.acme.call_back = self.take_callback
        self.family: Family = make_family(len(ends), provider="acme", model=None, input={"count": len(ends)}, deadline_seconds=86_400.0)
        self.runner.run(self.stage.open())
        self.runner.run(self.stage.store.create_submission(self.family))
        if dies < 0:
            return  # it waits to be sent
        if dies:
            self.stage.arm(dies, before=before)
        self.do(lambda: self.stage.run_pass("submit"))
        self.do(lambda: self.stage.run_pass("stream"))

    async def handle(self, event: Any) -> None:
        self.handled[event.id] += 1
        if self.fails:
            self.fails -= 1
            raise RuntimeError("the handler fell over")

    async def take_callback(self, body: bytes) -> None:
        if await self.stage.call_back("acme", self.acme.token, body):
            self.kept += 1

    def do(self, work: Any) -> None:
        self.runner.run(self.stage.do(work))

    # What happens

    @rule(writes=st.integers(1, 6), before=st.booleans())
    def dies(self, writes: int, before: bool) -> None:
        self.stage.arm(writes, before=before)

    @rule(how=st.sampled_from(["unreachable", "too many", "lost", "garbled", "answered"]))
    def answers_next_submit(self, how: str) -> None:
        self.acme.answers.append(how)

    @rule(news=NEWS)
    def is_told_before_the_answer(self, news: tuple[int, str]) -> None:
        if not self.acme.taken and news[0] < len(self.acme.ends):
            self.acme.told_early.append(news)

    @rule(news=NEWS)
    def calls_back(self, news: tuple[int, str]) -> None:
        if self.acme.taken and news[0] < len(self.acme.ends):
            self.do(lambda: self.take_callback(self.acme.say(*news)))

    @rule(body=POISON)
    def calls_back_poison(self, body: bytes) -> None:
        if self.acme.taken and (b"made-9" not in body or all(job.remote_id for job in self.runner.run(self.read()).jobs)):
            self.do(lambda: self.take_callback(body))

    @rule(news=NEWS)
    def tells_by_stream(self, news: tuple[int, str]) -> None:
        if self.acme.taken and news[0] < len(self.acme.ends):
            self.do(lambda: self.stage.hear(ServerEvent("made", self.acme.say(*news).decode())))

    @rule(body=POISON)
    def tells_poison_by_stream(self, body: bytes) -> None:
        self.do(lambda: self.stage.hear(ServerEvent("made", body.decode(errors="replace"))))

    @rule(number=st.integers(0, 2))
    def ends_in_silence(self, number: int) -> None:
        if self.acme.taken and number < len(self.acme.ends):
            self.acme.say(number, "end")

    @rule(times=st.integers(1, 3))
    def handler_fails(self, times: int) -> None:
        self.fails = times

    # The passes

    @rule(name=st.sampled_from(["submit", "settle", "poll", "stream", "dispatch", "sweep"]))
    def runs(self, name: str) -> None:
        self.do(lambda: self.stage.run_pass(name))

    @rule(name=st.sampled_from(["submit", "settle", "poll", "dispatch"]), writes=st.integers(1, 5), before=st.booleans())
    def dies_during(self, name: str, writes: int, before: bool) -> None:
        self.stage.arm(writes, before=before)
        self.do(lambda: self.stage.run_pass(name))

    @rule(seconds=st.sampled_from([1, 5, 61, 300]))
    def time_passes(self, seconds: int) -> None:
        self.stage.clock.advance(timedelta(seconds=seconds))

    @rule()
    def is_killed(self) -> None:
        self.stage.is_dead = True
        self.do(lambda: asyncio.sleep(0))

    # What must be true in the end

    def teardown(self) -> None:
        if not hasattr(self, "family"):
            return
        try:
            self.stage._left, self.fails, self.acme.answers = None, 0, []
            self.runner.run(self.come_home())
            self.runner.run(self.look())
        finally:
            self.runner.run(self.stage.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    async def come_home(self) -> None:
        """Everything ends at the provider, which tells it once more, as it does when it was answered badly."""
        for turn in range(60):
            for name in ("submit", "settle", "stream", "poll", "settle", "dispatch", "sweep"):
                await self.stage.do(lambda name=name: self.stage.run_pass(name))
            self.stage.clock.advance(timedelta(seconds=5 * turn))
            if turn == 3:
                for number in range(len(self.acme.ends)):
                    await self.stage.do(lambda number=number: self.tell_the_end(number))
            if await self.is_home():
                return
            if turn == 40 and not self.acme.taken:  # marked as sent, and never sent: nobody can know
                self.stage.clock.advance(timedelta(days=1))
        raise AssertionError(f"not home: {[(job.status, job.error) for job in (await self.read()).jobs]}")

    async def tell_the_end(self, number: int) -> None:
        if self.acme.taken:
            await self.take_callback(self.acme.say(number, "end"))

    async def is_home(self) -> bool:
        store = self.stage.store
        is_final = all(job.is_final for job in (await self.read()).jobs)
        return is_final and await store.inbox_depth() == 0 and not await store.count_deliveries()

    async def read(self) -> Family:
        return (await self.stage.store.load_families([self.family.submission.id]))[self.family.submission.id]

    async def look(self) -> None:
        store, family = self.stage.store, await self.read()
        assert self.acme.taken <= 1, "submitted twice"
        events = [event for _, event, _ in await store.read_events(0, 10_000)]
        if self.acme.taken:
            ends = {job.remote_id: (job.status, [one.url for one in job.outputs], job.error and job.error.message) for job in family.jobs}
            assert ends == {f"made-{number}": self.end_of(number) for number in range(len(self.acme.ends))}
        else:
            assert {job.status for job in family.jobs} == {Status.EXPIRED}
        for job in family.jobs:
            finals = [event for event in events if event.subject == job.id and event.type in FINALS]
            assert [(event.type, event.data["late"]) for event in finals] == [(f"job.{job.status}", False)]
            sequences = [int(event.sequence) for event in events if event.subject == job.id]
            assert sequences == sorted(set(sequences))
        assert self.handled.keys() == {event.id for event in events if event.subject}, "each event reaches its handler, and no other does"
        notices = (await store.read_notices(NoticeFilter(channel=Channel.CALLBACK), 1_000, None, 0)).rows
        assert len(notices) >= self.kept, "what was acknowledged is there"
        assert None not in {notice.outcome for notice in notices}

    def end_of(self, number: int) -> tuple[Status, list[str], str | None]:
        if self.acme.ends[number] == "done":
            return Status.SUCCEEDED, [f"https://cdn.acme.example/{number}.png"], None
        return Status.FAILED, [], f"no boats for {number}"


def make_plan(folder: Path, confirm: bool) -> Plan:
    (folder / "specs").mkdir()
    (folder / "specs" / "acme.toml").write_text(SPEC)
    return check(load(CONFIG.format(confirm=str(confirm).lower()), {}, folder=folder))


class ManyInterleavings(Interleaving):
    """The same, for longer."""


def limit(examples: int, steps: int) -> settings:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    phases = [Phase.explicit, Phase.reuse, Phase.generate]  # to make a failure smaller takes longer than a test may take
    return settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, phases=phases)


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = limit(10, 25)
TestManyInterleavings = pytest.mark.long(ManyInterleavings.TestCase)
TestManyInterleavings.settings = limit(30, 50)


@pytest.mark.parametrize("dies", range(1, 6))
@pytest.mark.parametrize("before", [True, False])
def test_wherever_a_submit_dies_it_is_sent_once_and_comes_home(dies, before):
    machine = Interleaving()
    machine.begin(ends=["done", "error"], confirm=False, dies=dies, before=before)
    machine.teardown()
