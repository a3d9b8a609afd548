"""The simulator's own routes: plan scenarios, read the ledger, start afresh."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from receiver.simulator.engine import Plan
from receiver.simulator.scenario import Fault, Outcome, Scenario
from receiver.simulator.simulation import Simulation


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which submits a plan is for."""

    model: str | None = None
    prompt: str | None = None  # part of it


class PlanRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /_sim/scenarios`: the scenario of the next submits that match."""

    provider: str
    scenario: Scenario
    match: Match = Match()
    repeat: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1


class Webhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /_sim/webhooks`: where a provider calls back for the whole account."""

    provider: str
    url: str | None


def control_routes(simulation: Simulation) -> list[Route]:
    async def plan(request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(await request.body(), type=PlanRequest)
        except msgspec.DecodeError as error:
            return _json({"detail": str(error)}, 400)
        if wanted.provider not in simulation.wires:
            return _json({"detail": f"unknown provider; there are {', '.join(simulation.wires)}"}, 400)
        simulation.engine.plans += [
            Plan(wanted.provider, wanted.scenario, wanted.match.model, wanted.match.prompt) for _ in range(wanted.repeat)
        ]
        return _json({"planned": len(simulation.engine.plans)}, 201)

    async def ledger(request: Request) -> Response:
        read = simulation.engine.read_ledger()
        return _json({**msgspec.to_builtins(read), "billed": read.billed, "polls": read.polls})

    async def register(request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(await request.body(), type=Webhook)
        except msgspec.DecodeError as error:
            return _json({"detail": str(error)}, 400)
        if wanted.provider not in simulation.wires:
            return _json({"detail": f"unknown provider; there are {', '.join(simulation.wires)}"}, 400)
        simulation.wires[wanted.provider].webhook_url = wanted.url
        return Response(status_code=204)

    async def reset(request: Request) -> Response:
        await simulation.reset()
        return Response(status_code=204)

    async def help_page(request: Request) -> Response:
        return PlainTextResponse(help_text(simulation, f"{request.url.scheme}://{request.url.netloc}"))

    return [
        Route("/", help_page),
        Route("/_sim/scenarios", plan, methods=["POST"]),
        Route("/_sim/webhooks", register, methods=["POST"]),
        Route("/_sim/ledger", ledger),
        Route("/_sim/reset", reset, methods=["POST"]),
    ]


def help_text(simulation: Simulation, url: str) -> str:
    """What a user needs to know to try his handlers."""
    bases = "\n".join(_show_account(name, settings) for name, settings in simulation.settings(url).items())
    faults = "\n".join(f"  {fault.value:15} {fault.meaning}" for fault in Fault)
    numbers = "\n".join(f"  {name}={'' if value is None else _plain(value)}" for name, value in _settings().items())
    return f"""The simulator of {len(simulation.wires)} providers. In receiver.toml:

{bases}

Write into a prompt what is to happen: `a boat [sim: twice failed seconds=3]`.

Outcomes: {", ".join(Outcome)}

Faults:
{faults}

Settings, with their defaults:
{numbers}

POST /_sim/scenarios {{"provider": "elkapi", "scenario": {{"faults": ["lost"]}}, "match": {{"prompt": "boat"}}, "repeat": 2}}
POST /_sim/webhooks  {{"provider": "openai", "url": "https://hooks.example.com/callbacks/openai"}} for the whole account
GET  /_sim/ledger    every submit, callback, poll and download so far
POST /_sim/reset     forget everything
"""


def _show_account(name: str, settings: dict[str, Any]) -> str:
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in {"api_key": "any", **settings}.items()]
    return "\n".join(f"  {line}" for line in [f"[providers.{name}]", *lines])


def _settings() -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(Scenario())
    return {name: value for name, value in shown.items() if name not in ("outcome", "faults")}


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
