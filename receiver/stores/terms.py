"""The terms of the stores' promise: what is handed to a store and what it gives, beside the values of the model."""

from __future__ import annotations

from datetime import datetime
from typing import Generic, NamedTuple, TypeVar

import msgspec

from receiver.model import Call, Channel, Delivery, DeliveryState, Event, Family, Job, Notice, Outcome, Poll, Status, Submission

T = TypeVar("T")
MOST_RAW = 8 * 1024 * 1024  # bytes of bodies that are read for one answer


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one change of a submission and its jobs writes, in one transaction or not at all.

    `version` is the submission's version that the change was computed from. `jobs` are whole rows, new or changed.
    """

    submission: Submission
    version: int
    is_resized: bool = False  # `count` and `input` of the submission changed too
    jobs: tuple[Job, ...] = ()
    notices: tuple[Notice, ...] = ()  # poll, stream and submit answers: new rows, already with their outcome
    outcomes: tuple[NoticeOutcome, ...] = ()  # for notices that are stored already
    repeats: tuple[tuple[str, datetime], ...] = ()  # (notice id, at): an equal poll answer came again
    events: tuple[Event, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    polls: tuple[Poll, ...] = ()  # replaced whole; one that some node asks about just now stays its own, and is due then if not sooner
    polls_answered: tuple[str, ...] = ()  # job ids of those that this node asked about: replaced where it still holds the claim, released
    polls_ended: tuple[str, ...] = ()  # job ids that are not polled any more
    calls: tuple[Call, ...] = ()
    durations: tuple[Duration, ...] = ()
    confirmations: tuple[Confirmation, ...] = ()


class NoticeOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a stored notice. Written only while the notice is unsettled, waiting or unreadable."""

    id: str
    outcome: Outcome
    status: Status | None = None
    job_id: str | None = None
    reason: str | None = None
    remote_id: str | None = None  # kept with an orphan, for `reopen_orphans`


class Duration(msgspec.Struct, frozen=True, kw_only=True):
    """How long a finished job took, in seconds: what the overdue time is learned from."""

    provider: str
    model: str
    seconds: float


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """What a confirming poll said: the job's notices that are `waiting` become `applied` where they said the same, else `refuted`."""

    job_id: str
    status: Status | None


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """The last durations of a provider's model, oldest first (at most 100)."""

    provider: str
    model: str
    seconds: tuple[float, ...]


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's health as our calls see it, shared by all nodes."""

    provider: str
    failures: int = 0  # calls in a row that failed
    open_until: datetime | None = None  # left alone until then
    last_error: str | None = None
    last_error_at: datetime | None = None


class Replayed(msgspec.Struct, frozen=True):
    """The same Idempotency-Key and body were seen before: that submission."""

    family: Family


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    provider: str | None = None
    model: str | None = None
    status: Status | None = None
    submission_id: str | None = None
    metadata: dict[str, str] = {}
    created_after: datetime | None = None  # inclusive
    created_before: datetime | None = None  # exclusive


class CostSum(msgspec.Struct, frozen=True, kw_only=True):
    """What the jobs of one group cost together, in one unit."""

    group: tuple[str | None, ...]
    unit: str
    amount: float
    jobs: int


REFUNDED = (Status.FAILED, Status.CANCELLED)
"""Jobs that stand so cost nothing in the end."""
COST_FIELDS = ("provider", "model", "day", "operation", "media")
"""What costs can be added up by, beside `metadata.KEY`."""


class DeliveryFilter(msgspec.Struct, frozen=True, kw_only=True):
    state: DeliveryState | None = None
    handler: str | None = None
    job_id: str | None = None
    event_type: str | None = None


class NoticeFilter(msgspec.Struct, frozen=True, kw_only=True):
    outcome: Outcome | None = None
    provider: str | None = None
    channel: Channel | None = None


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a listing, newest first; `cursor` is None on the last one."""

    rows: tuple[T, ...]
    cursor: str | None
    truncated: frozenset[str] = frozenset()  # ids of notices whose body is not there whole


class TimelineEntry(msgspec.Struct, frozen=True):
    """One line of a job's timeline, in order of `at`."""

    at: datetime
    row: Call | Notice | Event | Delivery
    is_truncated: bool = False  # a notice whose body is not there whole


class Kept(NamedTuple):
    """What became of a notice that came."""

    is_kept: bool
    is_claimed: bool = False


NOT_KEPT = Kept(False)


class NoticeBound(msgspec.Struct, frozen=True, kw_only=True):
    """How many callbacks one submission may leave with us."""

    callbacks: int = 1_000
    bytes: int = 64 * 1024 * 1024
