"""The OpenAPI 3.1 document, made of what the routes say about themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from receiver import __version__
from receiver.web.operations import Answer, Operation
from receiver.web.problems import MEDIA_TYPE
from receiver.web.query import Parameter
from receiver.web.views import Problem

TEMPLATE = "#/components/schemas/{name}"
INFO = {
    "title": "Receiver",
    "version": __version__,
    "summary": "Submits AI generation jobs, brings every one of them home, and tells your handlers, once.",
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
KEYS = (
    "Where the configuration has `api_keys`: one of them, which may do everything, or one that `receiver keys new` made, which has "
    "some of the scopes `submit`, `read` and `operate`."
)
ERRORS = {
    400: "The request is malformed; `errors` says where.",
    401: "The key (of a callback: the token or signature) is missing or wrong.",
    403: "Not with this key (`security` names the scope that it needs), not from here without one, not by a page of another site.",
    404: "There is no such thing.",
    409: "The state of things does not allow it.",
    413: "The body is over the limit.",
    416: "The file has no such part.",
    422: "This Idempotency-Key was used with another body.",
    429: "Too many; `Retry-After` says when again.",
    500: "A mistake of the server.",
    502: "The provider did not give the output.",
    503: "Not now; `Retry-After` says when again.",
}
PATH_PARAMETERS = {
    "id": "The id.",
    "index": "The output's `index`, from 0.",
    "provider": "The name of a configured account.",
    "token": "What the callback URL was given when the job was submitted.",
    "name": "The name of a file.",
}


def build_document(operations: Sequence[Operation]) -> dict[str, Any]:
    """All operations, with a schema for everything that they take and give."""
    types = list(dict.fromkeys([Problem, *types_of(operations)]))
    schemas, components = msgspec.json.schema_components(types, ref_template=TEMPLATE)
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = describe(operation, by_type)
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "servers": [{"url": "."}],
        "security": [{"key": []}],
        "tags": [{"name": group} for group in dict.fromkeys(operation.group for operation in operations)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": KEYS}},
        },
    }


def types_of(operations: Iterable[Operation]) -> Iterable[Any]:
    """Every type that needs a schema."""
    for operation in operations:
        if operation.body:
            yield operation.body
        yield from (answer.body for answer in operation.answers if answer.body not in {None, bytes, str})


def describe(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.group],
        "parameters": [
            *map(describe_path_parameter, re.findall(r"\{(\w+)\}", operation.path)),
            *map(describe_parameter, operation.parameters or ()),
            *(
                {"name": header.name, "in": "header", "required": False, "description": header.description, "schema": {"type": "string"}}
                for header in operation.headers
            ),
        ],
        "responses": {
            **{str(answer.status): describe_answer(answer, schemas) for answer in operation.answers},
            **{str(status): describe_error(status, schemas) for status in operation.all_errors},
        },
    }
    if operation.body is not None:
        document["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas[operation.body]}}}
    document["security"] = [] if operation.is_open else [{"key": [str(operation.needs)]}]
    return document


def describe_path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": PATH_PARAMETERS[name], "schema": {"type": "string"}}


def describe_parameter(parameter: Parameter) -> dict[str, Any]:
    return {"name": parameter.name, "in": "query", "required": False, "description": parameter.description, "schema": parameter.schema}


def describe_answer(answer: Answer, schemas: dict[Any, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        document["headers"] = {name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()}
    if answer.body is not None:
        schema = {"type": "string"} if answer.body is str else {} if answer.body is bytes else schemas[answer.body]
        document["content"] = {answer.media_type: {"schema": schema}}
    return document


def describe_error(status: int, schemas: dict[Any, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "description": ERRORS.get(status, HTTPStatus(status).phrase),
        "content": {MEDIA_TYPE: {"schema": schemas[Problem]}},
    }
    if status in {429, 503}:
        document["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return document
