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
async def sim():
    """The providers, as quick as they can be told apart."""
    simulator = Simulator(Scenario(seconds=0.3, delay=0.5))
    async with serve_simulator(simulator) as served:
        yield served
