"""`/v1/costs`: what jobs cost, added up."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import Invalid
from receiver.stores.terms import COST_FIELDS, JobFilter
from receiver.web.jobs import FILTERS
from receiver.web.operations import Answer, Operation, answer_json, services_of
from receiver.web.query import Parameter, Query
from receiver.web.views import Costs

MOST_SUMS = 10_000
MOST_FIELDS = 8
DEFAULT_BY = ("provider", "model")
METADATA = re.compile(r"metadata\.[^,\0]{1,256}", re.DOTALL)


def parse_by(text: str) -> tuple[str, ...]:
    fields = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    wrong = [field for field in fields if field not in COST_FIELDS and not METADATA.fullmatch(field)]
    if wrong or not fields:
        raise ValueError(f"{', '.join(wrong) or 'nothing'} is none of {', '.join(COST_FIELDS)}, metadata.KEY")
    if len(fields) > MOST_FIELDS:
        raise ValueError(f"names more than {MOST_FIELDS} fields")
    return fields


async def list_costs(request: Request, query: Query) -> Response:
    by: tuple[str, ...] = query["by"]
    wanted = JobFilter(
        provider=query["provider"],
        model=query["model"],
        metadata=query["metadata.KEY"],
        created_after=query["created_after"],
        created_before=query["created_before"],
    )
    sums = await services_of(request).store.add_up_costs(wanted, by, MOST_SUMS)
    if sums is None:
        detail = f"makes more than {MOST_SUMS} sums: name other fields, or a shorter time by created_after and created_before"
        raise Invalid([{"parameter": "by", "detail": detail}])
    return answer_json(
        {
            "costs": [
                {"group": dict(zip(by, each.group, strict=True)), "unit": each.unit, "amount": each.amount, "jobs": each.jobs}
                for each in sums
            ]
        }
    )


BY = Parameter(
    "by",
    f"What to add up by, with commas between: {', '.join(COST_FIELDS)}, metadata.KEY. A day is that of UTC in which a job was made.",
    {"type": "string", "default": ",".join(DEFAULT_BY)},
    parse_by,
    DEFAULT_BY,
)
OPERATIONS = (
    Operation(
        "GET",
        "/v1/costs",
        list_costs,
        "Jobs",
        "What jobs cost, as far as providers tell. What failed or was cancelled is refunded; units are never mixed.",
        (Answer(200, "One sum for each group and unit, the largest first.", Costs),),
        (BY, *(each for each in FILTERS if each.name not in ("status", "submission_id"))),
    ),
)
