"""What is configured, how it does, and the pages."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from receiver.errors import StoreUnavailable
from receiver.loop import LoopHealth
from receiver.web import pages_frame, views
from tests.web.opened import Web, open_web


async def test_providers_are_shown_without_secrets(web: Web):
    now = web.services.clock.now()
    for _ in range(3):
        await web.services.store.count_failure("pixazo", now, "connection refused")
    await web.succeed()
    await web.submit()
    answer = await web.client.get("/v1/providers")
    assert "never-shown" not in answer.text
    shown = {provider.name: provider for provider in msgspec.convert(answer.json(), views.Providers).providers}
    assert {"elkapi", "hoox", "huzz", "oxen", "pixazo"} <= set(shown)
    assert shown["elkapi"].configured
    assert not shown["hoox"].configured
    assert shown["hoox"].operations[0].name == "asset"
    assert "hunyuan-image" in shown["pixazo"].operations[0].models
    assert (shown["pixazo"].health.state, shown["elkapi"].health.state) == ("failing", "ok")
    assert (shown["huzz"].has_callback, shown["elkapi"].has_callback, shown["oxen"].has_stream) == (False, True, True)
    assert shown["elkapi"].open_jobs == {"submitting": 1}
    assert shown["elkapi"].counters["jobs_succeeded"] == 1


async def test_handlers_are_shown_without_their_options(web: Web):
    await web.succeed()
    answer = await web.client.get("/v1/handlers")
    [tell] = msgspec.convert(answer.json(), views.Handlers).handlers
    assert (tell.name, tell.use, tell.events, tell.where) == ("tell", "log", ["*"], {"provider": ["elkapi"]})
    assert tell.deliveries == {"pending": 2}
    assert tell.health.state == "ok"
    assert "options" not in answer.text


async def test_ready_is_able_to_persist_and_well(web: Web, monkeypatch: pytest.MonkeyPatch):
    assert (await web.client.get("/healthz")).json() == {"status": "ok"}
    assert (await web.client.get("/readyz?probe=1")).json() == {"status": "ok"}

    async def fail() -> None:
        raise StoreUnavailable("disk full at /var/lib/secret-path")

    monkeypatch.setattr(web.services.store, "check_writable", fail)
    assert (await web.client.get("/readyz")).status_code == 200  # asked a moment ago
    web.app.state.store_check._checked_at -= 10
    answer = await web.client.get("/readyz")
    assert (answer.status_code, answer.json()["failing"]) == (503, ["store"])
    assert "secret-path" not in answer.text


async def test_ready_names_a_loop_that_fails(tmp_path: Path):
    async with open_web(tmp_path) as web:
        object.__setattr__(web.services, "health", lambda: (LoopHealth("settle", None, 3), LoopHealth("poll", None, 2)))
        answer = await web.client.get("/readyz")
        assert (answer.status_code, answer.json()["failing"]) == (503, ["settle"])


async def test_metrics_can_be_read_by_prometheus(web: Web):
    await web.succeed()
    await web.submit()
    await web.client.post("/callbacks/elkapi/forged")
    await web.client.post(web.callback_path("sub_" + "4" * 32))
    answer = await web.client.get("/metrics?name[]=x")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["receiver_open_jobs", "elkapi", "submitting"] == 1
    assert samples["receiver_open_deliveries", "pending", "tell"] == 2
    assert samples["receiver_inbox_notices",] == 1
    assert samples["receiver_callbacks_refused_total", "elkapi", "token"] == 1
    assert samples["receiver_job_events_total", "elkapi", "job.succeeded"] == 1


async def test_pages_come_from_the_package_alone(web: Web):
    for path in ("/", "/docs"):
        answer = await web.client.get(path)
        assert answer.headers["content-type"].startswith("text/html")
        assert "unsafe" not in answer.headers["content-security-policy"]
        links = re.findall(r'(?:href|src)="([^"]*)"', answer.text)
        assert links
        for link in links:
            assert not re.match(r"[a-z]+:|/", link), "a link must hold below the path of the public URL too"
            assert (await web.client.get(f"/{link.removeprefix('.').removeprefix('/')}")).status_code == 200, link
    for path in (*pages_frame.STATIC.glob("*.js"), *pages_frame.STATIC.glob("*.css"), *pages_frame.STATIC.glob("*.html")):
        assert not re.search(r"https?://|innerHTML|eval\(", path.read_text())


async def test_only_known_files_are_sent(web: Web):
    for name in ["nothing.js", "..%2Fviews.py", "%2e%2e", "pages.css%00", "docs.html/"]:
        assert (await web.client.get(f"/static/{name}")).status_code == 404
        assert (await web.client.get("/static/docs.js")).headers["content-type"].startswith("text/javascript")
