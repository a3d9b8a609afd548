"""One trace for each submission: from the request that made it, over the queue on disk, to its last handler. Off unless asked for.

What is on disk carries the trace as a `traceparent` (https://www.w3.org/TR/trace-context/): a job that of the request that made it, an
event that of what brought it about. Whoever works on it later, in whatever process, goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import datetime
from types import TracebackType
from typing import Literal

from receiver.model import Event

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attribute = str | int | float | bool | None


class Span:
    """A piece of work within a trace. This one is nothing: tracing is off, or the work belongs to no trace.

    As a context manager it is the current one meanwhile, which log lines name, and ends afterwards. One that is not ended is never told.
    """

    traceparent: str | None = None

    def carry(self) -> None:
        """Make it the current one for the rest of the task that calls; somebody else ends it."""

    def note(self, **attributes: Attribute) -> None:
        """Say more about the work; None says nothing."""

    def fail(self, kind: str) -> None:
        """It did not come to its end; `kind` is a word, no text that could hold a secret."""

    def end(self) -> None:
        """Once is enough."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """What is raised within passes on."""


class Tracing:
    """Begins spans. This one is off."""

    is_on = False

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
        """A span below the one that `within`, a traceparent, names; nothing where there is none. `at`: it began earlier."""
        return NOTHING

    def begin_trace(
        self, name: str, within: str | None = None, *, kind: Kind = "internal", links: Sequence[str | None] = (), **attributes: Attribute
    ) -> Span:
        """The same, but where `within` is None a new trace begins."""
        return NOTHING


NOTHING, OFF = Span(), Tracing()
current: ContextVar[Span] = ContextVar("span", default=NOTHING)


def read_traceparent(given: Sequence[str]) -> str | None:
    """What a caller's headers of that name say, where they say one thing, and say it right."""
    found = TRACEPARENT.fullmatch(given[0]) if len(given) == 1 and len(given[0]) <= 512 else None
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None) or not int(trace, 16) or not int(span, 16):
        return None
    return f"00-{trace}-{span}-{int(flags, 16) & 1:02x}"


def trace_headers() -> dict[str, str]:
    """What takes the trace of the current work along to a server of the operator's own; empty when there is none."""
    traceparent = current.get().traceparent
    return {} if traceparent is None else {"traceparent": traceparent}


def same_trace(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one[3:35] == other[3:35]


def begin_event(tracing: Tracing, event: Event, cause: Span) -> Span:
    """What becomes of the event goes on from there: the event carries this span's `traceparent`."""
    return tracing.begin(
        f"event {event.type}",
        cause.traceparent,
        kind="producer",
        event_id=event.id,
        event_type=event.type,
        job_id=event.subject,
        status=event.data["job"]["status"] if "job" in event.data else None,
    )
