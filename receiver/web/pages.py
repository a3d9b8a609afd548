"""Pages for people: where each one is, their files, and the browsable OpenAPI document; all of it from files that the package carries."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import NotFound
from receiver.web import (
    pages_costs,
    pages_deliveries,
    pages_guide,
    pages_handlers,
    pages_jobs,
    pages_live,
    pages_notices,
    pages_overview,
    pages_providers,
    pages_try,
    sessions,
)
from receiver.web.operations import Answer, Operation, answer_json
from receiver.web.pages_frame import GROUP, MEDIA_TYPES, page_headers, static_files, static_marks
from receiver.web.query import Query


async def show_docs(request: Request, query: Query) -> Response:
    return Response(static_files()["docs.html"], headers=page_headers(), media_type="text/html")


async def send_static(request: Request, query: Query) -> Response:
    name: str = request.path_params["name"]
    if name not in static_files():
        raise NotFound("There is no such file.")
    is_named_by_content = request.scope["query_string"] == f"v={static_marks()[name]}".encode()
    cache = "public, max-age=31536000, immutable" if is_named_by_content else "no-cache"
    return Response(static_files()[name], headers={"Cache-Control": cache}, media_type=MEDIA_TYPES[Path(name).suffix])


async def show_openapi(request: Request, query: Query) -> Response:
    return answer_json(request.app.state.openapi())


OPERATIONS = (
    pages_overview.OVERVIEW,
    Operation("GET", "/docs", show_docs, GROUP, "This API, browsable.", (Answer(200, "A page.", str, "text/html"),), None),
    Operation("GET", "/openapi.json", show_openapi, GROUP, "This API as OpenAPI 3.1.", (Answer(200, "The document.", dict),), None),
    Operation(
        "GET",
        "/static/{name}",
        send_static,
        GROUP,
        "A file that a page needs.",
        (Answer(200, "The file.", bytes, "*/*"),),
        None,
        is_open=True,
    ),
)
PAGES = (
    *sessions.PAGES,
    *pages_live.PAGES,
    *pages_jobs.PAGES,
    *pages_costs.PAGES,
    *pages_deliveries.PAGES,
    *pages_notices.PAGES,
    *pages_providers.PAGES,
    *pages_handlers.PAGES,
    *pages_try.PAGES,
    *pages_guide.PAGES,
)
"""Not part of the API: what they answer is for eyes, and may look different tomorrow."""
