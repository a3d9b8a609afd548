"""The one way in which a job changes: load the family, decide, and write all that follows in one transaction.

Whoever has news of a submission hands over a `Decide`: a pure function of the family as it stands. When somebody else
was faster, the family is loaded anew and decided again; nothing is written over a state that it was not computed from.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Protocol

import msgspec
import structlog

from receiver.config import HandlerConfig
from receiver.counters import DURATIONS, Counters
from receiver.decisions import Decide, Decision, has_words, mask_words
from receiver.errors import StoreUnavailable, Unavailable
from receiver.herald import own_event
from receiver.ids import make_id
from receiver.learning import duration_of, overdue_after
from receiver.masking import Masker
from receiver.model import (
    Answer,
    Call,
    Channel,
    Delivery,
    DeliveryState,
    Event,
    Family,
    Job,
    Notice,
    Poll,
    Request,
    Status,
    Update,
)
from receiver.pacing import next_poll, urgent_poll
from receiver.providers.account import Account
from receiver.routing import make_deliveries
from receiver.rules import Change
from receiver.stores.base import Store
from receiver.stores.terms import Duration, Learned, Settlement
from receiver.tokens import Tokens
from receiver.tracing import NOTHING, OFF, Span, Tracing, begin_event, current, same_trace

MAX_CONFLICTS = 20
STATUS_WORD = re.compile(r"[\w .-]{1,40}")  # what is longer is no status, and may be what we sent
KEPT_ANSWER_HEADERS = ("content-type", "retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
log = structlog.get_logger("receiver.settling")


class Trail(msgspec.Struct, frozen=True):
    """What a settlement leaves in the trace once it is written: its own span, and others that end with it."""

    span: Span = NOTHING
    others: tuple[Span, ...] = ()


NO_TRAIL = Trail()


class Runner(Protocol):
    """Runs deliveries in this process."""

    def reserve(self, wanted: Mapping[str, int]) -> Mapping[str, int]:
        """For how many deliveries of each handler there is room now; it is kept free until `run`."""
        ...

    async def run(self, reserved: Mapping[str, int], claimed: Sequence[tuple[Delivery, Event]]) -> None:
        """Run what was claimed, and give back what was reserved."""
        ...

    def wake(self) -> None:
        """There are deliveries that nobody has claimed."""
        ...


class Settling:
    """Decides and writes, for every pass and command. `pushes` says whether news of an account's jobs is pushed to us at present."""

    def __init__(
        self,
        store: Store,
        accounts: Mapping[str, Account],
        handlers: tuple[HandlerConfig, ...],
        counters: Counters,
        tokens: Tokens,
        masker: Masker,
        pushes: Callable[[Account], bool],
        runner: Runner,
        tracing: Tracing = OFF,
    ) -> None:
        self.store, self.accounts, self.counters, self.tracing = store, accounts, counters, tracing
        self._handlers, self._tokens, self._masker, self._pushes, self._runner = handlers, tokens, masker, pushes, runner
        self._log = log.bind()  # once: the lazy one binds itself anew for every line, told or not
        self._account_wide = {account.name for account in accounts.values() if account.is_account_wide}
        self.learned: Mapping[tuple[str, str], Learned] = {}

    async def refresh_learned(self) -> None:
        self.learned = {(known.provider, known.model): known for known in await self.store.read_learned()}

    async def settle(
        self, decides: Mapping[str, Decide], now: datetime, *, on_write: Callable[[], None] = lambda: None
    ) -> dict[str, Decision]:
        """Settle each submission; returns the decisions that were written. Unknown submissions are left out.

        `on_write` is called when all is decided: what it begins goes on while this is written."""
        written: dict[str, Decision] = {}
        open_ids = list(decides)
        for _ in range(MAX_CONFLICTS):
            families, polls = await self.store.load_to_settle(open_ids)
            drafts: list[tuple[str, Decision, Settlement, Trail]] = []
            for submission_id, family in families.items():
                decision = decides[submission_id](family)
                if decision is not None:
                    settlement, trail = self._settlement(family, decision, polls, now), NO_TRAIL
                    if self.tracing.is_on:
                        settlement, trail = self._trace(decision, settlement)
                    drafts.append((submission_id, decision, settlement, trail))
            on_write()
            done = await self._write([settlement for _, _, settlement, _ in drafts]) if drafts else []
            for (submission_id, decision, _, trail), is_written in zip(drafts, done, strict=True):
                if is_written:
                    written[submission_id] = decision
                    with trail.span:
                        self._count(decision)
                    for span in trail.others:
                        span.end()
                    if decision.change.family.submission.provider in self._account_wide:
                        await self._look_for_orphans(families[submission_id], decision.change.family)
            open_ids = [submission_id for (submission_id, _, _, _), is_written in zip(drafts, done, strict=True) if not is_written]
            if not open_ids:
                return written
        raise StoreUnavailable(f"{len(open_ids)} submissions kept changing while they were settled")

    async def settle_apart(self, decides: Mapping[str, Decide], now: datetime) -> list[str]:
        """As `settle`, but what cannot be settled by a fault of our own harms no other. Returns the submissions that failed so."""
        try:
            await self.settle(decides, now)
        except Unavailable:
            raise
        except Exception:
            if len(decides) > 1:
                return [failed for key, decide in decides.items() for failed in await self.settle_apart({key: decide}, now)]
            log.error("submission.unsettled", submission=next(iter(decides)), exc_info=True)
            return list(decides)
        return []

    async def _write(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Deliveries that can be run here at once are claimed with the write that makes them."""
        wanted = Counter([delivery.handler for settlement in settlements for delivery in settlement.deliveries])
        reserved = self._runner.reserve(wanted)
        claimed: Sequence[tuple[Delivery, Event]] = ()
        try:
            written, claimed = await self.store.settle_and_claim(claim(settlements, reserved))
        finally:
            await self._runner.run(reserved, claimed)
        if len(claimed) < wanted.total():
            self._runner.wake()
        return written

    def _trace(self, decision: Decision, settlement: Settlement) -> tuple[Settlement, Trail]:
        """The settlement with its place in the trace, which its events carry on. What is not written leaves none."""
        family = decision.change.family
        if family.traceparent is None:
            return settlement, NO_TRAIL
        causes, here = [cause.traceparent for cause in decision.causes], current.get().traceparent
        within = causes[-1] if causes else here if same_trace(here, family.traceparent) else family.traceparent
        span = self.tracing.begin(
            "settle",
            within,
            links=[cause for cause in (*causes, here) if cause != within],
            provider=family.submission.provider,
            submission_id=family.submission.id,
            channel=decision.channel,
        )
        events: list[Event] = []
        others = list(decision.causes)
        for event in settlement.events:
            told = begin_event(self.tracing, event, span)
            events.append(msgspec.structs.replace(event, traceparent=told.traceparent))
            others.append(told)
        return msgspec.structs.replace(settlement, events=tuple(events)), Trail(span, tuple(others))

    def begin_call(self, what: str, account: Account, request: Request) -> Span:
        """A call of ours to a provider, below the work that makes it. Its address stays here: keys and ids may stand in it."""
        return self.tracing.begin(
            f"call {what}", current.get().traceparent, kind="client", provider=account.name, http_method=request.method
        )

    async def _look_for_orphans(self, before: Family, after: Family) -> None:
        """Jobs that got their id just now may have been spoken of before, by a callback for the whole account."""
        held = {job.remote_id for job in before.jobs}
        fresh = [job.remote_id for job in after.jobs if job.remote_id is not None and job.remote_id not in held]
        if fresh:
            with suppress(StoreUnavailable):  # what is settled stays settled; these jobs are polled as if nothing had come
                await self.store.reopen_orphans(after.submission.provider, fresh)

    def _settlement(self, family: Family, decision: Decision, polls: Mapping[str, Poll], now: datetime) -> Settlement:
        if has_words(decision):
            decision = mask_words(decision, self.masker_of(family.submission.provider, family.submission.id))
        change = decision.change
        before = {job.id: job for job in family.jobs}
        changed = [job for job in change.family.jobs if before.get(job.id) != job]
        now = max([now, *[job.updated_at for job in changed]])  # what follows from a change is not older than it
        kept, ended = self._polls(before, decision, polls, now)
        own = own_events(change, now)
        return Settlement(
            submission=change.family.submission,
            version=family.submission.version,
            is_resized=change.family.submission.count != family.submission.count,
            jobs=tuple(changed),
            notices=decision.notices,
            outcomes=decision.outcomes,
            repeats=decision.repeats,
            events=(*change.events, *own),
            deliveries=self._deliveries(change, own, now),
            polls=(*kept, *decision.kept_polls),
            polls_answered=(*decision.polled, *(poll.job_id for poll in decision.kept_polls)),
            polls_ended=ended,
            calls=decision.calls,
            durations=self._durations(decision),
            confirmations=decision.confirmations,
        )

    def _deliveries(self, change: Change, own: Sequence[Event], now: datetime) -> tuple[Delivery, ...]:
        jobs = {job.id: job for job in change.family.jobs}
        deliveries: list[Delivery] = []
        for event in change.events:
            deliveries += make_deliveries(event, self._handlers, now, jobs.get(event.subject or ""))
        for event in own:
            deliveries += make_deliveries(event, self._handlers, now)
        return tuple(deliveries)

    def _durations(self, decision: Decision) -> tuple[Duration, ...]:
        if decision.channel is None:
            return ()
        taught = [duration_of(job, update, decision.channel) for job, update in decision.change.finished]
        return tuple([duration for duration in taught if duration is not None])

    def _polls(
        self, before: Mapping[str, Job], decision: Decision, polls: Mapping[str, Poll], now: datetime
    ) -> tuple[tuple[Poll, ...], tuple[str, ...]]:
        kept: list[Poll] = []
        ended: list[str] = []
        polled = decision.polled
        for job in decision.change.family.jobs:
            account = self.accounts.get(job.provider)
            is_news = before.get(job.id) != job
            if account is None or not (is_news or job.id in polled or (decision.is_urgent and not job.is_final)):
                continue
            known = polled.get(job.id) or polls.get(job.id)
            if decision.is_urgent and not job.is_final:  # also beside news: what could not be used may say more
                poll = urgent_poll(job, now, known)
            else:
                poll = next_poll(
                    job,
                    account,
                    now,
                    known,
                    heard_at=before[job.id].updated_at if job.id in before else now,
                    overdue=self.overdue_after(account, job) if not job.is_final and self._pushes(account) else None,
                    was_polled=job.id in polled,
                    is_news=is_news,
                )
            if poll is not None:
                kept.append(poll)
            elif job.id in polls:
                ended.append(job.id)
        return tuple(kept), tuple(ended)

    def note_status(self, account: Account, update: Update) -> None:
        """A word that the spec does not know counts as processing; whoever keeps the spec should hear of it."""
        word = update.provider_status
        if word is not None and word.casefold() not in account.spec.statuses:
            self.counters.add(f"provider:{account.name}", "unknown_statuses")
            log.warning(
                "status.unknown",
                provider=account.name,
                status=word if STATUS_WORD.fullmatch(word) else "no word",
                remote_id=update.remote_id,
            )

    def overdue_after(self, account: Account, job: Job) -> timedelta:
        return overdue_after(account, job, self.learned.get((account.name, job.model or "")))

    def _count(self, decision: Decision) -> None:
        for ended, _ in decision.change.finished:
            if ended.status is Status.SUCCEEDED and ended.finished_at is not None:
                self.counters.observe(f"duration:{ended.provider}", (ended.finished_at - ended.created_at).total_seconds(), DURATIONS)
        for event in decision.change.events:
            job = event.data["job"]
            scope = f"provider:{job['provider']}"
            self.counters.add(scope, event.type.replace("job.", "jobs_"))
            if job["finished_by"]:
                self.counters.add(scope, f"finished_by_{job['finished_by']}")
            self._log.info(
                "job.settled", job=job["id"], provider=job["provider"], type=event.type, status=job["status"], by=job["finished_by"]
            )

    # Values that several passes need

    def masker_of(self, provider: str, submission_id: str) -> Masker:
        return self._masker.with_token(*self._tokens.every(provider, submission_id))

    def answer_notice(self, channel: Channel, family: Family, job_id: str | None, answer: Answer, now: datetime) -> Notice:
        """A provider's answer as a notice: secrets masked, headers from an allow-list."""
        submission = family.submission
        masker = self.masker_of(submission.provider, submission.id)
        return Notice(
            id=make_id("ntc", now),
            channel=channel,
            provider=submission.provider,
            at=now,
            submission_id=submission.id,
            job_id=job_id,
            headers={name: masker.mask_text(answer.headers[name]) for name in KEPT_ANSWER_HEADERS if name in answer.headers},
            body=masker.mask(answer.body),
            http_status=answer.status,
            last_at=now,
        )


def claim(settlements: Sequence[Settlement], room: Mapping[str, int]) -> list[Settlement]:
    """The same with so many deliveries of each handler claimed, the first ones first."""
    left = dict(room)

    def claim_one(delivery: Delivery) -> Delivery:
        if left.get(delivery.handler, 0) == 0:
            return delivery
        left[delivery.handler] -= 1
        return msgspec.structs.replace(delivery, state=DeliveryState.RUNNING, attempts=1)

    return [
        msgspec.structs.replace(settlement, deliveries=tuple([claim_one(delivery) for delivery in settlement.deliveries]))
        for settlement in settlements
    ]


def own_events(change: Change, now: datetime) -> tuple[Event, ...]:
    """A submit whose answer is lost needs a person, if nothing else clears it up."""
    jobs = [event.data["job"] for event in change.events if event.type == "job.unconfirmed"]
    told = ("submission_id", "provider", "model", "error")
    return tuple([own_event("unconfirmed", {key: job[key] for key in told} | {"job_id": job["id"]}, now, job["id"]) for job in jobs])


def body_hash(answer: Answer) -> str:
    """Whether a poll answer equals the job's last one."""
    return hashlib.sha256(b"%d\n" % answer.status + answer.body).hexdigest()


def make_call(family: Family, at: datetime, http_status: int | None, error: str | None) -> Call:
    return Call(id=make_id("cal", at), submission_id=family.submission.id, at=at, http_status=http_status, error=error)
