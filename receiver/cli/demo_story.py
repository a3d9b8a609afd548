"""What happens in the demo: the jobs that are submitted, what goes wrong with them, and the words for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from receiver.client import FINAL, Job, Timeline
from receiver.simulator import Fault, Ledger, Scenario
from receiver.simulator.ledger import CallbackEntry

NAMES = {"elkapi": "Elk API", "hoox": "Hoox", "huzz": "Huzz", "oxen": "Oxen.ai", "pixazo": "Pixazo"}
OVERDUE = 8.0  # seconds after which Pixazo's callback counts as overdue
INTERVAL = 1.0  # seconds between two polls
GAP = 1.2  # seconds between two submits, so that a person can follow


@dataclass(frozen=True)
class Act:
    """One submit and what is to befall it."""

    name: str
    provider: str
    model: str
    media: Literal["image", "video", "audio", "3d"]
    input: dict[str, Any]
    scenario: Scenario
    jobs: int = 1

    @property
    def prompt(self) -> str:
        return str(self.input["prompt"])


def fault(name: Fault, seconds: float) -> Scenario:
    return Scenario(seconds=seconds, faults=frozenset({name}))


TWICE = Act("twice", "elkapi", "kling-v2", "video", {"prompt": "a paper boat in the rain"}, fault(Fault.TWICE, 5))
LOST = Act("lost", "pixazo", "hunyuan-3d", "3d", {"prompt": "a lighthouse of glass"}, fault(Fault.LOST, 4.5))
STREAMED = Act(
    "streamed", "oxen", "flux-2-pro", "image", {"prompt": "an ox in the fog", "num_generations": 2}, Scenario(seconds=7.5), jobs=2
)
POLLED = Act("polled", "huzz", "suno/suno-v5/text-to-music", "audio", {"prompt": "a slow waltz"}, Scenario(seconds=4))
FANNED_OUT = Act(
    "fanned-out", "hoox", "nano-banana-pro", "image", {"prompt": "a harbour at dawn", "generation_count": 2}, Scenario(seconds=4), jobs=2
)
UNANSWERED = Act("unanswered", "elkapi", "flux-kontext", "image", {"prompt": "a letter in a bottle"}, fault(Fault.SUBMIT_LOST, 8))
FORGED = Act("forged", "hoox", "veo-3.1", "video", {"prompt": "tide pools at noon"}, fault(Fault.FORGED, 5))
ACTS = {act.name: act for act in (TWICE, LOST, STREAMED, POLLED, FANNED_OUT, UNANSWERED, FORGED)}
JOBS = sum(act.jobs for act in ACTS.values())
TOLD_BY_TIMELINE = (TWICE, UNANSWERED)
"""Acts of which a job alone does not tell enough."""


@dataclass(frozen=True)
class Line:
    """Something worth telling. A `step` is what a table shows anyway."""

    key: str
    text: str
    sign: Literal["step", "home", "trouble", "mended", "wrong"]
    seconds: float = 0.0


@dataclass
class Scene:
    """What is known so far: all that a screen needs."""

    url: str
    jobs: Sequence[Job] = ()
    timelines: dict[str, Timeline] = field(default_factory=dict)
    verdicts: dict[tuple[str, int], str] = field(default_factory=dict)  # (job, output) → what is wrong with the file; "": nothing
    lines: list[Line] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, found: Iterable[Line]) -> list[Line]:
        """Keep those that were not told before, and give them."""
        told = {line.key for line in self.lines}
        new = [Line(line.key, line.text, line.sign, self.seconds) for line in found if line.key not in told]
        self.lines += new
        return new

    @property
    def is_home(self) -> bool:
        """Every job is final, and every output was looked at."""
        outputs = {(job["id"], output["index"]) for job in self.jobs for output in job["outputs"]}
        return len(self.jobs) >= JOBS and all(job["status"] in FINAL for job in self.jobs) and outputs <= self.verdicts.keys()


def act_of(job: Job) -> Act:
    return ACTS[job["metadata"]["act"]]


def jobs_of(act: Act, jobs: Iterable[Job]) -> list[Job]:
    return [job for job in jobs if job["metadata"].get("act") == act.name]


def only(act: Act, jobs: Iterable[Job]) -> Job | None:
    return next(iter(jobs_of(act, jobs)), None)


def seconds_between(start: str | None, end: str | None) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() if start and end else 0.0


def finals_of(timeline: Timeline) -> list[dict[str, Any]]:
    """The final events of a job."""
    return [entry for entry in timeline["entries"] if entry["kind"] == "event" and entry["type"].removeprefix("job.") in FINAL]


def notices_of(timeline: Timeline, channel: str) -> list[dict[str, Any]]:
    return [entry for entry in timeline["entries"] if entry["kind"] == "notice" and entry["channel"] == channel]


def callbacks_of(ledger: Ledger, act: Act, jobs: Iterable[Job], kind: str) -> list[CallbackEntry]:
    """What the simulator sent about the jobs of an act; `kind` is `real` or a fault."""
    ids = {job["remote_id"] for job in jobs_of(act, jobs)}
    return [entry for entry in ledger.callbacks if entry.provider == act.provider and entry.kind == kind and entry.job_id in ids]


# What there is to tell


def steps(scene: Scene) -> Iterator[Line]:
    """How each job gets on."""
    for job in scene.jobs:
        act, status = act_of(job), job["status"]
        who = f"{NAMES[act.provider]:<8} {act.model}"
        if status in FINAL:
            way = f"{status}, home by {job['finished_by']} after {seconds_between(job['created_at'], job['finished_at']):.1f} s"
            yield Line(f"{job['id']} {status}", f"{who}: {way}", "step")
        else:
            yield Line(f"{job['id']} {status}", f"{who}: {status}", "step")
        for output in job["outputs"]:
            verdict = scene.verdicts.get((job["id"], output["index"]))
            stored = output.get("stored")
            if verdict is not None and stored is not None:
                said = f"{stored['media_type']}, {stored['bytes']} bytes, {verdict or 'sha256 is right'}"
                yield Line(f"{job['id']} {output['index']} kept", f"{who}: kept {stored['uri'].rpartition('/')[2]}, {said}", "step")


def tell(scene: Scene, ledger: Ledger) -> Iterator[Line]:
    """Everything notable that is true by now."""
    yield from tell_stream(scene.jobs, ledger)
    yield from tell_lost(scene.jobs, ledger)
    yield from tell_twice(scene.jobs, scene.timelines, ledger)
    yield from tell_polled(scene.jobs, ledger)
    yield from tell_fan_out(scene.jobs)
    yield from tell_unanswered(scene.jobs, scene.timelines, ledger)
    yield from tell_forged(scene.jobs, ledger)


def tell_stream(jobs: Sequence[Job], ledger: Ledger) -> Iterator[Line]:
    if ledger.streams_opened:
        yield Line("stream", "Oxen.ai has no callbacks: its event stream is held open while its jobs run", "step")
    home = [job for job in jobs_of(STREAMED, jobs) if job["finished_by"] == "stream"]
    if len(home) == STREAMED.jobs:
        yield Line(
            "streamed", f"Oxen.ai told of both images on the event stream that is held open; polls: {polls_of(ledger, home)}", "home"
        )


def polls_of(ledger: Ledger, jobs: Sequence[Job]) -> int:
    ids = {job["remote_id"] for job in jobs}
    return sum(entry.polls for entry in ledger.jobs if entry.id in ids)


def tell_lost(jobs: Sequence[Job], ledger: Ledger) -> Iterator[Line]:
    lost = callbacks_of(ledger, LOST, jobs, Fault.LOST)
    if not lost:
        return
    yield Line("lost", "Pixazo finished the 3D model, but its callback was lost on the way", "trouble")
    job = only(LOST, jobs)
    if job is not None and job["finished_by"] == "poll" and job["finished_at"]:
        late = (datetime.fromisoformat(job["finished_at"]) - lost[-1].at).total_seconds()
        yield Line("found", f"Pixazo's callback was overdue: the 3D model was found by polling, {late:.1f} s after it was done", "mended")


def tell_twice(jobs: Sequence[Job], timelines: Mapping[str, Timeline], ledger: Ledger) -> Iterator[Line]:
    job = only(TWICE, jobs)
    sent = [entry for entry in callbacks_of(ledger, TWICE, jobs, "real") if entry.state == "succeeded"]
    if job is None or len(sent) < 2:
        return
    yield Line("twice", "Elk API sent the final callback of the video twice", "trouble")
    timeline = timelines.get(job["id"])
    if timeline and len(finals_of(timeline)) == 1 and count_duplicates(timeline):
        yield Line("once", "Elk API's second callback is kept as a duplicate: one final event, counted once", "mended")


def count_duplicates(timeline: Timeline) -> int:
    """Final callbacks that changed nothing."""
    return sum(notice["status"] == "succeeded" and notice["outcome"] == "duplicate" for notice in notices_of(timeline, "callback"))


def tell_polled(jobs: Sequence[Job], ledger: Ledger) -> Iterator[Line]:
    job = only(POLLED, jobs)
    if job is not None and job["finished_by"] == "poll":
        yield Line("polled", f"Huzz never calls back: asked {polls_of(ledger, [job])} times until the music was there", "home")


def tell_fan_out(jobs: Sequence[Job]) -> Iterator[Line]:
    home = [job for job in jobs_of(FANNED_OUT, jobs) if job["finished_by"] == "callback"]
    if len(home) == FANNED_OUT.jobs:
        yield Line("fan-out", "Hoox made two images of one submit: two jobs, each by its own callback", "home")


def tell_unanswered(jobs: Sequence[Job], timelines: Mapping[str, Timeline], ledger: Ledger) -> Iterator[Line]:
    job = only(UNANSWERED, jobs)
    timeline = timelines.get(job["id"]) if job else None
    if job is None or timeline is None or not any(entry.get("type") == "job.unconfirmed" for entry in timeline["entries"]):
        return
    yield Line("unanswered", "Elk API took a submit and hung up: unconfirmed, and not sent again, it may be billed", "trouble")
    if job["status"] not in ("submitting", "unconfirmed"):
        bills = sum(entry.billed for entry in ledger.submits if entry.prompt == UNANSWERED.prompt)
        yield Line("adopted", f"Elk API's own callback cleared up what became of that submit; bills: {bills}", "mended")


def tell_forged(jobs: Sequence[Job], ledger: Ledger) -> Iterator[Line]:
    for entry in callbacks_of(ledger, FORGED, jobs, Fault.FORGED):
        is_refused = entry.status == 401
        said = "refused with 401, nothing kept" if is_refused else f"answered {entry.status}!"
        yield Line("forged", f"a forged callback claimed that Hoox's video is done: {said}", "mended" if is_refused else "wrong")
