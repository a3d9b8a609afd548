"""Pure: how a job ends by a word that is not its provider's: our own (a deadline, an id that is denied) or the operator's."""

from __future__ import annotations

from datetime import datetime

import msgspec

from receiver.model import ErrorCode, Family, FinishedBy, Job, JobError, Status, SubmissionState
from receiver.rules import Change, Draft, accept, end


def expire(family: Family, now: datetime) -> Change:
    """Deadlines that passed without news. What was never sent is never sent then."""
    draft = Draft.of(family, now)
    for job in family.jobs:
        if not job.is_final and job.deadline_at <= now:
            end(draft, job, Status.EXPIRED, why_expired(draft, job), FinishedBy.DEADLINE, own=True)
    close_unsent(draft)
    return draft.done()


def why_expired(draft: Draft, job: Job) -> JobError | None:
    """Whoever reads it must know of a submit that may have been taken, also where its answer is lost only after the deadline."""
    if job.status is Status.UNCONFIRMED:
        return job.error
    if job.status is Status.SUBMITTING and draft.submission.state is SubmissionState.SENT:
        return JobError(ErrorCode.SUBMIT_UNKNOWN, "The deadline passed before the submit was answered.")
    return JobError(ErrorCode.DEADLINE_EXCEEDED, "No final news before the deadline.")


def close_unsent(draft: Draft) -> None:
    """A submission that still waits and has no open job is not sent any more."""
    if draft.submission.state is SubmissionState.WAITING and all(job.is_final for job in draft.jobs):
        draft.submission = msgspec.structs.replace(draft.submission, state=SubmissionState.CLOSED)


def not_found(family: Family, job_id: str, message: str, now: datetime) -> Change:
    """The provider does not know the id any more, after several polls."""
    draft = Draft.of(family, now)
    job = family.find(job_id)
    if job is not None and not job.is_final:
        end(draft, job, Status.FAILED, JobError(ErrorCode.NOT_FOUND, message), FinishedBy.POLL, own=True)
    return draft.done(job_id=job_id)


def abandon(family: Family, job: Job, now: datetime) -> Change:
    """The operator gives up an unconfirmed job."""
    draft = Draft.of(family, now)
    end(draft, job, Status.FAILED, job.error, FinishedBy.OPERATOR, own=True)
    return draft.done(job_id=job.id)


def resolve(family: Family, job: Job, remote_id: str, now: datetime) -> Change:
    """The operator knows the id of an unconfirmed job."""
    draft = Draft.of(family, now)
    accept(draft, job, remote_id)
    return draft.done(job_id=job.id)


def cancel_unsent(family: Family, job: Job, count_field: str | None, now: datetime) -> Change:
    """A job whose submission was not marked sent is cancelled here; the provider never hears of it. Its siblings are sent without it."""
    draft = Draft.of(family, now)
    remaining = sum(not job.is_final for job in family.jobs) - 1
    if remaining and count_field is not None:
        smaller = {**family.submission.input, count_field: remaining}
        draft.submission = msgspec.structs.replace(family.submission, count=remaining, input=smaller)
    end(draft, job, Status.CANCELLED, JobError(ErrorCode.CANCELLED, "Cancelled before it was sent."), FinishedBy.OPERATOR)
    close_unsent(draft)
    return draft.done(job_id=job.id)
