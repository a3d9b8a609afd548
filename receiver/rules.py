"""Job and update → job and events: the rules of status, and of which job a notice is about. Pure.

Every change of a job, whatever the channel, is computed here. Each function takes the family as it stands and returns a
`Change`: the family as it will be, the events that tell of it, and what became of the notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from receiver.ids import make_id
from receiver.model import (
    Channel,
    ErrorCode,
    Event,
    Family,
    FinishedBy,
    Job,
    JobError,
    Outcome,
    Status,
    Submission,
    SubmissionState,
    Update,
)
from receiver.times import to_rfc3339

PROCESSING_EVENT_PAUSE = timedelta(seconds=5)
ENDED_BY = {channel: FinishedBy(channel.value) for channel in Channel}
RANK = {status: rank for rank, status in enumerate(Status)}
ANSWER_UNKNOWN = frozenset({SubmissionState.WAITING, SubmissionState.SENT, SubmissionState.LOST})
NO_REASON = "The provider gave no reason."


class Change(msgspec.Struct, frozen=True):
    """What came of a notice or a verdict: nothing of it is written yet."""

    family: Family
    outcome: Outcome = Outcome.APPLIED
    job_id: str | None = None  # which job it was about
    reason: str | None = None
    status: Status | None = None  # what the notice said
    events: tuple[Event, ...] = ()
    finished: tuple[tuple[Job, Update], ...] = ()  # jobs that the provider's own word ended just now

    def then(self, later: Change) -> Change:
        """Both, one after the other: `later` was computed on this one's family and has the last word on the outcome."""
        if not self.events and not self.finished:
            return later
        return msgspec.structs.replace(later, events=self.events + later.events, finished=self.finished + later.finished)


class Draft(msgspec.Struct):
    """A family while it is being changed; events are numbered as they are made."""

    submission: Submission
    jobs: list[Job]
    now: datetime
    events: list[Event] = []
    finished: list[tuple[Job, Update]] = []

    @classmethod
    def of(cls, family: Family, now: datetime) -> Draft:
        return cls(family.submission, list(family.jobs), now)

    def put(self, job: Job) -> Job:
        """In the place of what it was. That need not be its position: a job before it may have been deleted."""
        for place, known in enumerate(self.jobs):
            if known.id == job.id:
                self.jobs[place] = job
        return job

    def write(self, job: Job, **changes: Any) -> Job:
        return self.put(msgspec.structs.replace(job, updated_at=self.now, **changes))

    def tell(self, job: Job, type: str, *, late: bool = False, **changes: Any) -> Job:
        return self.announce(msgspec.structs.replace(job, updated_at=self.now, sequence=job.sequence + 1, **changes), type, late=late)

    def announce(self, job: Job, type: str, *, late: bool = False) -> Job:
        """A job that is changed and counted already."""
        self.put(job)
        self.events.append(make_event(job, type, self.now, late=late))
        return job

    def done(
        self, outcome: Outcome = Outcome.APPLIED, job_id: str | None = None, reason: str | None = None, status: Status | None = None
    ) -> Change:
        family = Family(self.submission, tuple(self.jobs))
        return Change(family, outcome, job_id, reason, status, tuple(self.events), tuple(self.finished))


def make_event(job: Job, type: str, now: datetime, *, late: bool = False) -> Event:
    return Event(
        id=make_id("evt", now),
        type=type,
        source=f"/providers/{job.provider}",
        subject=job.id,
        time=to_rfc3339(now) or "",
        sequence=str(job.sequence),
        data={"job": job.public(), "late": late},
    )


# Which job


def find_job(family: Family, remote_id: str | None) -> Job | None:
    """The job of this family that a notice is about; None when it has none, or none can be told."""
    if remote_id is None:  # of several jobs all but one may have been deleted
        return family.jobs[0] if len(family.jobs) == 1 and family.submission.count == 1 else None
    for job in family.jobs:
        if job.remote_id == remote_id:
            return job
    return None


def adopt(draft: Draft, remote_id: str) -> Job | None:
    """Give an id that no job has to the first job without one, as long as the submit answer is not known."""
    if draft.submission.state not in ANSWER_UNKNOWN:
        return None
    orphan = next((job for job in draft.jobs if job.remote_id is None and may_adopt(job)), None)
    if orphan is None:
        return None
    leave_waiting(draft)
    return accept(draft, orphan, remote_id)


def may_adopt(job: Job) -> bool:
    return not job.is_final or job.is_own_verdict


def accept(draft: Draft, job: Job, remote_id: str, polling_url: str | None = None) -> Job:
    """The provider has the job under this id."""
    submitted_at = job.submitted_at or draft.submission.sent_at or draft.now
    job = draft.write(job, remote_id=remote_id, submitted_at=submitted_at, polling_url=polling_url or job.polling_url)
    if job.is_final:  # ended by a verdict of our own: only the provider's final word changes that
        return job
    return draft.tell(job, "job.submitted", status=Status.QUEUED, error=None)


# What a notice does


def apply_update(
    family: Family, update: Update, channel: Channel, now: datetime, *, notice_id: str | None = None, confirm: bool = False
) -> Change:
    """A callback, poll answer or stream event about one job of the family.

    With `confirm`, a final status is not applied but waits for a poll to say the same.
    """
    draft = Draft.of(family, now)
    said = update.status
    job = find_job(family, update.remote_id)
    if job is None and update.remote_id is not None:
        job = adopt(draft, update.remote_id)
        if job is None:
            return draft.done(Outcome.MISMATCHED, reason=f"the submission has no job with the id {update.remote_id!r}", status=said)
    if job is None:
        return draft.done(Outcome.UNREADABLE, reason="it names no id, and the submission has several jobs", status=said)
    if confirm and said is not None and said.is_final and may_adopt(job):
        return draft.done(Outcome.WAITING, job.id, status=said)
    outcome = take_news(draft, job, update, channel, notice_id)
    return draft.done(outcome, job.id, status=said)


def take_news(draft: Draft, job: Job, update: Update, channel: Channel, notice_id: str | None) -> Outcome:
    """Apply an update to the job it is about."""
    status = update.status
    if job.is_final and not job.is_own_verdict:
        return Outcome.DUPLICATE if status is job.status else Outcome.LATE
    if status is not None and status.is_final:
        finish(draft, job, update, ENDED_BY[channel], notice_id)
        return Outcome.APPLIED
    if job.is_final:
        return Outcome.LATE
    return progress(draft, job, update)


def progress(draft: Draft, job: Job, update: Update) -> Outcome:
    """News of a job that goes on. Status never moves backwards."""
    if job.status in {Status.SUBMITTING, Status.UNCONFIRMED}:
        return note_taken(draft, job)
    status: Status = job.status
    if update.status is not None and RANK[update.status] > RANK[status]:
        status = update.status
    further = update.progress is not None and (job.progress is None or update.progress > job.progress)
    if status is job.status and not further and update.cost in {None, job.cost}:
        return Outcome.DUPLICATE
    was = job.status
    job = draft.write(
        job,
        status=status,
        error=None,
        progress=update.progress if further else job.progress,
        cost=update.cost or job.cost,
        submitted_at=job.submitted_at or draft.submission.sent_at or draft.now,
    )
    if status is Status.PROCESSING and (was is not status or (further and may_tell_progress(job, draft.now))):
        draft.tell(job, "job.processing", processing_event_at=draft.now)
    return Outcome.APPLIED


def note_taken(draft: Draft, job: Job) -> Outcome:
    """The only job runs, and nobody told under which id. Without one it could not be polled nor resolved, were it called running:
    the submit answer, a later callback or the operator brings it."""
    if draft.submission.state is SubmissionState.WAITING:
        leave_waiting(draft)
        error = JobError(ErrorCode.SUBMIT_UNKNOWN, "The provider speaks of this job and has not named its id.")
        draft.tell(job, "job.unconfirmed", status=Status.UNCONFIRMED, error=error, submitted_at=draft.submission.sent_at)
    return Outcome.APPLIED


def leave_waiting(draft: Draft) -> None:
    """It was taken after all: never send it again."""
    if draft.submission.state is SubmissionState.WAITING:
        draft.submission = msgspec.structs.replace(draft.submission, state=SubmissionState.LOST)


def may_tell_progress(job: Job, now: datetime) -> bool:
    return job.processing_event_at is None or now - job.processing_event_at >= PROCESSING_EVENT_PAUSE


def finish(draft: Draft, job: Job, update: Update, by: FinishedBy, notice_id: str | None) -> Job:
    """The provider's final word. It replaces a verdict of our own, once and late."""
    assert update.status is not None
    late = job.is_final
    leave_waiting(draft)
    outputs = tuple([one if one.url is not None else msgspec.structs.replace(one, notice_id=notice_id) for one in update.outputs])
    job = msgspec.structs.replace(  # every job comes by here: handed on as keywords twice, its fields cost as much as all the rest
        job,
        updated_at=draft.now,
        sequence=job.sequence + 1,
        status=update.status,
        outputs=outputs if update.status is Status.SUCCEEDED else (),
        error=final_error(update),
        progress=1.0 if update.status is Status.SUCCEEDED and job.progress is not None else job.progress,
        cost=update.cost or job.cost,
        submitted_at=job.submitted_at or draft.submission.sent_at or draft.now,
        finished_at=draft.now,
        finished_by=by,
        is_own_verdict=False,
    )
    draft.announce(job, f"job.{update.status}", late=late)
    draft.finished.append((job, update))
    return job


def final_error(update: Update) -> JobError | None:
    if update.status is Status.SUCCEEDED:
        return None
    if update.status is Status.CANCELLED:
        return update.error or JobError(ErrorCode.CANCELLED, "Cancelled.")
    return update.error or JobError(ErrorCode.PROVIDER_ERROR, NO_REASON)


# What comes of a submit


def apply_accepted(family: Family, updates: Sequence[Update], maximum: int, now: datetime, notice_id: str | None = None) -> Change:
    """The provider took the submission. Ids that callbacks brought earlier stay; the answer fills what is left."""
    draft = Draft.of(family, now)
    held = {job.remote_id for job in draft.jobs}
    for update in updates:
        if update.remote_id not in held and update.remote_id is not None:
            held.add(update.remote_id)
            accept_one(draft, update.remote_id, update, maximum)
    for update in updates:
        job = next((job for job in draft.jobs if job.remote_id == update.remote_id), None)
        if job is not None:
            if update.polling_url and not job.polling_url:
                job = draft.write(job, polling_url=update.polling_url)
            take_news(draft, job, without_end(update), Channel.SUBMIT, notice_id)
    error = JobError(ErrorCode.PROVIDER_ERROR, f"The provider made {len(updates)} of {family.submission.count} generations.")
    for job in list(draft.jobs):
        if job.remote_id is None and not job.is_final:
            end(draft, job, Status.FAILED, error, FinishedBy.SUBMIT)
    draft.submission = msgspec.structs.replace(draft.submission, state=SubmissionState.ANSWERED)
    return draft.done()


def without_end(update: Update) -> Update:
    """A submit answer that speaks of success and has no output ends nothing: what was paid for is yet to be fetched."""
    if update.status is Status.SUCCEEDED and not update.outputs:
        return msgspec.structs.replace(update, status=Status.PROCESSING)
    return update


def accept_one(draft: Draft, remote_id: str, update: Update, maximum: int) -> None:
    job = next((job for job in draft.jobs if job.remote_id is None and may_adopt(job)), None)
    if job is None:
        if len(draft.jobs) >= maximum or any(job.remote_id is None for job in draft.jobs):
            return  # the id of a job that ended by a callback without one is no further job
        job = sibling(draft, 1 + max(job.position for job in draft.jobs))
        draft.jobs.append(job)
    accept(draft, job, remote_id, update.polling_url)


def sibling(draft: Draft, position: int) -> Job:
    """A further job of the submission: the provider made more than was asked for."""
    first = draft.jobs[0]
    return Job(
        id=make_id("job", draft.now),
        submission_id=first.submission_id,
        provider=first.provider,
        operation=first.operation,
        model=first.model,
        media=first.media,
        status=Status.SUBMITTING,
        metadata=first.metadata,
        created_at=first.created_at,
        updated_at=draft.now,
        deadline_at=first.deadline_at,
        position=position,
        traceparent=first.traceparent,
    )


def apply_refused(family: Family, error: JobError, now: datetime) -> Change:
    """The provider refused, or every attempt was not taken: the open jobs failed, and nothing was paid."""
    draft = Draft.of(family, now)
    for job in family.jobs:
        if not job.is_final and job.remote_id is None:
            end(draft, job, Status.FAILED, error, FinishedBy.SUBMIT)
    draft.submission = msgspec.structs.replace(draft.submission, state=SubmissionState.ANSWERED)
    return draft.done()


def apply_not_taken(family: Family, next_attempt_at: datetime, now: datetime) -> Change:
    """It certainly was not taken: the mark is taken back, together with the time of the next attempt."""
    draft = Draft.of(family, now)
    if family.submission.state is SubmissionState.SENT:
        state = SubmissionState.WAITING if any(not job.is_final for job in family.jobs) else SubmissionState.CLOSED
        draft.submission = msgspec.structs.replace(draft.submission, state=state, next_attempt_at=next_attempt_at)
    return draft.done()


def apply_lost(family: Family, reason: str, now: datetime, provider_code: str | None = None) -> Change:
    """Sent, and the answer is lost: it may run, and may be billed. Never sent again."""
    draft = Draft.of(family, now)
    if family.submission.state is SubmissionState.SENT:
        draft.submission = msgspec.structs.replace(draft.submission, state=SubmissionState.LOST)
    error = JobError(ErrorCode.SUBMIT_UNKNOWN, reason, provider_code)
    for job in family.jobs:
        if job.status is Status.SUBMITTING and job.remote_id is None:
            submitted_at = draft.submission.sent_at
            draft.tell(job, "job.unconfirmed", status=Status.UNCONFIRMED, error=error, submitted_at=submitted_at)
    return draft.done()


def end(draft: Draft, job: Job, status: Status, error: JobError | None, by: FinishedBy, *, own: bool = False) -> Job:
    return draft.tell(job, f"job.{status}", status=status, error=error, finished_at=draft.now, finished_by=by, is_own_verdict=own)
