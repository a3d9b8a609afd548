"""Where providers call back: exactly the promised answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from receiver.errors import StoreUnavailable
from receiver.model import Notice
from receiver.probing import PROBED, make_proof
from receiver.web import callbacks
from tests.web.opened import Web, open_web

BODY = b'{"id": "elk-1", "status": "completed", "outputs": ["https://cdn.example/1"]}'
MAX = 1024 * 1024


async def notices_of(web: Web) -> tuple[Notice, ...]:
    async with web_claims(web) as kept:
        return kept


class web_claims:  # noqa: N801
    """What lies in the inbox, unsettled."""

    def __init__(self, web: Web) -> None:
        self.store = web.services.store

    async def __aenter__(self):
        self.kept = await self.store.claim_notices(100)
        return tuple(self.kept)

    async def __aexit__(self, *_):
        await self.store.release_notices([notice.id for notice in self.kept])


async def asgi(
    web: Web, path: str, messages: list[dict], method: str = "POST", headers: list[tuple[bytes, bytes]] | None = None
) -> list[dict]:
    """Speak ASGI by hand: what httpx cannot say."""
    sent: list[dict] = []

    async def receive() -> dict:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": b"",
        "root_path": "",
        "headers": headers or [],
        "client": ("203.0.113.9", 4711),
        "server": ("127.0.0.1", 8080),
    }
    await web.app(scope, receive, send)
    return sent


async def test_a_proven_callback_is_kept_and_answered_200(web: Web):
    submitted = await web.submit()
    path = web.callback_path(submitted["submission_id"])
    for form in (path, path + "/", path + "?retry=1"):
        answer = await web.client.post(
            form, content=BODY, headers={"Content-Type": "application/json", "Host": "anywhere.example", "X-Forwarded-For": "1.2.3.4"}
        )
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
    kept = await notices_of(web)
    assert [notice.body for notice in kept] == [BODY] * 3
    assert {notice.submission_id for notice in kept} == {submitted["submission_id"]}


async def test_what_cannot_be_read_is_kept_too(web: Web):
    submitted = await web.submit()
    for body in (b"", b"\xff\x00", b"not json"):
        assert (await web.client.post(web.callback_path(submitted["submission_id"]), content=body)).status_code == 200
    assert len(await notices_of(web)) == 3


async def test_a_submission_that_is_not_there_is_no_reason_to_refuse(web: Web):
    assert (await web.client.post(web.callback_path("sub_" + "0" * 32), content=BODY)).status_code == 200


async def test_a_wrong_token_is_401_and_counted(web: Web):
    submitted = await web.submit()
    good = web.callback_path(submitted["submission_id"])
    elsewhere = web.callback_path(submitted["submission_id"], "pixazo").replace("pixazo", "elkapi")
    wrong = [
        good[:-1] + ("A" if good[-1] != "A" else "B"),
        good[:-5],
        elsewhere,
        "/callbacks/elkapi/x",
        "/callbacks/elkapi",
        "/callbacks/elkapi/",
    ]
    for path in [*wrong, "/callbacks/elkapi/" + "a" * 10_000, "/callbacks/elkapi/%00", "/callbacks/elkapi/%C3%A9", "/callbacks/elkapi/.."]:
        answer = await web.client.post(path, content=BODY)
        assert answer.status_code in {401, 404} if path.endswith("..") else answer.status_code == 401, path
        assert answer.headers["content-type"] == "application/problem+json"
    assert await notices_of(web) == ()
    assert (await web.services.counters.read())["provider:elkapi", "callbacks_refused"] >= len(wrong)


async def test_an_unknown_place_is_404(web: Web):
    for path in ["nobody/token", "huzz/token", "oxen/token", "nobody", "", "elkapi/a/b", "//", "elkapi//", "%2e%2e/v1/jobs", "%00/%00"]:
        for method in ("POST", "GET"):
            answer = await web.client.request(method, f"/callbacks/{path}", content=BODY)
            assert answer.status_code == 404, answer.text
            assert not answer.has_redirect_location


async def test_anything_but_post_is_405(web: Web):
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "FOO"]:
        submitted = await web.submit()
        for path in (web.callback_path(submitted["submission_id"]), "/callbacks/elkapi/token"):
            answer = await web.client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


PUTS = """
base_url = "https://api.example.com"
[operations.default.submit]
path = "/jobs"
callback = {body = "notify"}
[poll]
path = "/jobs/{id}"
[callback]
method = "PUT"
[status]
succeeded = ["done"]
failed = ["broken"]
[read]
id = "id"
status = "status"
"""


async def test_a_spec_may_name_another_verb(tmp_path: Path):
    (tmp_path / "puts.toml").write_text(PUTS)
    async with open_web(tmp_path, f'provider_specs = ["{tmp_path}"]\n[providers.puts]\napi_key = "k"\n') as web:
        submitted = await web.submit({"provider": "puts", "input": {}})
        path = web.callback_path(submitted["submission_id"], "puts")
        for method in ("PUT", "POST"):
            assert (await web.client.request(method, path, content=b'{"id": "r-1", "status": "done"}')).status_code == 200
        for method in ("GET", "PATCH", "OPTIONS"):
            answer = await web.client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST, PUT")
        assert (await web.client.put(web.callback_path(submitted["submission_id"], "elkapi"), content=b"{}")).status_code == 405
        assert len(await notices_of(web)) == 2


async def test_a_body_over_the_limit_is_413_and_the_jobs_are_polled(web: Web):
    submitted = await web.submit()
    job_id = submitted["jobs"][0]["id"]
    await web.accept(submitted["submission_id"], "elk-1")
    path = web.callback_path(submitted["submission_id"])
    unread = [{"type": "http.request", "body": b"x", "more_body": True}]
    for announced in (str(MAX + 1).encode(), b"9" * 5000):
        sent = await asgi(web, path, unread, headers=[(b"content-length", announced)])
        assert sent[0]["status"] == 413
        assert len(unread) == 1
    assert (await web.services.store.load_polls([job_id]))[job_id].due_at <= web.services.clock.now()

    async def chunks():
        for _ in range(3):
            yield b"x" * (MAX // 2)

    assert (await web.client.post(path, content=chunks())).status_code == 413
    assert (await web.client.post(path, content=b"x" * MAX)).status_code == 200
    assert (await web.client.post("/callbacks/elkapi/x", content=b"x" * (MAX + 1))).status_code == 401
    assert len(await notices_of(web)) == 1


async def test_a_lying_content_length_is_no_mistake_of_ours(web: Web):
    submitted = await web.submit()
    path = web.callback_path(submitted["submission_id"])
    for announced in (b"-5", b"abc", b"", b"\xb2"):
        sent = await asgi(web, path, [{"type": "http.request", "body": BODY}], headers=[(b"content-length", announced)])
        assert sent[0]["status"] == 200


async def test_a_caller_that_goes_away_leaves_nothing(web: Web):
    submitted = await web.submit()
    sent = await asgi(web, web.callback_path(submitted["submission_id"]), [{"type": "http.request", "body": b'{"id"', "more_body": True}])
    assert sent == []
    assert await notices_of(web) == ()


async def test_too_many_for_one_submission_are_429(web: Web):
    submitted = await web.submit()
    path = web.callback_path(submitted["submission_id"])
    for _ in range(64):
        assert (await web.client.post(path, content=b"x" * MAX)).status_code == 200
    answer = await web.client.post(path, content=b"x" * MAX)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


async def test_a_store_that_is_away_is_503(web: Web, monkeypatch: pytest.MonkeyPatch):
    async def fail(*_):
        raise StoreUnavailable(retry_after=7)

    submitted = await web.submit()
    monkeypatch.setattr(web.services.store, "keep_notice", fail)
    answer = await web.client.post(web.callback_path(submitted["submission_id"]), content=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


async def test_bodies_in_memory_are_bounded(web: Web, monkeypatch: pytest.MonkeyPatch):
    submitted = await web.submit()
    monkeypatch.setattr(callbacks, "HELD_BODIES", 0)
    web.app.shortcut = callbacks.Callbacks(web.services, web.app.state.headroom)
    path = web.callback_path(submitted["submission_id"])
    answer = await web.client.post(path, content=BODY)
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert (await web.client.post(path, content=b"")).status_code == 200


async def test_a_body_that_never_ends_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callbacks, "BODY_TIMEOUT", 0.01)
    web.app.shortcut = callbacks.Callbacks(web.services, web.app.state.headroom)
    submitted = await web.submit()
    scope_path, never = web.callback_path(submitted["submission_id"]), asyncio.Event()
    sent: list[dict] = []

    async def receive() -> dict:
        await never.wait()
        return {}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": scope_path, "headers": [], "query_string": b""}
    async with asyncio.timeout(5):
        await web.app(scope, receive, send)
    assert sent[0]["status"] == 503


async def test_callbacks_are_taken_with_keys_and_below_the_path_of_the_public_url(tmp_path: Path):
    async with open_web(tmp_path, 'api_keys = ["key-of-the-api"]\npublic_url = "https://hooks.example.com/in/box"') as web:
        path = web.callback_path("sub_" + "1" * 32)
        for prefix in ("", "/in/box"):
            assert (await web.client.post(prefix + path, content=BODY)).status_code == 200
        assert (await web.client.post("/in/other" + path, content=BODY)).status_code != 200


async def test_our_own_probe_is_answered_by_a_proof_and_leaves_nothing(web: Web):
    token = web.tokens.make(PROBED, "sub_" + "5" * 32)
    answer = await web.client.post(f"/callbacks/{PROBED}/{token}")
    assert (answer.status_code, answer.headers["receiver-probe"]) == (200, make_proof(web.tokens, token))
    assert await notices_of(web) == ()
    assert (await web.client.post(web.callback_path("sub_" + "5" * 32).replace("elkapi", PROBED))).status_code == 401
    assert (await web.client.post(f"/callbacks/{PROBED}")).status_code == 401


async def test_bodies_of_strangers_crowd_out_no_proven_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callbacks, "HELD_UNPROVEN", 2)
    accounts = '[providers.openai]\napi_key = "k"\ncallback_secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]\n'
    async with open_web(tmp_path, accounts) as web:
        read = [asyncio.Event(), asyncio.Event()]
        filling = [asyncio.create_task(leave_open(web, "/callbacks/openai", b"x" * MAX, is_read)) for is_read in read]
        async with asyncio.timeout(5):
            await asyncio.gather(*(is_read.wait() for is_read in read))
        assert (await web.client.post("/callbacks/openai", content=b"{}")).status_code == 503
        submitted = await web.submit()
        assert (await web.client.post(web.callback_path(submitted["submission_id"]), content=b"x" * MAX)).status_code == 200
        for task in filling:
            task.cancel()
        await asyncio.wait(filling)
        assert (await web.client.post("/callbacks/openai", content=b"{}")).status_code == 401


async def test_strangers_at_one_address_crowd_out_nobody_at_another(tmp_path: Path):
    accounts = '[providers.openai]\napi_key = "k"\ncallback_secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]\n'
    async with open_web(tmp_path, accounts) as web:
        flooding = [asyncio.create_task(leave_open(web, "/callbacks/openai", b"x" * MAX, asyncio.Event(), "192.0.2.1")) for _ in range(30)]
        async with asyncio.timeout(5):
            ended, _ = await asyncio.wait(flooding, return_when=asyncio.FIRST_COMPLETED)
        assert len(ended) < len(flooding)
        for address, status in [("192.0.2.1", 503), ("192.0.2.2", 401)]:
            transport = httpx.ASGITransport(web.app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
                assert (await client.post("/callbacks/openai", content=b"{}")).status_code == status
        for task in flooding:
            task.cancel()
        await asyncio.wait(flooding)


async def leave_open(web: Web, path: str, body: bytes, is_read: asyncio.Event, address: str | None = None) -> None:
    """Send a body that does not end; tells when this much of it was read."""
    parts = [{"type": "http.request", "body": body, "more_body": True}]

    async def receive() -> dict:
        if not parts:
            is_read.set()
            await asyncio.Event().wait()
        return parts.pop()

    async def send(message: dict) -> None:
        pass

    client = None if address is None else (address, 1)
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "client": client}
    await web.app(scope, receive, send)


@pytest.mark.parametrize(
    ("limit", "bodies", "bytes"), [(MAX, 64, 64 * MAX), (64 * MAX, 64, 256 * MAX), (64 * MAX, 2, 128 * MAX), (1024, 16, 16_384)]
)
def test_the_room_for_bodies_is_bounded_however_large_one_may_be(limit, bodies, bytes):
    assert callbacks.make_room(limit, bodies).left == bytes
