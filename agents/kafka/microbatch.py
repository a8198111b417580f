"""A whole fetch of one partition as one object, taken out of aiokafka's buffer without one for each record.

`MicroBatch.start` and `.end` are fetch positions, not record offsets: `previous.end == next.start` holds
across compacted records, transaction markers and aborted transactions, so any difference is a hole in the
delivery. Records are read committed: what a fenced owner left behind is never seen.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any, NoReturn, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from aiokafka.errors import ConsumerStoppedError

from callfunnel.agents.errors import TablesWrong, TopicsWrong
from callfunnel.agents.kafka.batches import (
    HEADER_BYTES,
    Damaged,
    Headers,
    LeftOut,
    Lump,
    Portion,
    Record,
    RecordBatch,
)
from callfunnel.agents.remedies import REMEDIES
from callfunnel.streams.records import Records
from callfunnel.streams.rows import Witness

LOOK_AGAIN_SECONDS = 0.5
"""How long a fetch waits before it looks anew at what it may take: partitions are resumed amid it."""

FETCH_AGAIN_SECONDS = 10.0
"""How long a damaged answer is kept before it is asked for again: another copy may lead by then."""

MOST_BYTES = 16 * 2**20
"""Of records in a transaction, and of what is unpacked in one go: both hold an event loop for a moment."""

LOOK_FOR_HEADERS_BYTES = 1 << 18
"""Smaller portions are not many headers, however small these are."""


class MicroBatch:
    """Undecoded records of one partition in offset order, from fetch position `start` up to `end`."""

    __slots__ = (  # noqa: RUF023  (grouped by what they are)
        "__weakref__", "topic", "partition", "generation", "start", "end", "size", "in_bomb",
        "offsets", "timestamps", "keys", "values", "headers", "left_out", "lumps", "packed",
    )  # fmt: skip

    def __init__(self, topic: str, partition: int, start: int, end: int, generation: int) -> None:
        self.topic = topic
        self.partition = partition
        self.start = start
        self.end = end
        self.generation = generation
        """The consumer group's generation in which it was fetched."""
        self.size = 0
        """Bytes of all records, roughly."""
        self.in_bomb = False
        """Its record batch unpacks to far more than is sensible: what is rejected is not repeated."""
        self.offsets: list[int] = []
        self.timestamps: list[int] = []
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.headers: list[Headers] = []
        self.left_out: dict[int, LeftOut] = {}
        """By index: what is not held of a record that is too large for it."""
        self.lumps: list[Lump] = []
        """What cannot be read as records, in offset order."""
        self.packed: Records | None = None
        """All its records, where they were read at once: then the lists are empty."""

    def __len__(self) -> int:
        return len(self.values) if self.packed is None else len(self.packed)

    def __repr__(self) -> str:
        return f"<{self.topic}/{self.partition} [{self.start}, {self.end}) {len(self)} records>"

    @property
    def records(self) -> int:
        """How many records it stands for: those that can be read and those that cannot."""
        return len(self) + sum(lump.records for lump in self.lumps)

    def witness(self) -> Witness | None:
        """The last of its records that is held whole."""
        for index in reversed(range(len(self.values))):
            if index not in self.left_out:
                return Witness.of(
                    self.offsets[index], self.timestamps[index], self.keys[index], self.values[index]
                )
        return None

    def changes(self, kind: type[Records]) -> Records:
        """Its records, of a topic that the product alone writes.

        Raises `TablesWrong` where anything of it is missing: there it cannot be another's mistake.
        """
        if self.packed is not None:
            return self.packed
        for lump in self.lumps:
            raise TablesWrong(_WRONG.format(self.topic, self.partition, lump.first, lump.detail))
        for index in self.left_out:
            raise TablesWrong(
                _WRONG.format(self.topic, self.partition, self.offsets[index], "it is too large")
            )
        return kind.of(self.offsets, self.keys, self.values)

    def goes_on(self, following: Self) -> bool:
        """Whether `following` can be joined to it."""
        return (
            following.start == self.end
            and following.generation == self.generation
            and following.in_bomb == self.in_bomb
        )

    def add(self, portion: Portion) -> None:
        records, lump, size, *_ = portion
        if lump is not None:
            self.lumps.append(lump)
            size += lump.size
        self.size += size
        if not records:
            return
        if type(records[0]) is Record and records[0].left_out is not None:
            self.left_out[len(self)] = records[0].left_out
        before = len(self)
        offsets, timestamps, keys = self.offsets, self.timestamps, self.keys
        values, headers = self.values, self.headers
        for record in records:  # one loop: half the time of one for each field where they are few
            offsets.append(record.offset)
            timestamps.append(record.timestamp)
            keys.append(record.key)
            values.append(record.value)
            headers.append(record.headers)
        if size > LOOK_FOR_HEADERS_BYTES:
            self.size += HEADER_BYTES * sum(map(len, headers[before:]))

    def joined(self, following: Sequence["MicroBatch"]) -> "MicroBatch":
        """This batch and those that begin where the one before them ends, as one."""
        whole = MicroBatch(self.topic, self.partition, self.start, self.end, self.generation)
        whole.in_bomb = self.in_bomb
        for part in (self, *following):
            whole.left_out |= {len(whole) + index: sizes for index, sizes in part.left_out.items()}
            for field in _BY_RECORD:
                getattr(whole, field).extend(getattr(part, field))
            whole.lumps += part.lumps
            whole.size += part.size
            whole.end = part.end
        return whole

    def since(self, offset: int) -> "MicroBatch":
        """The part of the batch from `offset` on."""
        rest = MicroBatch(self.topic, self.partition, offset, self.end, self.generation)
        rest.in_bomb = self.in_bomb
        first = next((i for i, o in enumerate(self.offsets) if o >= offset), len(self.offsets))
        for field in _BY_RECORD:
            setattr(rest, field, getattr(self, field)[first:])
        rest.left_out = {index - first: sizes for index, sizes in self.left_out.items() if index >= first}
        rest.lumps = [lump for lump in self.lumps if lump.last >= offset]
        rest.size = self.size * (len(rest) + 1) // (len(self) + 1)
        return rest


_BY_RECORD = ("offsets", "timestamps", "keys", "values", "headers")
_WRONG = (
    "{}/{} holds at offset {} what callfunnel never writes ({}). To build the tables anew, "
    f"{REMEDIES['rebuild']}."
)

Fetched = dict[TopicPartition, MicroBatch]
"""What has arrived, by partition."""


def drain(
    result: FetchResult, limit: int, generation: int, kind: type[Records] | None = None
) -> MicroBatch | None:
    """Take records out of aiokafka's buffer: up to `limit`, or `MOST_BYTES`, or somewhat more.

    Of `kind`, where it is said, are records that can be read at once. A batch that ends where it starts says
    that a large record is just being skipped. Raises `Damaged` when what comes next is; what comes before it
    was taken by then.
    """
    tp = result._topic_partition
    if not result.has_more() or not result.check_assignment(tp):
        return None
    fetched = result._partition_records
    start = fetched.next_fetch_offset
    batch = MicroBatch(tp.topic, tp.partition, start, start, generation)
    ahead = fetched._records.ahead
    if kind is not None:
        _read_at_once(fetched, batch, limit, kind)
    worked = 0
    try:
        while batch.packed is None and ahead and len(batch) < limit and max(batch.size, worked) < MOST_BYTES:
            portion = _next(fetched)
            if portion is None:
                batch.end = max(batch.end, ahead.popleft().next_offset)
                continue
            if portion.in_bomb != batch.in_bomb:
                if batch.end > batch.start:
                    ahead[0].put_back(portion)
                    break
                batch.in_bomb = portion.in_bomb
            worked += portion.work
            batch.add(portion)
            if portion.records:
                batch.end = max(batch.end, portion.records[-1].offset + 1)
            if portion.lump is not None:
                batch.end = max(batch.end, portion.lump.last + 1)
    except Damaged:
        if batch.end == start:
            raise
    except BaseException:
        _let_go(result)  # the position has not moved: from there it is fetched again
        raise
    fetched.next_fetch_offset = batch.end
    result._update_position()
    if not ahead:
        _let_go(result)
    return batch if batch.end > batch.start or ahead else None


def _let_go(result: FetchResult) -> None:
    """Without its iterator, which refers to it: else every answer would wait for the collector."""
    result._partition_records._records_iterator = None
    result._partition_records = None


def _read_at_once(fetched: Any, batch: MicroBatch, limit: int, kind: type[Records]) -> None:
    """Take so many of the batches ahead as `kind` reads, and those between them of which nothing is read."""
    ahead: deque[RecordBatch] = fetched._records.ahead
    if ahead and ahead[0].portions is not None:  # a part of it was taken in the other way
        return
    spans, count, looked_at = [], 0, 0
    for record_batch in ahead:
        if _is_left_out(fetched, record_batch):
            if not record_batch.validate_crc():
                break
        elif count < limit:
            spans.append(record_batch.span)
            count += record_batch.count
        else:
            break
        looked_at += 1
    packed, taken = kind.read(fetched._records.data, spans, batch.start, limit, MOST_BYTES)
    for _ in range(looked_at):
        if not ahead[0].is_left_out:
            if not taken:
                break
            taken -= 1
        batch.end = max(batch.end, ahead.popleft().next_offset)
    if batch.end > batch.start:
        batch.packed = packed


def _is_left_out(fetched: Any, record_batch: RecordBatch) -> bool:
    """Whether it was aborted, or is a marker. Batches are asked about in their order."""
    if record_batch.is_left_out is None:
        aborted = False
        if fetched._isolation_level == READ_COMMITTED and record_batch.producer_id is not None:
            fetched._consume_aborted_up_to(record_batch.base_offset)
            if record_batch.is_control_batch:
                if fetched._contains_abort_marker(record_batch):
                    fetched._aborted_producers.discard(record_batch.producer_id)
            elif record_batch.is_transactional:
                aborted = record_batch.producer_id in fetched._aborted_producers
        record_batch.is_left_out = aborted or record_batch.is_control_batch
    return record_batch.is_left_out


def _next(fetched: Any) -> Portion | None:
    """The next portion of the record batch ahead; None at its end, and of what was aborted or is a marker."""
    record_batch = fetched._records.ahead[0]
    if record_batch.portions is None:
        if fetched._check_crcs and not record_batch.validate_crc():
            raise Damaged(record_batch)
        if _is_left_out(fetched, record_batch):
            return None
        record_batch.begin(fetched.next_fetch_offset)
    return next(record_batch.portions, None)


def refuse_damaged(tp: TopicPartition, damaged: Damaged) -> NoReturn:
    """Raises `TopicsWrong`: of a changelog, nothing can be left out."""
    raise TopicsWrong(
        f"{tp.topic}/{tp.partition}: {damaged} If there is no whole copy of a changelog, build the tables "
        f"anew: {REMEDIES['rebuild']}."
    ) from damaged


def _none(_: TopicPartition) -> None:
    return None


def drain_all(
    fetcher: Any,
    active: Container[TopicPartition],
    limit: int,
    generation: int,
    on_damaged: Callable[[TopicPartition, Damaged], None] = refuse_damaged,
    kind_of: Callable[[TopicPartition], type[Records] | None] = _none,
) -> Fetched:
    """What has arrived of the active partitions; the rest waits, but for what is not assigned any more.

    `kind_of` gives the kind of a partition's records, where they are those of a changelog.
    """
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
        try:
            batch = drain(result, limit, generation, kind_of(tp))
        except Damaged as damaged:
            batch = None
            on_damaged(tp, damaged)
            if time.monotonic() - result._created > FETCH_AGAIN_SECONDS:
                _let_go(result)
        if not result.has_more():
            del fetcher._records[tp]
            fetcher._notify(fetcher._wait_consume_future)
        if batch is not None:
            drained[tp] = batch
    return drained


def _never() -> bool:
    return False


async def fetch_by(
    consumer: AIOKafkaConsumer,
    take: Callable[[], Fetched],
    seconds: float,
    is_over: Callable[[], bool] = _never,
) -> Fetched:
    """What `take` finds as soon as it finds something; nothing after so many seconds, or when `is_over`.

    When `is_over` becomes true, call `wake`: it is not watched.
    """
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
            found = take()
            taken = {tp: batch for tp, batch in found.items() if batch.end > batch.start}
            remaining = deadline - time.monotonic()
            if taken or remaining <= 0 or is_over():
                return taken
            if found:
                await asyncio.sleep(0)
                continue
            waiter = fetcher._create_fetch_waiter()
            done, _ = await asyncio.wait([waiter], timeout=min(remaining, LOOK_AGAIN_SECONDS))
            if fetcher._closed:
                raise ConsumerStoppedError
            if done:
                waiter.result()
            else:
                waiter.cancel()


def wake(consumer: AIOKafkaConsumer) -> None:
    """Let a fetch of this consumer, in the loop of the caller, look anew whether it is over."""
    for waiter in list(consumer._fetcher._fetch_waiters):
        if not waiter.done():
            waiter.set_result(None)


async def fetch(
    consumer: AIOKafkaConsumer,
    limit: int,
    seconds: float,
    is_over: Callable[[], bool] = _never,
    kind: type[Records] | None = None,
) -> Fetched:
    """What has arrived of each assigned partition, about `limit` records of each; waits for some.

    As `consumer.getmany`, which makes an object of each record: half the time of who reads many.
    Raises what `getmany` raises.
    """
    fetcher, assigned = consumer._fetcher, consumer.assignment()
    take = partial(drain_all, fetcher, assigned, limit, 0, kind_of=lambda _: kind)
    return await fetch_by(consumer, take, seconds, is_over)
