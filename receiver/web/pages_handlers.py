"""Handlers as a page: how each one does, and an event to try it with."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from receiver import commands
from receiver.web.operations import services_of
from receiver.web.pages_frame import Form, button, page, read_fields, show
from receiver.web.providers import handler_rows
from receiver.web.query import Query


async def show_handlers(request: Request, query: Query) -> Response:
    tested = read_fields(request).get("tested", "")
    rows = await handler_rows(services_of(request))
    return show(request, "handlers.html", handlers=rows, tested=tested if tested in {row["name"] for row in rows} else "")


async def send_test_event(request: Request, form: Form) -> str:
    name: str = request.path_params["name"]
    await commands.send_test_event(services_of(request), name)
    return f"handlers?tested={quote(name, safe='')}"


PAGES = (
    page("/handlers", show_handlers, "The handlers."),
    button("/handlers/{name}/test", send_test_event, "Send a handler a test event."),
)
