"""What a spec makes of a body, for the author of a spec (`receiver try-spec`)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from receiver.errors import Unreadable
from receiver.model import Answer, Job, Status, Submission, Update
from receiver.normalize import (
    Accepted,
    NotTakenAnswer,
    PollFailure,
    RefusedAnswer,
    SubmitAnswer,
    read_callback,
    read_poll_answer,
    read_submit_answer,
)
from receiver.providers.account import Account
from receiver.providers.spec import Spec
from receiver.times import EPOCH


def explain(
    spec: Spec,
    *,
    callback: bytes | None = None,
    poll: bytes | None = None,
    submit: bytes | None = None,
    operation: str | None = None,
    http_status: int = 200,
    now: datetime = EPOCH,
) -> dict[str, Any]:
    """The Updates that come of one body as plain JSON, or what kind of answer it is and why."""
    name = operation or spec.operations[0]
    account = _bare_account(spec)
    try:
        if callback is not None:
            return {"answer": "read", "updates": [show_update(read_callback(spec, operation, {}, callback, now))]}
        if poll is not None:
            return _explain_poll(read_poll_answer(account, _job(name, now), Answer(status=http_status, body=poll), now))
        return _explain_submit(read_submit_answer(account, _submission(name, now), Answer(status=http_status, body=submit or b""), now))
    except Unreadable as fault:
        return {"answer": "unreadable", "reason": str(fault)}


def _explain_poll(found: Update | PollFailure) -> dict[str, Any]:
    if isinstance(found, Update):
        return {"answer": "read", "updates": [show_update(found)]}
    return {"answer": "failed_poll", "reason": found.reason, "not_found": found.not_found, "retry_after": found.retry_after}


def _explain_submit(found: SubmitAnswer) -> dict[str, Any]:
    if isinstance(found, Accepted):
        return {"answer": "accepted", "updates": [show_update(update) for update in found.updates]}
    error = msgspec.to_builtins(found.error)
    if isinstance(found, NotTakenAnswer):
        return {"answer": "not_taken", "retry_after": found.retry_after, "error": error}
    if isinstance(found, RefusedAnswer):
        return {"answer": "refused", "error": error}
    return {"answer": "unknown", "reason": found.reason, "error": error}


def show_update(update: Update) -> dict[str, Any]:
    """An Update as plain JSON, without what it does not say."""
    shown: dict[str, Any] = msgspec.to_builtins(update, str_keys=True)
    shown["outputs"] = [{"index": each.index, "url": each.url, "media_type": each.media_type} for each in update.outputs]
    for output, found in zip(update.outputs, shown["outputs"], strict=True):
        if output.expires_at is not None:
            found["expires_at"] = msgspec.to_builtins(output.expires_at)
    return {name: value for name, value in shown.items() if value is not False and value not in (None, [], {})}


def _bare_account(spec: Spec) -> Account:
    return Account(
        name=spec.name,
        spec=spec,
        api_key="",
        base_url=spec.base_url,
        confirm=False,
        submit_timeout=timedelta(seconds=30),
        submit_attempts=1,
        rate_limit=None,
        callback_secrets=(),
        polling=(),
    )


def _job(operation: str, now: datetime) -> Job:
    return Job(
        id="job",
        submission_id="sub",
        provider="",
        operation=operation,
        model=None,
        media=None,
        status=Status.QUEUED,
        created_at=now,
        updated_at=now,
        deadline_at=now,
    )


def _submission(operation: str, now: datetime) -> Submission:
    return Submission(
        id="sub",
        provider="",
        operation=operation,
        model=None,
        media=None,
        input={},
        next_attempt_at=now,
        deadline_seconds=1.0,
        created_at=now,
    )
