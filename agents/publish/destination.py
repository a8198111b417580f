"""Whether a topic is the one that events were published to before.

A topic has an id (KIP-516) that no other one ever gets. Where the broker gives none, the last event that it
acknowledged tells: in the same topic it lies where it was.
"""

import time
from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import AuthorizationError
from msgspec import Struct

from callfunnel.streams.rows import checksum

READ_SECONDS = 10.0

OTHER = "It was made anew, or another cluster answers there"


class Acknowledged(Struct, frozen=True):
    """An event that Kafka has acknowledged: where it is, and a checksum to know it again."""

    partition: int
    offset: int
    crc: int


def missing(
    connection: Mapping[str, Any], topic: str, last: Acknowledged | None, acknowledged: int, *, is_same: bool
) -> str | None:
    """What of the events published before is not in the topic; None if nothing is known to be missing.

    `last` is the last of the `acknowledged` events, if that is known. `is_same`: the topic has their topic's
    id, so what cannot be read is not missing.
    """
    if last is None and is_same:
        return None
    consumer = KafkaConsumer(**connection, enable_auto_commit=False, metrics_enabled=False)
    try:
        partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()]
        ends = consumer.end_offsets(partitions)
        if last is None:
            ever = sum(ends.values())
            return f"{topic} never had more than {ever:,} records. {OTHER}" if ever < acknowledged else None
        at = TopicPartition(topic, last.partition)
        place = f"offset {last.offset} of partition {last.partition}"
        if last.offset >= ends.get(at, 0):
            return f"{topic} ends before {place}, where the last of them was. {OTHER}, or it was cut off"
        found = _record(consumer, at, last.offset)
    finally:
        consumer.close()
    if found == last or (found is None and is_same):
        return None
    if found is None:
        return (
            f"nothing shows that {topic} is the topic that took them: its broker gives topics no id, and the "
            f"last of them, at {place}, is gone or may not be read"
        )
    return f"{topic} has another record at {place} than the last of them. {OTHER}"


def _record(consumer: KafkaConsumer, at: TopicPartition, offset: int) -> Acknowledged | None:
    """The first record from there on; None if it is gone by retention or cannot be read."""
    if consumer.beginning_offsets([at])[at] > offset:
        return None
    consumer.assign([at])
    consumer.seek(at, offset)
    deadline = time.monotonic() + READ_SECONDS
    try:
        while time.monotonic() < deadline:
            for record in consumer.poll(500, max_records=1).get(at, ()):
                return Acknowledged(at.partition, record.offset, checksum(record.key, record.value))
    except AuthorizationError:  # a client that publishes need not be one that reads
        pass
    return None
