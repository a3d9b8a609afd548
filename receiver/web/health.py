"""`/healthz`, `/readyz` and `/metrics`: alive, able to persist, and what was counted."""

from __future__ import annotations

import asyncio
from time import monotonic

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0
from starlette.requests import Request
from starlette.responses import Response

from receiver.errors import Unavailable
from receiver.stores.base import Store
from receiver.web.headroom import Headroom
from receiver.web.metrics import Snapshot, gather_metrics
from receiver.web.operations import Answer, Operation, answer_json, services_of
from receiver.web.problems import problem
from receiver.web.query import Query
from receiver.web.views import Alive

GROUP = "Health"
FRESH = 1.0  # seconds for which an answer about the store counts


class StoreCheck:
    """Whether the store can be written: asked once for all who ask within a second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = asyncio.Lock()
        self._checked_at = -FRESH
        self._is_well = False

    async def is_well(self) -> bool:
        async with self._lock:
            if monotonic() - self._checked_at >= FRESH:
                try:
                    await self._store.check_writable()
                    self._is_well = True
                except Unavailable:
                    self._is_well = False
                self._checked_at = monotonic()
            return self._is_well


async def say_alive(request: Request, query: Query) -> Response:
    return answer_json({"status": "ok"})


async def say_ready(request: Request, query: Query) -> Response:
    """Names of what fails, and no more: this answers strangers too."""
    services = services_of(request)
    check: StoreCheck = request.app.state.store_check
    headroom: Headroom = request.app.state.headroom
    failing = [*([] if await check.is_well() else ["store"]), *sorted(await headroom.look())]
    failing += [loop.name for loop in services.health() if not loop.is_well]
    if failing:
        return problem(503, f"Not ready: {', '.join(failing)}.", headers={"Retry-After": "5"}, failing=failing)
    return answer_json({"status": "ok"})


async def show_metrics(request: Request, query: Query) -> Response:
    registry = CollectorRegistry(auto_describe=False)
    headroom: Headroom = request.app.state.headroom
    registry.register(Snapshot(await gather_metrics(services_of(request), short=await headroom.look())))
    ProcessCollector(registry=registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_1_0_0)


OPERATIONS = (
    Operation(
        "GET",
        "/healthz",
        say_alive,
        GROUP,
        "Whether the process answers.",
        (Answer(200, "It does.", Alive),),
        None,
        is_open=True,
    ),
    Operation(
        "GET",
        "/readyz",
        say_ready,
        GROUP,
        "Whether it can persist and its loops are well.",
        (Answer(200, "It can and they are.", Alive),),
        None,
        is_open=True,
    ),
    Operation(
        "GET",
        "/metrics",
        show_metrics,
        GROUP,
        "Numbers for Prometheus.",
        (Answer(200, "The text format of Prometheus.", str, CONTENT_TYPE_PLAIN_1_0_0),),
        None,
    ),
)
