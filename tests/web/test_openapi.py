"""The OpenAPI document: valid, and about every route."""

from __future__ import annotations

import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from receiver.web.application import OPERATIONS
from receiver.web.operations import Resource
from receiver.web.pages import PAGES
from tests.web.opened import Web

PROMISED = """
POST /v1/jobs
GET /v1/jobs
GET /v1/costs
GET /v1/jobs/{id}
GET /v1/jobs/{id}/timeline
GET /v1/jobs/{id}/outputs/{index}
POST /v1/jobs/{id}/cancel
POST /v1/jobs/{id}/poll
POST /v1/jobs/{id}/resolve
DELETE /v1/jobs/{id}
POST /v1/notices/{id}/settle
GET /v1/events
GET /v1/deliveries
POST /v1/deliveries/{id}/replay
POST /v1/deliveries/replay
GET /v1/providers
GET /v1/handlers
POST /callbacks/{provider}/{token}
POST /callbacks/{provider}
GET /healthz
GET /readyz
GET /metrics
GET /
"""


@pytest.fixture
async def document(web: Web) -> dict:
    return (await web.client.get("/openapi.json")).json()


async def test_the_document_is_valid(document: dict):
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


async def test_the_document_has_every_promised_route(document: dict):
    for line in PROMISED.split("\n")[1:-1]:
        method, path = line.split(" ")
        assert method.lower() in document["paths"][path], line


async def test_every_route_is_in_the_document_and_the_other_way_round(web: Web, document: dict):
    routed = set()
    for route in web.app.routes:
        assert isinstance(route, Route)
        assert isinstance(route.endpoint, Resource)
        routed |= {(method, route.path) for method in route.endpoint.operations if method != "HEAD"}
    routed -= {(page.method, page.path) for page in PAGES}
    told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert told == routed | {("POST", "/callbacks/{provider}"), ("POST", "/callbacks/{provider}/{token}")}


async def test_every_operation_tells_its_answers_errors_parameters_and_body(document: dict):
    for operation in OPERATIONS:
        told = document["paths"][operation.path][operation.method.lower()]
        assert told["summary"]
        assert {str(answer.status) for answer in operation.answers} <= set(told["responses"])
        for status in operation.all_errors:
            assert list(told["responses"][str(status)]["content"]) == ["application/problem+json"]
        names = {parameter["name"] for parameter in told["parameters"]}
        assert names >= set(re.findall(r"\{(\w+)\}", operation.path)) | {each.name for each in operation.parameters or ()}
        assert ("requestBody" in told) == (operation.body is not None)
        assert told["security"] == ([] if operation.is_open else [{"key": [operation.needs]}])
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


async def test_answers_keep_to_the_documented_statuses(web: Web, document: dict):
    """Call every operation with nothing useful: whatever it answers is documented."""
    for operation in OPERATIONS:
        if operation.path == "/v1/events":
            continue
        path = re.sub(r"\{\w+\}", "job_" + "0" * 32, operation.path)
        for query in ("", "?colour=red"):
            answer = await web.client.request(operation.method, path + query, content=b"{}")
            assert str(answer.status_code) in document["paths"][operation.path][operation.method.lower()]["responses"], (path, answer.text)
