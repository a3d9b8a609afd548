"""The simulator that outlives the servers."""

import pytest

from receiver.simulator import Scenario, Simulator, serve_simulator


@pytest.fixture
async def sim():
    async with serve_simulator(Simulator(Scenario(seconds=0.3, delay=0.5))) as served:
        yield served
