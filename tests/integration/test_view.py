"""The view against real logs: transactions, aborts, markers at the end, new topics, returning brokers."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from kafka.errors import TopicAlreadyExistsError

from callfunnel.agents.choice import sums_for
from callfunnel.agents.demo.broker import EmbeddedBroker, embedded_program, free_port
from callfunnel.agents.errors import Failure
from callfunnel.agents.kafka.connection import admin_client, aiokafka_options
from callfunnel.agents.kafka.read_committed import repair
from callfunnel.agents.view.exposition import Exposition, new_registry
from callfunnel.agents.view.feed import Committed
from callfunnel.agents.view.http import Pages
from callfunnel.agents.view.snapshot import Funnel, View
from callfunnel.schemas.topics import funnel_changelog
from callfunnel.streams.rows import POSITION_KEY
from patience import Deadline, ended

NOW = 1_750_000_020
SPRING = ("spring", "web")
PANES = (("1m", NOW - NOW % 60), ("1h", NOW - NOW % 3_600), ("1d", NOW - NOW % 86_400), ("all", 0))


class Writer:
    """Writes what a worker would: one transaction with the rows of a batch and its position."""

    def __init__(self, producer, topic):
        self._producer = producer
        self._topic = topic
        self._offsets = {}

    async def begin(self, partition, dials, row=SPRING, panes=PANES):
        await self._producer.begin_transaction()
        for resolution, pane in panes:
            key = orjson.dumps([resolution, pane, "campaign+source", *row])
            await self._send(
                partition, key, None if dials is None else orjson.dumps({"events_dialed": dials})
            )

    async def commit(self, partition, **more):
        self._offsets[partition] = self._offsets.get(partition, 0) + 1
        position = {"offset": self._offsets[partition], "watermark_ms": NOW * 1000 + partition, "fold": "x"}
        position |= more
        await self._send(partition, POSITION_KEY, orjson.dumps(position))
        await self._producer.commit_transaction()

    async def abort(self):
        await self._producer.abort_transaction()

    async def batch(self, partition, dials, row=SPRING):
        await self.begin(partition, dials, row)
        await self.commit(partition)

    async def _send(self, partition, key, value):
        await self._producer.send_and_wait(self._topic, key=key, value=value, partition=partition)


@asynccontextmanager
async def writing(settings, topic):
    producer = AIOKafkaProducer(**aiokafka_options(settings), transactional_id=f"{topic}-writer")
    await producer.start()
    try:
        yield Writer(producer, topic)
    finally:
        await producer.stop()


@contextmanager
def viewing(settings, topic, refresh_seconds=0.05, **options):
    options = {"zone": UTC, "clock": "event", "refresh_seconds": refresh_seconds} | options
    options = {"unasked_seconds": refresh_seconds, "new_sums": sums_for("auto")} | options
    view = View(aiokafka_options(settings), topic, **options)
    view.start()
    try:
        yield view
        assert view.failure is None
    finally:
        view.stop()


async def until(condition, seconds=20.0):
    deadline = Deadline(seconds)
    while not condition():
        assert not deadline.is_over, "did not come true in time"
        await asyncio.sleep(0.02)


def dials(view, window="1h", row=SPRING):
    if view.snapshot is None:
        return None
    return view.snapshot.windows[window]["campaign+source"].get(row, {}).get("events_dialed", 0)


def scrape(pages) -> str:
    with urllib.request.urlopen(f"{pages.url}metrics", timeout=5) as answer:
        return answer.read().decode()


def test_metrics_are_the_sum_of_what_was_committed_in_every_partition(broker):
    settings = broker.settings()
    (topic,) = broker.topics("changelog", partitions=3, config={"cleanup.policy": "compact"})

    async def run():
        async with writing(settings, topic) as writer:
            for n in (1, 2, 3):
                for partition in range(3):
                    await writer.batch(partition, n)
            await writer.begin(0, 1000)
            await writer.abort()
            with viewing(settings, topic) as view:
                pages = Pages(
                    "127.0.0.1",
                    0,
                    view=view,
                    exposition=Exposition(view.standing, new_registry()),
                    not_ready=view.not_ready,
                )
                pages.start()
                try:
                    await until(lambda: view.current)
                    sample = 'callfunnel_events_total{campaign="spring",funnel_stage="dialed",source="web"}'
                    assert f"{sample} 9.0\n" in await asyncio.to_thread(scrape, pages)
                    await writer.batch(1, 30)
                    await until(lambda: dials(view) == 36)
                    assert f"{sample} 36.0\n" in await asyncio.to_thread(scrape, pages)
                    await writer.batch(1, None)
                    await until(lambda: dials(view) == 6)
                    marks = 'callfunnel_watermark_timestamp_seconds{partition="2"} 1.750000020002e+09\n'
                    assert marks in await asyncio.to_thread(scrape, pages)
                finally:
                    pages.stop()

    asyncio.run(run())


def test_what_this_process_has_committed_is_taken_in_memory_and_the_rest_from_the_broker(broker):
    settings = broker.settings()
    (topic,) = broker.topics("funnel", partitions=1)

    async def main():
        async with writing(settings, topic) as writer:
            await writer.batch(0, dials=1)
            with viewing(settings, topic) as view:
                await until(lambda: dials(view) == 1)
                begin = await end_of(settings, topic)
                rows = [
                    (orjson.dumps([resolution, pane, "campaign+source", *SPRING]), b'{"events_dialed":20}')
                    for resolution, pane in PANES
                ]
                position = {"offset": 2, "watermark_ms": NOW * 1000, "fold": "x"}
                rows.append((POSITION_KEY, orjson.dumps(position)))
                view.hand(Committed(0, begin - 1, range(begin, begin + len(rows)), rows))
                await until(lambda: dials(view) == 20)  # the broker does not have it
                await writer.batch(0, dials=2)
                await writer.batch(0, dials=3)
                await until(lambda: dials(view) == 3)
                assert view.snapshot.positions[0].offset == 3

    asyncio.run(main())


def test_who_asks_gets_the_numbers_of_now_and_they_are_not_made_before(broker):
    settings = broker.settings()
    (topic,) = broker.topics("funnel", partitions=1)

    async def main():
        async with writing(settings, topic) as writer:
            await writer.batch(0, dials=1)
            with viewing(settings, topic, unasked_seconds=600.0) as view:
                await until(lambda: dials(view) == 1)
                await writer.batch(0, dials=2)
                await until(lambda: view._read[TopicPartition(topic, 0)] > 6)
                await asyncio.sleep(0.2)  # the least time between two snapshots is over
                assert dials(view) == 1
                await view.fresh()
                assert dials(view) == 2

    asyncio.run(main())


async def end_of(settings, topic) -> int:
    consumer = AIOKafkaConsumer(**aiokafka_options(settings))
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        return (await consumer.end_offsets([partition]))[partition]
    finally:
        await consumer.stop()


def test_a_view_with_another_time_zone_shows_the_days_of_the_tables(broker):
    """To the tables it is another day already."""
    settings = broker.settings()
    (topic,) = broker.topics("changelog")
    in_kiritimati = NOW - NOW % 86_400 + 10 * 3_600

    async def run():
        async with writing(settings, topic) as writer:
            await writer.begin(0, 21, panes=[("1d", in_kiritimati)])
            await writer.commit(0, timezone="Pacific/Kiritimati", days_kept=400)
            with viewing(settings, topic) as view:
                await until(lambda: view.current)
                assert dials(view, window="today") == 21

    asyncio.run(run())


def test_tables_of_different_folds_have_no_numbers_until_they_are_of_one(broker):
    settings = broker.settings()
    (topic,) = broker.topics("changelog", partitions=2)

    async def run():
        async with writing(settings, topic) as writer:
            await writer.batch(0, 5)
            with viewing(settings, topic) as view:
                await until(lambda: dials(view) == 5)
                await writer.begin(1, 7)
                await writer.commit(1, fold="y", timezone="Europe/Berlin")
                await until(lambda: not view.current)
                assert (
                    "partitions 0: fold x (time zone not known); 1: fold y (Europe/Berlin)"
                    in view.not_ready()
                )
                await asyncio.sleep(6)  # the view looks at the broker meanwhile
                assert "fold y" in view.not_ready()
                await writer.batch(1, 8)
                await until(lambda: dials(view) == 13)

    asyncio.run(run())


def test_after_an_abort_what_the_same_producer_commits_is_seen(broker):
    settings = broker.settings()
    (topic,) = broker.topics("changelog")

    async def run():
        async with writing(settings, topic) as writer:
            with viewing(settings, topic) as view:
                await writer.batch(0, 1)
                await until(lambda: dials(view) == 1)
                await writer.begin(0, 1000)
                await writer.abort()
                await asyncio.sleep(0.3)  # the view reads past the abort
                await writer.batch(0, 2)
                await until(lambda: dials(view) == 2)

    asyncio.run(run())


def test_an_aborted_record_is_never_read_wherever_reading_begins(broker):
    settings = broker.settings()
    (topic,) = broker.topics("log")
    repair()

    async def run():
        producer = AIOKafkaProducer(**aiokafka_options(settings), transactional_id=topic)
        await producer.start()
        for name, commit in (("a", True), ("b", False), ("c", True), ("d", False), ("e", True)):
            await producer.begin_transaction()
            for n in range(3):
                await producer.send_and_wait(topic, f"{name}{n}".encode(), partition=0)
            await (producer.commit_transaction() if commit else producer.abort_transaction())
        await producer.stop()
        everything = [
            "a0",
            "a1",
            "a2",
            None,
            "b",
            "b",
            "b",
            None,
            "c0",
            "c1",
            "c2",
            None,
            "d",
            "d",
            "d",
            None,
        ]
        everything += ["e0", "e1", "e2", None]
        partition = TopicPartition(topic, 0)
        for start in range(len(everything)):
            reader = AIOKafkaConsumer(**aiokafka_options(settings), isolation_level="read_committed")
            await reader.start()
            reader.assign([partition])
            reader.seek(partition, start)
            found = []
            while await reader.position(partition) < len(everything):
                found += (await reader.getmany(timeout_ms=200)).get(partition, [])
            await reader.stop()
            assert [record.value.decode() for record in found] == [
                name for name in everything[start:] if name not in (None, "b", "d")
            ], start

    asyncio.run(run())


def test_a_view_catches_up_beside_an_open_transaction_and_shows_it_once_it_is_committed(broker):
    settings = broker.settings()
    (topic,) = broker.topics("changelog", partitions=2)

    async def run():
        async with writing(settings, topic) as writer:
            await writer.batch(0, 5)
            await writer.begin(0, 50)
            with viewing(settings, topic) as view:
                await until(lambda: view.current)
                assert dials(view) == 5
                await writer.commit(0)
                await until(lambda: dials(view) == 50)

    asyncio.run(run())


def test_every_snapshot_stands_at_the_end_of_a_batch(broker, monkeypatch):
    monkeypatch.setattr(
        "callfunnel.agents.view.snapshot._RECORDS_AT_ONCE", 2
    )  # so that a batch arrives in pieces
    settings = broker.settings()
    (topic,) = broker.topics("changelog")
    torn, seen = [], set()

    async def watch(view):
        while True:
            at = view.snapshot
            found = [
                at.windows[window]["campaign+source"].get(SPRING) for window in ("1h", "1d", "today", "all")
            ]
            seen.add(str(found))
            if any(columns != found[0] for columns in found):
                torn.append(found)
            await asyncio.sleep(0)

    async def run():
        async with writing(settings, topic) as writer:
            with viewing(settings, topic, refresh_seconds=0.001) as view:
                await until(lambda: view.current)
                watching = asyncio.create_task(watch(view))
                for n in range(1, 60):
                    await writer.batch(0, n)
                await until(lambda: dials(view) == 59)
                watching.cancel()

    asyncio.run(run())
    assert torn == []
    assert len(seen) > 10


def test_the_first_numbers_are_the_whole_sum(broker, monkeypatch):
    monkeypatch.setattr("callfunnel.agents.view.snapshot._RECORDS_AT_ONCE", 3)
    taken = []
    take = Funnel.snapshot
    monkeypatch.setattr(
        Funnel, "snapshot", lambda funnel, now_s: taken.append(take(funnel, now_s)) or taken[-1]
    )
    settings = broker.settings()
    (topic,) = broker.topics("changelog", partitions=2)

    async def run():
        async with writing(settings, topic) as writer:
            for n in range(1, 21):
                await writer.batch(n % 2, n)
        with viewing(settings, topic, refresh_seconds=0.001) as view:
            await until(lambda: view.current)
        assert taken[0].windows["1h"]["campaign+source"][SPRING] == {"events_dialed": 20 + 19}

    asyncio.run(run())


def test_a_topic_that_comes_later_is_waited_for(broker):
    settings = broker.settings()

    async def run():
        with viewing(settings, f"{broker.prefix}-changelog") as view:
            await until(lambda: "does not exist yet" in (view.not_ready() or ""))
            assert view.current is None
            (topic,) = await asyncio.to_thread(broker.topics, "changelog")
            await until(lambda: view.current)
            async with writing(settings, topic) as writer:
                await writer.batch(0, 4)
            await until(lambda: dials(view) == 4)

    asyncio.run(run())


def test_a_changelog_that_is_made_anew_is_read_from_its_beginning(broker):
    settings = broker.settings()
    (topic,) = broker.topics("changelog")

    def delete_and_create():
        with admin_client(settings) as admin:
            admin.delete_topics([topic])
        for _ in range(50):
            try:
                broker.topics("changelog")
                return
            except Failure as failure:
                if not isinstance(failure.__cause__, TopicAlreadyExistsError):
                    raise
                if broker.kind == "embedded":  # deletes at once, and makes the topics that a reader asks for
                    return
                time.sleep(0.2)

    async def run():
        with viewing(settings, topic) as view:
            async with writing(settings, topic) as writer:
                await writer.batch(0, 7)
                await writer.batch(0, 8)
                await until(lambda: dials(view) == 8)
            await asyncio.to_thread(delete_and_create)
            await until(lambda: not dials(view), seconds=30)
            async with writing(settings, topic) as writer:
                await writer.batch(0, 2)
            await until(lambda: dials(view) == 2, seconds=30)

    asyncio.run(run())


@pytest.mark.skipif(embedded_program() is None, reason="the embedded broker is not installed (noida-db)")
def test_a_broker_that_comes_back_is_followed_again(tmp_path):
    from callfunnel.agents.config import Settings

    port = free_port()
    settings = Settings.from_environ({}, broker=f"127.0.0.1:{port}", profile="development")

    async def run():
        with viewing(settings, "log", stale_seconds=3.0) as view:
            await until(lambda: "does not answer" in (view.not_ready() or ""))
            with EmbeddedBroker(tmp_path, port), admin_client(settings) as admin:
                admin.create_topics({"log": {"num_partitions": 2, "replication_factor": 1}})
                async with writing(settings, "log") as writer:
                    await writer.batch(0, 3)
                    await until(lambda: dials(view) == 3)
                await asyncio.sleep(3)  # the embedded broker keeps its last seconds in memory
            await until(lambda: view.standing().state == "stale")
            assert "the numbers stand still" in view.not_ready()
            assert (view.current, dials(view)) == (None, 3)
            with EmbeddedBroker(tmp_path, port):
                async with writing(settings, "log") as writer:
                    await writer.batch(1, 4)
                await until(lambda: dials(view) == 7, seconds=40)
                await until(lambda: view.current)

    asyncio.run(run())


@contextmanager
def command(*arguments, **environ):
    process = subprocess.Popen(
        [sys.executable, "-m", "callfunnel.agents.cli", "view", *arguments],
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped_and_leaves_with_0(broker, stop):
    settings = broker.settings()
    topic = funnel_changelog(settings.app_id)
    with admin_client(settings) as admin:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
    with command(
        "--broker", settings.broker, "--http-port", "0", CALLFUNNEL_APP_ID=settings.app_id
    ) as process:
        url = process.stdout.readline().split()[5]
        deadline = Deadline(20)
        while True:
            try:
                with urllib.request.urlopen(f"{url}-/ready", timeout=5) as answer:
                    assert answer.read() == b"ready\n"
                    break
            except OSError:
                assert not deadline.is_over
                time.sleep(0.1)
        process.send_signal(stop)
        _, errors = ended(process, 10)
        assert (process.returncode, errors) == (0, "")


def test_the_command_gives_up_on_a_broker_that_does_not_answer():
    port = str(free_port())
    with command("--broker", f"127.0.0.1:{port}", "--http-port", "0", CALLFUNNEL_WAIT_SECONDS="1") as process:
        _, errors = ended(process, 20)
        assert process.returncode == 69
        assert f"No Kafka broker answers at 127.0.0.1:{port}" in errors


def test_the_command_says_that_its_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with command("--http-port", port) as process:
            _, errors = ended(process, 20)
            assert process.returncode == 64
            assert f"CALLFUNNEL_HTTP_PORT: another program listens on 127.0.0.1:{port} already" in errors
