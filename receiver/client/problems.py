"""What can go wrong when asking a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

from receiver.errors import ReceiverError


class ApiError(ReceiverError):
    """The server refused: `status` is the HTTP code, `problem` the problem document."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status, self.problem = status, dict(problem)
        super().__init__(_describe(status, self.problem))

    @property
    def may_pass(self) -> bool:
        """Whether the same call may go well in a while."""
        return self.status >= 500 or self.status == 429


class NotReachable(ReceiverError):
    """No server answers at this address."""

    may_pass = True


def read_problem(response: httpx.Response) -> ApiError:
    """The error that an answer tells, whoever gave it."""
    try:
        problem = msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {"detail": f"{response.request.url.host} answered {response.status_code} {response.reason_phrase}"}
    return ApiError(response.status_code, problem)


def _describe(status: int, problem: Mapping[str, Any]) -> str:
    """What a person reads: each mistake with its place, else the detail."""
    errors = problem.get("errors")
    if isinstance(errors, list) and errors:
        return "\n".join(_describe_one(error) for error in errors if isinstance(error, dict))
    return str(problem.get("detail") or problem.get("title") or f"the server answered {status}")


def _describe_one(error: Mapping[str, Any]) -> str:
    place = error.get("pointer") or error.get("parameter")
    return f"{place}: {error.get('detail')}" if place else str(error.get("detail"))
