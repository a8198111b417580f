"""The write path: everything a micro-batch causes becomes durable in one Kafka transaction, or nothing does.

One transactional producer for each partition that this worker owns. Starting it makes the broker abort
whatever a former owner left open and refuse everything that owner sends from then on, so a worker that was
paused, partitioned or declared dead can wake at any time and do no harm.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import (
    IllegalOperation,
    KafkaError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
)
from aiokafka.producer import producer as client
from aiokafka.producer.message_accumulator import BatchBuilder

from agents import failpoints, hanging
from agents.batches import Headers
from agents.errors import TablesWrong, TakenOver, TopicsWrong, WriteFailed
from agents.remedies import REMEDIES

Record = tuple[tuple[bytes | None, bytes | None], list[tuple[str, bytes | None]], int | None]
"""key and value, headers, timestamp in ms (None: now)"""

LOOK_SECONDS = 0.001
"""How often is looked whether the broker has answered: nothing else in aiokafka tells."""

CONNECTIONS = 4
"""Connections to each broker, shared by all partitions. Kafka works on one request of a connection at a time,
and with several copies waits for them: one connection would let the partitions wait for each other."""

BATCH_BYTES = 900_000
"""A record batch stays below Kafka's default limit for a message; a transaction may hold many."""


class Batch(BatchBuilder):  # type: ignore[misc]
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

    def create_batch(self) -> Batch:
        return Batch(BATCH_BYTES, 0, is_transactional=True)

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


class Ledger:
    """Writes the transactions of the partitions this worker owns."""

    def __init__(self, app_id: str, client: Mapping[str, Any], transaction_timeout_seconds: float) -> None:
        self._app_id = app_id
        self._client = client
        self._timeout_ms = int(transaction_timeout_seconds * 1000)
        self._clients: list[SharedClient] = []
        self._producers: dict[int, Producer] = {}
        self._in_use: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        """A producer that is stopped amid an empty transaction would never answer: it is stopped after it."""
        self.ends: dict[tuple[str, int], int] = {}
        """The changelogs of owned partitions go up to here at least, or they are others than they were."""

    async def own(self, partitions: Iterable[int]) -> None:
        """Become the only writer of exactly these partitions."""
        wanted = set(partitions)
        await self._close(self._producers.keys() - wanted)
        await asyncio.gather(*map(self._open, sorted(wanted - self._producers.keys())))

    async def close(self) -> None:
        await self._close(set(self._producers))

    async def partitions(self, partition: int, topic: str) -> int:
        """How many partitions a topic has: the producer of `partition` asks a broker now.

        What the producer knows already may be minutes old.

        Raises `WriteFailed` when no broker tells.
        """
        heard = ClusterMetadata()
        try:
            await self._producers[partition].client._metadata_update(heard, [topic])
            found = heard.partitions_for_topic(topic)
            if found is None:
                raise UnknownTopicOrPartitionError(topic)
        except KafkaError as error:
            raise _write_failed(partition, [(topic, partition)], error, self._timeout_ms / 1000) from error
        return len(found)

    async def write(
        self, partition: int, records: Mapping[tuple[str, int], Iterable[Record]]
    ) -> Mapping[tuple[str, int], int]:
        """Append the records, by (topic, partition), in one transaction; the offset of the last one in each.

        Returns when the transaction is committed.

        Raises `TakenOver` when another worker owns the partition by now, `TablesWrong` when a changelog is
        shorter than it was, `WriteFailed` for anything else; after any, the state that the records came from
        must not be used again.
        """
        try:
            # aiokafka tries for ever; the broker gives the transaction up after this time.
            async with self._in_use[partition], asyncio.timeout(self._timeout_ms / 1000):
                return await self._write(partition, records)
        except (ProducerFenced, OutOfOrderSequenceNumber) as error:
            raise _taken_over(partition) from error
        except (KafkaError, IllegalOperation, TimeoutError) as error:  # illegal: it has failed already
            raise _write_failed(partition, records, error, self._timeout_ms / 1000) from error

    async def _write(
        self, partition: int, records: Mapping[tuple[str, int], Iterable[Record]]
    ) -> Mapping[tuple[str, int], int]:
        producer = self._producers[partition]
        now_ms = int(time.time() * 1000)
        await producer.begin_transaction()
        failpoints.hit("begun")
        await producer.add_partitions(records)
        sent = []
        for (topic, number), its_records in records.items():
            for batch in _batches(producer, its_records, now_ms):
                sent.append((batch, await producer.send_batch(batch, topic, partition=number)))
            failpoints.hit("sent")
        last: dict[tuple[str, int], int] = {}
        for batch, acknowledgement in sent:
            first = await acknowledgement
            at = first.topic, first.partition
            if first.offset < self.ends.get(at, 0):
                raise TablesWrong(
                    f"{first.topic}/{first.partition} held rows up to offset {self.ends[at] - 1}, but "
                    f"goes on at {first.offset}: it was created anew under this worker. Nothing was written "
                    f"to it. To build the tables anew, {REMEDIES['rebuild']}."
                )
            last[at] = first.offset + batch.record_count() - 1
            failpoints.hit("appended")
        failpoints.hit("written")
        await producer.commit_transaction()
        failpoints.hit("committed")
        self.ends |= {at: last[at] + 1 for at in self.ends.keys() & last.keys()}
        return last

    async def end_nothing(self, partition: int, covered: Iterable[tuple[str, int]], *, commit: bool) -> None:
        """Commit or abort an empty transaction over these partitions: its markers decide what hangs there.

        Raises `TakenOver` when another worker owns the partition by now, `WriteFailed` for anything else.
        """
        producer = self._producers.get(partition)
        if producer is None:
            raise _taken_over(partition)
        try:
            async with self._in_use[partition], asyncio.timeout(self._timeout_ms / 1000):
                await producer.begin_transaction()
                await producer.add_partitions(covered)
                await (producer.commit_transaction() if commit else producer.abort_transaction())
        except (ProducerFenced, OutOfOrderSequenceNumber) as error:
            raise _taken_over(partition) from error
        except (KafkaError, IllegalOperation, TimeoutError) as error:
            raise _write_failed(partition, covered, error, self._timeout_ms / 1000) from error

    async def hanging(
        self, partitions: Iterable[tuple[str, int]], headers: Collection[str] = ()
    ) -> Mapping[tuple[str, int], hanging.Tail]:
        """The partitions that end with something undecided, and with what: see `agents.hanging`."""
        partitions = list(partitions)
        with _asking(partitions):
            return await hanging.hanging(self._client, partitions, headers)

    async def last(self, partition: tuple[str, int], find: Callable[[Headers], int | None]) -> int | None:
        """What `find` finds in the last committed record that it finds anything in: see `agents.hanging`."""
        with _asking([partition]):
            return await hanging.last(self._client, partition, find)

    async def _open(self, partition: int) -> None:
        producer = Producer(
            self._client_of(partition),
            **self._client,
            transactional_id=f"{self._app_id}-{partition}",
            transaction_timeout_ms=self._timeout_ms,
            max_batch_size=BATCH_BYTES,
            max_request_size=BATCH_BYTES * 9,
            request_timeout_ms=self._timeout_ms,
        )
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            if isinstance(error, TransactionalIdAuthorizationFailed):
                raise TopicsWrong(
                    f"This client lacks Write on transactional-id {self._app_id}-*. Nothing is lost. "
                    "`callfunnel topics rights` prints the command that grants it."
                ) from error
            raise WriteFailed(
                f"There is no transactional producer for partition {partition}: {error!r}. The broker must "
                "support transactions (`callfunnel check`). Nothing is lost."
            ) from error
        self._producers[partition] = producer

    def _client_of(self, partition: int) -> SharedClient:
        if not self._clients:
            self._clients = [SharedClient(self._client, self._timeout_ms) for _ in range(CONNECTIONS)]
        return self._clients[partition % CONNECTIONS]

    async def _close(self, partitions: Iterable[int]) -> None:
        await asyncio.gather(*map(self._stop, sorted(partitions)))

    async def _stop(self, partition: int) -> None:
        producer = self._producers.pop(partition)
        async with self._in_use[partition]:
            await producer.stop()


@contextmanager
def _asking(partitions: Iterable[tuple[str, int]]) -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        raise WriteFailed(
            f"what a former transaction may have left in {_topics(partitions)} was not told: {error!r}. "
            "Check the brokers and this worker's permissions, then start again."
        ) from error


def _taken_over(partition: int) -> TakenOver:
    return TakenOver(f"another worker has taken over partition {partition}: start again")


def _write_failed(
    partition: int, partitions: Iterable[tuple[str, int]], error: BaseException, seconds: float
) -> WriteFailed:
    topics = _topics(partitions)
    match error:
        case TopicAuthorizationFailedError() | TransactionalIdAuthorizationFailed():
            why = (
                f"this worker may not write it ({error!r}): `callfunnel topics rights` prints what grants it"
            )
        case NotEnoughReplicasError() | NotEnoughReplicasAfterAppendError():
            why = "fewer copies are in sync than min.insync.replicas asks for: look at the brokers"
        case TimeoutError():
            why = f"the brokers did not answer within {seconds:g} s (CALLFUNNEL_TRANSACTION_TIMEOUT_SECONDS)"
        case _:
            why = f"{error!r}: look at the brokers"
    return WriteFailed(
        f"Partition {partition} ({topics}) could not be written: {why}. Nothing is lost: started again, the "
        "worker goes on where the tables end."
    )


def _topics(partitions: Iterable[tuple[str, int]]) -> str:
    return ", ".join(sorted({topic for topic, _ in partitions}))


def _batches(producer: Producer, records: Iterable[Record], now_ms: int) -> Iterable[Batch]:
    rest: Iterator[Record] | None = iter(records)
    while rest:
        batch = producer.create_batch()
        left = batch.fill(rest, now_ms)
        yield batch
        rest = left and chain([left], rest)
