"""Which topic the source is, and whether the tables were made from it.

A topic has an id (KIP-516) that no other one ever gets. Where the broker gives none, and where the same
records lie in another topic, the witness tells: the last record that the tables took in is where it was.

The law: of a partition nothing is fetched before this was checked, and nothing that was fetched is written
before the broker has said, after it came, that the topic still has the id that the position names.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    KafkaError,
    NodeNotReadyError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    for_code,
)
from msgspec import Struct

from callfunnel.agents.errors import TablesWrong, WriteFailed
from callfunnel.agents.kafka.hanging import new_reader
from callfunnel.agents.kafka.microbatch import MicroBatch, fetch
from callfunnel.agents.kafka.topic_ids import Ask
from callfunnel.agents.remedies import REMEDIES
from callfunnel.schemas.topics import shown_id
from callfunnel.streams.rows import Position, Witness

RETRY_SECONDS = 0.1
FETCH_SECONDS = 0.2
AT_ONCE = 16
"""Partitions of which a record is asked at a time: an answer may hold a megabyte of each."""
METADATA_MS = 10_000
"""How long another broker may lead a partition before that one is asked."""

COUNT_ANEW = f"To count its events from the start, {REMEDIES['count-anew']}."
ADOPT = f"If it holds the same records at the same offsets (a restore, a mirror), {REMEDIES['adopt']}."


GONE = Witness(-1, -1, 0)
"""Stands for a record that retention took since the topic's offsets were asked for."""


class Found(Struct, frozen=True):
    """What the broker has of a partition of the source."""

    topic: str
    topic_id: str
    """"" where the broker gives none."""
    offsets: range
    """Of what is committed and there."""


class OtherTopic(TablesWrong):
    """The tables were made from other records than the source topic has now, or nothing shows that not."""

    def __init__(self, told: str, remedy: str) -> None:
        super().__init__(f"{told}. Nothing of it was counted. {remedy}")
        self.told = told
        self.remedy = remedy


async def resume_all(
    source: "Source", positions: Mapping[int, Position | None], found: Mapping[int, Found]
) -> Mapping[int, int]:
    """By partition, the source offset at which tables that go up to a position go on.

    Raises `OtherTopic` where it cannot be shown that they were made from this topic.
    """
    records = await witnessed(source, positions, found)
    return {
        number: resume_at(number, position, found[number], records.get(number))
        for number, position in positions.items()
        if position is not None
    }


async def witnessed(
    source: "Source", positions: Mapping[int, Position | None], found: Mapping[int, Found]
) -> Mapping[int, Witness | None]:
    """By partition, what lies where the last record lay that the tables took in, as far as it can be read."""
    return await source.records(
        {
            number: position.witness.offset
            for number, position in positions.items()
            if position is not None and position.witness is not None
            if position.witness.offset in found[number].offsets
        }
    )


def resume_at(number: int, position: Position, found: Found, record: Witness | None) -> int:
    """As `resume_all`, of one partition; `record` is what lies at the offset of the witness."""
    at, witness = f"{found.topic}/{number}", position.witness
    is_same = is_named(number, position, found.topic, found.topic_id)
    is_gone = witness is not None and (witness.offset < found.offsets.start or record == GONE)
    if witness is None or (is_same and is_gone):
        if position.offset > found.offsets.stop:
            raise _cut_off(at, position, found)
        return position.offset
    if is_gone:
        raise OtherTopic(
            f"{at}: nothing shows that the tables were made from this topic: its broker gives topics no id, "
            f"and the last record that they took in, at offset {witness.offset}, is gone by retention",
            COUNT_ANEW,
        )
    if position.offset > found.offsets.stop and (is_same or record != witness):
        raise _cut_off(at, position, found)
    if record != witness:
        raise OtherTopic(
            f"{at}: the record at offset {witness.offset} is not the one that the tables took in there: the "
            "topic was cut off and filled again (an unclean leader election), or it is another one",
            COUNT_ANEW,
        )
    return position.offset if is_same else witness.offset + 1


def is_named(number: int, position: Position, topic: str, topic_id: str) -> bool:
    """Whether the position names this topic by its id; False where one of the two has none.

    Raises `OtherTopic` where it names another one.
    """
    if position.topic not in ("", topic):
        raise OtherTopic(
            f"{topic}/{number}: the tables were made from another topic, {position.topic}; "
            f"CALLFUNNEL_SOURCE_TOPIC names {topic}",
            f"{ADOPT} {COUNT_ANEW}",
        )
    if position.topic_id and topic_id and position.topic_id != topic_id:
        raise another_id(number, position, topic, topic_id)
    return bool(position.topic_id) and position.topic_id == topic_id


def another_id(number: int, position: Position, topic: str, topic_id: str) -> OtherTopic:
    """The error that the topic is another one of the same name."""
    return OtherTopic(
        f"{topic}/{number}: the tables were made from another topic of this name. It had the id "
        f"{position.topic_id} when they took in its records up to offset {position.offset}, and has the id "
        f"{topic_id} now: it was deleted and made anew, or this is another cluster",
        f"{ADOPT} {COUNT_ANEW}",
    )


def _cut_off(at: str, position: Position, found: Found) -> OtherTopic:
    return OtherTopic(
        f"the tables of {at} go up to offset {position.offset}, but the topic ends at {found.offsets.stop}: "
        "it was truncated or created anew",
        COUNT_ANEW,
    )


class Source:
    """The source topic, asked of its brokers. `client` is what every aiokafka client is told."""

    def __init__(self, client: Mapping[str, Any], topic: str, timeout_seconds: float) -> None:
        self.topic = topic
        self._options = client
        self._timeout_seconds = timeout_seconds
        self._client: AIOKafkaClient | None = None
        self._connecting = asyncio.Lock()

    async def topic_id(self, partition: int) -> str:
        """The topic's id by the leader of the partition, which knew it when it handed out records before.

        "" where the broker gives topics no id. Raises `WriteFailed` when no broker tells in time.
        """
        failure: KafkaError | None = None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                while True:
                    try:
                        return await self._ask(partition)
                    except TopicAuthorizationFailedError:
                        raise
                    except KafkaError as error:
                        failure = error
                    await asyncio.sleep(RETRY_SECONDS)
        except (TimeoutError, TopicAuthorizationFailedError) as error:
            raise self._not_told(failure or error) from error

    async def found(self, numbers: Iterable[int]) -> Mapping[int, Found]:
        """What the brokers have of these partitions. Raises `WriteFailed` when none tells in time."""
        numbers = list(numbers)
        topic_id = await self.topic_id(numbers[0])  # first: what comes later is of this topic, or it shows
        tps = [TopicPartition(self.topic, number) for number in numbers]
        async with self._asking() as consumer:
            begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        return {tp.partition: Found(self.topic, topic_id, range(begins[tp], ends[tp])) for tp in tps}

    async def records(self, offsets: Mapping[int, int]) -> Mapping[int, Witness | None]:
        """The committed record at an offset of each partition, which has to be before the stable end.

        None where there is none, `GONE` where the topic begins behind it by now. Raises `WriteFailed` when
        no broker tells in time.
        """
        if not offsets:
            return {}
        found: dict[int, Witness | None] = {}
        async with self._asking() as consumer:
            for some in _chunks(sorted(offsets)):
                found |= await self._records(consumer, {number: offsets[number] for number in some})
        return found

    async def _records(self, consumer: Any, offsets: Mapping[int, int]) -> Mapping[int, Witness | None]:
        found: dict[int, Witness | None] = {}
        missing = {TopicPartition(self.topic, number): offset for number, offset in offsets.items()}
        consumer.assign(list(missing))
        for tp, offset in missing.items():
            consumer.seek(tp, offset)
        while missing:
            async with asyncio.timeout(self._timeout_seconds):
                while not (told := await _fetched(consumer, missing)):
                    pass
            for tp, record in told.items():
                found[tp.partition] = record
                consumer.pause(tp)  # else the next question would wait behind what comes after it
                del missing[tp]
        return found

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _ask(self, partition: int) -> str:
        async with self._connecting:
            if self._client is None:
                self._client = await self._connected()
        client = self._client
        leader = client.cluster.leader_for_partition(TopicPartition(self.topic, partition))
        node = client.get_random_node() if leader in (None, -1) else leader
        if node is None:
            raise NodeNotReadyError(f"no broker of {self.topic} is known")
        try:
            told = await client.send(node, Ask(self.topic))
        except NotImplementedError:
            return ""
        except KafkaError:
            client.force_metadata_update()
            raise
        if told.error_code:
            raise for_code(told.error_code)(f"{self.topic}")
        return shown_id(told.topic_id)

    async def _connected(self) -> AIOKafkaClient:
        timeout_ms = int(self._timeout_seconds * 1000)
        client = AIOKafkaClient(
            **self._options, request_timeout_ms=timeout_ms, metadata_max_age_ms=METADATA_MS
        )
        try:
            await client.bootstrap()
            await client.set_topics([self.topic])
        except BaseException:
            await client.close()
            raise
        return client

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Any]:
        try:
            async with new_reader(self._options, "read_committed") as consumer:
                yield consumer
        except (KafkaError, TimeoutError) as error:
            raise self._not_told(error) from error

    def _not_told(self, error: BaseException) -> WriteFailed:
        return WriteFailed(
            f"no broker told whether {self.topic} is the topic that the tables were made from: {error!r}. "
            "Check the brokers and the permission to describe and read it, then start again: it goes on where"
            " the tables end."
        )


async def _fetched(
    consumer: Any, offsets: Mapping[TopicPartition, int]
) -> Mapping[TopicPartition, Witness | None]:
    """The records at these offsets as far as they have come."""
    try:
        arrived = await fetch(consumer, 1, FETCH_SECONDS)
    except OffsetOutOfRangeError as error:
        lost = error.args[0].keys() & offsets.keys()
        begins = await consumer.beginning_offsets(list(lost))
        return {tp: GONE if offsets[tp] < begins[tp] else None for tp in lost}
    return {
        tp: _record(batch, offsets[tp])
        for tp, batch in arrived.items()
        if tp in offsets and batch.end > offsets[tp]
    }


def _record(batch: MicroBatch, offset: int) -> Witness | None:
    if offset not in batch.offsets:
        return None
    i = batch.offsets.index(offset)
    return Witness.of(offset, batch.timestamps[i], batch.keys[i], batch.values[i])


def _chunks(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    return (numbers[i : i + AT_ONCE] for i in range(0, len(numbers), AT_ONCE))
