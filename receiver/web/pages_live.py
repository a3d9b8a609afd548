"""`/live`: tells an open page that something changed, so that it asks for itself again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import anyio
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from receiver.services import Services
from receiver.web.events import GRACE, PING, SEND_TIMEOUT, wait_for_more
from receiver.web.operations import Answer, Operation, services_of
from receiver.web.pages_frame import GROUP, read_fields
from receiver.web.query import Query
from receiver.web.waiting import Waiting

PACE = 1.0  # seconds between two changes told: a page is made whole each time


async def follow_changes(request: Request, query: Query) -> Response:
    services, stopping = services_of(request), anyio.Event()
    seen = read_fields(request).get("seen", "")
    beat = services.pulse.beat
    # What the page had seen when it was made; a number from before a restart tells nothing, so the page asks at once.
    since = int(seen) if re.fullmatch("[0-9]{1,15}", seen) and int(seen) <= beat else -1
    return EventSourceResponse(
        send_changes(services, request.app.state.waiting, since, stopping),
        sep="\n",
        ping=PING,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        send_timeout=SEND_TIMEOUT,
        shutdown_event=stopping,
        shutdown_grace_period=GRACE,
    )


async def send_changes(services: Services, waiting: Waiting, seen: int, stopping: anyio.Event) -> AsyncIterator[ServerSentEvent]:
    """`changed` whenever the store changed, at the latest when time alone may have changed what a page says."""
    yield ServerSentEvent(comment="connected", sep="\n")
    while not (stopping.is_set() or waiting.has_stopped):
        await wait_for_more(services, seen, stopping)
        seen = services.pulse.beat
        yield ServerSentEvent("", event="changed", sep="\n")
        await asyncio.sleep(PACE)


PAGES = (
    Operation(
        "GET",
        "/live",
        follow_changes,
        GROUP,
        "That something changed, as Server-Sent Events.",
        (Answer(200, "A stream that does not end.", None, "text/event-stream"),),
        None,
    ),
)
