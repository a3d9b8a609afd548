"""What takes long to count is counted again after a while only."""

import asyncio

from receiver.tally import REST, Tally


class Slow:
    def __init__(self, took):
        self.took, self.now, self.counted = took, 0.0, 0

    async def count_jobs(self):
        self.counted += 1
        await asyncio.sleep(0)
        self.now += self.took
        return {("elkapi", "queued"): self.counted}

    def seconds(self):
        return self.now


async def test_what_is_quick_is_counted_every_time():
    store = Slow(0.001)
    tally = Tally(store, seconds=store.seconds)
    assert [(await tally.open_jobs())["elkapi", "queued"] for _ in range(3)] == [1, 2, 3]


async def test_what_is_slow_is_counted_again_after_twenty_times_as_long():
    store = Slow(0.5)
    tally = Tally(store, seconds=store.seconds)
    await tally.open_jobs()
    store.now += 0.5 * REST - 0.1
    assert (await tally.open_jobs())["elkapi", "queued"] == 1
    store.now += 0.2
    assert (await tally.open_jobs())["elkapi", "queued"] == 2


async def test_who_asks_while_somebody_counts_waits_for_that():
    store = Slow(0.5)
    tally = Tally(store, seconds=store.seconds)
    assert await asyncio.gather(*(tally.open_jobs() for _ in range(5))) == [{("elkapi", "queued"): 1}] * 5
