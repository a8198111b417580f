"""What Kafka left undecided at the end of a topic.

Where a partition has no leader at the moment of a commit or an abort, Kafka takes it for deleted, leaves the
marker out of it and calls the transaction complete: KRaftMetadataCache.getPartitionLeaderEndpoint of 4.3.1,
seen with a single copy as its broker was stopped. What the transaction wrote there hangs, as Kafka's tools
call it: nobody reads past it, and the next marker of the same producer decides it, whichever transaction that
marker is about. So it has to be decided before anything else is written.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError
from msgspec import Struct

from callfunnel.agents.kafka.batches import Headers
from callfunnel.agents.kafka.microbatch import MicroBatch, fetch

At = tuple[str, int]
"""Topic and partition."""

LOOK_BACK = 1_000
"""Offsets that are read at a time, from the end."""

FARTHEST = 200_000
"""Offsets from the end: what comes before them is of no transaction that has just ended."""


class Tail(Struct, frozen=True):
    """The records between the last that can be read and the end of the log. Markers are no records.

    Without any where this client may not read the topic.
    """

    key: bytes | None = None
    """Of the last one."""
    value: bytes | None = None
    headers: tuple[Headers, ...] = ()
    """What they have of the headers that were asked for, each combination once, the first record's first."""


async def hanging(
    client: Mapping[str, Any], partitions: Iterable[At], headers: Collection[str] = ()
) -> Mapping[At, Tail]:
    """The tails of the partitions that have one. `client` is what every aiokafka client is told.

    Where others write, transactions that are under way are among them.
    """
    asked = [TopicPartition(*at) for at in partitions]
    async with AsyncExitStack() as stack:
        everything, decided = [
            await stack.enter_async_context(new_reader(client, isolation_level))
            for isolation_level in ("read_uncommitted", "read_committed")
        ]
        # In this order: what is written meanwhile, and read at once, is no tail.
        ends = await everything.end_offsets(asked)
        stable_ends = await decided.end_offsets(asked)
        return {
            (tp.topic, tp.partition): await _tail(everything, tp, stable_ends[tp], end, headers)
            for tp, end in ends.items()
            if stable_ends[tp] < end
        }


async def _tail(
    reader: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int, headers: Collection[str]
) -> Tail:
    found = dict[Headers, None]()
    key = value = None
    reader.assign([tp])
    try:
        async for batch in _batches(reader, tp, start, end):
            for its in batch.headers:
                found[tuple(one for one in its if one[0] in headers)] = None
            if len(batch):
                key, value = batch.keys[-1], batch.values[-1]
    except TopicAuthorizationFailedError:
        return Tail()
    return Tail(key, value, tuple(found)) if found else Tail()


async def last(client: Mapping[str, Any], partition: At, find: Callable[[Headers], int | None]) -> int | None:
    """What `find` makes of the headers of the last committed record that it makes anything of.

    None where that is too far back, or this client may not read the topic.
    """
    tp = TopicPartition(*partition)
    async with new_reader(client, "read_committed") as reader:
        reader.assign([tp])
        start = (await reader.end_offsets([tp]))[tp]
        first = max((await reader.beginning_offsets([tp]))[tp], start - FARTHEST)
        found = None
        while found is None and start > first:
            stop, start = start, max(first, start - LOOK_BACK)
            try:
                async for batch in _batches(reader, tp, start, stop):
                    for headers in batch.headers:
                        one = find(headers)
                        found = found if one is None else one
            except TopicAuthorizationFailedError:
                return None
        return found


async def _batches(
    reader: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int
) -> AsyncIterator[MicroBatch]:
    """What `reader`, which has the partition alone, is given from `start` on until it is past `end`."""
    reader.seek(tp, start)
    while await reader.position(tp) < end:
        for batch in (await fetch(reader, LOOK_BACK, 0.2)).values():
            yield batch


@asynccontextmanager
async def new_reader(client: Mapping[str, Any], isolation_level: str) -> AsyncIterator[AIOKafkaConsumer]:
    reader = AIOKafkaConsumer(
        **client,
        isolation_level=isolation_level,
        auto_offset_reset="none",  # where the topic is made anew meanwhile, it fails instead of waiting
        enable_auto_commit=False,
        retry_backoff_ms=10,  # it waits so long for each topic that it has not heard of
    )
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()
