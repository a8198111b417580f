"""What Kafka left undecided at the end of a topic.

Where a partition has no leader at the moment of a commit or an abort, Kafka takes it for deleted, leaves the
marker out of it and calls the transaction complete: KRaftMetadataCache.getPartitionLeaderEndpoint of 4.3.1,
seen with a single copy as its broker was stopped. What the transaction wrote there hangs, as Kafka's tools
call it: nobody reads past it, and the next marker of the same producer decides it, whichever transaction that
marker is about. So it has to be decided before anything else is written.
"""

from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

KeyValue = tuple[bytes | None, bytes | None]


async def hanging(
    client: Mapping[str, Any], stable_ends: Mapping[tuple[str, int], int]
) -> Mapping[tuple[str, int], KeyValue]:
    """Of each partition with records behind the offset up to which it can be read: the last of them.

    `client` is what every aiokafka client is told; `stable_ends` are the ends as `read_committed` sees them.
    """
    reader = AIOKafkaConsumer(**client, isolation_level="read_uncommitted", enable_auto_commit=False)
    await reader.start()
    try:
        ends = await reader.end_offsets([TopicPartition(*tp) for tp in stable_ends])
        return {
            (tp.topic, tp.partition): await _last(reader, tp, stable_ends[tp], end)
            for tp, end in ends.items()
            if stable_ends[tp] < end
        }
    finally:
        await reader.stop()


async def _last(reader: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int) -> KeyValue:
    last: KeyValue = None, None
    reader.assign([tp])
    reader.seek(tp, start)
    while await reader.position(tp) < end:
        for records in (await reader.getmany(timeout_ms=200)).values():
            last = records[-1].key, records[-1].value
    return last
