"""What news of a submission comes to, before anything is written: decided one after the other, and without the words that must not show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from receiver.masking import Masker
from receiver.model import Call, Channel, Event, Family, Job, JobError, Notice, Poll
from receiver.rules import Change
from receiver.stores.terms import Confirmation, NoticeOutcome
from receiver.tracing import Span


class Decision(msgspec.Struct, frozen=True):
    """What is to be written about one submission."""

    change: Change
    channel: Channel | None = None  # how the news came; None for verdicts of our own
    notices: tuple[Notice, ...] = ()
    outcomes: tuple[NoticeOutcome, ...] = ()
    repeats: tuple[tuple[str, datetime], ...] = ()
    calls: tuple[Call, ...] = ()
    confirmations: tuple[Confirmation, ...] = ()
    polled: Mapping[str, Poll] = {}  # by job id: polls that were just answered
    kept_polls: tuple[Poll, ...] = ()  # polls that failed: written as they are
    is_urgent: bool = False  # poll the open jobs at once
    causes: tuple[Span, ...] = ()  # in the trace: what this follows from, and what ends when it is written


Holder = TypeVar("Holder", Notice, NoticeOutcome, Call, JobError)
Decide = Callable[[Family], Decision | None]


def in_turn(decides: Sequence[Decide]) -> Decide:
    """Several pieces of news about one submission, decided one on the other and written as one."""

    def decide(family: Family) -> Decision | None:
        total: Decision | None = None
        for part in decides:
            decision = part(total.change.family if total else family)
            if decision is not None:
                total = decision if total is None else join(total, decision)
        return total

    return decide


def join(first: Decision, second: Decision) -> Decision:
    return Decision(
        change=first.change.then(second.change),
        channel=second.channel or first.channel,
        notices=first.notices + second.notices,
        outcomes=first.outcomes + second.outcomes,
        repeats=first.repeats + second.repeats,
        calls=first.calls + second.calls,
        confirmations=first.confirmations + second.confirmations,
        polled={**first.polled, **second.polled},
        kept_polls=first.kept_polls + second.kept_polls,
        is_urgent=first.is_urgent or second.is_urgent,
        causes=first.causes + second.causes,
    )


def has_words(decision: Decision) -> bool:
    """Whether there may be a text in it that somebody else wrote; most callbacks bring none."""
    words: list[Any] = [outcome.reason for outcome in decision.outcomes]
    words += [job.error for job in decision.change.family.jobs]
    words += [event.data["job"]["error"] for event in decision.change.events]
    return bool(decision.notices or decision.calls or any(words))


def mask_words(decision: Decision, masker: Masker) -> Decision:
    """Errors and reasons are the provider's words, and it may say again what we sent it."""
    family = decision.change.family
    change = msgspec.structs.replace(
        decision.change,
        family=Family(family.submission, tuple(mask_job(job, masker) for job in family.jobs)),
        events=tuple(mask_event(event, masker) for event in decision.change.events),
    )
    return msgspec.structs.replace(
        decision,
        change=change,
        notices=tuple(mask_text(notice, "reason", masker) for notice in decision.notices),
        outcomes=tuple(mask_text(outcome, "reason", masker) for outcome in decision.outcomes),
        calls=tuple(mask_text(call, "error", masker) for call in decision.calls),
    )


def mask_job(job: Job, masker: Masker) -> Job:
    if job.error is None:
        return job
    error = mask_text(mask_text(job.error, "message", masker), "provider_code", masker)
    return job if error == job.error else msgspec.structs.replace(job, error=error)


def mask_event(event: Event, masker: Masker) -> Event:
    job = event.data["job"]
    if job["error"] is None:
        return event
    error = {key: value and masker.mask_cut(value) for key, value in job["error"].items()}
    return msgspec.structs.replace(event, data={**event.data, "job": {**job, "error": error}})


def mask_text(holder: Holder, field: str, masker: Masker) -> Holder:
    text = getattr(holder, field)
    return msgspec.structs.replace(holder, **{field: masker.mask_cut(text)}) if text else holder
