"""The list of jobs with its search, one job with all that happened to it, and what an operator may do with it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from receiver import commands
from receiver.errors import Conflict, Invalid, NotFound
from receiver.model import Call, Delivery, Event, Job, Notice, Output, Status
from receiver.services import Services
from receiver.stores.terms import DeliveryFilter, JobFilter, TimelineEntry
from receiver.web.jobs import find_job
from receiver.web.operations import services_of
from receiver.web.outputs import disposition, safe_media_type
from receiver.web.pages_frame import Form, button, go_to, origin_of, page, read_fields, show
from receiver.web.pages_timeline import draw
from receiver.web.query import Query, parse_time

ROWS = 50
MOST_SHOWN = 32 * 1024  # bytes of notices on one page, which must stay light; each can be had whole as a file
MOST_DELIVERIES = 50
FIRST_STEPS, LAST_STEPS = 60, 120  # of a timeline
MODELS = {"image": "image/*", "video": "video/*", "audio": "audio/*"}
ACTIONS: dict[str, str] = {
    "poll": "The provider is being asked.",
    "cancel": "The provider is being asked to cancel.",
    "resolve": "The job has its id now, and the provider is being asked.",
    "abandon": "The job was given up.",
    "replay": "Its deliveries are on their way again.",
}


# The list


async def list_jobs(request: Request, query: Query) -> Response:
    services, fields = services_of(request), dict(read_fields(request))
    words = fields.pop("q", "")
    found = await search(services, words) if words else None
    if isinstance(found, str):
        return go_to(request, found)
    wanted = read_filter(fields, found if isinstance(found, JobFilter) else JobFilter())
    if isinstance(found, list):
        rows, cursor = found, None
    else:
        listed = await services.store.read_jobs(wanted, ROWS, fields.get("cursor"))
        rows, cursor = list(listed.rows), listed.cursor
    return show(
        request,
        "jobs.html",
        jobs=rows,
        words=words,
        fields={key: value for key, value in fields.items() if key != "cursor"},
        next=urlencode({**({"q": words} if words else {}), **fields, "cursor": cursor}) if cursor else "",
        is_first="cursor" not in fields,
        statuses=[status.value for status in Status],
        providers=sorted({*services.accounts, *(await services.store.open_accounts())}),
    )


def read_filter(fields: Form, base: JobFilter) -> JobFilter:
    """The filters of the address; Invalid where one is none."""
    errors = []
    known = {"provider", "model", "status", "submission_id", "created_after", "created_before", "cursor"}
    values: dict[str, Any] = {"metadata": {**base.metadata}, "submission_id": base.submission_id}
    for name, text in fields.items():
        try:
            if name.startswith("metadata."):
                values["metadata"][name.removeprefix("metadata.")] = text
            elif name.startswith("created_"):
                values[name] = parse_time(text)
            elif name == "status" and text not in set(Status):
                raise ValueError(f"is none of {', '.join(Status)}")
            elif name == "status":
                values[name] = Status(text)
            elif name not in known:
                raise ValueError("is no filter of this list")
            elif name != "cursor":
                values[name] = text
        except ValueError as error:
            errors.append({"parameter": name, "detail": str(error)})
    if errors:
        raise Invalid(errors)
    return JobFilter(**values)


async def search(services: Services, words: str) -> JobFilter | list[Job] | str:
    """What was typed: an id of ours, `key=value` of metadata, or a provider's id. A path where one page is meant."""
    if re.fullmatch("job_[0-9a-f]{32}", words):
        return f"jobs/{words}"
    if re.fullmatch("sub_[0-9a-f]{32}", words):
        return JobFilter(submission_id=words)
    if re.fullmatch("dlv_[0-9a-f]{32}", words):
        delivery = await services.store.read_delivery(words)
        return f"jobs/{delivery.job_id}" if delivery and delivery.job_id else []
    if re.fullmatch("ntc_[0-9a-f]{32}", words):
        notice = await services.store.read_notice(words)
        return f"jobs/{notice.job_id}" if notice and notice.job_id else []
    names = sorted({*services.accounts, *(await services.store.open_accounts())})
    found = [job for name in names for job in await services.store.find_jobs(name, [words])]
    if len(found) == 1:
        return f"jobs/{found[0].id}"
    key, sign, value = words.partition("=")
    return JobFilter(metadata={key.strip(): value.strip()}) if sign and not found else found[-ROWS:]


# One job


@dataclass(frozen=True)
class Picture:
    """An output as a page shows it."""

    output: Output
    kind: str  # image, video, audio or file
    media_type: str
    name: str


async def show_job(request: Request, query: Query) -> Response:
    services, job = services_of(request), await find_job(request)
    entries = await services.store.read_timeline(job.id, MOST_SHOWN) or []
    family = (await services.store.load_families([job.submission_id])).get(job.submission_id)
    account = services.accounts.get(job.provider)
    pictures = [show_output(job, output) for output in job.outputs]
    left_out = max(len(entries) - FIRST_STEPS - LAST_STEPS, 0)
    steps = [*entries[:FIRST_STEPS], *entries[FIRST_STEPS + left_out :]]
    return show(
        request,
        "job.html",
        origins=[origin_of(output.url) for output in job.outputs if output.url],
        job=job,
        submission=family.submission if family else None,
        siblings=[each for each in family.jobs if each.id != job.id] if family else [],
        entries=[show_step(job, entry) for entry in steps],
        left_out=left_out,
        left_out_at=FIRST_STEPS if left_out else -1,
        picture=draw(job, entries, services.clock.now()),
        outputs=pictures,
        deliveries=[entry.row for entry in entries if isinstance(entry.row, Delivery)][-MOST_DELIVERIES:],
        may=allowed(job, account is not None, account.has_cancel(job.operation) if account else False),
        said=ACTIONS.get(read_fields(request).get("done", ""), ""),
    )


def allowed(job: Job, is_known: bool, has_cancel: bool) -> dict[str, bool]:
    """Which buttons make sense. The commands decide; this only spares people refusals."""
    is_unconfirmed = job.status is Status.UNCONFIRMED
    is_asked = not job.is_final or (job.status is Status.EXPIRED and job.is_own_verdict)
    return {
        "poll": job.remote_id is not None and is_asked and is_known,
        "cancel": not job.is_final and not is_unconfirmed and (job.remote_id is None or has_cancel),
        "resolve": is_unconfirmed,
    }


def show_output(job: Job, output: Output) -> Picture:
    media_type = safe_media_type(output.stored.media_type if output.stored else output.media_type)
    kind = media_type.partition("/")[0]
    if media_type == "application/octet-stream" and job.media in MODELS:
        kind = job.media
    is_shown = kind in MODELS and (media_type == "application/octet-stream" or disposition(media_type) == "inline")
    return Picture(output, kind if is_shown else "file", media_type, (output.url or "").partition("?")[0].rpartition("/")[2])


def show_step(job: Job, entry: TimelineEntry) -> dict[str, Any]:
    """One line of the timeline."""
    kind = {Call: "submit", Notice: "notice", Event: "event", Delivery: "delivery"}[type(entry.row)]
    return {"at": entry.at, "after": entry.at - job.created_at, "kind": kind, "row": entry.row, "is_truncated": entry.is_truncated}


# What can be done


def for_job(name: str, run: Callable[[Services, Job, Form], Awaitable[object]]) -> Callable[[Request, Form], Awaitable[str]]:
    async def act(request: Request, form: Form) -> str:
        job = await find_job(request)
        await run(services_of(request), job, form)
        return f"jobs/{job.id}?done={name}"

    act.__name__ = f"{name}_job_from_page"
    return act


async def resolve(services: Services, job: Job, form: Form) -> None:
    remote_id = form.get("remote_id", "").strip()
    if not remote_id:
        raise Invalid([{"pointer": "/remote_id", "detail": "is missing: the id that the provider gave the job"}])
    await commands.resolve_job(services, job.id, remote_id=remote_id)


async def replay(services: Services, job: Job, form: Form) -> None:
    if not await services.store.replay(DeliveryFilter(job_id=job.id), services.clock.now()):
        raise Conflict("The job has no deliveries that could be replayed: none, or they are on their way.")
    services.pulse.strike()


async def send_raw(request: Request, query: Query) -> Response:
    """The body of a notice as it came (secrets masked), as a file."""
    notice_id: str = request.path_params["id"]
    notice = await services_of(request).store.read_notice(notice_id) if re.fullmatch("ntc_[0-9a-f]{32}", notice_id) else None
    if notice is None:
        raise NotFound("There is no such notice.")
    is_json = "json" in notice.headers.get("content-type", "json")
    name = quote(f"{notice.id}.{'json' if is_json else 'txt'}")
    return Response(
        notice.body,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
        media_type="application/json" if is_json else "text/plain",
    )


PAGES = (
    page("/jobs", list_jobs, "The list of jobs."),
    page("/jobs/{id}", show_job, "One job."),
    button("/jobs/{id}/poll", for_job("poll", lambda services, job, _: commands.poll_job(services, job.id)), "Ask the provider now."),
    button("/jobs/{id}/cancel", for_job("cancel", lambda services, job, _: commands.cancel_job(services, job.id)), "Cancel a job."),
    button("/jobs/{id}/resolve", for_job("resolve", resolve), "Say which id an unconfirmed job has."),
    button(
        "/jobs/{id}/abandon",
        for_job("abandon", lambda services, job, _: commands.resolve_job(services, job.id, give_up=True)),
        "Give an unconfirmed job up.",
    ),
    button("/jobs/{id}/replay", for_job("replay", replay), "Deliver everything about a job again."),
    page("/notices/{id}/raw", send_raw, "The body of a notice."),
)
