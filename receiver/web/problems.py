"""Turns what went wrong into an answer: problem documents (RFC 9457), never a traceback."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from receiver.errors import (
    BodyOverLimit,
    Conflict,
    Denied,
    Invalid,
    KeyReused,
    NotFound,
    OutputGone,
    ProviderFault,
    Refused,
    TooMany,
    Unavailable,
    Unproven,
    Unreadable,
)

MEDIA_TYPE = "application/problem+json"

STATUSES: Mapping[type[Exception], int] = {
    Invalid: 400,
    NotFound: 404,
    Conflict: 409,
    KeyReused: 422,
    Unproven: 401,
    BodyOverLimit: 413,
    TooMany: 429,
    Refused: 400,
    Unavailable: 503,
    ProviderFault: 502,
    Denied: 502,
    Unreadable: 502,
    OutputGone: 404,
}
"""The HTTP status of each kind of error; the nearest class in its family tree counts."""


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """An answer of `application/problem+json`."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return Response(msgspec.json.encode(document), status, headers=headers, media_type=MEDIA_TYPE)


def problem_of(error: Exception) -> Response:
    """The answer to an error of ours."""
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    if isinstance(error, Invalid):
        more["errors"] = error.errors
    if isinstance(error, TooMany | Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return problem(status, str(error), headers=headers, **more)


def answer_to_error(_: Request, error: Exception) -> Response:
    return problem_of(error)


def answer_to_http_exception(_: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, no such method."""
    assert isinstance(error, HTTPException)
    detail = "There is nothing at this address." if error.status_code == 404 else error.detail
    return problem(error.status_code, detail, headers=error.headers)


def answer_to_disconnect(_: Request, __: Exception) -> Response:
    """Nobody reads this: the client went away while its body was read."""
    return Response(status_code=400)


def last_resort() -> Response:
    """The answer to a mistake of our own; what it was stands in the log."""
    return problem(500, "Something went wrong here; the log says what.")


EXCEPTION_HANDLERS: Mapping[Any, Callable[[Request, Exception], Response]] = {
    HTTPException: answer_to_http_exception,
    ClientDisconnect: answer_to_disconnect,
    **dict.fromkeys(STATUSES, answer_to_error),
}
