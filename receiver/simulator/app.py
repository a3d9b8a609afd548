"""The simulator as one object: an ASGI application, its plans, and its ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.clock import Clock, SystemClock
from receiver.simulator.control import control_routes
from receiver.simulator.engine import Plan
from receiver.simulator.ledger import Ledger
from receiver.simulator.scenario import Scenario
from receiver.simulator.simulation import Simulation
from receiver.simulator.wire import HUNG_UP


class Simulator:
    """The providers' side. Jobs follow `default` unless a prompt or a plan says otherwise; `speed` 10 is ten times as fast.

    Any API key but `wrong` is good, unless `keys` names the one that a provider wants.
    """

    def __init__(
        self,
        default: Scenario = Scenario(),  # noqa: B008 - it is frozen
        *,
        speed: float = 1.0,
        clock: Clock | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        self._simulation = Simulation(default, speed, clock or SystemClock(), keys or {})
        self.app: ASGIApp = HangUpOnDemand(create_app(self._simulation))

    @property
    def ledger(self) -> Ledger:
        """What has happened so far."""
        return self._simulation.engine.read_ledger()

    @property
    def providers(self) -> tuple[str, ...]:
        return tuple(self._simulation.wires)

    def base_urls(self, url: str) -> dict[str, str]:
        """What to configure as `base_url` of each provider that needs nothing else but a key, given where the simulator is reached."""
        return self._simulation.base_urls(url)

    def settings(self, url: str) -> dict[str, dict[str, Any]]:
        """What to configure for each provider beside a key: `base_url`, and for those that sign `callback_secrets` or `jwks_url`."""
        return self._simulation.settings(url)

    def register_webhook(self, provider: str, url: str | None) -> None:
        """Where this provider calls back for the whole account, as a user would tell it in its settings."""
        self._simulation.wires[provider].webhook_url = url

    def plan(self, provider: str, *scenarios: Scenario, model: str | None = None, prompt: str | None = None) -> None:
        """The next submits to this provider (with this model, with this text in the prompt) meet these scenarios, one each."""
        if provider not in self._simulation.wires:
            raise KeyError(provider)
        self._simulation.engine.plans += [Plan(provider, scenario, model, prompt) for scenario in scenarios]

    async def quiet(self) -> None:
        """Returns when every job that ends has ended and every callback is sent."""
        await self._simulation.engine.quiet()

    async def reset(self) -> None:
        """Forgets everything."""
        await self._simulation.reset()

    async def close(self) -> None:
        """Ends open jobs, callbacks and streams without a word, for good."""
        await self._simulation.close()


def create_app(simulation: Simulation) -> Starlette:
    """Every provider under its name and, as far as paths allow, at the root."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await simulation.close()

    wires = simulation.wires.values()
    return Starlette(
        routes=[
            *control_routes(simulation),
            Route("/files/{token}/{name}", simulation.links.serve),
            Route("/thumbnails/{name}.png", simulation.links.serve_thumbnail),
            *(Mount(f"/{wire.name}", routes=wire.routes()) for wire in wires),
            *(route for wire in wires if wire.is_at_root for route in wire.routes()),
        ],
        lifespan=lifespan,
    )


class HangUpOnDemand:
    """Lets an endpoint close the connection without an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        await self.app(scope, receive, send)
        # ASGI has no word for hanging up. uvicorn closes the connection of an application that returns something.
        return HUNG_UP if state.pop(HUNG_UP, False) else None  # type: ignore[return-value]
