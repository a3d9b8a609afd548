"""The shape of what the API takes and gives: the schemas of the OpenAPI document, and the check of request bodies."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from receiver.model import Channel, Cost, DeliveryState, FinishedBy, JobError, Outcome, Status, Stored

Word = Annotated[str, Meta(max_length=256)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
MAX_DEADLINE = 30 * 24 * 3600


class NewJob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call to a provider."""

    provider: Name
    model: Name | None = None
    input: dict[str, Any]
    operation: Name | None = None
    media: Literal["image", "video", "audio", "3d", "other"] | None = None
    metadata: Annotated[dict[Word, Word], Meta(max_length=16)] | None = None
    deadline_seconds: Annotated[float, Meta(ge=1, le=MAX_DEADLINE)] | None = None


class Resolution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of an unconfirmed job: the provider's id of it, or `abandon`. Exactly one of the two."""

    remote_id: Name | None = None
    abandon: Literal[True] | None = None


class ReplayFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which deliveries to replay; at least one field. Those that are pending or running are left as they are."""

    state: Literal["pending", "running", "done", "retrying", "dead"] | None = None
    handler: Name | None = None
    job_id: Name | None = None
    event_type: Name | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One result of a job. `url` is null for one that came as a `data:` URI: the outputs route has it."""

    index: int
    url: str | None
    media_type: str | None
    stored: Stored | UnsetType = UNSET


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One generation at a provider."""

    id: str
    submission_id: str
    provider: str
    operation: str
    model: str | None
    media: str | None
    status: Status
    remote_id: str | None
    outputs: list[Output]
    error: JobError | None
    progress: float | None
    cost: Cost | None
    metadata: dict[str, str]
    created_at: datetime
    submitted_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None
    finished_by: FinishedBy | None
    deadline_at: datetime


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """A submission with its jobs as they stand now."""

    submission_id: str
    jobs: list[Job]


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    jobs: list[Job]
    next_cursor: str | None


class SubmitEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="submit"):
    """A submit call of ours. `http_status` is null when no answer came."""

    at: datetime
    id: str
    http_status: int | None
    error: str | None


class NoticeEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="notice"):
    """One raw message about the job. `outcome` is null until it is settled. `raw_truncated`: one answer holds so much raw text only."""

    at: datetime
    id: str
    channel: Channel
    outcome: Outcome | None
    status: Status | None
    reason: str | None
    repeats: int
    last_at: datetime | None
    http_status: int | None
    headers: dict[str, str]
    raw: str | UnsetType = UNSET
    raw_truncated: bool | UnsetType = UNSET


class EventEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="event"):
    """A fact about the job that handlers receive."""

    at: datetime
    id: str
    type: str
    sequence: str
    late: bool


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one handler."""

    id: str
    event_id: str
    event_type: str
    job_id: str | None
    handler: str
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime | None
    last_error: str | None
    created_at: datetime
    updated_at: datetime


class DeliveryEntry(Delivery, frozen=True, kw_only=True, tag_field="kind", tag="delivery"):
    """A delivery of one of the job's events."""

    at: datetime


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that happened to a job, in order."""

    job: Job
    entries: list[SubmitEntry | NoticeEntry | EventEntry | DeliveryEntry]


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One raw message, also one that found no job."""

    id: str
    at: datetime
    channel: Channel
    provider: str
    submission_id: str | None
    job_id: str | None
    outcome: Outcome | None
    status: Status | None
    reason: str | None
    repeats: int
    last_at: datetime | None
    http_status: int | None
    headers: dict[str, str]
    raw: str | UnsetType = UNSET
    raw_truncated: bool | UnsetType = UNSET


class NoticePage(msgspec.Struct, frozen=True, kw_only=True):
    notices: list[Notice]
    next_cursor: str | None


class DeliveryPage(msgspec.Struct, frozen=True, kw_only=True):
    deliveries: list[Delivery]
    next_cursor: str | None


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """How many deliveries were started anew."""

    replayed: int


class Mistake(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a request: in its body (`pointer`) or in its query string or headers (`parameter`)."""

    detail: str
    pointer: str | UnsetType = UNSET
    parameter: str | UnsetType = UNSET


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A problem document as of RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[Mistake] | UnsetType = UNSET
    failing: list[str] | UnsetType = UNSET


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A CloudEvents 1.0 event."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: str | UnsetType = UNSET  # events about ourselves have none
    time: datetime
    sequence: str
    traceparent: str | UnsetType = UNSET
    datacontenttype: Literal["application/json"]
    data: dict[str, Any]


class CostSum(msgspec.Struct, frozen=True, kw_only=True):
    """What the jobs of one group cost together. `group` has what was asked for in `by`, null where a job has none."""

    group: dict[str, str | None]
    unit: str
    amount: float
    jobs: int


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    costs: list[CostSum]


class ProviderOperation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a provider can be asked to do. `models` is empty where any model may be named."""

    name: str
    models: list[str]
    media: list[str]
    has_cancel: bool


class ProviderHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How our calls to a provider do; `open`: it is left alone until `open_until`."""

    state: Literal["ok", "failing", "open"]
    failures: int
    open_until: datetime | None
    last_error: str | None
    last_error_at: datetime | None


class LearnedTime(msgspec.Struct, frozen=True, kw_only=True):
    """What finished jobs of a model taught about how long a callback may be silent."""

    model: str | None
    count: int
    overdue_after_seconds: float


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that is configured or could be, or that has open jobs."""

    name: str
    configured: bool
    spec: str | None
    base_url: str | None
    operations: list[ProviderOperation]
    has_callback: bool
    has_stream: bool
    has_list: bool
    calls_back: bool
    health: ProviderHealth
    learned: list[LearnedTime]
    open_jobs: dict[str, int]
    counters: dict[str, int]


class Providers(msgspec.Struct, frozen=True, kw_only=True):
    providers: list[Provider]


class HandlerHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How a handler does in the process that answers."""

    state: Literal["ok", "failing"]
    running: int
    last_error: str | None
    last_error_at: datetime | None
    last_done_at: datetime | None


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A handler that is configured, or was when its deliveries were made."""

    name: str
    configured: bool
    use: str | None
    events: list[str]
    where: dict[str, list[str]]
    health: HandlerHealth
    deliveries: dict[str, int]
    counters: dict[str, int]


class Handlers(msgspec.Struct, frozen=True, kw_only=True):
    handlers: list[Handler]


class Alive(msgspec.Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["ok"]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A callback was kept on disk."""

    ok: Literal[True]
