"""aiokafka's transactional producer, made to take whole batches and to share its connections.

Private parts of aiokafka are used; `tests/contract/test_faust_seam.py` fails when they change.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from struct import pack_into, unpack_from
from typing import Any

import zstandard
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.codec import lz4_encode, snappy_encode
from aiokafka.errors import UnknownTopicOrPartitionError
from aiokafka.producer import producer as client
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c

from callfunnel.agents.config import Compression

Record = tuple[tuple[bytes | None, bytes | None], list[tuple[str, bytes | None]], int | None]
"""key and value, headers, timestamp in ms (None: now)"""

LOOK_SECONDS = 0.001
"""How often is looked whether the broker has answered: nothing else in aiokafka tells."""

CONNECTIONS = 4
"""Connections to each broker, shared by all partitions. Kafka works on one request of a connection at a time,
and with several copies waits for them: one connection would let the partitions wait for each other."""

BATCH_BYTES = 900_000
"""A record batch stays below Kafka's default limit for a message; a transaction may hold many."""


_LENGTH_AT, _CRC_AT, _ATTRIBUTES_AT, _RECORDS_AT = 8, 17, 21, 61
"""Where a record batch has these. Its length counts from behind itself, its CRC from the attributes."""


class Compressor:
    """Compresses record batches.

    aiokafka does, too, but at higher levels: zstd takes twice as long, and lz4 seven times.
    """

    def __init__(self, compression: Compression) -> None:
        self._number, self._packed = _CODECS[compression]()

    def compressed(self, batch: bytearray) -> bytearray:
        """The batch as it has to be sent; it is the same one where compression would make it larger."""
        if not self._number:
            return batch
        packed = self._packed(bytes(memoryview(batch)[_RECORDS_AT:]))
        if _RECORDS_AT + len(packed) >= len(batch):
            return batch
        smaller = batch[:_RECORDS_AT] + packed
        (attributes,) = unpack_from(">h", smaller, _ATTRIBUTES_AT)
        pack_into(">h", smaller, _ATTRIBUTES_AT, attributes | self._number)
        pack_into(">i", smaller, _LENGTH_AT, len(smaller) - _LENGTH_AT - 4)
        pack_into(">I", smaller, _CRC_AT, calc_crc32c(memoryview(smaller)[_ATTRIBUTES_AT:]))
        return smaller


def _zstd() -> Callable[[bytes], bytes]:
    """With one compressor for all batches: making one takes longer than a small batch."""
    return zstandard.ZstdCompressor(level=1).compress


_CODECS: Mapping[Compression, Callable[[], tuple[int, Callable[[bytes], bytes]]]] = {
    "none": lambda: (0, bytes),
    "snappy": lambda: (2, snappy_encode),
    "lz4": lambda: (3, lambda records: lz4_encode(records, level=1)),
    "zstd": lambda: (4, _zstd()),
}
"""Their numbers in Kafka's record format."""

UNCOMPRESSED = Compressor("none")


class Batch(BatchBuilder):  # type: ignore[misc]
    _buffer: bytearray | None

    def __init__(self, compressor: Compressor) -> None:
        super().__init__(BATCH_BYTES, 0, is_transactional=True)
        self._compressor = compressor

    def fill(self, records: Iterator[Record], now_ms: int) -> Record | None:
        """Append records, not less than one, and close; the one, if any, that there was no room left for."""
        append, count, left = self._builder.append, 0, None
        for (key, value), headers, timestamp in records:
            if append(count, now_ms if timestamp is None else timestamp, key, value, headers) is None:
                left = (key, value), headers, timestamp
                break
            count += 1
        self._relative_offset = count
        self.close()
        return left

    def _build(self) -> bytearray:
        """Sending it again gives the same bytes."""
        if self._buffer is None:
            self._buffer = self._compressor.compressed(super()._build())
        return self._buffer


class _TransactionManager(client.TransactionManager):  # type: ignore[misc]
    _sequence_numbers: dict[TopicPartition, int]

    def increment_sequence_number(self, tp: TopicPartition, increment: int) -> None:
        """After 2,147,483,647 comes 0. aiokafka goes on below zero, which the broker refuses."""
        self._sequence_numbers[tp] = (self._sequence_numbers[tp] + increment) & 0x7FFFFFFF


client.TransactionManager = _TransactionManager


class SharedClient(AIOKafkaClient):  # type: ignore[misc]
    """Connections that several producers use: it connects with the first of them and closes with the last.

    A producer's own client has a socket for each broker it writes to and one for its coordinator, so a worker
    would need several descriptors for each partition.
    """

    def __init__(self, connection: Mapping[str, Any], request_timeout_ms: int) -> None:
        super().__init__(**connection, request_timeout_ms=request_timeout_ms)
        self._users = 0
        self._connecting = asyncio.Lock()

    async def bootstrap(self) -> None:
        self._users += 1
        async with self._connecting:
            if self._sync_task is None:
                await super().bootstrap()

    async def close(self) -> None:
        self._users -= 1
        if not self._users:
            await super().close()


class Producer(AIOKafkaProducer):  # type: ignore[misc]
    def __init__(self, client: SharedClient, **options: Any) -> None:
        super().__init__(**options)
        self.client = self._sender.client = client
        self._metadata = self._message_accumulator._cluster = client.cluster

    def create_batch(self, compressor: Compressor = UNCOMPRESSED) -> Batch:
        return Batch(compressor)

    async def add_partitions(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Add the partitions to the transaction; only then may anything be sent to them.

        Left to itself, aiokafka adds them as records come, and where the broker refuses one of them, it
        sends what waits for the others all the same. The mark that commits the transaction before may not
        be in their logs yet, and would commit these records, too: a part of a batch.
        """
        manager = self._txn_manager
        for topic, partition in partitions:
            manager.maybe_add_partition_to_txn(TopicPartition(topic, partition))
        while manager.partitions_to_add():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        if not manager.is_in_transaction():
            await manager.wait_for_transaction_end()  # raises what the broker said

    async def partitions_of(self, topic: str) -> int:
        """How many partitions a topic has: a broker is asked, as what is known already may be minutes old."""
        heard = ClusterMetadata()
        await self.client._metadata_update(heard, [topic])
        found = heard.partitions_for_topic(topic)
        if found is None:
            raise UnknownTopicOrPartitionError(topic)
        return len(found)


def batches(
    producer: Producer, records: Iterable[Record], now_ms: int, compressor: Compressor = UNCOMPRESSED
) -> Iterator[Batch]:
    """The records in batches of this producer; those without a time have this one."""
    rest: Iterator[Record] | None = iter(records)
    while rest:
        batch = producer.create_batch(compressor)
        left = batch.fill(rest, now_ms)
        yield batch
        rest = left and chain([left], rest)
