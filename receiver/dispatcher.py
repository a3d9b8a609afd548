"""Pass: deliveries to handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog

from receiver.backoff import retry_at
from receiver.clock import Clock
from receiver.config import HandlerConfig
from receiver.counters import Counters
from receiver.crew import Crew, until_stored
from receiver.errors import PermanentError, RetryLater
from receiver.handling import Handler
from receiver.herald import Herald, is_own
from receiver.ids import derive_id
from receiver.masking import Masker
from receiver.model import Delivery, DeliveryState, Event, to_rfc3339
from receiver.outputs import Outputs, OutputStream
from receiver.routing import ABOUT_OURSELVES, make_deliveries
from receiver.services import HandlerHealth
from receiver.stores.base import Store
from receiver.tracing import OFF, Span, Tracing, begin_event
from receiver.tracing import current as current_span

MAX_DEPTH = 5
MAX_EMITTED_BYTES = 256 * 1024
MAX_ERROR = 1_000
GRACE = timedelta(seconds=1)  # for a cancelled handler to clean up, before it is left behind
RESERVED = frozenset({"job.submitted", "job.processing", "job.succeeded", "job.failed", "job.cancelled", "job.expired", "job.unconfirmed"})
log = structlog.get_logger("receiver.dispatcher")


@dataclass(frozen=True)
class Running:
    """A handler at work on one delivery; what its Context needs to know."""

    delivery: Delivery
    event: Event
    handler: str


current: ContextVar[Running | None] = ContextVar("current", default=None)


async def _handle(handler: Handler, running: Running) -> None:
    current.set(running)  # in the handler's own task: emit() finds it there
    await handler.handle(running.event)


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
        self._store, self._clock, self._counters, self._masker, self._outputs = store, clock, counters, masker, outputs
        self._herald = Herald(store, configs)
        self._configs = {config.name: config for config in configs}
        self._handlers: Mapping[str, Handler] = {}
        self.health = {config.name: HandlerHealth() for config in configs}
        self.crew = Crew("handler", lambda name: self._configs[name].concurrency, wake)

    def use(self, handlers: Mapping[str, Handler]) -> None:
        """The handlers by name, started."""
        self._handlers = handlers

    async def run_pass(self, now: datetime) -> bool:
        room = {name: self.crew.room(name) for name in self._handlers}
        room = {name: count for name, count in room.items() if count}
        if not room:
            return False
        claimed = await self._store.claim_deliveries(now, room)
        for delivery, event in claimed:
            self.crew.start(delivery.handler, self._deliver(delivery, event))
        return bool(claimed)

    async def _deliver(self, delivery: Delivery, event: Event) -> None:
        with self._tracing.begin(
            f"deliver {delivery.handler}",
            event.traceparent,
            kind="consumer",
            handler=delivery.handler,
            delivery_id=delivery.id,
            event_id=event.id,
            event_type=event.type,
            job_id=delivery.job_id,
            attempt=delivery.attempts,
        ) as span:
            await self._deliver_now(delivery, event, span)

    async def _deliver_now(self, delivery: Delivery, event: Event, span: Span) -> None:
        config, health = self._configs[delivery.handler], self.health[delivery.handler]
        health.running += 1
        try:
            error = await self._run(config, Running(delivery, event, config.name))
        except asyncio.CancelledError:  # our own stop cut it off: no attempt of the handler's
            await asyncio.shield(self._store.release_deliveries([delivery.id]))
            raise
        finally:
            health.running -= 1
        now = self._clock.now()
        after = outcome_of(delivery, config, error, now, self._masker)
        span.note(state=after.state)
        if error is not None:
            span.fail(type(error).__name__)
        is_written = await until_stored(lambda: self._store.finish_delivery(after), self._clock)
        self._note(after, health, now)
        if is_written and after.state is DeliveryState.DEAD and not is_own(after.event_type):
            await self._herald.tell("dead_letter", {"delivery": after.public()}, now)

    async def _run(self, config: HandlerConfig, running: Running) -> BaseException | None:
        """What the handler raised, None when it was done. One that ignores its cancellation is left behind."""
        task = asyncio.create_task(_handle(self._handlers[config.name], running), name=f"handler {config.name}")
        try:
            await asyncio.wait({task}, timeout=config.timeout.total_seconds())
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task}, timeout=GRACE.total_seconds())
            raise
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=GRACE.total_seconds())
            return TimeoutError(f"the handler did not end within {config.timeout.total_seconds():g} s")
        if task.cancelled():
            return RuntimeError("the handler cancelled itself")
        return task.exception()

    def _note(self, delivery: Delivery, health: HandlerHealth, now: datetime) -> None:
        scope = f"handler:{delivery.handler}"
        self._counters.add(scope, f"deliveries_{delivery.state}")
        fields = {
            "delivery": delivery.id,
            "handler": delivery.handler,
            "type": delivery.event_type,
            "job": delivery.job_id,
            "attempt": delivery.attempts,
        }
        if delivery.state is DeliveryState.DONE:
            health.last_done_at = now
            log.info("delivery.done", **fields)
            return
        health.last_error, health.last_error_at = delivery.last_error, now
        log.warning(f"delivery.{delivery.state}", error=delivery.last_error, **fields)

    # What a handler's Context can do

    async def emit(self, type: str, job_id: str, data: Mapping[str, Any]) -> None:
        """A follow-up event of the delivery that the calling handler is at work on. Doing it again makes no second event.

        ValueError: a reserved type, or data that is no JSON or over 256 KiB.
        """
        running = current.get()
        if running is None:
            raise RuntimeError("emit works only inside of handle()")
        encoded = check_emitted(type, data)
        if running.event.depth >= MAX_DEPTH:
            log.warning("emit.too_deep", handler=running.handler, type=type, job=job_id)
            return
        job = await self._store.read_job(job_id)
        if job is None:
            raise ValueError(f"there is no job {job_id}")
        now = self._clock.now()
        event = Event(
            id=derive_id("evt", running.delivery.event_id, running.handler, type, job_id, encoded.decode()),
            type=type,
            source=f"/providers/{job.provider}",
            subject=job.id,
            time=to_rfc3339(now) or "",
            sequence="0",
            data={**msgspec.json.decode(encoded), "job": job.public(), "late": False},
            depth=running.event.depth + 1,
        )
        others = [config for config in self._configs.values() if config.name != running.handler]
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
    text = masker.mask_text(f"{type(error).__name__}: {error}")[:MAX_ERROR]
    if isinstance(error, PermanentError) or delivery.attempts >= config.retry.attempts:
        return msgspec.structs.replace(delivery, state=DeliveryState.DEAD, next_attempt_at=None, last_error=text, updated_at=now)
    hint = error.seconds if isinstance(error, RetryLater) else None
    due = retry_at(now, delivery.attempts, config.retry.first, config.retry.max, hint)
    return msgspec.structs.replace(delivery, state=DeliveryState.RETRYING, next_attempt_at=due, last_error=text, updated_at=now)
