"""`/v1/notices`: raw messages, also those that found no job, and settling an unreadable one again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from receiver import commands
from receiver.errors import Conflict
from receiver.model import Channel, Outcome
from receiver.stores.terms import MOST_RAW, NoticeFilter
from receiver.times import to_rfc3339
from receiver.web.jobs import id_of, show_notice
from receiver.web.operations import Answer, Operation, answer_json, services_of
from receiver.web.query import CURSOR, LIMIT, Query, choice, flag, text
from receiver.web.views import Job, NoticePage

GROUP = "Notices"


async def list_notices(request: Request, query: Query) -> Response:
    wanted = NoticeFilter(outcome=query["outcome"], provider=query["provider"], channel=query["channel"])
    page = await services_of(request).store.read_notices(wanted, query["limit"], query["cursor"], MOST_RAW if query["raw"] else 0)
    rows = [
        {
            "at": to_rfc3339(notice.at),
            "provider": notice.provider,
            "submission_id": notice.submission_id,
            "job_id": notice.job_id,
            **show_notice(notice, query["raw"], notice.id in page.truncated),
        }
        for notice in page.rows
    ]
    return answer_json({"notices": rows, "next_cursor": page.cursor})


async def settle_notice(request: Request, query: Query) -> Response:
    job = await commands.settle_notice(services_of(request), id_of(request, "ntc"))
    if job is None:
        raise Conflict("The notice was settled again, and is about no job of ours.")
    return answer_json(job.public())


OPERATIONS = (
    Operation(
        "GET",
        "/v1/notices",
        list_notices,
        GROUP,
        "List notices, newest first: also orphans and unreadable ones. With a filter a page may have few rows, or none, and a next one.",
        (Answer(200, "One page.", NoticePage),),
        (
            choice("outcome", "Only notices of which this became.", Outcome),
            text("provider", "Only notices of this account."),
            choice("channel", "Only notices that came this way.", Channel),
            flag("raw", "Whether they come with their body as text.", default=False),
            LIMIT,
            CURSOR,
        ),
    ),
    Operation(
        "POST",
        "/v1/notices/{id}/settle",
        settle_notice,
        GROUP,
        "Settle an unreadable notice again, after a fix.",
        (Answer(200, "The job of the notice as it stands now.", Job),),
        errors=(409,),
    ),
)
