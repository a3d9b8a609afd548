"""Whatever strangers send, it is never a mistake of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.web.pages import PAGES
from tests.web.opened import Web

pytestmark = pytest.mark.long

LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20)
JSON = st.recursive(
    LEAF, lambda child: st.lists(child, max_size=4) | st.dictionaries(st.text(max_size=10), child, max_size=4), max_leaves=12
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "provider": st.sampled_from(["elkapi", "pixazo", "oxen", "huzz", "hoox"]) | JSON,
        "model": st.sampled_from(["flux", "hunyuan-image", "../../x", "a/b", ""]) | JSON,
        "input": st.dictionaries(st.sampled_from(["prompt", "num_generations", "sync_mode", "callback_url", "", "a/b~c"]), JSON) | JSON,
        "operation": st.just("default") | JSON,
        "media": st.sampled_from(["image", "video"]) | JSON,
        "metadata": st.dictionaries(st.text(max_size=5), JSON) | JSON,
        "deadline_seconds": st.floats() | JSON,
        "other": JSON,
    },
)
OFTEN = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.sampled_from(
    [
        "provider",
        "model",
        "status",
        "submission_id",
        "metadata.a",
        "metadata.",
        "created_after",
        "created_before",
        "limit",
        "cursor",
        "wait",
        "raw",
        "state",
        "handler",
        "job_id",
        "outcome",
    ]
)
VALUES = st.text(max_size=20) | st.sampled_from(
    ["1", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "WzAsICIiXQ", "queued"]
)
HEADERS = st.sampled_from(
    [
        *("Accept", "Authorization", "Content-Encoding", "Content-Length", "Content-Type", "Cookie", "Forwarded", "Host", "HX-Request"),
        *("Idempotency-Key", "If-None-Match", "If-Range", "Last-Event-ID", "Origin", "Prefer", "Range", "Referer", "Sec-Fetch-Site"),
        *("traceparent", "Transfer-Encoding", "User-Agent", "X-Forwarded-For", "X-Forwarded-Proto", "WebHook-Request-Origin", "X"),
    ]
)
KNOWN_LINES = ("text/html", "bytes=0-0,-1,9-", "Bearer ", "Bearer x", "receiver_session=a.b.c", "*" * 4000, "same-origin", "1", "-1")
LINES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60) | st.sampled_from(
    KNOWN_LINES
)
ADDRESSED = (
    *(("GET", path) for path in ("/", "/jobs", "/try", "/sign-in", "/v1/jobs", "/v1/notices", "/static/pages.css", "/metrics", "/nowhere")),
    *(("GET", "/v1/jobs/job_" + "0" * 32 + rest) for rest in ("", "/timeline", "/outputs/0")),
    *(("POST", path) for path in ("/v1/jobs", "/v1/deliveries/replay", "/callbacks/elkapi", "/callbacks/elkapi/a.b", "/try", "/sign-in")),
    ("DELETE", "/v1/jobs/job_" + "0" * 32),
    ("OPTIONS", "/callbacks/elkapi/a.b"),
)
SHOWN = ["/", "/docs", *(page.path for page in PAGES if page.method == "GET" and page.path != "/live")]  # that one does not end
FORMS = [page.path for page in PAGES if page.method == "POST"]
WORDS = st.sampled_from(
    ["provider", "model", "operation", "media", "input", "metadata", "token", "key", "next", "remote_id", "state", "handler"]
)
KNOWN_TEXTS = (
    *("elkapi", "flux", "default", "image", "{}", '{"prompt": "x"}', '{"prompt": "\\ud800"}', '{"prompt": 1e999}', "dead", "9" * 400),
    *("[" * 5000, '{"a":' * 200 + "1" + "}" * 200, "a=b\n=\nc=d", "=" * 5000, "\0", "{{7*7}}", "<script>"),
    *("//evil.example", "../../etc/passwd", "javascript:alert(1)"),
)
TEXTS = st.text(max_size=20) | st.sampled_from(KNOWN_TEXTS)
PATHS = ("/v1/jobs", "/v1/deliveries", "/v1/notices", "/v1/providers", "/v1/jobs/job_" + "0" * 32)


def run(web: Web, call: Coroutine[Any, Any, None]) -> None:
    """Hypothesis is synchronous, the fixture's loop is not: go back into it."""
    asyncio.run_coroutine_threadsafe(call, LOOPS[id(web)]).result(30)


LOOPS: dict[int, asyncio.AbstractEventLoop] = {}


async def in_thread(web: Web, test: Any) -> None:
    LOOPS[id(web)] = asyncio.get_running_loop()
    try:
        await asyncio.to_thread(test)
    finally:
        del LOOPS[id(web)]


async def test_no_body_breaks_a_submit(web: Web):
    import json

    async def post(document: Any) -> None:
        raw = json.dumps(document).encode("utf-8", "surrogatepass")
        answer = await web.client.post("/v1/jobs", content=raw, headers={"Prefer": "respond-async"})
        assert answer.status_code in {202, 400}, answer.text
        if answer.status_code == 400:
            assert answer.json()["errors"]

    @OFTEN
    @given(FIELDS | JSON)
    def each(document: Any) -> None:
        run(web, post(document))

    await in_thread(web, each)


async def test_no_bytes_break_a_body(web: Web):
    async def post(raw: bytes) -> None:
        for path in ("/v1/jobs", "/v1/deliveries/replay"):
            assert (await web.client.post(path, content=raw)).status_code == 400

    @OFTEN
    @given(st.binary(max_size=200))
    def each(raw: bytes) -> None:
        run(web, post(raw))

    await in_thread(web, each)


async def test_no_query_breaks_a_listing(web: Web):
    async def get(path: str, pairs: list[tuple[str, str]], tail: str) -> None:
        query = "&".join(f"{quote(name)}={quote(value, errors='surrogatepass')}" for name, value in pairs) + tail
        answer = await web.client.get(f"{path}?{query}")
        assert answer.status_code in {200, 400, 404}, (query, answer.text)

    @OFTEN
    @given(
        st.sampled_from(PATHS),
        st.lists(st.tuples(NAMES | st.text(max_size=5), VALUES), max_size=3),
        st.sampled_from(["", "&%", "&%ff=1", "&=&=", ";"]),
    )
    def each(path: str, pairs: list[tuple[str, str]], tail: str) -> None:
        if not any(name == "wait" for name, _ in pairs):
            run(web, get(path, pairs, tail))

    await in_thread(web, each)


@pytest.mark.parametrize("prefix", ["", "/v1/jobs/", "/callbacks/", "/callbacks/elkapi/", "/v1/deliveries/", "/static/"])
async def test_no_path_breaks_anything(web: Web, prefix, tmp_path: Path):
    async def get(rest: str) -> None:
        for method in ("GET", "POST", "DELETE"):
            answer = await web.client.request(method, prefix + "/" * (not prefix) + quote(rest, errors="surrogatepass"))
            assert answer.status_code < 500, answer.text
            assert not answer.is_redirect

    @settings(OFTEN, max_examples=20)
    @given(st.text(max_size=30) | st.sampled_from(["../../etc/passwd", "..", ".", "//", "\0", "%2e%2e%2f", "a" * 5000]))
    def each(rest: str) -> None:
        run(web, get(rest))

    await in_thread(web, each)


async def test_no_header_breaks_anything(web: Web):
    async def send(method: str, path: str, headers: list[tuple[str, str]]) -> None:
        request = web.client.build_request(method, path, content=b"" if method == "POST" else None)
        request.headers = httpx.Headers([*request.headers.raw, *((name.encode(), value.encode("latin-1")) for name, value in headers)])
        answer = await web.client.send(request)
        assert answer.status_code < 500, (method, path, headers, answer.text)

    @OFTEN
    @given(st.sampled_from(ADDRESSED), st.lists(st.tuples(HEADERS, LINES), max_size=4))
    def each(address: tuple[str, str], headers: list[tuple[str, str]]) -> None:
        run(web, send(*address, headers))

    await in_thread(web, each)


async def test_no_form_breaks_a_page(web: Web):
    job = await web.succeed()
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    async def send(path: str, body: bytes) -> None:
        path = path.replace("{id}", job.id).replace("{name}", "tell")
        answer = await web.client.post(path, content=body, headers=form)
        assert answer.status_code < 500, (path, body, answer.text)
        if answer.is_redirect:
            assert answer.url.join(answer.headers["location"]).host == "127.0.0.1"

    @OFTEN
    @given(
        st.sampled_from(FORMS),
        st.dictionaries(WORDS | st.text(max_size=5), TEXTS, max_size=5).map(
            lambda fields: urlencode(fields, errors="surrogatepass").encode()
        )
        | st.binary(max_size=60),
    )
    def each(path: str, body: bytes) -> None:
        run(web, send(path, body))

    await in_thread(web, each)


async def test_no_query_breaks_a_page(web: Web):
    job = await web.succeed()

    async def get(path: str, query: str) -> None:
        path = path.replace("{id}", job.id).replace("{name}", "tell")
        answer = await web.client.get(f"{path}?{query}")
        assert answer.status_code < 500, (path, query, answer.text)

    @OFTEN
    @given(st.sampled_from(SHOWN), st.lists(st.tuples(NAMES | WORDS | st.text(max_size=5), TEXTS | VALUES), max_size=3), st.booleans())
    def each(path: str, pairs: list[tuple[str, str]], is_cut: bool) -> None:
        query = urlencode(pairs, errors="surrogatepass")
        run(web, get(path, query[:-1] if is_cut else query))

    await in_thread(web, each)
