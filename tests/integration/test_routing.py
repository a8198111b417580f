"""Publishers that disagree about a lead's partition: each event is sent home, and counted once."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from kafka import KafkaProducer

from integration.workers import Record, assert_equal, calls

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
