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
from typing import Any

from aiokafka.errors import (
    IllegalOperation,
    KafkaError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from callfunnel.agents import failpoints
from callfunnel.agents.config import Compression
from callfunnel.agents.errors import TablesWrong, TakenOver, TopicsWrong, WriteFailed
from callfunnel.agents.kafka import hanging
from callfunnel.agents.kafka.batches import Headers
from callfunnel.agents.kafka.producer import (
    BATCH_BYTES,
    CONNECTIONS,
    UNCOMPRESSED,
    Compressor,
    Producer,
    Record,
    SharedClient,
    batches,
)
from callfunnel.agents.remedies import REMEDIES
from callfunnel.schemas.topics import funnel_changelog, leads_changelog


class Transactions:
    """Writes the transactions of the partitions this worker owns.

    Only the changelogs are compressed: dead letters and events that are sent home have other readers, too.
    """

    def __init__(
        self,
        app_id: str,
        client: Mapping[str, Any],
        transaction_timeout_seconds: float,
        compression: Compression = "none",
    ) -> None:
        self._app_id = app_id
        self._compressors = dict.fromkeys(
            (funnel_changelog(app_id), leads_changelog(app_id)), Compressor(compression)
        )
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
        try:
            return await self._producers[partition].partitions_of(topic)
        except KafkaError as error:
            raise _write_failed(partition, [(topic, partition)], error, self._timeout_ms / 1000) from error

    async def write(
        self, partition: int, records: Mapping[tuple[str, int], Iterable[Record]]
    ) -> Mapping[tuple[str, int], range]:
        """Append the records, by (topic, partition), in one transaction; their offsets in each.

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
    ) -> Mapping[tuple[str, int], range]:
        producer = self._producers[partition]
        now_ms = int(time.time() * 1000)
        await producer.begin_transaction()
        failpoints.hit("begun")
        await producer.add_partitions(records)
        sent = []
        for (topic, number), its_records in records.items():
            compressor = self._compressors.get(topic, UNCOMPRESSED)
            for batch in batches(producer, its_records, now_ms, compressor):
                sent.append((batch, await producer.send_batch(batch, topic, partition=number)))
            failpoints.hit("sent")
        appended: dict[tuple[str, int], range] = {}
        for batch, acknowledgement in sent:
            first = await acknowledgement
            at = first.topic, first.partition
            if first.offset < self.ends.get(at, 0):
                raise TablesWrong(
                    f"{first.topic}/{first.partition} held rows up to offset {self.ends[at] - 1}, but "
                    f"goes on at {first.offset}: it was created anew under this worker. Nothing was written "
                    f"to it. To build the tables anew, {REMEDIES['rebuild']}."
                )
            begin = appended[at].start if at in appended else first.offset
            appended[at] = range(begin, first.offset + batch.record_count())
            failpoints.hit("appended")
        failpoints.hit("written")
        await producer.commit_transaction()
        failpoints.hit("committed")
        self.ends |= {at: appended[at].stop for at in self.ends.keys() & appended.keys()}
        return appended

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
        """The partitions that end with something undecided, and with what: see `agents.kafka.hanging`."""
        partitions = list(partitions)
        with _asking(partitions):
            return await hanging.hanging(self._client, partitions, headers)

    async def last(self, partition: tuple[str, int], find: Callable[[Headers], int | None]) -> int | None:
        """What `find` finds in the last committed record that has any (`agents.kafka.hanging`)."""
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
