"""The jobs: what was ordered, which scenario befalls it, and how it lives from queued to its end."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from receiver.clock import Clock
from receiver.simulator.ledger import JobEntry, Ledger, OutputEntry
from receiver.simulator.media import Kind, MediaFile
from receiver.simulator.scenario import REFUSALS, TOLD_ONCE_MORE, Fault, Outcome, Scenario, read_prompt

QUEUED_SHARE = 0.25  # of a job's time


class State(StrEnum):
    """Where a job stands, in no provider's words."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (State.QUEUED, State.PROCESSING)


@dataclass(frozen=True)
class News:
    """What a provider tells about a job by itself."""

    body: dict[str, Any]
    id_fields: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    event: str = ""  # on a stream


class Speaker(Protocol):
    """What the engine needs to know of a provider's protocol."""

    name: str
    tells: frozenset[State]  # states that it tells of by itself
    is_stream: bool  # it tells on a stream, not by callbacks
    retries: tuple[float, ...]  # pauses before further attempts of a callback
    is_signed: bool  # its callbacks are signed

    def make_id(self, order: Order) -> str: ...

    def news(self, job: Job) -> News: ...

    def sign(self, job: Job, body: bytes) -> dict[str, str]: ...


@dataclass(frozen=True)
class Order:
    """What one submit call asks for."""

    wire: Speaker
    model: str
    input: dict[str, Any]
    origin: str  # scheme and host that the client used; output links have it too
    media: Kind
    operation: str = "default"
    count: int = 1  # generations, each with its own id
    fans_out: bool = False  # the answer is a list of ids
    outputs: int = 1  # files per generation
    callback_url: str | None = None

    @property
    def prompt(self) -> str:
        prompt = self.input.get("prompt")
        return prompt if isinstance(prompt, str) else ""

    @property
    def text(self) -> str:
        """Every text of the input: some operations have no prompt."""
        return " ".join(value for value in self.input.values() if isinstance(value, str))

    @property
    def key(self) -> str:
        """The same for a submit and its repetition."""
        parts = [self.wire.name, self.operation, self.model, self.input]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass
class Job:
    """One generation."""

    id: str
    order: Order
    scenario: Scenario
    position: int
    created_at: datetime
    state: State = State.QUEUED
    started_at: datetime | None = None
    finished_at: datetime | None = None
    files: tuple[MediaFile, ...] = ()
    polls: int = 0
    cancels: int = 0
    served: dict[int, OutputEntry] = field(default_factory=dict)  # files that were given out
    held: list[tuple[State, News]] = field(default_factory=list)  # news that a later one overtakes
    sending: asyncio.Task[None] | None = None  # the last news, still on its way

    @property
    def outcome(self) -> Outcome:
        return self.scenario.outcome_of(self.position)

    def has(self, fault: Fault) -> bool:
        return fault in self.scenario.faults

    def serve(self, index: int) -> MediaFile:
        """A file that is given out now."""
        file = self.files[index]
        if index not in self.served:
            self.served[index] = OutputEntry(index=index, media_type=file.media_type, bytes=len(file.content), sha256=file.sha256)
        return file

    def entry(self) -> JobEntry:
        return JobEntry(
            id=self.id,
            provider=self.order.wire.name,
            operation=self.order.operation,
            model=self.order.model,
            state=self.state.value,
            polls=self.polls,
            cancels=self.cancels,
            outputs=tuple(output for _, output in sorted(self.served.items())),
        )


@dataclass
class Plan:
    """A scenario that waits for its submit."""

    provider: str
    scenario: Scenario
    model: str | None = None
    prompt: str | None = None  # part of it

    def fits(self, order: Order) -> bool:
        return (
            self.provider == order.wire.name
            and (self.model is None or self.model == order.model)
            and (self.prompt is None or self.prompt in order.text)
        )


class Announcer(Protocol):
    """Tells the world that a job has a new state."""

    def announce(self, job: Job) -> None: ...


class Engine:
    """Keeps the jobs and the time of all providers."""

    announcer: Announcer

    def __init__(self, default: Scenario, speed: float, clock: Clock) -> None:
        self.default, self.speed, self.clock = default, speed, clock
        self.ledger = Ledger()
        self.plans: list[Plan] = []
        self.jobs: dict[tuple[str, str], Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused: dict[str, tuple[Scenario, int]] = {}  # submissions that were refused and may come again
        self._lives: dict[str, asyncio.Task[None]] = {}
        self.closing = asyncio.Event()

    # Time

    def now(self) -> datetime:
        return self.clock.now()

    def after(self, seconds: float) -> datetime:
        """So many simulated seconds from now."""
        return self.now() + self.scaled(seconds)

    def scaled(self, seconds: float) -> timedelta:
        return timedelta(seconds=seconds / self.speed)

    async def pause(self, seconds: float) -> None:
        """Sleeps so many simulated seconds; ends early when the simulator closes."""
        sleeping = asyncio.ensure_future(self.clock.sleep(self.scaled(seconds)))
        closing = asyncio.ensure_future(self.closing.wait())
        try:
            await asyncio.wait({sleeping, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            closing.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def quiet(self) -> None:
        """Returns when every job has ended and every callback is sent."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        """Ends everything that is under way."""
        self.closing.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reset(self) -> None:
        """Forgets everything; open jobs end without a word."""
        await self.stop()
        self.closing = asyncio.Event()
        self.ledger = Ledger()
        self.plans.clear()
        self.jobs.clear()
        self._refused.clear()
        self._lives.clear()

    # Submits

    def choose(self, order: Order) -> Scenario:
        """A repeated submission keeps its scenario; else the prompt's, else the next planned one that fits, else the default."""
        if order.key in self._refused:
            return self._refused[order.key][0]
        written = read_prompt(order.text, self.default)
        if written is not None:
            return written
        plan = next((plan for plan in self.plans if plan.fits(order)), None)
        if plan is None:
            return self.default
        self.plans.remove(plan)
        return plan.scenario

    def refusal(self, order: Order, scenario: Scenario) -> Fault | None:
        """The fault that refuses this submit, if one does this time."""
        fault = next((fault for fault in scenario.faults if fault in REFUSALS), None)
        if fault not in TOLD_ONCE_MORE:
            return fault
        refusals = self._refused.get(order.key, (scenario, 0))[1]
        if scenario.times and refusals >= scenario.times:
            del self._refused[order.key]
            return None
        self._refused[order.key] = (scenario, refusals + 1)
        return fault

    async def take(self, order: Order, scenario: Scenario) -> list[Job]:
        """Makes the jobs of a submit and starts them; one per id in the answer."""
        count = scenario.ids if order.fans_out and scenario.ids is not None else order.count
        made = [self._make_job(order, scenario, position) for position in range(1 if Fault.SAME_ID in scenario.faults else count)]
        for job in made:
            if job.has(Fault.INSTANT):
                self._finish(job)
            else:
                self._lives[job.id] = self.spawn(self._live(job))
        if Fault.EARLY in scenario.faults:
            await asyncio.gather(*(self._lives[job.id] for job in made if job.id in self._lives))
            await asyncio.gather(*(job.sending for job in made if job.sending is not None))
        return made * count if Fault.SAME_ID in scenario.faults else made

    def _make_job(self, order: Order, scenario: Scenario, position: int) -> Job:
        job = Job(order.wire.make_id(order), order, scenario, position, self.now())
        self.jobs[order.wire.name, job.id] = job
        return job

    # Life

    async def _live(self, job: Job) -> None:
        self.announcer.announce(job)
        await self.pause(job.scenario.seconds * QUEUED_SHARE)
        self._move(job, State.PROCESSING)
        await self.pause(job.scenario.seconds * (1 - QUEUED_SHARE))
        self._finish(job)

    def _finish(self, job: Job) -> None:
        if job.state.is_final or job.outcome is Outcome.STUCK:
            return
        if job.outcome is Outcome.SUCCEEDED:
            count = job.scenario.outputs if job.scenario.outputs is not None else job.order.outputs
            kind = job.scenario.media or job.order.media
            job.files = tuple(MediaFile(kind, f"{job.order.text}/{job.id}/{index}") for index in range(count))
        self._move(job, State(job.outcome.value))

    def _move(self, job: Job, state: State) -> None:
        if job.state.is_final or self.closing.is_set():
            return
        job.state = state
        job.started_at = job.started_at or self.now()
        job.finished_at = self.now() if state.is_final else None
        self.announcer.announce(job)

    def cancel(self, job: Job) -> None:
        """Cancels an open job; a final one stays as it is."""
        job.cancels += 1
        self._move(job, State.CANCELLED)

    # Reading

    def find(self, provider: str, job_id: str) -> Job | None:
        return self.jobs.get((provider, job_id))

    def progress(self, job: Job) -> float:
        """From 0 to 1, by the time that has passed."""
        if job.state is State.SUCCEEDED:
            return 1.0
        total = self.scaled(job.scenario.seconds)
        return min(0.99, (self.now() - job.created_at) / total) if total else 0.0

    def read_ledger(self) -> Ledger:
        """The ledger with the jobs as they stand now."""
        self.ledger.jobs = [job.entry() for job in self.jobs.values()]
        return self.ledger
