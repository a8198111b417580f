"""A whole fetch of one partition as one object, taken out of aiokafka's buffer without one for each record.

`MicroBatch.start` and `.end` are fetch positions, not record offsets: `previous.end == next.start` holds
across compacted records, transaction markers and aborted transactions, so any difference is a hole in the
delivery. Records are read committed: what a fenced owner left behind is never seen.
"""

import asyncio
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from aiokafka.errors import ConsumerStoppedError

from agents.errors import TopicsWrong

LOOK_AGAIN_SECONDS = 0.1
"""How long a fetch waits before it looks anew at what it may take: partitions are resumed amid it."""

MOST_BYTES = 16 * 2**20
"""Of values in a transaction: however large records are, folding them holds the event loop for a moment."""

Headers = Sequence[tuple[str, bytes]]


class MicroBatch:
    """Undecoded records of one partition in offset order, from fetch position `start` up to `end`."""

    __slots__ = (  # noqa: RUF023  (grouped by what they are)
        "__weakref__", "topic", "partition", "generation", "start", "end", "size",
        "offsets", "timestamps", "keys", "values", "headers",
    )  # fmt: skip

    def __init__(self, topic: str, partition: int, start: int, end: int, generation: int) -> None:
        self.topic = topic
        self.partition = partition
        self.start = start
        self.end = end
        self.generation = generation
        """The consumer group's generation in which it was fetched."""
        self.size = 0
        """Bytes of all values."""
        self.offsets: list[int] = []
        self.timestamps: list[int] = []
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.headers: list[Headers] = []

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"<{self.topic}/{self.partition} [{self.start}, {self.end}) {len(self)} records>"

    def joined(self, following: Sequence["MicroBatch"]) -> "MicroBatch":
        """This batch and those that begin where the one before them ends, as one."""
        whole = MicroBatch(self.topic, self.partition, self.start, self.end, self.generation)
        for part in (self, *following):
            for field in ("offsets", "timestamps", "keys", "values", "headers"):
                getattr(whole, field).extend(getattr(part, field))
            whole.size += part.size
            whole.end = part.end
        return whole

    def since(self, offset: int) -> "MicroBatch":
        """The part of the batch from `offset` on."""
        rest = MicroBatch(self.topic, self.partition, offset, self.end, self.generation)
        first = next((i for i, o in enumerate(self.offsets) if o >= offset), len(self.offsets))
        for field in ("offsets", "timestamps", "keys", "values", "headers"):
            setattr(rest, field, getattr(self, field)[first:])
        rest.size = _size(rest.values)
        return rest


def _size(values: Iterable[bytes | None]) -> int:
    return sum(map(len, filter(None, values)))


Fetched = dict[TopicPartition, MicroBatch]
"""What has arrived, by partition."""


def drain(result: FetchResult, limit: int, generation: int) -> MicroBatch | None:
    """Take whole record batches out of aiokafka's buffer, up to `limit` records, or `MOST_BYTES`, or more."""
    tp = result._topic_partition
    if not result.has_more() or not result.check_assignment(tp):
        return None
    fetched = result._partition_records
    start = fetched.next_fetch_offset
    batch = MicroBatch(tp.topic, tp.partition, start, start, generation)
    try:
        while fetched._records.has_next() and len(batch) < limit and batch.size < MOST_BYTES:
            _take(batch, fetched)
    except BaseException:
        _let_go(result)  # the position has not moved: from there it is fetched again
        raise
    fetched.next_fetch_offset = batch.end
    result._update_position()
    if not fetched._records.has_next():
        _let_go(result)
    return batch if batch.end > batch.start else None


def _let_go(result: FetchResult) -> None:
    """Without its iterator, which refers to it: else every answer would wait for the collector."""
    result._partition_records._records_iterator = None
    result._partition_records = None


def _take(batch: MicroBatch, fetched: Any) -> None:
    """Add the next record batch, unless it is a marker or was aborted."""
    record_batch = fetched._records.next_batch()
    if fetched._check_crcs and not record_batch.validate_crc():
        raise _unreadable(batch, record_batch, "its checksum is wrong")
    aborted = False
    if fetched._isolation_level == READ_COMMITTED and record_batch.producer_id is not None:
        fetched._consume_aborted_up_to(record_batch.base_offset)
        if record_batch.is_control_batch:
            if fetched._contains_abort_marker(record_batch):
                fetched._aborted_producers.discard(record_batch.producer_id)
        elif record_batch.is_transactional:
            aborted = record_batch.producer_id in fetched._aborted_producers
    if not aborted and not record_batch.is_control_batch:
        try:
            records = list(record_batch)
        except Exception as error:  # a decoder's own, of whatever kind
            raise _unreadable(batch, record_batch, repr(error)) from error
        if records and records[0].offset < batch.end:
            records = [record for record in records if record.offset >= batch.end]
        batch.offsets += [record.offset for record in records]
        batch.timestamps += [record.timestamp for record in records]
        batch.keys += [record.key for record in records]
        values = [record.value for record in records]
        batch.values += values
        batch.size += _size(values)
        batch.headers += [record.headers for record in records]
    batch.end = record_batch.next_offset


def _unreadable(batch: MicroBatch, record_batch: Any, why: str) -> TopicsWrong:
    first, end = record_batch.base_offset, record_batch.next_offset
    return TopicsWrong(
        f"{batch.topic}/{batch.partition}: the records from offset {first} to {end - 1} cannot be read "
        f"({why}). Whoever wrote them wrote them so, or a disk is damaged: let another copy lead the "
        "partition. Or, if it is the source, give them up: delete its records before offset "
        f"{end} (Kafka's `kafka-delete-records.sh`) and start again; they are counted as a hole then."
    )


def drain_all(fetcher: Any, active: Container[TopicPartition], limit: int, generation: int) -> Fetched:
    """What has arrived of the active partitions; the rest waits, but for what is not assigned any more."""
    drained: Fetched = {}
    for tp in list(fetcher._records):
        if tp not in active:
            if not fetcher._subscriptions.is_assigned(tp):
                del fetcher._records[tp]
            continue
        result = fetcher._records[tp]
        if type(result) is not FetchResult:
            if drained:
                break
            del fetcher._records[tp]
            fetcher._notify(fetcher._wait_consume_future)
            result.check_raise()
            continue
        batch = drain(result, limit, generation)
        if not result.has_more():
            del fetcher._records[tp]
            fetcher._notify(fetcher._wait_consume_future)
        if batch is not None:
            drained[tp] = batch
    return drained


async def fetch_by(consumer: AIOKafkaConsumer, take: Callable[[], Fetched], seconds: float) -> Fetched:
    """What `take` finds as soon as it finds something; nothing after so many seconds."""
    fetcher = consumer._fetcher
    if consumer._closed or fetcher._closed:
        raise ConsumerStoppedError
    subscriptions = fetcher._subscriptions
    deadline = time.monotonic() + seconds
    with subscriptions.fetch_context():
        while True:
            if fetcher._fetch_task.done():
                fetcher._fetch_task.result()  # raises what nobody else would tell: it fetches no more
            if subscriptions.reassignment_in_progress:
                await subscriptions.wait_for_assignment()
            taken = take()
            remaining = deadline - time.monotonic()
            if taken or remaining <= 0:
                return taken
            waiter = fetcher._create_fetch_waiter()
            done, _ = await asyncio.wait([waiter], timeout=min(remaining, LOOK_AGAIN_SECONDS))
            if fetcher._closed:
                raise ConsumerStoppedError
            if done:
                waiter.result()
            else:
                waiter.cancel()


async def fetch(consumer: AIOKafkaConsumer, limit: int, seconds: float) -> Fetched:
    """What has arrived of each assigned partition, about `limit` records of each; waits for some.

    As `consumer.getmany`, which makes an object of each record: half the time of who reads many.
    Raises what `getmany` raises.
    """
    assigned = consumer.assignment()
    return await fetch_by(consumer, lambda: drain_all(consumer._fetcher, assigned, limit, 0), seconds)
