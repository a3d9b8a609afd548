"""A collector of traces on loopback: OTLP over HTTP in protobuf, as the exporter speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from tests.loopback import Peer, response, say, serve

BOUND = 60.0


@dataclass
class Told:
    """One span as it arrived."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    failed: bool
    start: int
    end: int
    links: list[str] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)


class Collector:
    """What came so far."""

    def __init__(self, peer: Peer) -> None:
        self._peer, self.url = peer, peer.url

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(seen.body) for seen in self._peer.seen if seen.target == "/v1/traces"]

    @property
    def spans(self) -> list[Told]:
        return [
            read_span(span)
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def service(self) -> str:
        return next(
            attribute.value.string_value
            for attribute in self.requests[0].resource_spans[0].resource.attributes
            if attribute.key == "service.name"
        )

    async def until(self, enough: Callable[[list[Told]], Any]) -> list[Told]:
        """The spans, once they are enough."""
        async with asyncio.timeout(BOUND):
            while not enough(self.spans):
                await asyncio.sleep(0.02)
        return self.spans


def read_span(span: Any) -> Told:
    return Told(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        links=[link.span_id.hex() for link in span.links],
        said={each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes},
    )


@asynccontextmanager
async def open_collector():
    answer = response(body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf")
    async with serve(say(answer)) as peer:
        yield Collector(peer)
