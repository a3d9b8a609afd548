"""Holds a provider's event stream while jobs of it are open; one process at a time, by a lease."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

import msgspec
import structlog

from receiver.backoff import full_jitter
from receiver.clock import Clock
from receiver.crew import until_stored
from receiver.decisions import Decide, Decision
from receiver.ending import end
from receiver.errors import Unavailable, Unreadable
from receiver.model import Answer, Channel, Family, Outcome, Update
from receiver.net import ProviderClient, ServerEvent
from receiver.normalize import read_stream_event
from receiver.providers.account import Account
from receiver.providers.requests import build_stream_request
from receiver.rules import apply_update
from receiver.settling import Settling

LEASE = timedelta(seconds=30)
LOOK = timedelta(seconds=1)  # between looks for open jobs while no stream is held
LINGER = timedelta(seconds=30)  # a stream without open jobs is kept for so long
log = structlog.get_logger("receiver.streams")


class Streams:
    """Holds the streams of all accounts that have one. `up` names those that are connected now."""

    def __init__(self, settling: Settling, client: ProviderClient, clock: Clock) -> None:
        self._settling, self._store, self._client, self._clock = settling, settling.store, client, clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._attempts: dict[str, int] = {}
        self._again_at: dict[str, datetime] = {}
        self._close_at: dict[str, datetime] = {}
        self._wanted: dict[str, datetime] = {}  # accounts whose open jobs are all to be asked about
        self._walks: dict[str, asyncio.Task[None]] = {}  # over the open jobs, to make their polls due
        self.up: set[str] = set()

    async def run_pass(self, now: datetime) -> bool:
        """Open streams that are needed and free; renew the leases of those that are held; close those without work."""
        for account in self._settling.accounts.values():
            if account.has_stream:
                await self._look_after(account, now)
        return False

    async def _look_after(self, account: Account, now: datetime) -> None:
        name = account.name
        task = self._tasks.get(name)
        is_held = task is not None and not task.done()
        is_needed = await self._store.has_open_jobs(name)
        if is_held:
            if not await self._store.take_lease(f"stream:{name}", now, LEASE):
                await self._close(name)  # another process took over while we were away
            elif is_needed:
                self._close_at[name] = now + LINGER
            elif self._close_at.get(name, now) <= now:
                await self._close(name)
                await self._store.drop_lease(f"stream:{name}")
        elif is_needed and self._again_at.get(name, now) <= now and await self._store.take_lease(f"stream:{name}", now, LEASE):
            self._again_at[name] = self._close_at[name] = now + LINGER
            self._tasks[name] = asyncio.create_task(self._hold(account), name=f"stream {name}")

    async def _hold(self, account: Account) -> None:
        """One connection, from opening to end. What fired before it was open is asked for by one poll of each open job."""
        name = account.name
        reason = "the provider ended it"
        try:
            async with self._client.stream_events(build_stream_request(account)) as events:
                self.up.add(name)
                self._attempts[name] = 0
                log.info("stream.open", provider=name)
                self._ask_about_all(name)
                async for event in events:
                    await self._take(account, event)
        except Exception as error:  # whatever it was, the stream is opened again
            reason = f"{type(error).__name__}: {error}"
        finally:
            self.up.discard(name)
            await self._end_walk(name)
        attempt = self._attempts[name] = self._attempts.get(name, 0) + 1
        now = self._clock.now()
        self._again_at[name] = now + full_jitter(attempt, timedelta(seconds=1), timedelta(seconds=60))
        log.warning("stream.lost", provider=name, reason=reason, attempt=attempt)
        await until_stored(lambda: self._store.poll_now(now + account.interval_for(None), provider=name), self._clock)

    async def _take(self, account: Account, event: ServerEvent) -> None:
        self._settling.counters.add(f"provider:{account.name}", "stream_events")
        try:
            update = read_stream_event(account, event.event, event.data, self._clock.now())
        except Unreadable as error:
            log.warning("stream.unreadable", provider=account.name, reason=str(error))
            self._ask_about_all(account.name)
            return
        if update is None or update.remote_id is None:
            return
        self._settling.note_status(account, update)
        jobs = await self._store.find_open_jobs(account.name, [update.remote_id])
        answer = Answer(status=200, body=event.data.encode())
        decides = {job.submission_id: self._decide(account, update, answer) for job in jobs}
        if decides:
            await until_stored(lambda: self._settling.settle(decides, self._clock.now()), self._clock)

    def _ask_about_all(self, name: str) -> None:
        """One poll of each open job, beside the stream: there may be so many that its events would wait for seconds. What calls for
        it while a walk is under way, as every event that cannot be read does, makes one more walk, not one each."""
        self._wanted[name] = self._clock.now()
        if name not in self._walks or self._walks[name].done():
            self._walks[name] = asyncio.create_task(self._walk(name), name=f"stream {name} polls")

    async def _walk(self, name: str) -> None:
        try:
            while (now := self._wanted.pop(name, None)) is not None:
                await until_stored(partial(self._store.poll_now, now, provider=name), self._clock)
        except Exception as error:  # the stream goes on, and each job is polled when it is overdue
            log.error("stream.unasked", provider=name, error=f"{type(error).__name__}: {error}", exc_info=True)

    async def _end_walk(self, name: str) -> None:
        """What it has not come to is asked for when the stream is lost, or by whoever opens it next."""
        self._wanted.pop(name, None)
        walk = self._walks.pop(name, None)
        if walk is not None:
            await end(walk)

    def _decide(self, account: Account, update: Update, answer: Answer) -> Decide:
        def decide(family: Family) -> Decision:
            now = self._clock.now()
            notice = self._settling.answer_notice(Channel.STREAM, family, None, answer, now)
            change = apply_update(family, update, Channel.STREAM, now, notice_id=notice.id)
            notice = msgspec.structs.replace(
                notice, http_status=None, job_id=change.job_id, outcome=change.outcome, status=update.status, reason=change.reason
            )
            return Decision(change, Channel.STREAM, notices=(notice,), is_urgent=change.outcome is Outcome.MISMATCHED)

        return decide

    async def _close(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            await end(task)

    async def close(self) -> None:
        names: Sequence[str] = list(self._tasks)
        for name in names:
            await self._close(name)
            with suppress(Unavailable):
                await self._store.drop_lease(f"stream:{name}")
