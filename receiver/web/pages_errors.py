"""What is refused before any page is asked, as a page: a person in front of a browser is not shown a problem document."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from receiver.web.pages_frame import show
from receiver.web.paths import is_for_programs
from receiver.web.problems import MEDIA_TYPE, answer_to_http_exception


def as_page(scope: Scope, answer: Response) -> Response:
    """The same refusal for eyes, where a browser wants to show it; else the answer as it is."""
    request = Request(scope)
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if answer.media_type != MEDIA_TYPE or "text/html" not in request.headers.get("accept", "") or is_for_programs(path):
        return answer
    detail = msgspec.json.decode(answer.body)["detail"]
    shown = show(request, "error.html", answer.status_code, message=detail, details=(), is_bare=answer.status_code == 403)
    for name in ("Retry-After", "Allow"):
        if name in answer.headers:
            shown.headers[name] = answer.headers[name]
    return shown


def answer_with_page(request: Request, error: Exception) -> Response:
    """There is no such address, or it cannot be asked so."""
    return as_page(request.scope, answer_to_http_exception(request, error))
