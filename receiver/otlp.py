"""Tracing that is on: OpenTelemetry's SDK, sending OTLP over HTTP. The only room that knows it; imported when the environment asks for it.

No payload, header or address goes out, and no text of an error: those are where secrets stand.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextvars import Token
from datetime import datetime
from types import TracebackType

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from receiver import __version__
from receiver.times import to_micros
from receiver.tracing import NOTHING, Attribute, Kind, Span, Tracing, current

KINDS = {kind.name.lower(): kind for kind in SpanKind}
# Those that have a name of their own in OpenTelemetry's conventions; the others are our own words.
NAMES = {
    "http_method": "http.request.method",
    "http_route": "http.route",
    "http_status": "http.response.status_code",
    "error": "error.type",
}
LONGEST = 256  # characters of an attribute
MOST_LINKS = 100
CLOSE_SECONDS = 3.0


class Otlp(Tracing):
    """Sends spans to where the environment says, in batches, from a thread of its own."""

    is_on = True

    def __init__(self) -> None:
        ours = Resource.create({"service.name": "receiver", "service.version": __version__})
        resource = ours.merge(OTELResourceDetector().detect())  # what the environment says comes first
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("receiver", __version__)

    def begin(
        self,
        name: str,
        within: str | None,
        *,
        kind: Kind = "internal",
        at: datetime | None = None,
        links: Sequence[str | None] = (),
        **attributes: Attribute,
    ) -> Span:
        if within is None:
            return NOTHING
        return self._begin(name, within, kind, at, links, attributes)

    def begin_trace(
        self, name: str, within: str | None = None, *, kind: Kind = "internal", links: Sequence[str | None] = (), **attributes: Attribute
    ) -> Span:
        outer = trace.get_current_span().get_span_context()  # of an application that we are mounted in, and that keeps traces too
        return self._begin(name, write(outer) if outer.is_valid else within, kind, None, links, attributes)

    def _begin(
        self, name: str, within: str | None, kind: Kind, at: datetime | None, links: Sequence[str | None], attributes: dict[str, Attribute]
    ) -> Span:
        empty = contexts.Context()
        span = self._tracer.start_span(
            name,
            empty if within is None else trace.set_span_in_context(NonRecordingSpan(read(within)), empty),
            kind=KINDS[kind],
            attributes=name_all(attributes),
            links=[Link(read(link)) for link in links if link is not None][:MOST_LINKS],
            start_time=None if at is None else to_micros(at) * 1000,
            record_exception=False,
            set_status_on_exception=False,
        )
        return OtlpSpan(span)

    async def close(self) -> None:
        """Send what is left. A collector that does not answer holds up nobody for long."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing ends", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_SECONDS)
        if closing.is_alive():
            self._exporter.shutdown()  # ends its waiting for another try
            await asyncio.to_thread(closing.join, 1.0)


class OtlpSpan(Span):
    """While it is the current one, it is so for instrumentation that a handler brings along too."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.traceparent = write(span.get_span_context())
        self._tokens: tuple[Token[Span], Token[contexts.Context]] | None = None

    def carry(self) -> None:
        current.set(self)
        contexts.attach(trace.set_span_in_context(self._span))

    def note(self, **attributes: Attribute) -> None:
        self._span.set_attributes(name_all(attributes))

    def fail(self, kind: str) -> None:
        self.note(error=kind)
        self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()

    def __enter__(self) -> Span:
        self._tokens = current.set(self), contexts.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._tokens is not None:
            ours, theirs = self._tokens
            contexts.detach(theirs)
            current.reset(ours)
        if kind is not None:
            self.fail(kind.__name__)
        self.end()


def write(known: SpanContext) -> str:
    return f"00-{known.trace_id:032x}-{known.span_id:016x}-{known.trace_flags & 1:02x}"


def read(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def name_all(attributes: dict[str, Attribute]) -> dict[str, str | int | float | bool]:
    return {
        NAMES.get(name, f"receiver.{name}"): value[:LONGEST] if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }
