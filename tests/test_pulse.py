"""The pulse: who waits for changes hears of them, a burst at once and then now and then."""

from __future__ import annotations

import asyncio

from receiver.pulse import BREATH, Pulse


class Busy:
    """A store that somebody writes to all the time."""

    async def wait_for_change(self, timeout):
        await asyncio.sleep(0)
        return True


async def test_a_store_that_changes_all_the_time_is_told_of_now_and_then():
    pulse, store, loop = Pulse(), Busy(), asyncio.get_running_loop()
    began = loop.time()
    running = asyncio.create_task(pulse.run(store))
    async with asyncio.timeout(20):
        seen = await pulse.wait(0, 10)
        assert seen == 1  # the first change at once
        while pulse.beat < 4:
            await pulse.wait(pulse.beat, 10)
    assert loop.time() - began >= 3 * BREATH
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
