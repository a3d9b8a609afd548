"""What every test has."""

import os

import pytest
from hypothesis import settings

from receiver.simulator import Scenario, Simulator, serve_simulator

# A daily run looks at a few examples of each property; HYPOTHESIS_PROFILE=thorough, as in CI, at many.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def collector(monkeypatch):
    """Where traces go to, as the environment says."""
    from tests.collector import open_collector

    async with open_collector() as opened:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", opened.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield opened


@pytest.fixture
async def sim():
    """The providers, as quick as they can be told apart."""
    simulator = Simulator(Scenario(seconds=0.3, delay=0.5))
    async with serve_simulator(simulator) as served:
        yield served
