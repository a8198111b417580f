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
from aiokafka.errors import IllegalOperation, KafkaError, OutOfOrderSequenceNumber, ProducerFenced
from aiokafka.producer import producer as client
from aiokafka.producer.message_accumulator import BatchBuilder

from agents import failpoints, hanging
from agents.batches import Headers
from agents.errors import TablesWrong, TakenOver, WriteFailed

Record = tuple[tuple[bytes | None, bytes | None], list[tuple[str, bytes | None]], int | None]
"""key and value, headers, timestamp in ms (None: now)"""

LOOK_SECONDS = 0.001
"""How often is looked whether the broker has answered: nothing else in aiokafka tells."""

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


class Producer(AIOKafkaProducer):  # type: ignore[misc]
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
        self._producers: dict[int, Producer] = {}
        self._ending: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        """A producer that is stopped amid an empty transaction would never answer."""
        self.ends: dict[tuple[str, int], int] = {}
        """The changelogs of owned partitions go up to here at least, or they are others than they were."""

    async def own(self, partitions: Iterable[int]) -> None:
        """Become the only writer of exactly these partitions."""
        wanted = set(partitions)
        await self._close(self._producers.keys() - wanted)
        await asyncio.gather(*map(self._open, sorted(wanted - self._producers.keys())))

    async def close(self) -> None:
        await self._close(set(self._producers))

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
            async with asyncio.timeout(self._timeout_ms / 1000):
                return await self._write(partition, records)
        except (ProducerFenced, OutOfOrderSequenceNumber) as error:
            raise _taken_over(partition) from error
        except (KafkaError, IllegalOperation, TimeoutError) as error:  # illegal: it has failed already
            raise _write_failed(partition, records, error) from error

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
                    "to it; delete both changelogs to rebuild the tables from the source topic."
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
            async with self._ending[partition], asyncio.timeout(self._timeout_ms / 1000):
                await producer.begin_transaction()
                await producer.add_partitions(covered)
                await (producer.commit_transaction() if commit else producer.abort_transaction())
        except (ProducerFenced, OutOfOrderSequenceNumber) as error:
            raise _taken_over(partition) from error
        except (KafkaError, IllegalOperation, TimeoutError) as error:
            raise _write_failed(partition, covered, error) from error

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
            raise WriteFailed(
                f"no transactional producer for partition {partition}: {error!r}. The broker must support "
                f"transactions and permit the transactional id {self._app_id}-{partition}."
            ) from error
        self._producers[partition] = producer

    async def _close(self, partitions: Iterable[int]) -> None:
        await asyncio.gather(*map(self._stop, sorted(partitions)))

    async def _stop(self, partition: int) -> None:
        producer = self._producers.pop(partition)
        async with self._ending[partition]:
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


def _write_failed(partition: int, partitions: Iterable[tuple[str, int]], error: BaseException) -> WriteFailed:
    return WriteFailed(
        f"writing partition {partition} ({_topics(partitions)}) failed: {error!r}. Check the brokers, the "
        "topics' min.insync.replicas and this worker's permissions, then start again: it goes on where the "
        "tables end."
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
