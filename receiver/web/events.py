"""`GET /v1/events`: every event as it happens, as Server-Sent Events that can be resumed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from fnmatch import fnmatchcase

import anyio
import msgspec
import structlog
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import Invalid, Unavailable
from receiver.model import Event
from receiver.services import Services
from receiver.web.operations import Answer, Header, Operation, services_of
from receiver.web.query import Query, text
from receiver.web.views import Envelope
from receiver.web.waiting import BREATH, Waiting

log = structlog.get_logger("receiver.web")

BATCH = 100
LOOK_ANYWAY = 10.0  # seconds
PING = 15  # seconds
SEND_TIMEOUT = 30  # seconds for a client that does not read
PAUSE = 1.0  # seconds before a store that is away is asked again
NONE_YET = "evt_" + "0" * 32
GRACE = 2.0  # seconds for a stream to end by itself when the server stops


async def follow_events(request: Request, query: Query) -> Response:
    services = services_of(request)
    position, last_event_id = await find_start(services, request.headers.get("last-event-id"))
    stopping = anyio.Event()
    return EventSourceResponse(
        send_events(services, request.app.state.waiting, position, query, stopping),
        headers={"Last-Event-ID": last_event_id},
        sep="\n",
        ping=PING,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        send_timeout=SEND_TIMEOUT,
        shutdown_event=stopping,
        shutdown_grace_period=GRACE,
    )


async def find_start(services: Services, last_event_id: str | None) -> tuple[int, str]:
    """The position after which to send, and the event that stands there: the last one seen; without one the newest of all. 0 where it is
    kept no more, or where there is none yet."""
    if not last_event_id:
        return await services.store.newest_event() or (0, NONE_YET)
    if not re.fullmatch("evt_[0-9a-f]{32}", last_event_id):
        raise Invalid([{"parameter": "Last-Event-ID", "detail": "is not the id of an event, like evt_ and 32 hexadecimal digits"}])
    position = await services.store.find_event_position(last_event_id)
    return position if position is not None else 0, last_event_id


async def send_events(
    services: Services, waiting: Waiting, position: int, query: Query, stopping: anyio.Event
) -> AsyncIterator[ServerSentEvent]:
    """Every event above the position that is wanted, for ever."""
    yield ServerSentEvent(comment="connected", sep="\n")
    while not (stopping.is_set() or waiting.has_stopped):
        seen = services.pulse.beat
        try:
            rows = await services.store.read_events(position, BATCH)
        except Unavailable as error:  # the client keeps its place; the store may come back
            log.warning("events.unavailable", error=str(error))
            await asyncio.sleep(PAUSE)
            continue
        for _, event, provider in rows:
            if is_wanted(query, event, provider):
                yield ServerSentEvent(msgspec.json.encode(event.envelope()).decode(), event=event.type, id=event.id, sep="\n")
        position = rows[-1][0] if rows else position
        if len(rows) < BATCH:
            await wait_for_more(services, seen, stopping)


async def wait_for_more(services: Services, seen: int, stopping: anyio.Event) -> None:
    """Until the store changed or the server stops."""
    more = asyncio.ensure_future(services.pulse.wait(seen, LOOK_ANYWAY))
    end = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({more, end}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        more.cancel()
        end.cancel()
    await asyncio.sleep(BREATH)


def is_wanted(query: Query, event: Event, provider: str | None) -> bool:
    return (
        (query["type"] is None or fnmatchcase(event.type, query["type"]))
        and (query["provider"] is None or query["provider"] == provider)
        and (query["job_id"] is None or query["job_id"] == event.subject)
    )


OPERATIONS = (
    Operation(
        "GET",
        "/v1/events",
        follow_events,
        "Events",
        "Follow all events as they happen; each one's `data` is its CloudEvents envelope, its `id` the event's id, its `event` the type.",
        (
            Answer(
                200,
                "A stream that does not end.",
                Envelope,
                "text/event-stream",
                {"Last-Event-ID": "The event after which it begins: to come back to when it breaks off before the first one."},
            ),
        ),
        (
            text("type", "Only events whose type fits this glob, like `job.*`."),
            text("provider", "Only events about jobs of this account."),
            text("job_id", "Only events about this job."),
        ),
        (
            Header(
                "Last-Event-ID",
                "The last event seen: go on after it. Left out: from now on. One that is kept no more: from the oldest kept.",
            ),
        ),
    ),
)
