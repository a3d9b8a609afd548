"""Keys, strangers, prefixes, headers, and the last resort."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from receiver.web.guard import is_loopback
from tests.web.opened import ELK, SUBMIT_NOW, Web, open_web

KEYS = 'api_keys = ["first-api-key", "second-api-key"]'


async def test_without_keys_a_host_that_is_not_loopback_is_refused(web: Web):
    for host in [
        "evil.example",
        "192.0.2.1",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::2]",
        "a@localhost",
        "",
        "127.0.0.1:x",
    ]:
        for path in ("/v1/jobs", "/", "/docs", "/metrics", "/openapi.json", "/nothing"):
            answer = await web.client.get(path, headers={"Host": host})
            assert answer.status_code == 403, host
            assert "api_keys = [" in answer.json()["detail"]
            assert "[server]" in answer.json()["detail"]
        assert (await web.client.post("/v1/jobs", json=ELK, headers={"Host": host})).status_code == 403
        assert (await web.client.get("/healthz", headers={"Host": host})).status_code == 200
        assert (await web.client.get("/readyz", headers={"Host": host})).status_code == 200


async def test_without_keys_what_came_through_a_proxy_is_refused(web: Web):
    for header in ["Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "x-forwarded-anything"]:
        assert (await web.client.get("/v1/jobs", headers={header: "for=127.0.0.1"})).status_code == 403


async def test_without_keys_this_machine_is_served(web: Web):
    for host in ["localhost", "LOCALHOST:8080", "a.localhost", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:8080"]:
        assert is_loopback(host)
        assert (await web.client.get("/v1/jobs", headers={"Host": host})).status_code == 200


async def test_two_hosts_are_refused(web: Web):
    answer = await web.client.get("/v1/jobs", headers=[("Host", "localhost"), ("Host", "evil.example")])
    assert answer.status_code == 403


async def test_with_keys_everything_but_health_and_callbacks_wants_one(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        for path in (
            "/",
            "/docs",
            "/metrics",
            "/openapi.json",
            "/v1/jobs",
            "/v1/events",
            "/nothing",
            "/healthz/",
            "//healthz",
        ):
            answer = await web.client.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/healthz", "/readyz"):
            assert (await web.client.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Bearer first-api-key", 200),
        (b"bearer  first-api-key ", 200),
        (b"Bearer second-api-key", 200),
        (b"Bearer first-api-ke", 401),
        (b"Bearer first-api-keyy", 401),
        (b"Basic first-api-key", 401),
        (b"Bearer", 401),
        (b"Bearer \xff", 401),
        (b"", 401),
    ],
)
async def test_a_key_is_compared_whole(tmp_path: Path, header, status):
    async with open_web(tmp_path, KEYS) as web:
        answer = await web.client.get(
            "/v1/jobs", headers=[(b"Authorization", header), (b"Host", b"hooks.example.com"), (b"X-Forwarded-For", b"1.1.1.1")]
        )
        assert answer.status_code == status


async def test_idempotency_keys_are_told_apart_by_api_key(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        one = SUBMIT_NOW | {"Idempotency-Key": "k", "Authorization": "Bearer first-api-key"}
        two = one | {"Authorization": "Bearer second-api-key"}
        first, second = [await web.client.post("/v1/jobs", json=ELK, headers=headers) for headers in (one, two)]
        assert first.json()["submission_id"] != second.json()["submission_id"]
        family = (await web.services.store.load_families([first.json()["submission_id"]]))[first.json()["submission_id"]]
        assert family.submission.api_key_id
        assert "first-api-key" not in repr(family)


async def test_pages_of_other_sites_may_change_nothing(web: Web):
    for headers, status in [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Sec-Fetch-Site": "none"}, 202),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://127.0.0.1:8080"}, 202),
        ({}, 202),
    ]:
        assert (await web.client.post("/v1/jobs", json=ELK, headers=SUBMIT_NOW | headers)).status_code == status
        assert (await web.client.get("/v1/jobs", headers=headers)).status_code == 200


async def test_every_answer_has_security_headers(web: Web):
    for path in ("/v1/jobs", "/nothing", "/", "/callbacks/elkapi/x", "/healthz"):
        headers = (await web.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == ("same-origin" if path == "/" else "no-referrer")
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "cache-control" in headers


async def test_who_asks_for_the_public_url_without_its_last_slash_signs_in_below_it(tmp_path: Path):
    async with open_web(tmp_path, 'api_keys = ["a-key-of-the-test"]\npublic_url = "http://127.0.0.1:8080/in/box"') as web:
        for path in ("/in/box", "/in/box/"):
            answer = await web.client.get(path, headers={"Accept": "text/html"})
            assert answer.status_code == 303
            assert httpx.URL(f"http://127.0.0.1:8080{path}").join(answer.headers["location"]).path == "/in/box/sign-in"


@pytest.mark.parametrize("prefix", ["/in/box", "/v1", "/callbacks", "/docs", "/a%20b"])
async def test_paths_are_served_with_and_without_the_path_of_the_public_url(tmp_path: Path, prefix):
    async with open_web(tmp_path, f'public_url = "http://127.0.0.1:8080{prefix}"') as web:
        [job] = (await web.submit())["jobs"]
        assert (await web.client.get(prefix)).status_code == (404 if prefix in {"/v1", "/callbacks"} else 200)
        for path in (
            f"{prefix}/",
            f"{prefix}/v1/jobs/{job['id']}",
            f"/v1/jobs/{job['id']}",
            f"{prefix}/healthz",
            f"{prefix}/docs",
            "/docs",
        ):
            assert (await web.client.get(path)).status_code == 200, path
        callback = web.callback_path(job["submission_id"])
        for path in (callback, prefix + callback):
            assert (await web.client.post(path, content=b"{}")).status_code == 200, path
        assert (await web.client.get(f"{prefix}x/v1/jobs")).status_code == 404


async def test_unknown_paths_and_methods_are_problems(web: Web):
    unknown = await web.client.get("/v2/jobs")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/problem+json")
    assert (await web.client.get("/v1/jobs/")).status_code == 404
    wrong = await web.client.put("/v1/jobs")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, POST")
    assert wrong.headers["content-type"] == "application/problem+json"


async def test_head_is_a_get_without_a_body(web: Web):
    for path in ("/v1/jobs", "/", "/healthz", "/metrics", "/openapi.json", "/v1/events"):
        answer = await web.client.head(path)
        assert answer.status_code == 200, path


async def test_a_mistake_of_ours_is_a_problem_without_a_traceback(web: Web, monkeypatch: pytest.MonkeyPatch):
    async def fail(*_):
        raise ZeroDivisionError("elk-key-never-shown")

    monkeypatch.setattr(web.services.store, "read_jobs", fail)
    answer = await web.client.get("/v1/jobs")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "ZeroDivision" not in answer.text
    assert "never-shown" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
