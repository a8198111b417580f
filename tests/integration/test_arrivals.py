"""What real brokers say of the source, and that the numbers get there."""

import asyncio
import time
from contextlib import contextmanager

from aiokafka import AIOKafkaProducer

from callfunnel.agents.kafka import topics
from callfunnel.agents.kafka.connection import admin_client, aiokafka_options
from callfunnel.agents.view.arrivals import Source
from integration.workers import calls
from patience import Deadline


def until(condition, seconds=30.0):
    deadline = Deadline(seconds)
    while not condition():
        assert not deadline.is_over, "did not come true in time"
        time.sleep(0.05)


@contextmanager
def asking(settings, offsets=None):
    heard = []
    source = Source(settings, lambda: offsets or {}, lambda: heard.append(time.monotonic()))
    source.start()
    try:
        yield source, heard
    finally:
        source.stop()


async def in_a_transaction(settings, n, *, commit, keep_open=False):
    producer = AIOKafkaProducer(**aiokafka_options(settings), transactional_id=settings.app_id)
    await producer.start()
    await producer.begin_transaction()
    for number in range(n):
        await producer.send_and_wait(settings.source_topic, b"{}", partition=number % 2)
    if not keep_open:
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    return producer


def test_the_broker_says_where_each_partition_begins_and_ends(broker):
    settings = broker.settings(partitions=2)
    topics.create(settings)

    async def publish():
        await (await in_a_transaction(settings, 6, commit=True)).stop()

    asyncio.run(publish())
    with asking(settings, {0: 1, 1: 4}) as (source, heard):
        until(lambda: source.told)
        assert (source.told.ranges, source.trouble) == ({0: range(0, 4), 1: range(0, 4)}, None)
        assert source.told.offsets == {0: 1, 1: 4}
        assert 0 <= time.monotonic() - source.told.asked_at < 30
        until(lambda: len(heard) >= 3)  # it asks all the time


def test_what_is_not_committed_does_not_wait_to_be_counted(broker):
    settings = broker.settings(partitions=2)
    topics.create(settings)

    async def run():
        producer = await in_a_transaction(settings, 2, commit=True, keep_open=True)
        with asking(settings) as (source, _):
            await asyncio.to_thread(until, lambda: source.told)
            assert source.told.ranges == {0: range(0, 0), 1: range(0, 0)}
            await producer.commit_transaction()
            await asyncio.to_thread(until, lambda: source.told.ranges == {0: range(0, 2), 1: range(0, 2)})
        await producer.stop()

    asyncio.run(run())


def test_a_source_that_is_not_there_is_named_and_never_made(broker):
    settings = broker.settings(partitions=2)
    with asking(settings) as (source, heard):
        until(lambda: source.trouble)
        assert (source.trouble, source.told) == (f"the topic {settings.source_topic} does not exist", None)
        until(lambda: len(heard) >= 2)
        with admin_client(settings) as admin:
            assert settings.source_topic not in admin.list_topics()
        topics.create(settings)
        until(lambda: source.told)
        assert source.trouble is None


def test_behind_the_marks_of_a_transaction_no_records_wait(workers):
    records = calls(clients=50, live_events=200)
    worker = workers.start(view=True).wait_until_ready()
    workers.publish(records)

    async def abort():
        await (await in_a_transaction(workers.settings, 6, commit=False)).stop()

    asyncio.run(abort())
    lag = "callfunnel_view_source_lag_records"

    def all_is_counted():
        page = worker.get("/metrics")[1]
        told = [line for line in page.splitlines() if line.startswith(lag)]
        return len(told) == workers.settings.partitions and all(line.endswith(" 0.0") for line in told)

    worker.wait_until(all_is_counted, 60, "says that records wait", every_seconds=0.3)
    workers.wait(len(records))
