"""The JSON documents of the HTTP API, with types, for those who ask it."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Stored(TypedDict):
    """Where the storage handler keeps an output."""

    uri: str
    bytes: int
    sha256: str
    media_type: str


class Output(TypedDict):
    """One result of a job."""

    index: int
    url: str | None
    media_type: str | None
    stored: NotRequired[Stored]


class JobError(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    provider_code: str | None


class Cost(TypedDict):
    """What a generation cost, in the provider's unit."""

    amount: float
    unit: str


class Job(TypedDict):
    """One generation at a provider. Times are RFC 3339 in UTC."""

    id: str
    submission_id: str
    provider: str
    operation: str
    model: str | None
    media: str | None
    status: Literal["submitting", "unconfirmed", "queued", "processing", "succeeded", "failed", "cancelled", "expired"]
    remote_id: str | None
    outputs: list[Output]
    error: JobError | None
    progress: float | None
    cost: Cost | None
    metadata: dict[str, str]
    created_at: str
    submitted_at: str | None
    updated_at: str
    finished_at: str | None
    finished_by: str | None
    deadline_at: str


class Submitted(TypedDict):
    """A submission and its jobs as they stand after the provider's answer."""

    submission_id: str
    jobs: list[Job]


class JobPage(TypedDict):
    """Jobs, newest first; `next_cursor` is None on the last page."""

    jobs: list[Job]
    next_cursor: str | None


class CostSum(TypedDict):
    """What the jobs of one group cost together; `group` has what was asked for, None where a job has none."""

    group: dict[str, str | None]
    unit: str
    amount: float
    jobs: int


class Timeline(TypedDict):
    """Every call, notice, event and delivery of a job, in order; each entry has `at`, `kind` and `id`."""

    job: Job
    entries: list[dict[str, Any]]


class Delivery(TypedDict):
    """One event for one handler."""

    id: str
    event_id: str
    event_type: str
    job_id: str | None
    handler: str
    state: Literal["pending", "running", "done", "retrying", "dead"]
    attempts: int
    next_attempt_at: str | None
    last_error: str | None
    created_at: str
    updated_at: str


class DeliveryPage(TypedDict):
    """Deliveries, newest first; `next_cursor` is None on the last page."""

    deliveries: list[Delivery]
    next_cursor: str | None


class EventData(TypedDict):
    """What an event says: the job as it then was, where it is about one."""

    job: NotRequired[Job]
    late: NotRequired[bool]


class Event(TypedDict):
    """A CloudEvents 1.0 envelope."""

    specversion: str
    id: str
    source: str
    type: str
    subject: NotRequired[str]  # the job; events about Receiver itself have none
    time: str
    sequence: str
    traceparent: NotRequired[str]
    datacontenttype: str
    data: EventData
