"""`/v1/jobs`: looking at jobs, waiting for them, and what an operator may do with them."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from receiver import commands
from receiver.errors import Invalid, NotFound
from receiver.keys import Scope
from receiver.model import Call, Delivery, Event, Job, Notice, Status
from receiver.stores.terms import MOST_RAW, JobFilter, TimelineEntry
from receiver.times import to_rfc3339
from receiver.web.bodies import parse_struct, read_json
from receiver.web.operations import Answer, Header, Operation, answer_json, services_of
from receiver.web.outputs import send_output
from receiver.web.query import CURSOR, LIMIT, Parameter, Query, choice, flag, parse_any_text, parse_seconds, text, time
from receiver.web.submitting import submit_jobs
from receiver.web.views import Job as JobView
from receiver.web.views import JobPage, NewJob, Resolution, Submitted, Timeline
from receiver.web.waiting import Waiting

GROUP = "Jobs"


def job_id_of(request: Request) -> str:
    return id_of(request, "job")


def id_of(request: Request, prefix: str) -> str:
    """The id in the path. What cannot be one of ours is not asked of the store."""
    given: str = request.path_params["id"]
    if not re.fullmatch(prefix + "_[0-9a-f]{32}", given):
        raise NotFound
    return given


async def find_job(request: Request) -> Job:
    job = await services_of(request).store.read_job(job_id_of(request))
    if job is None:
        raise NotFound("There is no such job.")
    return job


async def list_jobs(request: Request, query: Query) -> Response:
    wanted = JobFilter(
        provider=query["provider"],
        model=query["model"],
        status=query["status"],
        submission_id=query["submission_id"],
        metadata=query["metadata.KEY"],
        created_after=query["created_after"],
        created_before=query["created_before"],
    )
    page = await services_of(request).store.read_jobs(wanted, query["limit"], query["cursor"])
    return answer_json({"jobs": [job.public() for job in page.rows], "next_cursor": page.cursor})


async def read_job(request: Request, query: Query) -> Response:
    waiting: Waiting = request.app.state.waiting
    job = await waiting.until(lambda: find_job(request), lambda job: job.is_final, query["wait"])
    return answer_json(job.public())


async def read_timeline(request: Request, query: Query) -> Response:
    job = await find_job(request)
    entries = await services_of(request).store.read_timeline(job.id, MOST_RAW if query["raw"] else 0)
    if entries is None:
        raise NotFound("There is no such job.")
    return answer_json({"job": job.public(), "entries": [show_entry(entry, query["raw"]) for entry in entries]})


def show_entry(entry: TimelineEntry, has_raw: bool) -> dict[str, Any]:
    row = entry.row
    match row:
        case Call():
            kind, view = "submit", {"id": row.id, "http_status": row.http_status, "error": row.error}
        case Notice():
            kind, view = "notice", show_notice(row, has_raw, entry.is_truncated)
        case Event():
            kind, view = "event", {"id": row.id, "type": row.type, "sequence": row.sequence, "late": bool(row.data.get("late", False))}
        case Delivery():
            kind, view = "delivery", row.public()
    return {"at": to_rfc3339(entry.at), "kind": kind, **view}


def show_notice(notice: Notice, has_raw: bool, is_truncated: bool) -> dict[str, Any]:
    view: dict[str, Any] = {
        "id": notice.id,
        "channel": notice.channel,
        "outcome": notice.outcome,
        "status": notice.status,
        "reason": notice.reason,
        "repeats": notice.repeats,
        "last_at": to_rfc3339(notice.last_at),
        "http_status": notice.http_status,
        "headers": notice.headers,
    }
    if has_raw:
        view["raw"] = notice.body.decode(errors="replace")
        view["raw_truncated"] = is_truncated
    return view


async def cancel_job(request: Request, query: Query) -> Response:
    return answer_json((await commands.cancel_job(services_of(request), job_id_of(request))).public(), 202)


async def poll_job(request: Request, query: Query) -> Response:
    return answer_json((await commands.poll_job(services_of(request), job_id_of(request))).public(), 202)


async def resolve_job(request: Request, query: Query) -> Response:
    job_id = job_id_of(request)
    wanted = parse_struct(Resolution, await read_json(request))
    if (wanted.remote_id is None) == (wanted.abandon is None):
        raise Invalid([{"pointer": "", "detail": "takes exactly one of remote_id and abandon"}])
    job = await commands.resolve_job(services_of(request), job_id, remote_id=wanted.remote_id, give_up=wanted.abandon is True)
    return answer_json(job.public())


async def delete_job(request: Request, query: Query) -> Response:
    if not await services_of(request).store.delete_job(job_id_of(request)):
        raise NotFound("There is no such job.")
    return Response(status_code=204)


FILTERS = (
    text("provider", "Only jobs of this account."),
    text("model", "Only jobs of this model."),
    choice("status", "Only jobs that stand so.", Status),
    text("submission_id", "Only jobs of this submission."),
    Parameter(
        "metadata.KEY",
        "Only jobs whose metadata has this value under KEY; may be given for several keys.",
        {"type": "string"},
        parse_any_text,
    ),
    time("created_after", "Only jobs created at this time or later."),
    time("created_before", "Only jobs created before this time."),
)
WAIT = Parameter(
    "wait", "Seconds to hold the answer until the job is final; above 60 means 60.", {"type": "number", "minimum": 0}, parse_seconds, 0.0
)
RAW = flag("raw", "Whether notices come with their body as text.", default=True)
THE_JOB = "The job as it stands now."
SUBMIT_HEADERS = (
    Header(
        "Idempotency-Key",
        "1 to 255 characters: the same key and body give the same submission again; the same key with another body is refused.",
    ),
    Header("Prefer", "`respond-async` answers at once, with jobs that are still `submitting`."),
)
REPLAY_HEADERS = {
    "Idempotency-Replayed": "`true` where the submission was made by an earlier request with the same key.",
    "Preference-Applied": "`respond-async` where that was asked for.",
}
FILE = Answer(
    200,
    "The file, whole.",
    bytes,
    "*/*",
    {"Content-Disposition": "`inline` for images, video and audio, else `attachment`."},
)

OPERATIONS = (
    Operation(
        "POST",
        "/v1/jobs",
        submit_jobs,
        GROUP,
        "Submit: one call to a provider, which makes one or more jobs.",
        (Answer(202, "The jobs as they stand after the provider's answer.", Submitted, headers=REPLAY_HEADERS),),
        headers=SUBMIT_HEADERS,
        body=NewJob,
        errors=(409, 422, 429),
        scope=Scope.SUBMIT,
    ),
    Operation(
        "GET", "/v1/jobs", list_jobs, GROUP, "List jobs, newest first.", (Answer(200, "One page.", JobPage),), (*FILTERS, LIMIT, CURSOR)
    ),
    Operation("GET", "/v1/jobs/{id}", read_job, GROUP, "Read a job, or wait for it.", (Answer(200, THE_JOB, JobView),), (WAIT,)),
    Operation(
        "DELETE", "/v1/jobs/{id}", delete_job, GROUP, "Delete a final job; stored files stay.", (Answer(204, "It is gone."),), errors=(409,)
    ),
    Operation(
        "GET",
        "/v1/jobs/{id}/timeline",
        read_timeline,
        GROUP,
        "Every call, notice, event and delivery of a job, in order.",
        (Answer(200, "The job and its timeline.", Timeline),),
        (RAW,),
    ),
    Operation(
        "GET",
        "/v1/jobs/{id}/outputs/{index}",
        send_output,
        GROUP,
        "An output: the stored file, else a redirect to the provider's link.",
        (
            FILE,
            Answer(206, "The part that `Range` asked for; of several parts `multipart/byteranges`.", bytes, "*/*"),
            Answer(307, "The provider has it.", headers={"Location": "The provider's link."}),
        ),
        headers=(Header("Range", "A part of a stored file."),),
        errors=(416, 502),
    ),
    Operation(
        "POST",
        "/v1/jobs/{id}/cancel",
        cancel_job,
        GROUP,
        "Cancel a job where the provider can.",
        (Answer(202, THE_JOB, JobView),),
        errors=(409,),
    ),
    Operation("POST", "/v1/jobs/{id}/poll", poll_job, GROUP, "Ask the provider now.", (Answer(202, THE_JOB, JobView),), errors=(409,)),
    Operation(
        "POST",
        "/v1/jobs/{id}/resolve",
        resolve_job,
        GROUP,
        "Say what became of an unconfirmed job.",
        (Answer(200, THE_JOB, JobView),),
        body=Resolution,
        errors=(409,),
    ),
)
