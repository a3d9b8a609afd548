"""Deliveries: the dead and the retrying first, with what the handler said; replay of one or of all that match."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import Conflict, Invalid, NotFound
from receiver.model import Delivery, DeliveryState
from receiver.stores.terms import DeliveryFilter
from receiver.web.operations import services_of
from receiver.web.pages_frame import Form, button, page, read_fields, show
from receiver.web.query import Query

ROWS = 50
FEW, FEWER = 20, 10  # of each state, where all are shown; of those that are done
TITLES = {
    DeliveryState.DEAD: "Dead",
    DeliveryState.RETRYING: "Retrying",
    DeliveryState.RUNNING: "Running",
    DeliveryState.PENDING: "Pending",
    DeliveryState.DONE: "Done",
}


async def list_deliveries(request: Request, query: Query) -> Response:
    services, fields = services_of(request), dict(read_fields(request))
    said, cursor = fields.pop("replayed", ""), fields.pop("cursor", None)
    wanted = read_filter(fields)
    if wanted.state is None and cursor is None:
        few = {state: FEWER if state is DeliveryState.DONE else FEW for state in TITLES}
        listed = [await read_section(request, wanted, state, few[state], None) for state in TITLES]
        sections = [section for section in listed if section["rows"]]
    else:
        sections = [await read_section(request, wanted, wanted.state, ROWS, cursor)]
    counts = await services.tally.deliveries()
    is_narrow = wanted.job_id is not None or wanted.event_type is not None
    return show(
        request,
        "deliveries.html",
        sections=sections,
        fields=fields,
        replayed=said if said.isdecimal() else "",
        matching={} if is_narrow else count_states(counts, wanted.handler),
        may_replay_done=wanted.state is DeliveryState.DONE,
        states=[state.value for state in DeliveryState],
        handlers=sorted({*services.handlers, *(handler for handler, _ in counts)}),
        is_first=cursor is None,
    )


def count_states(counts: Mapping[tuple[str, str], int], handler: str | None) -> Counter[str]:
    """Deliveries by state; those that are done are not counted."""
    found = Counter[str]()
    for (name, state), count in counts.items():
        found[state] += count if handler in (None, name) else 0
    return found


async def read_section(
    request: Request, wanted: DeliveryFilter, state: DeliveryState | None, limit: int, cursor: str | None
) -> dict[str, Any]:
    """Deliveries in one state; in any, where there is none."""
    chosen = DeliveryFilter(state=state, handler=wanted.handler, job_id=wanted.job_id, event_type=wanted.event_type)
    listed = await services_of(request).store.read_deliveries(chosen, limit, cursor)
    fields = {"state": state.value if state else None, **{name: getattr(wanted, name) for name in FIELDS if name != "state"}}
    named = {name: value for name, value in fields.items() if value}
    return {
        "title": TITLES[state] if state else "All",
        "state": state.value if state else "",
        "rows": listed.rows,
        "first": urlencode(named),
        "next": urlencode({**named, "cursor": listed.cursor}) if listed.cursor else "",
    }


def read_filter(fields: Form) -> DeliveryFilter:
    errors = [{"parameter": name, "detail": "is no filter of this list"} for name in fields if name not in FIELDS]
    state = fields.get("state")
    if state is not None and state not in set(DeliveryState):
        errors.append({"parameter": "state", "detail": f"is none of {', '.join(DeliveryState)}"})
    if errors:
        raise Invalid(errors)
    return DeliveryFilter(
        state=DeliveryState(state) if state else None,
        handler=fields.get("handler"),
        job_id=fields.get("job_id"),
        event_type=fields.get("event_type"),
    )


async def replay_one(request: Request, form: Form) -> str:
    services, delivery_id = services_of(request), request.path_params["id"]
    delivery: Delivery | None = None
    if re.fullmatch("dlv_[0-9a-f]{32}", delivery_id):
        delivery = await services.store.read_delivery(delivery_id)
    if delivery is None:
        raise NotFound("There is no such delivery.")
    if not await services.store.replay(DeliveryFilter(), services.clock.now(), delivery_id):
        raise Conflict(f"The delivery is {delivery.state}: it is on its way already.")
    services.pulse.strike()
    if form.get("back") == "job" and delivery.job_id:
        return f"jobs/{delivery.job_id}?done=replay"
    return "deliveries?" + urlencode({"replayed": 1, **back_to(form)})


async def replay_matching(request: Request, form: Form) -> str:
    services, wanted = services_of(request), read_filter({name: form[name] for name in FIELDS if name in form})
    if wanted == DeliveryFilter():
        raise Invalid([{"pointer": "", "detail": f"names nothing to choose deliveries by: {', '.join(FIELDS)}"}])
    count = await services.store.replay(wanted, services.clock.now())
    services.pulse.strike()
    return "deliveries?" + urlencode({"replayed": count, **back_to(form)})


def back_to(form: Form) -> dict[str, str]:
    """The filters of the page that the button stood on."""
    return {name.removeprefix("back."): text for name, text in form.items() if name.startswith("back.")}


FIELDS = ("state", "handler", "job_id", "event_type")
PAGES = (
    page("/deliveries", list_deliveries, "The list of deliveries."),
    button("/deliveries/{id}/replay", replay_one, "Deliver again."),
    button("/deliveries/replay", replay_matching, "Deliver all again that match."),
)
