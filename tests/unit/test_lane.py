"""How batches gather before a partition: what a transaction takes, and when it may begin."""

import asyncio
import time
from types import SimpleNamespace

from callfunnel.agents.engine.ingest import Lane

SPACING_SECONDS = 0.3


class Batch:
    size = 10

    def __init__(self, records: int) -> None:
        self._records = records

    def __len__(self) -> int:
        return self._records

    def goes_on(self, other: "Batch") -> bool:
        return True


def event(records: int) -> SimpleNamespace:
    return SimpleNamespace(value=Batch(records))


async def taken(lane: Lane) -> tuple[list[int], float]:
    """The records of each batch that a transaction takes, and how long it waited for them."""
    began = time.monotonic()
    events = await lane.get()
    return [len(one.value) for one in events], time.monotonic() - began


def test_after_a_rest_the_first_batch_is_taken_at_once_and_the_next_ones_together():
    async def main():
        lane = Lane(None, most_records=100, spacing_seconds=SPACING_SECONDS)
        await lane.put(event(1))
        first, waited = await taken(lane)
        assert (first, waited < SPACING_SECONDS) == ([1], True)
        await lane.put(event(2))
        gathering = asyncio.create_task(taken(lane))
        await asyncio.sleep(SPACING_SECONDS / 3)
        await lane.put(event(3))
        second, waited = await gathering
        assert (second, waited > SPACING_SECONDS / 2) == ([2, 3], True)
        await asyncio.sleep(SPACING_SECONDS)
        await lane.put(event(4))
        third, waited = await taken(lane)
        assert (third, waited < SPACING_SECONDS / 2) == ([4], True)

    asyncio.run(main())


def test_a_transaction_that_is_full_does_not_wait():
    async def main():
        lane = Lane(None, most_records=100, spacing_seconds=1_000.0)
        await lane.put(event(1))
        await lane.get()
        await lane.put(event(60))
        full = asyncio.create_task(taken(lane))
        await asyncio.sleep(0.05)
        assert not full.done()
        await lane.put(event(60))
        assert (await asyncio.wait_for(full, 30))[0] == [60]

    asyncio.run(main())


def test_a_transaction_that_is_worth_its_price_does_not_wait():
    async def main():
        lane = Lane(None, most_records=20_000, spacing_seconds=1_000.0)
        await lane.put(event(1))
        await lane.get()
        await lane.put(event(199))
        worth = asyncio.create_task(taken(lane))
        await asyncio.sleep(0.05)
        assert not worth.done()
        await lane.put(event(1))
        assert (await asyncio.wait_for(worth, 30))[0] == [199, 1]

    asyncio.run(main())


def test_a_lane_that_is_given_up_while_it_rests_can_be_cancelled():
    async def main():
        lane = Lane(None, most_records=100, spacing_seconds=1_000.0)
        await lane.put(event(1))
        await lane.get()
        await lane.put(event(2))
        resting = asyncio.create_task(lane.get())
        await asyncio.sleep(0.05)
        resting.cancel()
        results = await asyncio.gather(resting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert [len(one.value) for one in lane.waiting] == [2]

    asyncio.run(main())
