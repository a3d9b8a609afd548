"""The guide as pages: from the files that the package carries."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import NotFound
from receiver.web.guide import DOCUMENTS, NAMES, START, link, read_page
from receiver.web.pages_frame import page, show
from receiver.web.query import Query


async def show_guide(request: Request, query: Query) -> Response:
    name: str = request.path_params.get("name", START)
    if name not in NAMES or (name == START and "name" in request.path_params):
        raise NotFound("There is no such page in the guide.")
    found = await asyncio.to_thread(read_page, name)
    pages = [(link(each.name, name), each.title, each.name == name) for each in DOCUMENTS]
    return show(request, "guide.html", guide=found, pages=pages)


PAGES = (
    page("/guide", show_guide, "The guide."),
    page("/guide/{name}", show_guide, "A page of the guide."),
)
