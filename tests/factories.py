"""Makes values for tests: everything has a sensible default, ids count up and sort by time."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from receiver.model import (
    FINAL,
    Call,
    Channel,
    Delivery,
    Event,
    Family,
    Job,
    Notice,
    Output,
    Poll,
    Status,
    Stored,
    Submission,
    SubmissionState,
)
from receiver.times import to_rfc3339

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)

_numbers = itertools.count(1)


def make_id(prefix: str) -> str:
    return f"{prefix}_{next(_numbers):032x}"


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def make_submission(**fields: Any) -> Submission:
    values: dict[str, Any] = {
        "id": make_id("sub"),
        "provider": "elkapi",
        "operation": "default",
        "model": "elk-1",
        "media": "image",
        "input": {"prompt": "a moose"},
        "next_attempt_at": fields.get("created_at", NOW),
        "deadline_seconds": 3600.0,
        "created_at": NOW,
    }
    return Submission(**values | fields)


def make_job(submission: Submission | None = None, **fields: Any) -> Job:
    submission = submission or make_submission()
    created_at = fields.get("created_at", submission.created_at)
    values: dict[str, Any] = {
        "id": make_id("job"),
        "submission_id": submission.id,
        "provider": submission.provider,
        "operation": submission.operation,
        "model": submission.model,
        "media": submission.media,
        "status": Status.SUBMITTING,
        "metadata": submission.metadata,
        "created_at": created_at,
        "updated_at": created_at,
        "deadline_at": created_at + timedelta(seconds=submission.deadline_seconds),
    }
    if fields.get("status") in FINAL:
        values["finished_at"] = fields.get("updated_at", created_at)
    return Job(**values | fields)


def make_family(jobs: int = 1, *, job: dict[str, Any] | None = None, **fields: Any) -> Family:
    """A submission with so many jobs; `job` is for their fields, the rest for the submission's."""
    submission = make_submission(count=jobs, **fields)
    return Family(submission, tuple(make_job(submission, position=position, **(job or {})) for position in range(jobs)))


def make_running_family(jobs: int = 1, *, job: dict[str, Any] | None = None, **fields: Any) -> Family:
    """A submission that the provider has taken: its jobs are queued and have remote ids."""
    family = make_family(jobs, job={"status": Status.QUEUED} | (job or {}), **{"state": SubmissionState.ANSWERED} | fields)
    if job is not None and "remote_id" in job:
        return family
    return Family(family.submission, tuple(_with_remote_id(one) for one in family.jobs))


def _with_remote_id(job: Job) -> Job:
    return Job(**{field: getattr(job, field) for field in Job.__struct_fields__} | {"remote_id": f"remote-{job.id}"})


def make_output(**fields: Any) -> Output:
    return Output(**{"index": 0, "url": "https://cdn.example.com/0.png", "media_type": "image/png"} | fields)


def make_stored(**fields: Any) -> Stored:
    return Stored(**{"uri": "file:///outputs/0.png", "bytes": 3, "sha256": "ab" * 32, "media_type": "image/png"} | fields)


def make_notice(submission_id: str | None = None, **fields: Any) -> Notice:
    values: dict[str, Any] = {
        "id": make_id("ntc"),
        "channel": Channel.CALLBACK,
        "provider": "elkapi",
        "at": NOW,
        "submission_id": submission_id,
        "headers": {"content-type": "application/json"},
        "body": b'{"status": "completed"}',
    }
    return Notice(**values | fields)


def make_event(job: Job | None = None, type: str = "job.succeeded", *, sequence: int = 1, at: datetime = NOW, **fields: Any) -> Event:
    """About a job, or about ourselves when there is none."""
    values: dict[str, Any] = {
        "id": make_id("evt"),
        "type": type,
        "source": "/receiver" if job is None else f"/providers/{job.provider}",
        "subject": None if job is None else job.id,
        "time": to_rfc3339(at),
        "sequence": str(sequence),
        "data": {} if job is None else {"job": job.public(), "late": False},
    }
    return Event(**values | fields)


def make_delivery(event: Event, handler: str = "archive", **fields: Any) -> Delivery:
    created_at = fields.get("created_at", datetime.fromisoformat(event.time))
    values: dict[str, Any] = {
        "id": make_id("dlv"),
        "event_id": event.id,
        "event_type": event.type,
        "job_id": event.subject,
        "handler": handler,
        "next_attempt_at": created_at,
        "created_at": created_at,
        "updated_at": created_at,
        "sequence": int(event.sequence),
    }
    return Delivery(**values | fields)


def make_poll(job: Job, **fields: Any) -> Poll:
    values: dict[str, Any] = {"job_id": job.id, "submission_id": job.submission_id, "provider": job.provider, "due_at": NOW}
    return Poll(**values | fields)


def make_call(submission_id: str, **fields: Any) -> Call:
    return Call(**{"id": make_id("call"), "submission_id": submission_id, "at": NOW, "http_status": 200} | fields)
