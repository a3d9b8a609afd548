"""Handlers as a page: how each one does, and an event to try it with."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from receiver import commands
from receiver.services import Services
from receiver.web.operations import services_of
from receiver.web.pages_frame import Form, button, page, read_fields, show
from receiver.web.providers import handler_rows
from receiver.web.query import Query

MINUTE = timedelta(minutes=1)
RECENT = {"5 minutes": 5 * MINUTE, "hour": 60 * MINUTE}
MOST_RECENT = 100_000  # are counted


async def show_handlers(request: Request, query: Query) -> Response:
    tested = read_fields(request).get("tested", "")
    services = services_of(request)
    rows = [{**row, "recent": await count_recent(services, row["name"])} for row in await handler_rows(services)]
    return show(request, "handlers.html", handlers=rows, tested=tested if tested in {row["name"] for row in rows} else "")


async def count_recent(services: Services, name: str) -> list[tuple[str, int, str]]:
    """(time, deliveries, how many a minute): what came to it lately."""
    now = services.clock.now()
    counts = [(word, await services.store.count_recent(name, now - span, MOST_RECENT), span / MINUTE) for word, span in RECENT.items()]
    return [(word, count, f"{count / minutes:.3g}" if count else "") for word, count, minutes in counts]


async def send_test_event(request: Request, form: Form) -> str:
    name: str = request.path_params["name"]
    await commands.send_test_event(services_of(request), name)
    return f"handlers?tested={quote(name, safe='')}"


PAGES = (
    page("/handlers", show_handlers, "The handlers."),
    button("/handlers/{name}/test", send_test_event, "Send a handler a test event."),
)
