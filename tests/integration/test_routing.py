"""Events away from their leads' homes, for whatever reason: each is sent home, and counted once."""

import json
import os
import random
import shutil
import signal
import subprocess
import zlib
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaProducer

from callfunnel.agents.engine.rerouting import REROUTED
from callfunnel.agents.kafka import topics
from integration.workers import PARTITIONS, SEED, Record, assert_counted_once, assert_equal, calls, grow

KAFKAJS = "2.2.4"
SCRIPT = Path(__file__).with_name("kafkajs") / "publish.js"


@pytest.fixture(scope="session")
def kafkajs() -> Path:
    """The folder with kafkajs, fetched once per user."""
    folder = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "callfunnel" / f"kafkajs-{KAFKAJS}"
    )
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: no kafkajs to publish with")
    if not (folder / "node_modules" / "kafkajs").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"kafkajs@{KAFKAJS}"]
        fetched = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if fetched.returncode:
            pytest.skip(
                f"npm cannot fetch kafkajs: {(fetched.stderr.strip() or 'no reason given').splitlines()[-1]}"
            )
    return folder / "node_modules"


def publish_with_kafka_python(settings, records: list[Record]) -> None:
    producer = KafkaProducer(bootstrap_servers=settings.broker)
    for value, key, at_ms in records:
        producer.send(settings.source_topic, value, key, timestamp_ms=at_ms)
    producer.flush()
    producer.close()


def publish_with_kafkajs(settings, records: list[Record], modules: Path) -> None:
    lines = [
        json.dumps({"key": key.decode(), "value": value.decode(), "at_ms": at}) for value, key, at in records
    ]
    subprocess.run(
        ["node", str(SCRIPT), settings.broker, settings.source_topic],
        input="\n".join(lines),
        env=os.environ | {"NODE_PATH": str(modules), "KAFKAJS_NO_PARTITIONER_WARNING": "1"},
        text=True,
        check=True,
        timeout=60,
    )


def test_events_of_a_lead_from_three_clients_are_counted_once_in_its_home_partition(workers, kafkajs):
    records = calls(clients=1000, live_events=3000)
    workers.start()
    publish_with_kafka_python(workers.settings, records[0::3])
    workers.publish(records[1::3], partitioner="consistent_random")
    publish_with_kafkajs(workers.settings, records[2::3], kafkajs)
    left = workers.wait(len(records))
    assert_equal(left, records)
    assert left.total("rerouted") > len(records) / 6
    assert sum(map(len, left.source.values())) == len(records) + left.total("rerouted")


def test_a_publisher_that_is_trusted_is_not_corrected(workers):
    records = calls(clients=300, live_events=500)
    workers.start(partitioner="trust")
    workers.publish(records, partitioner="consistent_random")
    left = workers.wait(len(records))
    assert left.total("rerouted") == 0
    assert left.total("applied") + left.total("duplicates") == len(records)


# Counting anew


def another_app(workers, name, **changes):
    """What to change in the settings for an app that counts the same source anew; its topics are there."""
    settings = workers.settings
    own = {"app_id": f"{settings.app_id}-{name}", "dead_letter_topic": f"{settings.source_topic}-{name}.dlq"}
    topics.create(msgspec.structs.replace(settings, **own | changes))
    return own | changes


def everything(left):
    return sum(map(len, left.source.values()))


@pytest.mark.broker("kafka")
def test_a_source_that_grew_is_counted_anew_as_the_worker_advises(workers):
    records = calls(clients=200, live_events=600)
    workers.publish(records[::2], partitioner="consistent_random")
    first = workers.start()
    workers.wait(len(records[::2]))
    grow(workers.settings, PARTITIONS + 2, workers.settings.source_topic)
    assert first.exit_code(60) == 78
    assert f"had {PARTITIONS} partitions when this worker started, and has {PARTITIONS + 2} now" in first.log
    assert "(remedy count-anew)" in first.log
    second = workers.start()
    assert second.exit_code(60) == 78
    assert "(remedy count-anew)" in second.log
    workers.publish(records[1::2], partitioner="consistent_random")
    another = another_app(workers, "anew", partitions=PARTITIONS + 2)
    workers.start(**another)
    left = workers.wait(len(records), **another)
    assert_counted_once(left, records)
    assert left.dead == []


def test_tables_whose_topics_were_given_the_new_partitions_too_are_refused(workers):
    workers.publish(calls(clients=100, live_events=100))
    first = workers.start()
    workers.wait(1)
    first.send(signal.SIGTERM)
    assert first.exit_code(30) == 0
    grow(workers.settings, PARTITIONS + 2, *(spec.name for spec in topics.wanted(workers.settings)))
    second = workers.start()
    assert second.exit_code(60) == 78
    assert f"made of a source with {PARTITIONS} partitions, and it has {PARTITIONS + 2}" in second.log


def test_copied_and_forged_marks_change_nothing(workers):
    records = calls(clients=100, live_events=400)
    chance = random.Random(SEED)
    marks = ([], [(REROUTED, b"1")], [(REROUTED, f"{workers.settings.app_id} murmur2 {PARTITIONS}".encode())])
    producer = KafkaProducer(bootstrap_servers=workers.settings.broker)
    for value, key, at_ms in [*records, *chance.sample(records, len(records) // 2)]:
        producer.send(
            workers.settings.source_topic,
            value,
            key,
            headers=chance.choice(marks),
            partition=chance.randrange(PARTITIONS),
            timestamp_ms=at_ms,
        )
    producer.flush()
    producer.close()
    workers.start()
    left = workers.wait(len(records) * 3 // 2)
    assert_counted_once(left, records)
    assert everything(left) == len(records) * 3 // 2 + left.total("rerouted")
    assert left.dead == []


def test_apps_with_other_partitioners_work_on_one_source_and_moving_ends(workers):
    records = calls(clients=60, live_events=200)
    workers.publish(records, partitioner="random")
    others = {name: another_app(workers, name, partitioner=name) for name in ("crc32", "trust")}
    for changes in ({}, *others.values()):
        workers.start(**changes)
    left, digests, seen = workers.wait(len(records)), {}, 0
    while everything(left) > seen:  # what one sends home is another's to send home
        seen = everything(left)
        digests = {name: workers.wait(seen, **changes) for name, changes in others.items()}
        left = workers.wait(seen)
    assert everything(left) == len(records) + sum(one.total("rerouted") for one in (left, *digests.values()))
    assert_counted_once(left, records)
    assert_counted_once(digests["crc32"], records, zlib.crc32)
    trusting = digests["trust"]
    assert trusting.total("rerouted") == 0
    assert trusting.total("applied") + trusting.total("duplicates") == len(records)
    for one in (left, *digests.values()):
        reasons = {dict(letter.headers)["callfunnel.reason"] for letter in one.dead}
        assert reasons == {b"misrouted"}
        assert one.total("rejected") == len(one.dead)
    assert trusting.total("rejected") == everything(trusting) - len(records)
