"""The Faust transport that carries a whole fetch of one partition as one message.

Faust costs about 100 µs a message, so a message must be a micro-batch. Everything private of Faust and
aiokafka that this needs is in this module and in `agents/recovery.py`; `tests/contract/test_faust_seam.py`
fails when it changes.

`MicroBatch.start` and `.end` are fetch positions, not record offsets: `previous.end == next.start` holds
across compacted records, transaction markers and aborted transactions, so any difference is a hole in the
delivery. Records are read committed: what a fenced owner left behind is never seen.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import faust
from aiokafka.consumer import consumer as client
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from aiokafka.errors import ConsumerStoppedError, CorruptRecordException, IllegalGenerationError, KafkaError
from aiokafka.protocol.group import LeaveGroupRequest
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage, EventT

from agents import failpoints

SCHEME = "microbatch"
TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"

FETCH_MAX_WAIT_MS = 100
"""How long the broker may hold an empty answer. What else is asked on that connection waits behind it, and
a worker that starts asks several times; records end the wait at once."""

LOOK_AGAIN_SECONDS = 0.1
"""How long a fetch waits before it looks anew at what it may take: partitions are resumed amid it."""

Headers = Sequence[tuple[str, bytes]]


class MicroBatch:
    """Undecoded records of one partition in offset order, from fetch position `start` up to `end`."""

    __slots__ = (  # noqa: RUF023  (grouped by what they are)
        "__weakref__", "topic", "partition", "generation", "start", "end",
        "offsets", "timestamps", "keys", "values", "headers",
    )  # fmt: skip

    def __init__(self, topic: str, partition: int, start: int, end: int, generation: int) -> None:
        self.topic = topic
        self.partition = partition
        self.start = start
        self.end = end
        self.generation = generation
        """The consumer group's generation in which it was fetched."""
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
            whole.end = part.end
        return whole

    def since(self, offset: int) -> "MicroBatch":
        """The part of the batch from `offset` on."""
        rest = MicroBatch(self.topic, self.partition, offset, self.end, self.generation)
        first = next((i for i, o in enumerate(self.offsets) if o >= offset), len(self.offsets))
        for field in ("offsets", "timestamps", "keys", "values", "headers"):
            setattr(rest, field, getattr(self, field)[first:])
        return rest


class Schema(faust.Schema):  # type: ignore[misc]
    """Lets a micro-batch through as it is: decoding belongs to the fold, where a bad record is a value."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:
        return message.value


def drain(result: FetchResult, limit: int, generation: int) -> MicroBatch | None:
    """Take record batches out of aiokafka's buffer, whole ones, until there are `limit` records or more."""
    tp = result._topic_partition
    if not result.has_more() or not result.check_assignment(tp):
        return None
    fetched = result._partition_records
    start = fetched.next_fetch_offset
    batch = MicroBatch(tp.topic, tp.partition, start, start, generation)
    try:
        while fetched._records.has_next() and len(batch) < limit:
            _take(batch, fetched)
    except BaseException:
        result._partition_records = None  # the position has not moved: from there it is fetched again
        raise
    fetched.next_fetch_offset = batch.end
    result._update_position()
    if not fetched._records.has_next():
        result._partition_records = None
    return batch if batch.end > batch.start else None


def _take(batch: MicroBatch, fetched: Any) -> None:
    """Add the next record batch, unless it is a marker or was aborted."""
    record_batch = fetched._records.next_batch()
    if fetched._check_crcs and not record_batch.validate_crc():
        at = f"{batch.topic}/{batch.partition}"
        raise CorruptRecordException(f"{at}: checksum of the record batch at {record_batch.base_offset}")
    aborted = False
    if fetched._isolation_level == READ_COMMITTED and record_batch.producer_id is not None:
        fetched._consume_aborted_up_to(record_batch.base_offset)
        if record_batch.is_control_batch:
            if fetched._contains_abort_marker(record_batch):
                fetched._aborted_producers.discard(record_batch.producer_id)
        elif record_batch.is_transactional:
            aborted = record_batch.producer_id in fetched._aborted_producers
    if not aborted and not record_batch.is_control_batch:
        records = list(record_batch)
        if records and records[0].offset < batch.end:
            records = [record for record in records if record.offset >= batch.end]
        batch.offsets += [record.offset for record in records]
        batch.timestamps += [record.timestamp for record in records]
        batch.keys += [record.key for record in records]
        batch.values += [record.value for record in records]
        batch.headers += [record.headers for record in records]
    batch.end = record_batch.next_offset


class _GroupCoordinator(client.GroupCoordinator):  # type: ignore[misc]
    """A member whose commit comes amid a rebalance joins again, or leaves, as itself; so does Java's.

    aiokafka would forget its name, join under a new one and never leave: the group would wait for the old
    one for a session timeout, on noida-db for ever.
    """

    member_id: str
    generation: int

    async def _do_commit_offsets(self, assignment: Any, offsets: Any) -> None:
        member = self.member_id, self.generation
        try:
            failpoints.hit("offset-sent")
            await super()._do_commit_offsets(assignment, offsets)
            failpoints.hit("offset-committed")
        except IllegalGenerationError:
            self.member_id, self.generation = member
            raise

    async def close(self) -> None:
        """Leave at once, on the connection for data: aiokafka first ends a join that waits for the others,
        and they may be waiting for us."""
        if self.generation > 0 and self._group_instance_id is None and self.coordinator_id is not None:
            with suppress(KafkaError):
                await self._client.send(self.coordinator_id, LeaveGroupRequest(self.group_id, self.member_id))
            self.reset_generation()
        await super().close()


client.GroupCoordinator = _GroupCoordinator


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        return consumer

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: Any,
        timeout: float | None = None,  # noqa: ASYNC109  (Faust's signature)
        max_records: int | None = None,
    ) -> Mapping[TP, list[MicroBatch]]:
        if not self.consumer.flow_active:
            return {}
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        subscriptions = fetcher._subscriptions
        deadline = time.monotonic() + (timeout or 0)
        with subscriptions.fetch_context():
            while True:
                if subscriptions.reassignment_in_progress:
                    await subscriptions.wait_for_assignment()
                drained = self._drain(fetcher, active_partitions, max_records or 10_000)
                remaining = deadline - time.monotonic()
                if drained or remaining <= 0:
                    return drained
                waiter = fetcher._create_fetch_waiter()
                done, _ = await asyncio.wait([waiter], timeout=min(remaining, LOOK_AGAIN_SECONDS))
                if fetcher._closed:
                    raise ConsumerStoppedError
                if done:
                    waiter.result()
                else:
                    waiter.cancel()

    def _drain(self, fetcher: Any, active_partitions: Any, limit: int) -> Mapping[TP, list[MicroBatch]]:
        """Take only what Faust will pass on: it drops the rest, and the position would be behind it.

        `active_partitions` is Faust's own set. A rebalance empties it amid a fetch, which means none.
        """
        if not self.consumer.flow_active:
            return {}
        generation = self.app.consumer_generation_id
        drained: dict[TP, list[MicroBatch]] = {}
        for tp in list(fetcher._records):
            if tp not in active_partitions:
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
                drained[TP(tp.topic, tp.partition)] = [batch]
        return drained


class Consumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer, with offsets counted by batches."""

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, batch: MicroBatch) -> ConsumerMessage:
        return ConsumerMessage(
            topic=batch.topic, partition=batch.partition, offset=batch.end - 1,
            timestamp=batch.timestamps[-1] / 1000 if batch.timestamps else 0.0, timestamp_type=0, headers=(),
            key=None, value=batch, checksum=None, serialized_key_size=0, serialized_value_size=0, tp=tp,
            generation_id=batch.generation,
        )  # fmt: skip

    def drop(self, event: EventT) -> None:
        """The batch is not acknowledged: a rebalance must not wait for it, whoever still holds it."""
        self._unacked_messages.discard(event.message)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Offsets jump from batch to batch; holes are caught by the batches' positions instead."""

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit, for lag dashboards: where to resume is said by the state.

        Batches of a partition are acknowledged in order, each only when it continues the one before, so the
        newest acknowledgement covers all.
        """
        acked = self._acked[tp]
        if not acked:
            return None
        offset: int = max(acked) + 1
        acked.clear()
        self._acked_index[tp].clear()
        return offset


class Transport(driver.Transport):  # type: ignore[misc]
    """`microbatch://HOST:PORT`"""

    Consumer = Consumer
