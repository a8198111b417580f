"""The rows that the program beside it has left with the broker: what a reader sees of its changelog."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaError, TopicPartition

from callfunnel.streams import oracle
from callfunnel.streams.measures import COLUMNS

SEPARATOR = "\x01"
NAMES = {id_: name for name, id_ in COLUMNS.items()}


def tables(broker: str, app_id: str) -> oracle.Tables:
    """The committed rows, summed over the partitions."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": app_id,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    topic = f"{app_id}-rows-changelog"
    partitions = list(consumer.list_topics(topic).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    rows: dict[tuple[int, bytes], bytes | None] = {}
    ended: set[int] = set()
    while len(ended) < len(partitions):
        for message in consumer.consume(10_000, timeout=0.2):
            error = message.error()
            if error is None:
                rows[message.partition(), message.key()] = message.value()
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
            else:
                raise RuntimeError(error)
    consumer.close()
    total: defaultdict[oracle.RowKey, Counter[str]] = defaultdict(Counter)
    for (_, key), row in rows.items():
        if row is not None:
            resolution, pane, rollup, *dimensions = key.decode().split(SEPARATOR)
            total[resolution.rstrip("*"), int(pane), rollup, *dimensions].update(columns(row))
    return {key: dict(row) for key, row in total.items()}


def columns(row: bytes) -> dict[str, int]:
    """Pairs of a column's id and its value."""
    numbers = iter(row)
    return {NAMES[id_]: varlong(numbers) for id_ in numbers}


def varlong(data: Iterator[int]) -> int:
    """Seven bits a byte, the lowest first, and the sign in the lowest of all."""
    n = shift = 0
    for byte in data:
        n |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return n >> 1 ^ -(n & 1)
