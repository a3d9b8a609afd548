"""What a page of another site can make a browser send changes nothing, reads nothing and frames nothing."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from receiver.model import DeliveryState, Output
from receiver.stores.terms import DeliveryFilter
from receiver.web import pages
from receiver.web.application import OPERATIONS
from receiver.web.guard import SAFE_METHODS, SECURITY_HEADERS
from tests.web.opened import Web, open_web

KEY = "the-key-of-a-browser"
KEYED = f'api_keys = ["{KEY}"]\npublic_url = "https://hooks.example.com"'
SERVED = (*OPERATIONS, *pages.PAGES)
CHANGING = [each for each in SERVED if each.method not in SAFE_METHODS and not each.path.startswith("/callbacks/")]
LOOKING = [each for each in SERVED if each.method in SAFE_METHODS and each.path not in {"/v1/events", "/live"}]
FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
    {"Sec-Fetch-Site": "same-site", "Origin": "https://evil.hooks.example.com"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "anything"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://hooks.example.com"},
    {"Origin": "https://evil.example"},
    {"Origin": "https://hooks.example.com.evil.example"},
    {"Origin": "https://evilhooks.example.com"},
    {"Origin": "https://hooks.example.com:8443"},
    {"Origin": "https://hooks.example.com@evil.example"},
    {"Origin": "http://127.0.0.1:8081"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "hooks.example.com"},
]
SIMPLE = ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", None]  # what needs no preflight


@pytest.fixture(params=["keyless", "signed in"])
async def visited(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Web]:
    """An application that a person's browser is trusted by, with a job in it."""
    async with open_web(tmp_path, KEYED if request.param == "signed in" else "") as web:
        web.client.headers["Authorization"] = f"Bearer {KEY}"
        await web.succeed(outputs=[Output(index=0, url="https://cdn.example/1.png", media_type="image/png")])
        if request.param == "signed in":
            del web.client.headers["Authorization"]
            web.client.headers["Host"] = "hooks.example.com"
            answer = await web.client.post("/sign-in", data={"key": KEY}, headers={"Origin": "https://hooks.example.com"})
            cookie = answer.headers["set-cookie"]
            web.client.headers["Cookie"] = cookie.partition(";")[0]
            assert {"httponly", "secure", "samesite=lax"} <= {part.strip().lower() for part in cookie.split(";")}
            assert (await web.client.get("/v1/jobs")).status_code == 200
        yield web


async def paths_of(web: Web, template: str) -> list[str]:
    """Paths that lead to something that is there."""
    job = (await web.client.get("/v1/jobs")).json()["jobs"][0]["id"]
    [*_, delivery] = (await web.services.store.read_deliveries(DeliveryFilter(state=DeliveryState.PENDING), 10, None)).rows
    ids = {"deliveries": delivery.id, "notices": "ntc_" + "0" * 32, "handlers": "tell"}
    kind = template.removeprefix("/v1").split("/")[1]
    return [re.sub(r"\{index\}", "0", re.sub(r"\{(id|name)\}", ids.get(kind, job), template))]


def everything(folder: Path) -> list[str]:
    """All that the database holds."""
    with closing(sqlite3.connect(folder / "receiver.db")) as db:
        return [line for line in db.iterdump() if not line.startswith(('INSERT INTO "counters"', 'INSERT INTO "nodes"'))]


async def test_no_page_of_another_site_changes_anything(visited: Web, tmp_path: Path):
    before = everything(tmp_path)
    tried = 0
    for operation in CHANGING:
        for path in await paths_of(visited, operation.path):
            for number, headers in enumerate(FOREIGN):
                kind = SIMPLE[number % len(SIMPLE)]
                sent = headers | ({"Content-Type": kind} if kind else {})
                answer = await visited.client.request(operation.method, path, content=b'{"state":"pending"}', headers=sent)
                assert answer.status_code in {401, 403}, (operation.method, path, headers)
                tried += 1
    assert tried == len(CHANGING) * len(FOREIGN) > 200
    assert everything(tmp_path) == before


async def test_looking_changes_nothing_whoever_makes_the_browser_look(visited: Web, tmp_path: Path):
    before = everything(tmp_path)
    for operation in LOOKING:
        for path in await paths_of(visited, operation.path):
            for query in ("", "?action=delete&_method=DELETE"):
                answer = await visited.client.get(path + query, headers={"X-HTTP-Method-Override": "DELETE", **FOREIGN[0]})
                assert answer.status_code < 500, path
    assert everything(tmp_path) == before


async def test_without_word_of_where_a_form_stood_a_session_changes_nothing(tmp_path: Path):
    """A program sends neither header, but has a key and no cookie."""
    async with open_web(tmp_path, KEYED) as web:
        signed_in = await web.client.post("/sign-in", data={"key": KEY}, headers={"Sec-Fetch-Site": "same-origin"})
        web.client.headers["Cookie"] = signed_in.headers["set-cookie"].partition(";")[0]
        assert (await web.client.post("/deliveries/replay", data={"state": "dead"})).status_code == 403
        same = {"Sec-Fetch-Site": "same-origin"}
        assert (await web.client.post("/deliveries/replay", data={"state": "dead"}, headers=same)).status_code == 303
        assert (await web.client.post("/v1/deliveries/replay", json={"state": "dead"}, headers=same)).status_code == 401
        keyed = {"Authorization": f"Bearer {KEY}"}
        assert (await web.client.post("/v1/deliveries/replay", json={"state": "dead"}, headers=keyed)).status_code == 202


async def test_a_sign_in_cannot_be_forced_on_a_person(tmp_path: Path):
    async with open_web(tmp_path, KEYED) as web:
        for headers in FOREIGN:
            answer = await web.client.post("/sign-in", data={"key": KEY}, headers=headers)
            assert answer.status_code == 403, headers
            assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "next_path", ["https://evil.example", "//evil.example", "\\\\evil.example", "/\\evil.example", "javascript:alert(1)", "\r\nX: y"]
)
async def test_signing_in_leads_to_no_other_site(tmp_path: Path, next_path: str):
    async with open_web(tmp_path, KEYED) as web:
        answer = await web.client.post("/sign-in", data={"key": KEY, "next": next_path}, headers={"Sec-Fetch-Site": "same-origin"})
        target = httpx.URL("https://hooks.example.com/sign-in").join(answer.headers["location"])
        assert (answer.status_code, target.scheme, target.host) == (303, "https", "hooks.example.com")
        assert "x" not in answer.headers


async def test_no_other_site_may_read(visited: Web):
    for method, path in (("GET", "/v1/jobs"), ("OPTIONS", "/v1/jobs"), ("OPTIONS", "/"), ("GET", "/"), ("OPTIONS", "/callbacks/elkapi/x")):
        headers = {
            "Origin": "https://evil.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        answer = await visited.client.request(method, path, headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_each_answer_has_the_headers_that_browsers_heed(visited: Web, monkeypatch: pytest.MonkeyPatch):
    async def fail(*_):
        raise ZeroDivisionError

    found = {(each.method, path) for each in (*LOOKING, *CHANGING) for path in await paths_of(visited, each.path)}
    answers = []
    for own_method, path in sorted(found, reverse=True):
        answers += [await visited.client.request(method, path) for method in (own_method, "HEAD", "OPTIONS", "PATCH")]
    for path in ("/nothing", "/callbacks", "/callbacks/elkapi/x", "/callbacks/nobody/x", "/static/none.js", "/v1/jobs?limit=0"):
        answers += [await visited.client.get(path), await visited.client.post(path, content=b"x")]
    visited.client.headers["Cookie"] = ""
    answers += [await visited.client.get("/v1/jobs"), await visited.client.get("/", headers={"Accept": "text/html"})]
    monkeypatch.setattr(visited.services.store, "read_keys", fail)
    monkeypatch.setattr(visited.services.store, "read_jobs", fail)
    answers.append(await visited.client.get("/v1/jobs", headers={"Authorization": f"Bearer {KEY}"}))
    assert {answer.status_code for answer in answers} >= {200, 307, 400, 404, 405, 500}
    for answer in answers:
        for name, value in SECURITY_HEADERS:
            assert answer.headers.get_list(name), (str(answer.url), name)
            if name not in {"Content-Security-Policy", "Cache-Control", "Referrer-Policy"}:
                assert answer.headers.get_list(name) == [value]
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy or "sandbox" in policy
        if answer.headers.get("content-type", "").startswith("text/html"):
            assert "script-src 'self'" in policy
            assert not re.search(r"<script(?![^>]*\bsrc=)|\son[a-z]+=\"|javascript:", answer.text), answer.url
