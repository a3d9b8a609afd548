"""Calls to a provider about its jobs: one by one, and by its list."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from datetime import timedelta
from typing import NamedTuple

import structlog

from receiver.clock import Clock
from receiver.errors import ProviderFault, Unreadable
from receiver.limiter import Limiter
from receiver.model import Answer, Job, Request, Update
from receiver.net import ProviderClient
from receiver.normalize import read_list_answer, read_rate_headers, read_retry_after
from receiver.providers.account import Account
from receiver.providers.requests import build_list_requests
from receiver.settling import Settling

TIMEOUT = timedelta(seconds=30)

log = structlog.get_logger("receiver.asking")


class Refused(NamedTuple):
    """A list that a provider does not give at present."""

    seconds: float | None  # for which it asks to be left alone


class Asking:
    """Sends what a poll asks; what comes back about the provider itself is the limiter's."""

    def __init__(self, settling: Settling, client: ProviderClient, limiter: Limiter, clock: Clock) -> None:
        self._settling, self._client, self._limiter, self._clock = settling, client, limiter, clock

    async def send(self, what: str, account: Account, request: Request) -> tuple[Answer | None, str | None]:
        """The answer, or why there is none."""
        self._settling.counters.add(f"provider:{account.name}", "polls")
        try:
            with self._settling.begin_call(what, account, request) as span:
                answer = await self._client.send(request, timeout=TIMEOUT)
                span.note(http_status=answer.status)
        except ProviderFault as error:
            return None, str(error)
        now = self._clock.now()
        pause = read_rate_headers(account, answer, now)
        if pause is not None:
            self._limiter.pause(account, now, pause)
        return answer, None

    async def read_list(
        self, account: Account, jobs: Sequence[Job], wanted: Container[str | None] | None = None
    ) -> tuple[list[tuple[Update, bytes]], Refused | None]:
        """The rows about `wanted` ids, without it all; and whether the provider takes no such call at present."""
        rows: list[tuple[Update, bytes]] = []
        for request in build_list_requests(account, jobs):
            if await self._limiter.take(account, self._clock.now(), for_poll=True) is not None:
                break
            answer, fault = await self.send("list", account, request)
            if answer is None or answer.status == 429 or answer.status >= 500:
                return rows, await self._refused(account, answer, fault)
            try:
                rows += await asyncio.to_thread(read_list_answer, account, answer, self._clock.now(), wanted)  # it may be long
                await self._limiter.succeeded(account)
            except Unreadable as error:
                log.warning("list.unreadable", provider=account.name, http_status=answer.status, reason=str(error))
        return rows, None

    async def _refused(self, account: Account, answer: Answer | None, fault: str | None) -> Refused:
        now = self._clock.now()
        seconds = None if answer is None else read_retry_after(account.spec, answer, now)
        reason = fault or ("no answer" if answer is None else f"HTTP {answer.status}")
        log.warning("list.refused", provider=account.name, reason=reason, retry_after=seconds)
        if answer is None or answer.status >= 500:
            await self._limiter.failed(account, now, reason)
        elif seconds is not None:
            self._limiter.pause(account, now, seconds)
        return Refused(seconds)
