"""Any bytes by any channel of any provider: kept and settled, unreadable or refused; never lost, never a dead loop, nobody held up."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.app import check
from receiver.config import load
from receiver.decisions import Decision
from receiver.errors import AnswerLost
from receiver.model import Answer, Channel, Family, Job, Outcome, Request, Status, SubmissionState, Update
from receiver.net import ServerEvent
from receiver.rules import apply_accepted
from receiver.stores.terms import JobFilter, NoticeFilter
from tests.factories import NOW, make_family
from tests.stage import Stage

RECORDED = Path(__file__).parents[1] / "recorded"
MEMORY = Path("/dev/shm")
PROVIDERS = ("elkapi", "fal", "hoox", "huzz", "openai", "oxen", "pixazo", "replicate")
CALL_BACK = [name for name in PROVIDERS if (RECORDED / name / "callback.json").exists()]
MODELS = {"pixazo": "hunyuan-image", "huzz": "kling/kling-v2.6-pro/text-to-video", "hoox": "veo-3.1", "openai": "sora-2"}
SIGNED = {"replicate", "openai"}
CONFIG = """
[server]
public_url = "https://hooks.example.com"
probe_public_url = false
api_keys = ["a-key-of-the-story"]
[polling]
deadline = "1d"
interval = "5s"
overdue_after = "60s"
[[handlers]]
name = "tell"
use = "log"
events = ["job.*"]
retry = {attempts = 2, first = "1s", max = "1s"}
"""
FEW = settings(max_examples=max(settings.default.max_examples // 3, 8), deadline=None)

# Bytes


def recordings(provider: str) -> list[tuple[str, Any]]:
    """(the id that it speaks of, the document) of everything that was recorded of a provider."""
    known = cases(provider, "poll")[0]["remote_id"]
    files = sorted((RECORDED / provider).glob("*.json"))
    return [(known, case["body"]) for file in files for case in json.loads(file.read_text()) if "body" in case]


def cases(provider: str, kind: str) -> Any:
    return json.loads((RECORDED / provider / f"{kind}.json").read_text())


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*path, key))


def put(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], odd)
    return copy


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "completed", "data:,x", 10**400, "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NONSENSE = st.binary(max_size=60) | st.sampled_from(
    [b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"status":' * 900, b"\xef\xbb\xbf{}", b"<html>", b'"\\ud800"', b"1e99999", b"\0" * 1000]
)


@st.composite
def bent(draw: st.DrawFn, provider: str) -> tuple[str, bytes]:
    """Something that the provider says, with odd values in up to three places, perhaps cut off; or what nobody says."""
    known, document = draw(st.sampled_from(recordings(provider)))
    if draw(st.integers(0, 5)) == 0:
        return known, draw(NONSENSE)
    for _ in range(draw(st.integers(0, 3))):
        document = put(document, draw(st.sampled_from(list(paths(document)))), draw(ODD))
    body = json.dumps(document).encode()
    return known, body[: draw(st.integers(0, len(body)))] if draw(st.integers(0, 4)) == 0 else body


STATUSES = st.sampled_from([200, 200, 200, 201, 202, 204, 301, 400, 401, 404, 409, 418, 429, 500, 502, 503, 599])
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "x-ratelimit-remaining", "x-ratelimit-reset", "content-type"]),
    st.sampled_from(["", "0", "-1", "1", "soon", "9" * 30, "nan", "1e400", "Wed, 21 Oct 2099 07:28:00 GMT", "0.0000001"]),
    max_size=3,
)

# The installation


class Town:
    """One stage with all the providers, for many examples: each has a submission of its own."""

    def __init__(self, folder: Path) -> None:
        tables = "".join(f'[providers.{name}]\napi_key = "key-of-{name}"\n{secret_of(name)}' for name in PROVIDERS)
        self.stage = Stage(check(load(CONFIG + tables, {}, folder=folder)), NOW, self.reply, self.handle)
        self.answer: Answer | None = None
        self.numbers = iter(range(10**9))
        self.poisonous: set[str] = set()

    async def reply(self, request: Request) -> Answer:
        if self.answer is None:
            raise AnswerLost("no answer")
        return self.answer

    async def handle(self, event: Any) -> None:
        if event.subject in self.poisonous:
            raise RecursionError("this one cannot be handled")

    def name(self) -> str:
        return f"id-of-{next(self.numbers)}"

    async def submitted(self, provider: str) -> Family:
        spec = self.stage.services.accounts[provider].spec
        operation = next(iter(spec.operations))
        now, model = self.stage.clock.now(), MODELS.get(provider, "flux")
        family = make_family(provider=provider, operation=operation, model=model, created_at=now, deadline_seconds=86_400.0)
        await self.stage.store.create_submission(family)
        return family

    async def running(self, provider: str, remote_id: str) -> Family:
        """The provider has taken it; it was not polled yet."""
        family = await self.submitted(provider)
        await self.accept(family, remote_id)
        return family

    async def accept(self, family: Family, remote_id: str) -> None:
        now = self.stage.clock.now()
        accepted = lambda family: Decision(apply_accepted(family, [Update(remote_id=remote_id)], 1, now), Channel.SUBMIT)  # noqa: E731
        assert await self.stage.services.settling.settle({family.submission.id: accepted}, now)

    async def read(self, family: Family) -> Family:
        return (await self.stage.store.load_families([family.submission.id]))[family.submission.id]

    async def only_job(self, family: Family) -> Job:
        return (await self.read(family)).jobs[0]

    async def run(self, *names: str) -> None:
        for name in names:
            await self.stage.do(lambda name=name: self.stage.run_pass(name))

    async def notices(self, family: Family, channel: Channel) -> list[Any]:
        entries = await self.stage.store.read_timeline(family.jobs[0].id)
        rows = [entry.row for entry in entries or ()]
        return [row for row in rows if getattr(row, "channel", None) is channel]

    async def is_cared_for(self, family: Family) -> None:
        """Each job has ended, or will be asked about, not at once again and again; or it waits for a person or its deadline."""
        now = self.stage.clock.now()
        after = await self.read(family)
        polls = await self.stage.store.load_polls([job.id for job in after.jobs])
        for job in after.jobs:
            if job.is_final or job.status is Status.UNCONFIRMED:
                continue
            if job.remote_id is None:
                assert after.submission.state is SubmissionState.WAITING
                assert after.submission.next_attempt_at > now
            else:
                assert now < polls[job.id].due_at <= job.deadline_at + timedelta(hours=2)

    async def clear(self) -> None:
        """Out of the way of the next example: the jobs, and what was learned of the providers."""
        stage = self.stage
        stage.clock.advance(timedelta(days=2))
        await self.run("sweep")
        for job in (await stage.store.read_jobs(JobFilter(), 100, None)).rows:
            await stage.store.delete_job(job.id)
        await self.forget_faults()

    async def forget_faults(self) -> None:
        """What keeps failing would be left alone for a while."""
        for provider in await self.stage.store.read_breakers():
            await self.stage.store.forgive(provider)
        self.stage._house._limiter._paused_until.clear()
        await self.run("sweep")


def secret_of(name: str) -> str:
    return 'callback_secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]\n' if name in SIGNED else ""


@pytest.fixture
def town() -> Iterator[Callable[[Callable[[Town], Awaitable[None]]], None]]:
    """Runs a story in the town, from hypothesis' own synchronous world."""
    folder = Path(tempfile.mkdtemp(prefix="town-", dir=MEMORY if MEMORY.is_dir() else None))
    with asyncio.Runner() as runner:
        place = Town(folder)
        runner.run(place.stage.open())
        try:
            yield lambda story: runner.run(asyncio.wait_for(story(place), 60))
        finally:
            runner.run(place.stage.close())
            shutil.rmtree(folder)


# The stories


@pytest.mark.parametrize("provider", CALL_BACK)
def test_any_callback_is_kept_and_settled_and_its_neighbours_too(town, provider):
    @FEW
    @given(bent(provider), bent(provider))
    def each(first, second):
        town(lambda place: is_settled(place, provider, [first, second]))

    each()


async def is_settled(place: Town, provider: str, said: list[tuple[str, bytes]]) -> None:
    stage, remote_id, other_id = place.stage, place.name(), place.name()
    family, neighbour = await place.running(provider, remote_id), await place.running("elkapi", other_id)
    account_wide = stage.services.accounts[provider].is_account_wide
    kept = []
    good = json.dumps({"id": other_id, "status": "completed", "outputs": ["https://cdn.elk.example/1.png"]}).encode()
    for whose, body in [*((family, body.replace(known.encode(), remote_id.encode())) for known, body in said), (neighbour, good)]:
        name, submission_id = whose.submission.provider, whose.submission.id
        token = None if account_wide and whose is family else stage.tokens.make(name, submission_id)
        owner = submission_id if token else None
        kept.append((await stage.services.inbox.keep(name, token, owner, {}, body)).id)
    await place.run("settle")
    assert await stage.store.inbox_depth() == 0
    notices = [await stage.store.read_notice(notice_id) for notice_id in kept]
    assert None not in [notice and notice.outcome for notice in notices]
    for (_, body), notice in zip(said, notices, strict=False):
        assert is_json(body) or notice.outcome is Outcome.UNREADABLE, "what cannot be read shows as that"
    assert (notices[-1].outcome, notices[-1].reason) == (Outcome.APPLIED, None)
    assert (await place.only_job(neighbour)).status is Status.SUCCEEDED
    job = await place.only_job(family)
    if not job.is_final and {Outcome.UNREADABLE, Outcome.MISMATCHED, Outcome.WAITING} & {notices[0].outcome, notices[1].outcome}:
        if not account_wide:
            assert (await stage.store.load_polls([job.id]))[job.id].due_at <= stage.clock.now(), "what cannot be used is asked for at once"
    else:
        await place.is_cared_for(family)
    await place.clear()


def is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize("provider", PROVIDERS)
def test_any_answer_to_a_poll_leaves_the_job_ended_or_asked_about_again_later(town, provider):
    @FEW
    @given(bent(provider), STATUSES, HEADERS)
    def each(said, status, headers):
        town(lambda place: is_polled(place, provider, said, status, headers))

    each()


async def is_polled(place: Town, provider: str, said: tuple[str, bytes], status: int, headers: dict[str, str]) -> None:
    remote_id = place.name()
    family = await place.running(provider, remote_id)
    place.answer = Answer(status=status, headers=headers, body=said[1].replace(said[0].encode(), remote_id.encode()))
    for _ in range(4):  # the same again: an id may be denied several times
        place.stage.clock.advance(timedelta(hours=2))
        await place.forget_faults()
        await place.run("poll")
        await place.is_cared_for(family)
    polled = await place.notices(family, Channel.POLL)
    assert polled
    assert None not in [notice.outcome for notice in polled]
    await place.clear()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_any_answer_to_a_submit_is_told_and_never_sent_again_in_doubt(town, provider):
    @FEW
    @given(bent(provider), STATUSES, HEADERS)
    def each(said, status, headers):
        town(lambda place: is_submitted(place, provider, said, status, headers))

    each()


async def is_submitted(place: Town, provider: str, said: tuple[str, bytes], status: int, headers: dict[str, str]) -> None:
    family = await place.submitted(provider)
    place.answer = Answer(status=status, headers=headers, body=said[1].replace(said[0].encode(), place.name().encode()))
    await place.run("submit")
    after = await place.read(family)
    assert after.submission.state in {SubmissionState.ANSWERED, SubmissionState.LOST, SubmissionState.WAITING}
    if after.submission.state is SubmissionState.WAITING:
        assert status in {429, 503} or provider in {"oxen", "hoox", "fal", "replicate"}
    if after.submission.state is SubmissionState.LOST:
        assert {job.status for job in after.jobs} == {Status.UNCONFIRMED}
    assert [notice.http_status for notice in await place.notices(family, Channel.SUBMIT)] == [status]
    await place.is_cared_for(family)
    await place.clear()


def test_any_event_of_a_stream_leaves_it_open_and_the_jobs_asked_about(town):
    @FEW
    @given(bent("oxen"), st.sampled_from(["media_generation_completed", "message", "", "heartbeat"]))
    def each(said, name):
        town(lambda place: is_streamed(place, said, name))

    each()


async def is_streamed(place: Town, said: tuple[str, bytes], name: str) -> None:
    stage, remote_id, other_id = place.stage, place.name(), place.name()
    family, neighbour = await place.running("oxen", remote_id), await place.running("oxen", other_id)
    await place.run("stream")
    done = {"generation_id": other_id, "status": "succeeded", "url": "https://hub.oxen.ai/1.png"}
    body = said[1].replace(said[0].encode(), remote_id.encode())
    events = [ServerEvent(name, body.decode(errors="replace")), ServerEvent("media_generation_completed", json.dumps(done))]
    for event in events:
        await stage.do(lambda event=event: stage.hear(event))
    assert "oxen" in stage._house._streams.up
    assert (await place.only_job(neighbour)).status is Status.SUCCEEDED
    job = await place.only_job(family)
    assert job.is_final or job.id in await stage.store.load_polls([job.id])
    await place.clear()


def test_any_list_hides_no_job_that_it_should_have_named(town):
    @FEW
    @given(bent("oxen"), STATUSES)
    def each(said, status):
        town(lambda place: is_listed(place, said, status))

    each()


async def is_listed(place: Town, said: tuple[str, bytes], status: int) -> None:
    names = [place.name() for _ in range(3)]
    families = [await place.running("oxen", name) for name in names]
    place.answer = Answer(status=status, body=said[1].replace(said[0].encode(), names[0].encode()))
    place.stage.clock.advance(timedelta(hours=1))
    await place.run("poll")
    for family in families:
        await place.is_cared_for(family)
    await place.clear()


def test_a_poison_delivery_ends_as_a_dead_letter_and_holds_up_nobody(town):
    async def story(place: Town) -> None:
        stage = place.stage
        sick, well = await place.submitted("elkapi"), await place.submitted("elkapi")
        place.poisonous.add(sick.jobs[0].id)
        for family in (sick, well):
            await place.accept(family, place.name())
        for _ in range(3):
            await place.run("dispatch")
            stage.clock.advance(timedelta(seconds=10))
        states = {}
        for family in (sick, well):
            rows = [entry.row for entry in await stage.store.read_timeline(family.jobs[0].id) or ()]
            states[family.jobs[0].id] = {row.state.value for row in rows if hasattr(row, "attempts")}
        assert states == {sick.jobs[0].id: {"dead"}, well.jobs[0].id: {"done"}}

    town(story)


def test_a_notice_that_kills_its_settler_every_time_is_set_aside_after_some_tries(town):
    async def story(place: Town) -> None:
        stage = place.stage
        family, neighbour = await place.running("elkapi", "elk-1"), await place.running("elkapi", "elk-2")
        for whose, said in [(family, "processing"), (neighbour, "completed")]:
            token = stage.tokens.make("elkapi", whose.submission.id)
            await stage.services.inbox.keep("elkapi", token, whose.submission.id, {}, json.dumps({"status": said}).encode())
        stage.dies_of(family.submission.id)
        while await stage.store.inbox_depth():
            await place.run("settle")
            assert stage.crashes <= 5
        rows = (await stage.store.read_notices(NoticeFilter(channel=Channel.CALLBACK), 10, None, 0)).rows
        assert {row.submission_id: row.outcome for row in rows} == {
            family.submission.id: Outcome.UNREADABLE,
            neighbour.submission.id: Outcome.APPLIED,
        }
        assert (await place.only_job(neighbour)).status is Status.SUCCEEDED

    town(story)


def test_a_notice_that_brings_out_a_bug_is_set_aside_alone(town):
    async def story(place: Town) -> None:
        stage = place.stage
        families = [await place.running("elkapi", f"elk-{number}") for number in range(3)]
        for family in families:
            token = stage.tokens.make("elkapi", family.submission.id)
            await stage.services.inbox.keep("elkapi", token, family.submission.id, {}, b'{"status": "completed"}')
        stage.errs_over(families[1].submission.id)
        await place.run("settle")
        rows = (await stage.store.read_notices(NoticeFilter(channel=Channel.CALLBACK), 10, None, 0)).rows[::-1]
        assert [row.outcome for row in rows] == [Outcome.APPLIED, Outcome.UNREADABLE, Outcome.APPLIED]
        assert stage.crashes == 0

    town(story)


@pytest.mark.parametrize("order", [("processing", "gibberish"), ("gibberish", "processing")])
def test_what_cannot_be_used_is_asked_about_at_once_though_news_came_with_it(town, order):
    async def story(place: Town) -> None:
        stage = place.stage
        family = await place.running("elkapi", "elk-1")
        token = stage.tokens.make("elkapi", family.submission.id)
        for word in order:
            body = json.dumps({"id": "elk-1", "status": word}).encode() if word == "processing" else b"<gibberish>"
            await stage.services.inbox.keep("elkapi", token, family.submission.id, {}, body)
        await place.run("settle")
        job = await place.only_job(family)
        assert job.status is Status.PROCESSING
        assert (await stage.store.load_polls([job.id]))[job.id].due_at == stage.clock.now()

    town(story)


def test_a_submission_that_cannot_be_settled_holds_up_no_deadline_but_its_own(town):
    async def story(place: Town) -> None:
        stage = place.stage
        puzzle, neighbour = await place.running("elkapi", "elk-1"), await place.running("hoox", "hoox-1")
        stage.clock.advance(timedelta(days=1, seconds=1))
        stage.errs_over(puzzle.submission.id)
        await place.run("sweep", "sweep")
        assert (await place.only_job(neighbour)).status is Status.EXPIRED
        stage.errs_over("")
        await place.run("sweep")
        assert (await place.only_job(puzzle)).status is Status.QUEUED  # left alone for a while
        stage.clock.advance(timedelta(minutes=11))
        await place.run("sweep")
        assert (await place.only_job(puzzle)).status is Status.EXPIRED

    town(story)


def test_a_submission_that_cannot_be_settled_holds_up_no_submit(town):
    async def story(place: Town) -> None:
        stage = place.stage
        sent = [await place.submitted("elkapi"), await place.submitted("elkapi")]
        for family in await stage.store.claim_submissions(stage.clock.now(), 10, ["elkapi"]):
            assert await stage.store.mark_sent(family.submission.id, stage.clock.now())
        await stage.close(kill=True)
        await stage.open()
        stage.errs_over(sent[0].submission.id)
        waiting = await place.submitted("hoox")
        await place.run("submit")
        assert [(await place.only_job(family)).status for family in (*sent, waiting)] == [
            Status.SUBMITTING,
            Status.UNCONFIRMED,
            Status.UNCONFIRMED,  # it was sent, and its answer got lost
        ]

    town(story)


def test_outputs_that_nobody_could_fetch_wait_for_what_a_poll_says(town):
    async def story(place: Town) -> None:
        stage = place.stage
        family = await place.running("elkapi", "elk-1")
        token = stage.tokens.make("elkapi", family.submission.id)
        body = b'{"id": "elk-1", "status": "completed", "outputs": ["javascript:1"]}'
        await stage.services.inbox.keep("elkapi", token, family.submission.id, {}, body)
        await place.run("settle")
        assert (await place.only_job(family)).status is Status.QUEUED
        good = body.replace(b"javascript:1", b"https://cdn.example.com/1.mp4")
        place.answer = Answer(status=200, body=good, headers={"content-type": "application/json"})
        await place.run("poll")
        job = await place.only_job(family)
        assert (job.status, [output.url for output in job.outputs]) == (Status.SUCCEEDED, ["https://cdn.example.com/1.mp4"])

    town(story)
