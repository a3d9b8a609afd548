"""New work is refused while there is still room to finish the old, and taken again by itself."""

from __future__ import annotations

import asyncio
from collections import namedtuple
from pathlib import Path

import pytest
import structlog.testing

from receiver.errors import Overloaded, StoreUnavailable
from receiver.web import bodies, headroom
from receiver.web.headroom import LEAST_BYTES, LEAST_PART, LOOK_EVERY, MOST_NOTICES, Headroom
from tests.web.opened import ELK, SUBMIT_NOW, Web

Usage = namedtuple("Usage", "total used free")
BIG = 1024**4


class Seconds:
    now = 50.0

    def __call__(self) -> float:
        return self.now


class Inbox:
    """A store that says how many notices wait, and counts how often it is asked."""

    def __init__(self, depth: int = 0) -> None:
        self.depth, self.asked, self.is_away = depth, 0, False

    async def inbox_depth(self) -> int:
        self.asked += 1
        if self.is_away:
            raise StoreUnavailable
        return self.depth


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The disk as the system tells of it."""
    state = {"total": BIG, "free": BIG}
    monkeypatch.setattr(headroom.shutil, "disk_usage", lambda _: Usage(state["total"], 0, state["free"]))
    return state


async def wait_a_second(web: Web) -> None:
    web.app.state.headroom._look_at = 0.0


async def test_low_disk_refuses_what_is_new_and_recovers_by_itself(web: Web, disk):
    submitted = await web.submit()
    callback = web.callback_path(submitted["submission_id"])
    disk["free"] = LEAST_BYTES - 1
    await wait_a_second(web)
    for answer in (await web.client.post(callback, content=b"{}"), await web.client.post("/v1/jobs", json=ELK, headers=SUBMIT_NOW)):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        assert "disk" in answer.json()["detail"]
    ready = await web.client.get("/readyz")
    assert (ready.status_code, ready.json()["failing"]) == (503, ["disk"])
    assert 'receiver_short{of="disk"} 1.0' in (await web.client.get("/metrics")).text
    assert (await web.client.post("/callbacks/elkapi/x", content=b"{}")).status_code == 401
    assert (await web.client.get("/v1/jobs")).status_code == 200
    assert (await web.client.post(f"/v1/jobs/{submitted['jobs'][0]['id']}/cancel")).status_code == 202
    disk["free"] = LEAST_BYTES
    await wait_a_second(web)
    assert (await web.client.post(callback, content=b"{}")).status_code == 200
    assert (await web.client.post("/v1/jobs", json=ELK, headers=SUBMIT_NOW)).status_code == 202
    assert (await web.client.get("/readyz")).status_code == 200


async def test_of_a_small_disk_a_part_must_be_free(disk):
    found = Headroom(Inbox(), "sqlite:////data/receiver.db", seconds=(seconds := Seconds()))
    disk["total"] = 100 * LEAST_PART
    for free, short in ((99, {"disk"}), (100, set())):
        disk["free"] = free
        seconds.now += LOOK_EVERY
        assert await found.look() == short


async def test_a_disk_that_cannot_be_asked_about_stops_nothing(tmp_path: Path):
    for url in (f"sqlite:///{tmp_path}/not/there/receiver.db", "postgresql://user@host/db"):
        assert await Headroom(Inbox(), url).look() == frozenset()


async def test_a_long_inbox_refuses_callbacks_before_it_is_longer(tmp_path: Path):
    inbox, seconds = Inbox(MOST_NOTICES - 2), Seconds()
    found = Headroom(inbox, f"sqlite:///{tmp_path}/receiver.db", seconds=seconds)
    await found.take_notice()
    await found.take_notice()
    with pytest.raises(Overloaded) as refused:
        await found.take_notice()
    assert refused.value.retry_after == 30
    await found.take_submission()
    assert inbox.asked == 1
    inbox.depth = MOST_NOTICES
    seconds.now += LOOK_EVERY
    with pytest.raises(Overloaded):
        await found.take_notice()
    inbox.depth = 10
    seconds.now += LOOK_EVERY
    await found.take_notice()
    assert inbox.asked == 3


async def test_a_store_that_does_not_answer_counts_as_before(tmp_path: Path):
    inbox, seconds = Inbox(MOST_NOTICES), Seconds()
    found = Headroom(inbox, f"sqlite:///{tmp_path}/receiver.db", seconds=seconds)
    assert await found.look() == {"inbox"}
    inbox.is_away = True
    seconds.now += LOOK_EVERY
    assert await found.look() == {"inbox"}


async def test_a_look_that_fails_refuses_nobody(tmp_path: Path):
    inbox, seconds = Inbox(3), Seconds()
    found = Headroom(inbox, f"sqlite:///{tmp_path}/receiver.db", seconds=seconds)
    inbox.is_away = True
    seconds.now += LOOK_EVERY
    assert await found.look() == frozenset()
    await found.take_notice()
    await found.take_submission()


async def test_a_change_is_logged_once(disk):
    found = Headroom(Inbox(), "sqlite:////data/receiver.db", seconds=(seconds := Seconds()))
    with structlog.testing.capture_logs() as lines:
        for free in (BIG, 0, 0, BIG, BIG):
            disk["free"] = free
            seconds.now += LOOK_EVERY
            await found.look()
    assert [(line["event"], line["of"]) for line in lines] == [("headroom.short", "disk"), ("headroom.back", "disk")]


async def test_a_long_inbox_is_503_for_callbacks_only(web: Web, monkeypatch: pytest.MonkeyPatch):
    submitted = await web.submit()
    monkeypatch.setattr(headroom, "MOST_NOTICES", 2)
    path = web.callback_path(submitted["submission_id"])
    await wait_a_second(web)
    answers = [await web.client.post(path, content=b"{}") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert await web.services.store.inbox_depth() == 2
    assert (await web.client.post("/v1/jobs", json=ELK, headers=SUBMIT_NOW)).status_code == 202


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/jobs"), ("POST", "/v1/deliveries/replay")])
async def test_a_body_that_never_ends_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch, method, path):
    monkeypatch.setattr(bodies, "BODY_TIMEOUT", 0.01)

    async def trickle():
        yield b"{"
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        answer = await web.client.request(method, path, content=trickle())
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
