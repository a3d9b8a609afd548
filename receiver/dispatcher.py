"""Pass: deliveries to handlers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog

from receiver.backoff import retry_at
from receiver.clock import Clock
from receiver.config import HandlerConfig
from receiver.counters import Counters
from receiver.crew import until_stored
from receiver.ending import end
from receiver.errors import PermanentError, RetryLater, Unavailable
from receiver.handling import Handler
from receiver.herald import Herald, is_own
from receiver.ids import derive_id
from receiver.masking import Masker
from receiver.model import Delivery, DeliveryState, Event
from receiver.outputs import Outputs, OutputStream
from receiver.routing import ABOUT_OURSELVES, make_deliveries
from receiver.runs import Run, Runs
from receiver.services import HandlerHealth
from receiver.stores.base import Store
from receiver.times import to_rfc3339
from receiver.tracing import NOTHING, OFF, Span, Tracing, begin_event
from receiver.tracing import current as current_span

MAX_DEPTH = 5
MAX_EMITTED_BYTES = 256 * 1024
MAX_ERROR = 1_000
PROBE = 10  # deliveries that are claimed where none is known to wait: what is settled here needs the room
MOST_CUT_OFF = 5  # runs that ended with our process; one of them may be what ends it, at every start
MOST_UNWRITTEN = 1_000  # runs whose end the store does not take
RESERVED = frozenset({"job.submitted", "job.processing", "job.succeeded", "job.failed", "job.cancelled", "job.expired", "job.unconfirmed"})
log = structlog.get_logger("receiver.dispatcher")


current: ContextVar[Run | None] = ContextVar("current", default=None)


async def _handle(handler: Handler, run: Run) -> None:
    current.set(run)  # in the handler's own task: emit() finds it there
    run.span.carry()
    try:
        await handler.handle(run.event)
    except (SystemExit, KeyboardInterrupt) as error:  # it would end the loop, and leave a process that listens and answers nobody
        raise RuntimeError("the handler tried to end the process") from error
    finally:
        current.set(None)  # else the task, its context and the run hold each other until the garbage collector comes by


class Dispatcher:
    """Hands events to handlers, each with its own concurrency, timeout and retries."""

    def __init__(
        self,
        store: Store,
        configs: tuple[HandlerConfig, ...],
        clock: Clock,
        counters: Counters,
        masker: Masker,
        outputs: Outputs,
        wake: Callable[[], None],
        tracing: Tracing = OFF,
    ) -> None:
        self._tracing = tracing
        self._log = log.bind()  # once: the lazy one binds itself anew for every line, told or not
        self._store, self._clock, self._counters, self._masker, self._outputs = store, clock, counters, masker, outputs
        self._herald = Herald(store, configs)
        self._configs = {config.name: config for config in configs}
        self._handlers: Mapping[str, Handler] = {}
        self.health = {config.name: HandlerHealth() for config in configs}
        self._runs = {config.name: Runs(config.name, config.concurrency, config.timeout, self._ended) for config in configs}
        self.wake = wake
        self._reserved: Counter[str] = Counter()  # room that is taken by what is just being claimed
        self._behind: set[str] = set()  # handlers for which more may be due than there is room
        self._fed: set[str] = set()  # handlers that get what is settled here
        self._is_stopping = False
        self._unwritten: list[Run] = []
        self._writer: asyncio.Task[None] | None = None

    def use(self, handlers: Mapping[str, Handler]) -> None:
        """The handlers by name, started."""
        self._handlers = handlers

    async def run_pass(self, now: datetime) -> bool:
        free = {name: self._room(name) for name in self._handlers}
        room = {name: min(count, PROBE) if name in self._fed - self._behind else count for name, count in free.items() if count > 0}
        self._fed.clear()
        self._behind = {name for name, count in free.items() if count <= 0}
        if not room:
            return False
        self._reserved.update(room)
        claimed: Sequence[tuple[Delivery, Event]] = ()
        try:
            claimed = await self._store.claim_deliveries(now, room)
        finally:
            await self._begin_all(room, claimed)
        taken = Counter(delivery.handler for delivery, _ in claimed)
        full = {name for name, count in room.items() if taken[name] == count}
        self._behind |= full
        return any(self._room(name) > 0 for name in full)  # what else is due waits for the end of a run, which wakes us

    def _room(self, handler: str) -> int:
        if self._is_stopping or len(self._unwritten) > MOST_UNWRITTEN:
            return 0
        return self._runs[handler].room - self._reserved[handler]

    def reserve(self, wanted: Mapping[str, int]) -> Mapping[str, int]:
        """For how many deliveries that are to be made there is room, kept free until `run`. Others may wait already: they go first."""
        known = [name for name in wanted if name in self._handlers]
        self._fed.update(known)
        room = {name: min(wanted[name], self._room(name)) for name in known if name not in self._behind}
        reserved = {name: count for name, count in room.items() if count > 0}
        self._behind.update(name for name in known if reserved.get(name, 0) < wanted[name])
        self._reserved.update(reserved)
        return reserved

    async def run(self, reserved: Mapping[str, int], claimed: Sequence[tuple[Delivery, Event]]) -> None:
        """Run what was claimed; the rest of what was reserved is free again."""
        await self._begin_all(reserved, claimed)
        if not self._behind.isdisjoint(reserved):
            self.wake()

    async def _begin_all(self, reserved: Mapping[str, int], claimed: Sequence[tuple[Delivery, Event]]) -> None:
        self._reserved.subtract(reserved)
        if self._is_stopping and claimed:
            with suppress(Unavailable):  # whoever finds that we are gone gives them back
                await self._store.release_deliveries([delivery.id for delivery, _ in claimed])
            return
        for delivery, event in claimed:
            self._begin(delivery, event)

    def _begin(self, delivery: Delivery, event: Event) -> None:
        run = Run(delivery, event, self._begin_span(delivery, event) if self._tracing.is_on else NOTHING)
        self.health[delivery.handler].running += 1
        if delivery.attempts > self._configs[delivery.handler].retry.attempts + MOST_CUT_OFF:
            run.error = PermanentError(f"it was begun {delivery.attempts - 1} times, and each time our process ended before it did")
            self._ended(run)
            return
        self._runs[delivery.handler].start(run, _handle(self._handlers[delivery.handler], run))

    def _begin_span(self, delivery: Delivery, event: Event) -> Span:
        return self._tracing.begin(
            f"deliver {delivery.handler}",
            event.traceparent,
            kind="consumer",
            handler=delivery.handler,
            delivery_id=delivery.id,
            event_id=event.id,
            event_type=event.type,
            job_id=delivery.job_id,
            attempt=delivery.attempts,
        )

    def _ended(self, run: Run) -> None:
        self.health[run.delivery.handler].running -= 1
        self._unwritten.append(run)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_ends(), name="delivery-writer")
        if run.delivery.handler in self._behind:
            self.wake()

    async def _write_ends(self) -> None:
        """Whatever ended while others were written is written next, together."""
        while self._unwritten:
            runs, self._unwritten = self._unwritten, []
            await self._write(runs)
        if self._behind:
            self.wake()

    async def _write(self, runs: Sequence[Run]) -> None:
        now = self._clock.now()
        ends = [self._end(run, now) for run in runs]
        try:
            written = await until_stored(lambda: self._store.finish_deliveries(ends), self._clock)
        except Exception as error:  # one that cannot be written must not harm the others
            log.error("deliveries.unwritten", deliveries=len(runs), error=f"{type(error).__name__}: {error}", exc_info=True)
            for run in runs if len(runs) > 1 else ():
                await self._write([run])
            return
        for run, after in zip(runs, ends, strict=True):
            with run.span as span:
                span.note(state=after.state)
                if run.error is not None:
                    span.fail(type(run.error).__name__)
                self._note(after, now)
        await self._tell_of_dead([after for after, is_written in zip(ends, written, strict=True) if is_written], now)

    def _end(self, run: Run, now: datetime) -> Delivery:
        config = self._configs[run.delivery.handler]
        try:
            return outcome_of(run.delivery, config, run.error, now, self._masker)
        except Exception as error:  # what a handler raises is its own work, and may say nothing of itself but its name
            unread = RuntimeError(f"{type(run.error).__name__} was raised, which cannot be read: {type(error).__name__}")
            return outcome_of(run.delivery, config, unread, now, self._masker)

    def _note(self, delivery: Delivery, now: datetime) -> None:
        health = self.health[delivery.handler]
        self._counters.add(f"handler:{delivery.handler}", f"deliveries_{delivery.state}")
        fields = {
            "delivery": delivery.id,
            "handler": delivery.handler,
            "type": delivery.event_type,
            "job": delivery.job_id,
            "attempt": delivery.attempts,
        }
        if delivery.state is DeliveryState.DONE:
            health.last_done_at = now
            self._log.info("delivery.done", **fields)
            return
        health.last_error, health.last_error_at = delivery.last_error, now
        log.warning(f"delivery.{delivery.state}", error=delivery.last_error, **fields)

    async def _tell_of_dead(self, ends: Sequence[Delivery], now: datetime) -> None:
        dead = [delivery for delivery in ends if delivery.state is DeliveryState.DEAD and not is_own(delivery.event_type)]
        tellings = (self._herald.tell("dead_letter", {"delivery": delivery.public()}, now) for delivery in dead)
        for outcome in await asyncio.gather(*tellings, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("dead_letter.untold", error=f"{type(outcome).__name__}: {outcome}", exc_info=outcome)

    # The end

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What is under way: handlers at work, and the writing of what came of them."""
        running = [task for runs in self._runs.values() for task in runs.tasks]
        return running if self._writer is None or self._writer.done() else [*running, self._writer]

    async def finish(self, grace: timedelta) -> None:
        """Let running handlers end, for so long; then cut them off, and give back what they were at: it was no attempt of theirs."""
        self._is_stopping = True
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + grace.total_seconds()
        while (tasks := self.tasks) and (left := ends_at - loop.time()) > 0:
            await asyncio.wait(tasks, timeout=left)
        cut = [run for runs in await asyncio.gather(*(runs.cut_off() for runs in self._runs.values())) for run in runs]
        for run in cut:
            run.span.fail("CancelledError")
            run.span.end()
        if cut:
            with suppress(Unavailable):  # whoever finds that we are gone gives them back
                await self._store.release_deliveries([run.delivery.id for run in cut])
        if self._writer is not None:
            await end(self._writer)

    # What a handler's Context can do

    async def emit(self, type: str, job_id: str, data: Mapping[str, Any]) -> None:
        """A follow-up event of the delivery that the calling handler is at work on. Doing it again makes no second event.

        ValueError: a reserved type, or data that is no JSON or over 256 KiB.
        """
        run = current.get()
        if run is None:
            raise RuntimeError("emit works only inside of handle()")
        encoded = check_emitted(type, data)
        if run.event.depth >= MAX_DEPTH:
            log.warning("emit.too_deep", handler=run.delivery.handler, type=type, job=job_id)
            return
        job = await self._store.read_job(job_id)
        if job is None:
            raise ValueError(f"there is no job {job_id}")
        now = self._clock.now()
        event = Event(
            id=derive_id("evt", run.delivery.event_id, run.delivery.handler, type, job_id, encoded.decode()),
            type=type,
            source=f"/providers/{job.provider}",
            subject=job.id,
            time=to_rfc3339(now) or "",
            sequence="0",
            data={**msgspec.json.decode(encoded), "job": job.public(), "late": False},
            depth=run.event.depth + 1,
        )
        others = [config for config in self._configs.values() if config.name != run.delivery.handler]
        told = begin_event(self._tracing, event, current_span.get())
        event = msgspec.structs.replace(event, traceparent=told.traceparent)
        if await self._store.emit(event, make_deliveries(event, others, now)):
            told.end()

    def open_output(self, job_id: str, index: int, offset: int = 0) -> AbstractAsyncContextManager[OutputStream]:
        return self._outputs.open(job_id, index, offset)

    async def record_stored(self, job_id: str, index: int, stored: Any) -> None:
        """Note where an output is kept; it shows in the job from then on."""
        await self._store.record_stored(job_id, index, stored, self._clock.now())


def check_emitted(type: str, data: Mapping[str, Any]) -> bytes:
    if type in RESERVED or type.startswith(ABOUT_OURSELVES) or not type:
        raise ValueError(f"the event type {type!r} is reserved; choose one of your own, like 'acme.thumbnail'")
    try:
        encoded = msgspec.json.encode(data, order="deterministic")
    except (TypeError, ValueError) as error:
        raise ValueError(f"the data of {type!r} is not plain JSON: {error}") from error
    if len(encoded) > MAX_EMITTED_BYTES:
        raise ValueError(f"the data of {type!r} has {len(encoded)} bytes; at most {MAX_EMITTED_BYTES} are allowed")
    return encoded


def outcome_of(delivery: Delivery, config: HandlerConfig, error: BaseException | None, now: datetime, masker: Masker) -> Delivery:
    """The delivery after a run: done, retrying at some time, or dead."""
    if error is None:
        return msgspec.structs.replace(delivery, state=DeliveryState.DONE, next_attempt_at=None, last_error=None, updated_at=now)
    words = f"{type(error).__name__}: {error}".encode(errors="replace").decode()  # half a character cannot be stored
    text = masker.mask_text(words)[:MAX_ERROR]
    if isinstance(error, PermanentError) or delivery.attempts >= config.retry.attempts:
        return msgspec.structs.replace(delivery, state=DeliveryState.DEAD, next_attempt_at=None, last_error=text, updated_at=now)
    hint = error.seconds if isinstance(error, RetryLater) else None
    due = retry_at(now, delivery.attempts, config.retry.first, config.retry.max, hint)
    return msgspec.structs.replace(delivery, state=DeliveryState.RETRYING, next_attempt_at=due, last_error=text, updated_at=now)
