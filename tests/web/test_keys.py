"""API keys with scopes: each opens what it says, and nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from receiver.errors import StoreUnavailable
from receiver.keys import EVERY_SCOPE, ApiKey, Scope, digest
from receiver.web import keyring
from receiver.web.application import OPERATIONS
from receiver.web.keyring import Caller, Keyring
from receiver.web.operations import Operation
from tests.web.opened import ELK, SUBMIT_NOW, Web, open_web

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MASTER = "the-key-of-the-configuration"
KEYS = f'api_keys = ["{MASTER}"]'
SPENDS = {"POST /v1/jobs"}
GUARDED = [each for each in OPERATIONS if not each.is_open]


class Seconds:
    """A clock that a test advances."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_key(name: str, *scopes: Scope) -> tuple[str, ApiKey]:
    key = f"rcv_{name}-of-a-test"
    return key, ApiKey(id=f"key_{name}", name=name, scopes=scopes, digest=digest(key), created_at=NOW)


async def give(web: Web, name: str, *scopes: Scope) -> dict[str, str]:
    """The header that presents a new key."""
    key, made = make_key(name, *scopes)
    assert await web.services.store.create_key(made)
    return {"Authorization": f"Bearer {key}"}


def expected_scope(operation: Operation) -> Scope:
    if f"{operation.method} {operation.path}" in SPENDS:
        return Scope.SUBMIT
    return Scope.READ if operation.method == "GET" else Scope.OPERATE


@pytest.mark.parametrize("scope", Scope)
async def test_a_key_opens_what_its_scope_names_and_nothing_else(tmp_path: Path, scope: Scope):
    async with open_web(tmp_path, KEYS) as web:
        header = await give(web, "one", scope)
        for operation in GUARDED:
            if operation.path == "/v1/events":
                continue
            path = re.sub(r"\{\w+\}", "job_" + "0" * 32, operation.path)
            answer = await web.client.request(operation.method, path, content=b"{}", headers=header)
            if expected_scope(operation) is scope:
                assert answer.status_code not in {401, 403}, (operation.method, path)
            else:
                assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json"), (operation.method, path)
                assert f'scope="{expected_scope(operation)}"' in answer.headers["www-authenticate"]


async def test_a_head_needs_what_a_get_needs(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        submits, reads = await give(web, "submits", Scope.SUBMIT), await give(web, "reads", Scope.READ)
        assert (await web.client.head("/v1/jobs", headers=submits)).status_code == 403
        assert (await web.client.head("/v1/jobs", headers=reads)).status_code == 200
        assert (await web.client.head("/v1/events", headers=submits)).status_code == 403


async def test_a_key_may_have_several_scopes_and_one_of_the_configuration_has_all(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        for header in (await give(web, "two", Scope.SUBMIT, Scope.READ), {"Authorization": f"Bearer {MASTER}"}):
            submitted = await web.client.post("/v1/jobs", json=ELK, headers=SUBMIT_NOW | header)
            assert submitted.status_code == 202
            job = submitted.json()["jobs"][0]["id"]
            assert (await web.client.get(f"/v1/jobs/{job}", headers=header)).status_code == 200
            cancelled = await web.client.post(f"/v1/jobs/{job}/cancel", headers=header)
            assert cancelled.status_code == (202 if MASTER in header["Authorization"] else 403)


async def test_a_stored_key_alone_lets_nobody_in(tmp_path: Path):
    """Without `api_keys` only this machine is served, whatever keys there are."""
    async with open_web(tmp_path) as web:
        header = await give(web, "reads", Scope.READ)
        assert (await web.client.get("/v1/jobs", headers={"Host": "hooks.example.com"} | header)).status_code == 403
        assert (await web.client.get("/v1/jobs")).status_code == 200


async def test_submissions_remember_the_id_of_the_key_and_not_the_key(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        header = await give(web, "submits", Scope.SUBMIT)
        submitted = await web.client.post("/v1/jobs", json=ELK, headers=SUBMIT_NOW | header)
        family = (await web.services.store.load_families([submitted.json()["submission_id"]]))[submitted.json()["submission_id"]]
        assert family.submission.api_key_id == "key_submits"


async def test_a_wrong_key_is_401_and_asks_the_store_once_a_second(tmp_path: Path):
    async with open_web(tmp_path) as web:
        seconds, reads = Seconds(), 0
        store = web.services.store
        keyring = Keyring(store, [MASTER], seconds)
        read_keys = store.read_keys

        async def counted() -> list[ApiKey]:
            nonlocal reads
            reads += 1
            return await read_keys()

        store.read_keys = counted  # type: ignore[method-assign]
        assert await keyring.find(MASTER) == Caller(digest(MASTER)[:32], EVERY_SCOPE)
        assert reads == 0
        for wrong in ("", "x", MASTER[:-1], MASTER + "x", digest(MASTER), "\ud800"):
            assert await keyring.find(wrong) is None
        assert reads == 1
        key, made = make_key("late", Scope.READ)
        await store.create_key(made)
        assert await keyring.find(key) is None
        seconds.now += 1
        assert await keyring.find(key) == await keyring.find_by_id("key_late") == Caller("key_late", frozenset({Scope.READ}))
        await store.revoke_key("key_late", NOW)
        seconds.now += 1
        assert (await keyring.find(key), await keyring.find_by_id("key_late")) == (None, None)
        assert await keyring.find_by_id(digest(MASTER)[:32]) == await keyring.find(MASTER)
        assert await keyring.find_by_id("") is None
        assert reads == 3


async def test_the_hash_of_a_key_is_no_key(tmp_path: Path):
    async with open_web(tmp_path, KEYS) as web:
        await give(web, "reads", Scope.READ)
        for presented in (digest("rcv_reads-of-a-test"), "key_reads", digest(MASTER)[:32]):
            assert (await web.client.get("/v1/jobs", headers={"Authorization": f"Bearer {presented}"})).status_code == 401


async def test_a_store_that_is_away_stops_no_key_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def fail() -> list[ApiKey]:
        raise StoreUnavailable(retry_after=7)

    async with open_web(tmp_path, KEYS) as web:
        header = await give(web, "reads", Scope.READ)
        monkeypatch.setattr(web.services.store, "read_keys", fail)
        assert (await web.client.get("/v1/jobs", headers={"Authorization": f"Bearer {MASTER}"})).status_code == 200
        answer = await web.client.get("/v1/jobs", headers=header)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


async def test_a_session_may_do_what_its_key_may_and_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keyring, "FRESH", 0.0)
    same = {"Sec-Fetch-Site": "same-origin"}
    async with open_web(tmp_path, KEYS) as web:
        job = await web.client.post("/v1/jobs", json=ELK, headers=SUBMIT_NOW | {"Authorization": f"Bearer {MASTER}"})
        job_id = job.json()["jobs"][0]["id"]
        await give(web, "reads", Scope.READ)
        signed_in = await web.client.post("/sign-in", data={"key": "rcv_reads-of-a-test"}, headers=same)
        assert signed_in.status_code == 303
        assert "reads-of-a-test" not in signed_in.headers["set-cookie"]
        assert (await web.client.get(f"/jobs/{job_id}")).status_code == 200
        assert (await web.client.get("/v1/jobs")).status_code == 200
        for path in (f"/jobs/{job_id}/cancel", "/try", "/deliveries/replay"):
            assert (await web.client.post(path, data={}, headers=same)).status_code == 403
        await web.services.store.revoke_key("key_reads", NOW)
        assert (await web.client.get("/v1/jobs")).status_code == 401


async def test_a_key_that_may_not_read_opens_no_session_and_nobody_is_locked_in(tmp_path: Path):
    same = {"Sec-Fetch-Site": "same-origin", "Accept": "text/html"}
    async with open_web(tmp_path, KEYS) as web:
        await give(web, "submits", Scope.SUBMIT)
        refused = await web.client.post("/sign-in", data={"key": "rcv_submits-of-a-test"}, headers=same)
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
        assert "may not read" in refused.text
        assert (await web.client.post("/sign-out", headers=same)).status_code == 303
        assert (await web.client.post("/sign-out", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
        shown = await web.client.get("/jobs", headers={"Accept": "text/html", "Authorization": "Bearer rcv_submits-of-a-test"})
        assert (shown.status_code, shown.headers["content-type"]) == (403, "text/html; charset=utf-8")
        told = await web.client.get("/v1/jobs", headers={"Authorization": "Bearer rcv_submits-of-a-test"})
        assert (told.status_code, told.headers["content-type"]) == (403, "application/problem+json")
