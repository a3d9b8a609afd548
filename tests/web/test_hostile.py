"""Whatever strangers send, it is never a mistake of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
