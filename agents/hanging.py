"""What Kafka left undecided at the end of a topic.

Where a partition has no leader at the moment of a commit or an abort, Kafka takes it for deleted, leaves the
marker out of it and calls the transaction complete: KRaftMetadataCache.getPartitionLeaderEndpoint of 4.3.1,
seen with a single copy as its broker was stopped. What the transaction wrote there hangs, as Kafka's tools
call it: nobody reads past it, and the next marker of the same producer decides it, whichever transaction that
marker is about. So it has to be decided before anything else is written.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import Struct

At = tuple[str, int]
"""Topic and partition."""


class Tail(Struct, frozen=True):
    """The records between the last that can be read and the end of the log. Markers are no records."""

    key: bytes | None = None
    """Of the last one."""
    value: bytes | None = None
    headers: frozenset[str] = frozenset()
    """The names of all their headers."""


async def hanging(client: Mapping[str, Any], partitions: Iterable[At]) -> Mapping[At, Tail]:
    """The tails of the partitions that have one. `client` is what every aiokafka client is told.

    Where others write, transactions that are under way are among them.
    """
    asked = [TopicPartition(*at) for at in partitions]
    async with AsyncExitStack() as stack:
        everything, decided = [
            await stack.enter_async_context(_reader(client, isolation_level))
            for isolation_level in ("read_uncommitted", "read_committed")
        ]
        # In this order: what is written meanwhile, and read at once, is no tail.
        ends = await everything.end_offsets(asked)
        stable_ends = await decided.end_offsets(asked)
        return {
            (tp.topic, tp.partition): await _tail(everything, tp, stable_ends[tp], end)
            for tp, end in ends.items()
            if stable_ends[tp] < end
        }


async def _tail(reader: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int) -> Tail:
    tail, headers = Tail(), set()
    reader.assign([tp])
    reader.seek(tp, start)
    while await reader.position(tp) < end:
        for records in (await reader.getmany(timeout_ms=200)).values():
            headers |= {name for record in records for name, _ in record.headers}
            tail = Tail(records[-1].key, records[-1].value, frozenset(headers))
    return tail


@asynccontextmanager
async def _reader(client: Mapping[str, Any], isolation_level: str) -> AsyncIterator[AIOKafkaConsumer]:
    reader = AIOKafkaConsumer(
        **client,
        isolation_level=isolation_level,
        enable_auto_commit=False,
        retry_backoff_ms=10,  # it waits so long for each topic that it has not heard of
    )
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()
