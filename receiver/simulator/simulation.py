"""The parts that one simulator is made of, and how they are put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from receiver.clock import Clock
from receiver.simulator.courier import Courier
from receiver.simulator.elkapi import Elkapi
from receiver.simulator.engine import Engine
from receiver.simulator.fal import Fal
from receiver.simulator.hoox import Hoox
from receiver.simulator.huzz import Huzz
from receiver.simulator.links import Links
from receiver.simulator.openai import OpenAI
from receiver.simulator.oxen import Oxen
from receiver.simulator.pixazo import Pixazo
from receiver.simulator.replicate import Replicate
from receiver.simulator.scenario import Scenario
from receiver.simulator.wire import Wire

WIRES: tuple[type[Wire], ...] = (Huzz, Elkapi, Oxen, Pixazo, Hoox, Replicate, Fal, OpenAI)


class Simulation:
    """Engine, courier, links and the protocols."""

    def __init__(self, default: Scenario, speed: float, clock: Clock, keys: Mapping[str, str]) -> None:
        self.engine = Engine(default, speed, clock)
        self.courier = Courier(self.engine)
        self.engine.announcer = self.courier
        self.links = Links(self.engine)
        self.wires: dict[str, Wire] = {wire.name: wire(self.engine, self.courier, self.links, keys.get(wire.name)) for wire in WIRES}

    def base_urls(self, url: str) -> dict[str, str]:
        """The base URLs of the providers that are configured by nothing but a key and that, given where the simulator is reached."""
        return {name: wire.settings(url)["base_url"] for name, wire in self.wires.items() if not wire.is_signed}

    def settings(self, url: str) -> dict[str, dict[str, Any]]:
        """What to configure for each provider beside a key."""
        return {name: wire.settings(url) for name, wire in self.wires.items()}

    async def reset(self) -> None:
        """Forgets everything; open streams end."""
        self.courier.drop_listeners()
        await self.engine.reset()
        self.links.reset()
        for wire in self.wires.values():
            wire.webhook_url = None

    async def close(self) -> None:
        """Ends everything that is under way."""
        await self.engine.stop()
        await self.courier.close()
