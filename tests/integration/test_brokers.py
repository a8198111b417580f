"""Both brokers of the tests do what the engine needs of a broker, and leave nothing behind."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from callfunnel.agents.config import Settings
from callfunnel.agents.demo import broker as brokers
from callfunnel.agents.demo.broker import (
    EmbeddedBroker,
    RunningBroker,
    choose,
    embedded_program,
    free_port,
    remove_dead_members,
    speaks_kafka,
)
from callfunnel.agents.errors import BrokerUnavailable
from callfunnel.agents.kafka.connection import admin_client
from callfunnel.agents.kafka.microbatch import fetch
from callfunnel.agents.kafka.read_committed import repair
from deploy.kafka import kraft
from patience import Deadline


def committed(address: str | list[str], topic: str) -> list[bytes]:
    consumer = KafkaConsumer(
        bootstrap_servers=address, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = consumer.end_offsets([partition])[partition]
        values: list[bytes] = []
        while consumer.position(partition) < end:
            values += [record.value for records in consumer.poll(500).values() for record in records]
        return values
    finally:
        consumer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="ports are kept for a process on Linux")
def test_a_port_is_given_to_one_process_until_it_ends(monkeypatch):
    source = "from callfunnel.agents.demo.broker import free_port; print(free_port(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", source], stdin=-1, stdout=-1, text=True) as other:
        port = int(other.stdout.readline())
        monkeypatch.setattr(brokers, "_PORTS", range(port, port + 1))
        with pytest.raises(BrokerUnavailable, match=str(port)):
            free_port()
        other.communicate("")
    assert free_port() == port


def test_a_machine_without_the_loopback_of_ipv4_is_told_so(monkeypatch):
    monkeypatch.setattr(
        "callfunnel.agents.demo.broker.HOST", "192.0.2.1"
    )  # an address for documents, no machine's own
    with pytest.raises(BrokerUnavailable, match=r"Nothing can listen at 192\.0\.2\.1 .*\[::1\]:9092"):
        free_port()


def test_a_transaction_shows_all_of_its_records_or_none(broker):
    (topic,) = broker.topics("rows")
    producer = KafkaProducer(bootstrap_servers=broker.address, transactional_id=broker.prefix)
    producer.init_transactions()
    for value, end in [
        (b"kept", producer.commit_transaction),
        (b"dropped", producer.abort_transaction),
        (b"kept too", producer.commit_transaction),
    ]:
        producer.begin_transaction()
        producer.send(topic, value, partition=0).get(10)
        end()
    producer.close()
    assert committed(broker.address, topic) == [b"kept", b"kept too"]


def test_who_begins_between_an_abort_and_an_open_transaction_misses_nothing(broker):
    (topic,) = broker.topics("rows")
    tp = TopicPartition(topic, 0)

    def producer(name):
        one = KafkaProducer(bootstrap_servers=broker.address, transactional_id=f"{broker.prefix}-{name}")
        one.init_transactions()
        return one

    def send(producer, value):
        producer.begin_transaction()
        return producer.send(topic, value, partition=0).get(10).offset

    async def read(start):
        consumer = AIOKafkaConsumer(bootstrap_servers=broker.address, isolation_level="read_committed")
        await consumer.start()
        values = []
        try:
            consumer.assign([tp])
            consumer.seek(tp, start)
            deadline = Deadline(10)
            while b"committed" not in values and not deadline.is_over:
                for batch in (await fetch(consumer, 100, 0.1)).values():
                    values += batch.since(start).values
        finally:
            await consumer.stop()
        return values

    repair()
    first, second = producer("first"), producer("second")
    send(first, b"aborted")
    first.abort_transaction()
    start = send(first, b"committed")
    send(second, b"open")
    first.commit_transaction()
    assert asyncio.run(read(start)) == [b"committed"]
    second.abort_transaction()
    first.close()
    second.close()


def test_topics_of_two_tests_do_not_meet(broker):
    other = type(broker)(broker.kind, broker.address)
    assert broker.topics("same") != other.topics("same")


MEMBER = """
import asyncio, signal, sys
from aiokafka import AIOKafkaConsumer
address, topic, group, instance = sys.argv[1:]
async def member():
    options = {"group_id": group, "group_instance_id": instance or None}
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=address, **options)
    await consumer.start()  # it knows the topic before it joins
    while not consumer.assignment():
        await asyncio.sleep(0.1)
    print("joined", flush=True)
    await asyncio.Event().wait()
signal.alarm(300)
asyncio.run(member())
"""
"""The client of the workers."""


@pytest.mark.parametrize("instance", ["", "worker-1"])
def test_dead_members_are_taken_out_of_the_group_and_living_ones_are_not(broker, instance):
    (topic,) = broker.topics("events")
    settings = broker.settings()
    command = [sys.executable, "-c", MEMBER, broker.address, topic, settings.app_id, instance]
    member = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert member.stdout.readline() == b"joined\n"
        if instance:
            assert remove_dead_members(settings, alive={instance}) == ()
    finally:
        member.kill()
        member.wait()
        member.stdout.close()
    assert len(remove_dead_members(settings)) == 1
    assert remove_dead_members(settings) == ()


def eventually(find, timeout_seconds=10.0):
    deadline = Deadline(timeout_seconds)
    while not (found := find()) and not deadline.is_over:
        time.sleep(0.05)
    return found


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def embedded() -> EmbeddedBroker:
    if embedded_program() is None:
        pytest.skip("the embedded broker is not installed (noida-db)")
    return EmbeddedBroker()


def test_the_embedded_broker_answers_when_started_and_is_gone_with_its_data_when_stopped(embedded):
    with embedded:
        host, port = embedded.address.split(":")
        folder, process = embedded._data._scratch.path, embedded._process
        assert speaks_kafka(host, int(port))
        assert folder.is_dir()
    assert not speaks_kafka(host, int(port))
    assert not folder.exists()
    assert process.returncode is not None


def test_the_embedded_broker_keeps_a_folder_it_was_given(embedded, tmp_path):
    for _ in range(2):
        with EmbeddedBroker(tmp_path / "data"):
            pass
    assert (tmp_path / "data").is_dir()


STARTER = """
import time
from callfunnel.agents.demo.broker import EmbeddedBroker
broker = EmbeddedBroker()
broker.start()
print(broker._process.pid, broker._data._scratch.path, flush=True)
time.sleep(60)
"""


def test_the_embedded_broker_dies_with_the_process_that_started_it(embedded):
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    pid, folder = starter.stdout.readline().split()
    assert is_alive(int(pid))
    starter.kill()
    starter.wait()
    starter.stdout.close()
    shutil.rmtree(folder)
    assert eventually(lambda: not is_alive(int(pid)))


def test_a_port_that_is_taken_is_named(embedded):
    with embedded:
        port = int(embedded.address.split(":")[1])
        with pytest.raises(BrokerUnavailable, match=f"Port {port} is taken") as error:
            EmbeddedBroker(port=port).start()
    assert error.value.exit_code == 69


def test_without_noida_db_the_embedded_broker_says_what_to_install(monkeypatch):
    monkeypatch.setattr("callfunnel.agents.demo.broker.embedded_program", lambda: None)
    with pytest.raises(BrokerUnavailable, match=r"-m pip install noida-db==[\d.]+`") as error:
        EmbeddedBroker().start()
    assert error.value.exit_code == 69


def test_an_address_means_a_running_broker_and_none_means_the_embedded_one():
    assert choose("kafka:9092").address == "kafka:9092"
    assert isinstance(choose("kafka:9092"), RunningBroker)
    assert isinstance(choose(None), EmbeddedBroker)


def test_without_java_or_maven_kafka_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(kraft.NotInstallable, match="needs Java 17 or newer, and no Java is installed"):
        kraft.find_java()
    with pytest.raises(kraft.NotInstallable, match="no `mvn` is installed"):
        kraft.fetch()


def test_a_maven_that_cannot_fetch_leaves_no_half_filled_cache(monkeypatch, tmp_path):
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\necho '[ERROR] the repository cannot be reached'\nexit 1\n")
    maven.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(kraft.NotInstallable, match="the repository cannot be reached"):
        kraft.fetch()
    assert not list(tmp_path.glob("cache/callfunnel/*/*"))


@pytest.fixture
def three_brokers():
    if kraft.lacking():
        pytest.skip(kraft.lacking())
    if "kafka" not in os.environ.get("FUNNEL_TEST_BROKERS", "kafka"):
        pytest.skip(f"FUNNEL_TEST_BROKERS={os.environ['FUNNEL_TEST_BROKERS']} leaves kafka out")
    with kraft.Cluster(brokers=3) as cluster:
        yield cluster


def leader_of(admin, topic) -> int | None:
    """None while the broker that answers, any of them, does not know it."""
    (told,) = admin.describe_topics([topic])
    return next((each["leader_id"] for each in told["partitions"] if each["leader_id"] > 0), None)


def test_of_three_brokers_one_may_be_killed_frozen_and_restarted(three_brokers):
    settings = Settings(broker=three_brokers.address)
    with admin_client(settings) as admin:
        options = {"num_partitions": 1, "replication_factor": 3, "configs": {"min.insync.replicas": "2"}}
        admin.create_topics({"rows": options})
        leader = eventually(lambda: leader_of(admin, "rows"), 60)
    node = three_brokers.nodes[leader - 1]
    producer = KafkaProducer(bootstrap_servers=three_brokers.address.split(","), acks="all")

    producer.send("rows", b"before").get(10)
    node.kill()
    producer.send("rows", b"while it is dead").get(60)
    node.start()
    three_brokers.wait()
    node.pause()
    assert not speaks_kafka("127.0.0.1", node.port)
    node.resume()
    assert eventually(lambda: speaks_kafka("127.0.0.1", node.port))
    producer.send("rows", b"after").get(60)
    producer.close()
    assert committed(three_brokers.address.split(","), "rows") == [b"before", b"while it is dead", b"after"]
