"""`/v1/deliveries`: what handlers were given, and giving it to them again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import Conflict, Invalid, NotFound
from receiver.model import DeliveryState
from receiver.stores.terms import DeliveryFilter
from receiver.web.bodies import parse_struct, read_json
from receiver.web.jobs import id_of
from receiver.web.operations import Answer, Operation, answer_json, services_of
from receiver.web.query import CURSOR, LIMIT, Query, choice, text
from receiver.web.views import Delivery, DeliveryPage, Replayed, ReplayFilter

GROUP = "Deliveries"


async def list_deliveries(request: Request, query: Query) -> Response:
    wanted = DeliveryFilter(state=query["state"], handler=query["handler"], job_id=query["job_id"])
    page = await services_of(request).store.read_deliveries(wanted, query["limit"], query["cursor"])
    return answer_json({"deliveries": [delivery.public() for delivery in page.rows], "next_cursor": page.cursor})


async def replay_delivery(request: Request, query: Query) -> Response:
    services, delivery_id = services_of(request), id_of(request, "dlv")
    count = await services.store.replay(DeliveryFilter(), services.clock.now(), delivery_id)
    delivery = await services.store.read_delivery(delivery_id)
    if delivery is None:
        raise NotFound("There is no such delivery.")
    if not count:
        raise Conflict(f"The delivery is {delivery.state}: it is on its way already.")
    services.pulse.strike()
    return answer_json(delivery.public(), 202)


async def replay_deliveries(request: Request, query: Query) -> Response:
    services = services_of(request)
    wanted = parse_struct(ReplayFilter, await read_json(request))
    given = DeliveryFilter(
        state=DeliveryState(wanted.state) if wanted.state else None,
        handler=wanted.handler,
        job_id=wanted.job_id,
        event_type=wanted.event_type,
    )
    if given == DeliveryFilter():
        raise Invalid([{"pointer": "", "detail": "names no field to choose deliveries by: state, handler, job_id or event_type"}])
    count = await services.store.replay(given, services.clock.now())
    services.pulse.strike()
    return answer_json({"replayed": count}, 202)


OPERATIONS = (
    Operation(
        "GET",
        "/v1/deliveries",
        list_deliveries,
        GROUP,
        "List deliveries, newest first.",
        (Answer(200, "One page.", DeliveryPage),),
        (
            choice("state", "Only deliveries in this state.", DeliveryState),
            text("handler", "Only deliveries to this handler."),
            text("job_id", "Only deliveries about this job."),
            LIMIT,
            CURSOR,
        ),
    ),
    Operation(
        "POST",
        "/v1/deliveries/{id}/replay",
        replay_delivery,
        GROUP,
        "Deliver again, under the same event id and with fresh attempts.",
        (Answer(202, "The delivery as it stands now.", Delivery),),
        errors=(409,),
    ),
    Operation(
        "POST",
        "/v1/deliveries/replay",
        replay_deliveries,
        GROUP,
        "Deliver again, in bulk.",
        (Answer(202, "How many.", Replayed),),
        body=ReplayFilter,
    ),
)
