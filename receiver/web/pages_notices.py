"""Notices that could not be used: unreadable, mismatched, orphaned; and settling them again after a fix."""

from __future__ import annotations

import re
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from receiver import commands
from receiver.errors import Invalid, NotFound
from receiver.model import Outcome
from receiver.stores.terms import NoticeFilter
from receiver.web.operations import services_of
from receiver.web.pages_frame import Form, button, page, read_fields, show
from receiver.web.pages_troubles import is_failed_call
from receiver.web.query import Query

ROWS = 20
MOST_SHOWN = 16 * 1024  # bytes of notices in one section, so that the page stays light; each can be had whole as a file
OUTCOMES = {
    Outcome.UNREADABLE: "The spec did not understand them. After a fix of the spec, settle them again.",
    Outcome.MISMATCHED: "They speak of an id that their submission does not have. They moved nothing; the jobs were polled.",
    Outcome.ORPHAN: "No submission of ours is known for them: it was pruned, or the database comes from a backup. They go after a day.",
    Outcome.REFUTED: "A confirming poll said otherwise.",
    Outcome.WAITING: "They wait for a confirming poll.",
}


async def list_notices(request: Request, query: Query) -> Response:
    services, fields = services_of(request), dict(read_fields(request))
    chosen, cursor = fields.get("outcome"), fields.pop("cursor", None)
    if chosen is not None and chosen not in set(OUTCOMES):
        raise Invalid([{"parameter": "outcome", "detail": f"is none of {', '.join(OUTCOMES)}"}])
    sections = []
    for outcome, meaning in OUTCOMES.items():
        if chosen not in (None, outcome.value):
            continue
        listed = await services.store.read_notices(NoticeFilter(outcome=outcome, provider=fields.get("provider")), ROWS, cursor, MOST_SHOWN)
        following = {key: fields[key] for key in ("provider",) if key in fields}
        sections.append(
            {
                "outcome": outcome.value,
                "meaning": meaning,
                "rows": sorted(listed.rows, key=is_failed_call),  # what a fix can help first
                "truncated": listed.truncated,
                "failed": {notice.id for notice in listed.rows if is_failed_call(notice)},
                "next": urlencode({"outcome": outcome.value, **following, "cursor": listed.cursor}) if listed.cursor else "",
            }
        )
    return show(
        request,
        "notices.html",
        sections=sections,
        chosen=chosen or "",
        outcomes=[outcome.value for outcome in OUTCOMES],
        is_settled=fields.get("settled") == "1",
    )


async def settle_again(request: Request, form: Form) -> str:
    notice_id: str = request.path_params["id"]
    if not re.fullmatch("ntc_[0-9a-f]{32}", notice_id):
        raise NotFound("There is no such notice.")
    job = await commands.settle_notice(services_of(request), notice_id)
    return f"jobs/{job.id}" if job is not None else "notices?settled=1"


PAGES = (
    page("/notices", list_notices, "Notices that could not be used."),
    button("/notices/{id}/settle", settle_again, "Settle a notice again."),
)
