"""What a route is here: one operation on a path, with all that its callers may rely on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from receiver.keys import Scope as KeyScope
from receiver.services import Services
from receiver.web.keyring import caller_of
from receiver.web.query import Parameter, Query, read_query

Endpoint = Callable[[Request, Query], Awaitable[Response]]


@dataclass(frozen=True)
class Answer:
    """One answer that an operation gives when all is well."""

    status: int
    description: str
    body: Any = None  # a type, for the schema
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)  # name → what it says


@dataclass(frozen=True)
class Header:
    """A header of the request that an operation looks at."""

    name: str
    description: str


@dataclass(frozen=True)
class Operation:
    """One method on one path. `errors` are the statuses of problems beside those that every operation may give.

    `parameters` None: the query string is not looked at. `endpoint` a string: a name only, it is served elsewhere (callbacks).
    """

    method: str
    path: str
    endpoint: Endpoint | str
    group: str
    summary: str
    answers: tuple[Answer, ...]
    parameters: tuple[Parameter, ...] | None = ()
    headers: tuple[Header, ...] = ()
    body: type[msgspec.Struct] | None = None
    errors: tuple[int, ...] = ()
    is_open: bool = False  # asks for no API key
    scope: KeyScope | None = None  # of the key; None: `read` for a GET, else `operate`

    @property
    def name(self) -> str:
        return self.endpoint if isinstance(self.endpoint, str) else getattr(self.endpoint, "__name__", self.summary)

    @property
    def needs(self) -> KeyScope:
        """What a key must allow, of an operation that asks for one."""
        return self.scope or (KeyScope.READ if self.method == "GET" else KeyScope.OPERATE)

    @property
    def all_errors(self) -> tuple[int, ...]:
        """Every status of a problem that it may answer with."""
        common = () if self.is_open else (401, 403, 429)
        from_body = (400, 413) if self.body else ()
        from_query = (400,) if self.parameters is not None else ()
        from_path = (404,) if "{" in self.path else ()
        return tuple(sorted({*common, *from_body, *from_query, *from_path, *self.errors, 500, 503}))


class Resource:
    """Everything at one path: picks the operation by method and reads its query string."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = {operation.method: operation for operation in operations}
        if "GET" in self.operations:
            self.operations["HEAD"] = self.operations["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self.operations.get(scope["method"])
        if operation is None:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(self.operations))})
        assert not isinstance(operation.endpoint, str)
        if not (operation.is_open or operation.needs in caller_of(scope).scopes):
            raise lacks_scope(operation.needs)
        query = {} if operation.parameters is None else read_query(scope["query_string"], operation.parameters)
        response = await operation.endpoint(Request(scope, receive, send), query)
        await response(scope, receive, send)


def lacks_scope(needed: KeyScope) -> HTTPException:
    header = f'Bearer realm="receiver", error="insufficient_scope", scope="{needed}"'  # https://www.rfc-editor.org/rfc/rfc6750#section-3.1
    return HTTPException(403, f"This API key may not do this: it has no scope {needed}.", headers={"WWW-Authenticate": header})


def build_routes(operations: Sequence[Operation]) -> list[Route]:
    """One Starlette route per path; paths without a `{…}` come first, so that `replay` is never taken for an id."""
    served = [operation for operation in operations if not isinstance(operation.endpoint, str)]
    paths = sorted({operation.path for operation in served}, key=lambda path: ("{" in path, path))
    return [Route(path, Resource([each for each in served if each.path == path])) for path in paths]


def services_of(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


def answer_json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), status, headers=headers, media_type="application/json")
