"""Waiting for jobs at the command line, while the server may go away."""

from __future__ import annotations

import httpx
import pytest

from receiver.cli import progress
from receiver.client import Client, NotReachable

JOB = {"id": "job_1", "status": "queued", "progress": None, "finished_at": None, "created_at": "2026-01-01T00:00:00Z"}


class Away(httpx.AsyncBaseTransport):
    """Answers the first look and the first wait, and is gone for so many requests."""

    def __init__(self, requests):
        self.left, self.answers = requests, 2

    async def handle_async_request(self, request):
        if self.answers:
            self.answers -= 1
            return httpx.Response(200, json=JOB)
        self.left -= 1
        if self.left >= 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={**JOB, "status": "succeeded"})


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(progress, "LOOK_EVERY", 0.001)
    monkeypatch.setattr("receiver.client.calls.FIRST_PAUSE", 0.001)


async def test_a_server_that_comes_back_is_waited_for(capsys):
    async with Client("http://receiver.test", transport=Away(5)) as client:
        (job,) = await progress.follow(client, [JOB])
    assert job["status"] == "succeeded"
    assert "job_1 queued: waiting" in capsys.readouterr().err


async def test_a_server_that_stays_away_is_not_reachable_and_the_job_is_named(monkeypatch):
    monkeypatch.setattr(progress, "MOST_AWAY", 0.05)
    async with Client("http://receiver.test", transport=Away(10**9)) as client:
        with pytest.raises(NotReachable, match="receiver show job_1"):
            await progress.follow(client, [JOB])
