"""What real brokers tell of the source: its id, and the record at an offset."""

import asyncio
import time
import uuid
from base64 import urlsafe_b64decode

import pytest
from aiokafka import AIOKafkaProducer
from kafka import TopicPartition

from callfunnel.agents.engine.source import GONE, Source
from callfunnel.agents.errors import WriteFailed
from callfunnel.agents.kafka.changelog import LOOK_BACK, last_positions
from callfunnel.agents.kafka.connection import admin_client, aiokafka_options
from callfunnel.agents.kafka.read_committed import repair
from callfunnel.streams.rows import POSITION_KEY, Witness


def asked(settings, topic, ask):
    """What a source answers."""

    async def main():
        source = Source(aiokafka_options(settings), topic, timeout_seconds=5.0)
        try:
            return await ask(source)
        finally:
            await source.close()

    repair()
    return asyncio.run(main())


def test_a_topic_has_the_id_that_kafkas_tools_show_and_another_of_its_name_has_another(broker):
    settings = broker.settings()
    (topic,) = broker.topics("calls", partitions=3)

    async def of_each(source):
        return {await source.topic_id(number) for number in range(3)}

    with admin_client(settings) as admin:
        (described,) = admin.describe_topics([topic])
    (topic_id,) = asked(settings, topic, of_each)
    if broker.kind == "embedded":
        assert topic_id == ""
        return
    assert uuid.UUID(str(described["topic_id"])).bytes == urlsafe_b64decode(f"{topic_id}==")
    with admin_client(settings) as admin:
        admin.delete_topics([topic])
        while topic in admin.list_topics():
            time.sleep(0.1)
    time.sleep(0.5)  # a broker tells of a deletion before it is through with it
    broker.topics("calls", partitions=3)
    (following,) = asked(settings, topic, of_each)
    assert following not in ("", topic_id)


def test_a_topic_that_is_not_there_is_waited_for_and_told(broker):
    settings = broker.settings()
    if broker.kind == "embedded":
        pytest.skip("the embedded broker makes the topics that a client asks for")
    with pytest.raises(WriteFailed, match=f"no broker told whether {broker.prefix}-nothing is the topic"):
        asked(settings, f"{broker.prefix}-nothing", lambda source: source.topic_id(0))


def test_the_record_at_an_offset_is_found_where_it_is_committed_and_nowhere_else(broker):
    settings = broker.settings()
    (topic,) = broker.topics("calls", partitions=2, config={"retention.ms": "-1"})
    committed = {}

    async def publish():
        plain = AIOKafkaProducer(**aiokafka_options(settings))
        await plain.start()
        for n in range(5):  # one batch
            sent = await plain.send(topic, b"plain %d" % n, b"k", partition=0, timestamp_ms=1_000 + n)
            committed[n] = (b"k", b"plain %d" % n, 1_000 + n)
        await sent
        other = await plain.send_and_wait(topic, b"", None, partition=1, timestamp_ms=7)
        assert other.offset == 0
        await plain.stop()
        producer = AIOKafkaProducer(**aiokafka_options(settings), transactional_id=topic)
        await producer.start()
        for commit in (False, True):  # offset 5 and its marker, 7 and its marker
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"in a transaction", partition=0, timestamp_ms=2_000)
            await (producer.commit_transaction() if commit else producer.abort_transaction())
        committed[7] = (None, b"in a transaction", 2_000)
        await producer.stop()

    asyncio.run(publish())

    async def everywhere(source):
        return [(await source.records({1: 0, 0: offset})) for offset in range(9)]

    for offset, found in enumerate(asked(settings, topic, everywhere)):
        assert found[1] == Witness.of(0, 7, None, b"")
        if offset in committed:
            key, value, at_ms = committed[offset]
            assert found[0] == Witness.of(offset, at_ms, key, value), offset
        else:
            assert found[0] is None, offset


def test_a_record_that_retention_took_is_told_from_one_that_is_another(broker):
    settings = broker.settings()
    (topic,) = broker.topics("calls")
    if broker.kind == "embedded":
        pytest.skip("the embedded broker cannot be told to delete records")

    async def publish():
        producer = AIOKafkaProducer(**aiokafka_options(settings))
        await producer.start()
        for n in range(9):
            await producer.send_and_wait(topic, b"%d" % n, partition=0)
        await producer.stop()

    asyncio.run(publish())
    with admin_client(settings) as admin:
        admin.delete_records({TopicPartition(topic, 0): 5})

    async def each(source):
        found = await source.found([0])
        return found[0].offsets, [(await source.records({0: offset}))[0] for offset in (4, 5)]

    offsets, (gone, there) = asked(settings, topic, each)
    assert offsets == range(5, 9)
    assert gone == GONE
    assert there.offset == 5


def test_the_newest_position_is_found_however_far_back_it_is(broker):
    settings = broker.settings()
    (topic,) = broker.topics("changelog", partitions=3)

    async def main():
        producer = AIOKafkaProducer(**aiokafka_options(settings), transactional_id=topic)
        await producer.start()
        for number, rows in ((0, 3 * LOOK_BACK), (1, 0)):
            await producer.begin_transaction()
            for value in (b"old", b"new"):
                await producer.send(topic, value, POSITION_KEY, partition=number)
            for n in range(rows):
                await producer.send(topic, b"{}", b"%d" % n, partition=number)
            await producer.commit_transaction()
            await producer.begin_transaction()
            await producer.send(topic, b"aborted", POSITION_KEY, partition=number)
            await producer.abort_transaction()
        await producer.stop()
        return await last_positions(aiokafka_options(settings), topic, POSITION_KEY, range(3))

    repair()
    assert asyncio.run(main()) == {0: b"new", 1: b"new", 2: None}
