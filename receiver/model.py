"""The values that everything else speaks about: frozen, without I/O, in the words of the README's vocabulary."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from receiver.times import to_rfc3339


class Word(StrEnum):
    """One word of a closed set. It equals its text, so it hashes as that does, and not by its name in a function of Python."""

    __hash__ = str.__hash__


class Status(Word):
    """Where a job stands; the order of the members is the order in which a job may move."""

    SUBMITTING = "submitting"
    UNCONFIRMED = "unconfirmed"
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    is_final: bool

    def __init__(self, word: str) -> None:
        self.is_final = word in ("succeeded", "failed", "cancelled", "expired")


FINAL = frozenset(status for status in Status if status.is_final)
OPEN = frozenset(Status) - FINAL
MEDIA = ("image", "video", "audio", "3d", "other")


class Channel(Word):
    """How a notice reached us."""

    CALLBACK = "callback"
    POLL = "poll"
    STREAM = "stream"
    SUBMIT = "submit"


class Outcome(Word):
    """What became of a notice when it was settled."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    LATE = "late"  # after a final status, changed nothing
    UNREADABLE = "unreadable"
    MISMATCHED = "mismatched"  # speaks of an id that its submission does not have
    WAITING = "waiting"  # for a confirming poll
    REFUTED = "refuted"  # by that poll
    ORPHAN = "orphan"  # no submission of ours is known for it


class ErrorCode(Word):
    """Why a job failed, in one vocabulary for all providers."""

    INVALID_REQUEST = "invalid_request"
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    CONTENT_REJECTED = "content_rejected"
    PROVIDER_ERROR = "provider_error"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    SUBMIT_UNKNOWN = "submit_unknown"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class FinishedBy(Word):
    """Who brought the final status."""

    CALLBACK = "callback"
    POLL = "poll"
    STREAM = "stream"
    SUBMIT = "submit"
    DEADLINE = "deadline"
    OPERATOR = "operator"


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed: our code, the provider's words, the provider's own code as given."""

    code: ErrorCode
    message: str
    provider_code: str | None = None


class Cost(msgspec.Struct, frozen=True):
    """What a generation cost, in the provider's own unit (`credits`, `USD`, …)."""

    amount: float
    unit: str


class Stored(msgspec.Struct, frozen=True):
    """Where the storage handler keeps an output."""

    uri: str
    bytes: int
    sha256: str
    media_type: str


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One result of a job. `url` is None for one that came as a `data:` URI and is read from the notice `notice_id`."""

    index: int
    url: str | None
    media_type: str | None = None
    stored: Stored | None = None
    notice_id: str | None = None
    expires_at: datetime | None = None  # when the link dies, where that is known

    def public(self) -> dict[str, Any]:
        view: dict[str, Any] = {"index": self.index, "url": self.url, "media_type": self.media_type}
        if self.stored is not None:
            view["stored"] = msgspec.to_builtins(self.stored)
        return view


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One generation at a provider."""

    id: str
    submission_id: str
    provider: str  # the name of the configured account
    operation: str
    model: str | None
    media: str | None
    status: Status
    remote_id: str | None = None
    outputs: tuple[Output, ...] = ()
    error: JobError | None = None
    progress: float | None = None  # 0 to 1
    cost: Cost | None = None
    metadata: dict[str, str] = {}
    created_at: datetime
    submitted_at: datetime | None = None
    updated_at: datetime
    finished_at: datetime | None = None
    finished_by: FinishedBy | None = None
    deadline_at: datetime
    # Below: not shown to users.
    position: int = 0  # within its submission, from 0
    sequence: int = 0  # events made so far
    is_own_verdict: bool = False  # a final status that the provider's later word replaces, once
    polling_url: str | None = None
    processing_event_at: datetime | None = None
    traceparent: str | None = None  # of the request that made it, where traces are kept

    @property
    def is_final(self) -> bool:
        return self.status.is_final

    def public(self) -> dict[str, Any]:
        """The job as the API shows it and as events carry it: plain JSON values."""
        return {
            "id": self.id,
            "submission_id": self.submission_id,
            "provider": self.provider,
            "operation": self.operation,
            "model": self.model,
            "media": self.media,
            "status": self.status.value,
            "remote_id": self.remote_id,
            "outputs": [output.public() for output in self.outputs],
            "error": None if self.error is None else msgspec.to_builtins(self.error),
            "progress": self.progress,
            "cost": None if self.cost is None else msgspec.to_builtins(self.cost),
            "metadata": dict(self.metadata),
            "created_at": to_rfc3339(self.created_at),
            "submitted_at": to_rfc3339(self.submitted_at),
            "updated_at": to_rfc3339(self.updated_at),
            "finished_at": to_rfc3339(self.finished_at),
            "finished_by": None if self.finished_by is None else self.finished_by.value,
            "deadline_at": to_rfc3339(self.deadline_at),
        }


class SubmissionState(Word):
    """How far our one call to the provider got."""

    WAITING = "waiting"  # to be sent at `next_attempt_at`
    SENT = "sent"  # marked before the first byte left; never times out back to waiting
    ANSWERED = "answered"  # the answer is known: ids or a refusal
    LOST = "lost"  # sent, and the answer will never be known; ids may still be adopted
    CLOSED = "closed"  # cancelled or given up before anything was taken


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One call of ours to a provider's submit endpoint; yields 1 to N jobs."""

    id: str
    provider: str
    operation: str
    model: str | None
    media: str | None
    input: dict[str, Any]
    metadata: dict[str, str] = {}
    count: int = 1  # jobs asked for
    state: SubmissionState = SubmissionState.WAITING
    attempts: int = 0
    next_attempt_at: datetime
    sent_at: datetime | None = None
    deadline_seconds: float
    created_at: datetime
    api_key_id: str = ""  # scope of the idempotency key: a hash of the API key, never the key
    idempotency_key: str | None = None
    body_hash: str = ""  # of the parsed request, to compare a repeated Idempotency-Key
    version: int = 0  # grows with every settle of the submission or one of its jobs


class Family(msgspec.Struct, frozen=True):
    """A submission with its jobs, in the order of their positions: the unit that is settled as one. A final job may have been deleted."""

    submission: Submission
    jobs: tuple[Job, ...]

    def find(self, job_id: str) -> Job | None:
        return next((job for job in self.jobs if job.id == job_id), None)

    @property
    def traceparent(self) -> str | None:
        return self.jobs[0].traceparent if self.jobs else None


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One raw message about a job, whatever the channel. Secrets in `body` are masked before it is stored."""

    id: str
    channel: Channel
    provider: str
    at: datetime
    submission_id: str | None = None  # from the token, or known because we asked
    job_id: str | None = None
    headers: dict[str, str] = {}  # an allow-list
    body: bytes = b""
    http_status: int | None = None  # of the answer, for poll and submit
    outcome: Outcome | None = None  # None: kept, not settled yet
    reason: str | None = None  # why unreadable, mismatched, …
    status: Status | None = None  # what it said
    repeats: int = 0
    last_at: datetime | None = None
    tries: int = 0  # claims so far; one that keeps killing its settler is set aside
    remote_id: str | None = None  # which job an orphan without a submission named


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One submit call of ours, for the timeline. `http_status` is None when no answer came."""

    id: str
    submission_id: str
    at: datetime
    http_status: int | None = None
    error: str | None = None


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """What a notice says about one job, in one shape for all providers."""

    status: Status | None = None  # None: nothing said about it
    remote_id: str | None = None
    outputs: tuple[Output, ...] = ()
    is_unusable: bool = False  # it speaks of outputs, and none of them is a link that can be followed
    data_uris: dict[int, str] = {}  # index of an output → its data: URI, for reading it again from the notice
    error: JobError | None = None
    progress: float | None = None  # 0 to 1
    cost: Cost | None = None
    polling_url: str | None = None
    provider_status: str | None = None  # the provider's word, as given
    created_at: datetime | None = None  # by the provider's clock
    finished_at: datetime | None = None  # by the provider's clock
    fields: dict[str, Any] = {}  # a list row's echo of model and input, for adoption


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact about a job that handlers receive, with the attributes of CloudEvents 1.0."""

    id: str
    type: str
    source: str
    subject: str | None = None
    time: str  # RFC 3339
    sequence: str
    data: dict[str, Any]
    traceparent: str | None = None  # https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/distributed-tracing.md
    # Below: not part of the envelope.
    depth: int = 0  # emitted by a handler that handled an event of depth - 1

    def envelope(self) -> dict[str, Any]:
        """The CloudEvents 1.0 JSON envelope. An event about ourselves has no subject."""
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.type,
            **({} if self.subject is None else {"subject": self.subject}),
            "time": self.time,
            "sequence": self.sequence,
            **({} if self.traceparent is None else {"traceparent": self.traceparent}),
            "datacontenttype": "application/json",
            "data": self.data,
        }


class DeliveryState(Word):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    RETRYING = "retrying"
    DEAD = "dead"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one handler."""

    id: str
    event_id: str
    event_type: str
    job_id: str | None
    handler: str
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    next_attempt_at: datetime | None
    last_error: str | None = None
    created_at: datetime
    updated_at: datetime
    # Below: not shown to users.
    sequence: int = 0  # of its event within the job
    is_ordered: bool = True  # False once replayed: waits for nothing, holds nothing back
    urgent_at: datetime | None = None  # a link of the job dies then: such deliveries go first

    def public(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "event_id": self.event_id,
            "event_type": self.event_type,
            "job_id": self.job_id,
            "handler": self.handler,
            "state": self.state.value,
            "attempts": self.attempts,
            "next_attempt_at": to_rfc3339(self.next_attempt_at),
            "last_error": self.last_error,
            "created_at": to_rfc3339(self.created_at),
            "updated_at": to_rfc3339(self.updated_at),
        }


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """When a job is to be asked about next. Only jobs that may be polled have one."""

    job_id: str
    submission_id: str
    provider: str
    due_at: datetime
    attempts: int = 0  # polls since the last news, for the growth of the interval
    failures: int = 0  # failed polls in a row
    not_found: int = 0  # 404 answers in a row
    cancel: bool = False  # ask the provider to cancel before polling
    last_notice_id: str | None = None  # of the last poll answer, which an equal one repeats
    last_hash: str | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP call that a provider's spec describes; built without sending it."""

    method: str
    url: str
    headers: dict[str, str] = {}
    body: bytes = b""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for a Request. Header names are lower-case."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""
