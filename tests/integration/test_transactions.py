"""Ownership, and what nobody decided, as real brokers tell of them."""

import asyncio
from contextlib import asynccontextmanager
from typing import get_args

import pytest
from confluent_kafka import Consumer, TopicPartition

from callfunnel.agents.config import Compression
from callfunnel.agents.engine.transactions import Transactions
from callfunnel.agents.errors import TakenOver, WriteFailed
from callfunnel.agents.kafka import topics
from callfunnel.agents.kafka.connection import aiokafka_options
from callfunnel.agents.kafka.hanging import Tail, hanging, last
from callfunnel.agents.kafka.read_committed import repair
from callfunnel.schemas.topics import funnel_changelog
from integration.workers import grow


@pytest.fixture
def settings(broker):
    settings = broker.settings(partitions=1)
    topics.create(settings)
    return settings


@asynccontextmanager
async def owner(settings, compression="zstd"):
    transactions = Transactions(settings.app_id, aiokafka_options(settings), 15.0, compression)
    await transactions.own([0])
    try:
        yield transactions
    finally:
        await transactions.close()


def test_a_former_owner_is_told_so_when_it_ends_nothing(settings):
    covered = [(settings.dead_letter_topic, 0)]

    async def main():
        async with owner(settings) as former:
            await former.end_nothing(0, covered, commit=False)
            await former.end_nothing(0, covered, commit=True)
            async with owner(settings) as present:
                with pytest.raises(TakenOver):
                    await former.end_nothing(0, covered, commit=False)
                await present.end_nothing(0, covered, commit=True)

    asyncio.run(main())


def test_who_takes_over_amid_a_transaction_ends_nothing_over_what_it_wrote(settings):
    """By an abort: the embedded broker refuses an empty commit there, from then on."""
    letters = settings.dead_letter_topic, 0

    async def main():
        async with owner(settings) as former:
            producer = former._producers[0]
            await producer.begin_transaction()
            await producer.add_partitions([letters])
            batch = producer.create_batch()
            batch.fill(iter([((None, b"{"), [], None)]), 0)
            await (await producer.send_batch(batch, letters[0], partition=0))
            async with owner(settings) as present:
                await present.end_nothing(0, [letters], commit=False)
                await present.write(0, {letters: [((None, b"{"), [], None)]})

    asyncio.run(main())


def test_how_many_partitions_there_are_is_asked_anew_each_time(settings):
    source = settings.source_topic

    async def main():
        async with owner(settings) as transactions:
            await transactions.write(0, {(source, 0): [((b"key", b"value"), [], None)]})
            assert await transactions.partitions(0, source) == 1
            grow(settings, 3, source)
            assert await transactions.partitions(0, source) == 3
            with pytest.raises(WriteFailed, match="Partition 0"):
                await transactions.partitions(0, f"{source}?")

    asyncio.run(main())


@pytest.mark.parametrize("compression", get_args(Compression))
def test_rows_come_back_to_any_client_however_they_were_compressed(settings, compression):
    changelog = funnel_changelog(settings.app_id)
    rows = [((b"row %d" % n, b"value " * 50), [], None) for n in range(1_000)]

    async def write():
        async with owner(settings, compression) as transactions:
            await transactions.write(0, {(changelog, 0): rows})

    asyncio.run(write())
    consumer = Consumer({"bootstrap.servers": settings.broker, "group.id": "reader"})
    consumer.assign([TopicPartition(changelog, 0, 0)])
    try:
        read = consumer.consume(len(rows), timeout=30)
    finally:
        consumer.close()
    assert [((one.key(), one.value()), [], None) for one in read] == rows


def test_of_what_hangs_the_last_record_is_found(settings):
    changelog = funnel_changelog(settings.app_id), 0
    client = aiokafka_options(settings)
    rows = [
        ((b"row", b"1"), [("trace", b"1"), ("other", b"")], None),
        ((b"position", b"2"), [], None),
    ]

    async def main():
        async with owner(settings) as transactions:
            await transactions.write(0, {changelog: rows})
            await transactions.end_nothing(
                0, [changelog], commit=True
            )  # returns when the marker before it is there
            assert await hanging(client, [changelog]) == {}
            producer = transactions._producers[0]
            await producer.begin_transaction()
            await producer.add_partitions([changelog])
            batch = producer.create_batch()
            batch.fill(iter(rows), 0)
            await (await producer.send_batch(batch, changelog[0], partition=0))
            found = await hanging(client, [changelog], {"trace"})
            assert found == {changelog: Tail(b"position", b"2", ((("trace", b"1"),), ()))}
            await producer.abort_transaction()
            await transactions.end_nothing(0, [(settings.dead_letter_topic, 0)], commit=True)
            assert await hanging(client, [changelog]) == {}

    asyncio.run(main())


def test_the_last_committed_record_of_a_kind_is_found_however_far_back(settings, monkeypatch):
    letters = settings.dead_letter_topic, 0
    client = aiokafka_options(settings)
    monkeypatch.setattr("callfunnel.agents.kafka.hanging.LOOK_BACK", 4)
    repair()

    def records(*kinds):
        return {letters: [((None, b"{"), [("kind", kind)], None) for kind in kinds]}

    def kind(of):
        return lambda headers: len(headers) if dict(headers)["kind"] == of else None

    async def main():
        async with owner(settings) as transactions:
            assert await last(client, letters, kind(b"a")) is None
            await transactions.write(0, records(b"a", b"a", *[b"b"] * 9))
            await transactions.write(0, records(b"c"))
            producer = transactions._producers[0]
            await producer.begin_transaction()
            await producer.add_partitions([letters])
            batch = producer.create_batch()
            batch.fill(iter(records(*[b"d"] * 9)[letters]), 0)
            await (await producer.send_batch(batch, letters[0], partition=0))
            await producer.abort_transaction()
            await transactions.end_nothing(0, [(funnel_changelog(settings.app_id), 0)], commit=True)
            for there in (b"a", b"b", b"c"):
                assert await last(client, letters, kind(there)) == 1
            for missing in (b"d", b"e"):
                assert await last(client, letters, kind(missing)) is None

    asyncio.run(main())
