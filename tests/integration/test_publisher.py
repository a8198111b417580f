import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import msgspec
import orjson
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.partitioner import murmur2

from callfunnel.agents.config import Settings
from callfunnel.agents.demo.broker import EmbeddedBroker
from callfunnel.agents.errors import BrokerUnavailable, TopicsWrong
from callfunnel.agents.kafka.connection import admin_client
from callfunnel.agents.publish.file import publish_file
from callfunnel.agents.publish.publisher import Publisher, Refused
from callfunnel.agents.publish.resume import Checkpoint
from patience import Deadline, ended

PARTITIONS = 4
LONG_AGO_MS = 1_209_978_000_000
YEAR_MS = 31_536_000_000
ROOT = Path(__file__).parents[2]


@pytest.fixture
def topic(broker):
    return create_topic(broker)


def create_topic(broker, **config):
    (name,) = broker.topics("events", partitions=PARTITIONS, config={"retention.ms": "-1"} | config)
    return name


def records(address, topic):
    """All records of the topic, each partition in its order."""
    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest")
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends, starts = consumer.end_offsets(partitions), consumer.beginning_offsets(partitions)
    missing = sum(ends.values()) - sum(starts.values())
    found = []
    deadline = Deadline(30)
    while len(found) < missing and not deadline.is_over:
        for batch in consumer.poll(timeout_ms=500).values():
            found.extend(batch)
    consumer.close()
    return found


def dial(number, at_ms=LONG_AGO_MS, **changes):
    lead = f"lead-{number % 50}"
    return {"event_id": f"e{number}", "type": "dial", "occurred_at": at_ms, "lead_id": lead} | changes


def now_ms():
    return time.time_ns() // 1_000_000


def test_a_replayed_event_arrives_unchanged_with_its_lead_as_key_and_its_own_time(broker, topic):
    sent = [dial(number, at_ms=LONG_AGO_MS + number) for number in range(1000)]
    with Publisher(broker.address, topic, replay=True) as publisher:
        assert [publisher.publish(event) for event in sent] == [None] * 1000
    assert (publisher.acknowledged, publisher.settled_through, publisher.refused) == (1000, 1000, [])

    found = records(broker.address, topic)
    assert (
        sorted((orjson.loads(record.value) for record in found), key=lambda e: int(e["event_id"][1:])) == sent
    )
    for record in found:
        event = orjson.loads(record.value)
        assert record.key.decode() == event["lead_id"]
        assert record.timestamp == event["occurred_at"]
        assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % PARTITIONS


def test_a_live_event_carries_the_time_it_is_sent(broker, topic):
    before_ms = now_ms()
    with Publisher(broker.address, topic) as publisher:
        publisher.publish(dial(1, at_ms=before_ms - 60_000))
    (record,) = records(broker.address, topic)
    assert before_ms <= record.timestamp <= now_ms()


def test_bytes_are_sent_as_they_are(broker, topic):
    value = b'{ "type":"dial","event_id":"e1","occurred_at":"2008-05-05T10:00:00+01:00","lead_id":"l1","x":1}'
    with Publisher(broker.address, topic, replay=True) as publisher:
        publisher.publish(value)
    (record,) = records(broker.address, topic)
    assert (record.value, record.key, record.timestamp) == (value, b"l1", LONG_AGO_MS)


def test_ctrl_c_in_the_middle_of_a_record_leaves_no_batch_that_nobody_can_read(broker, topic):
    def interrupt(frame, event, _):
        if event == "call" and frame.f_code.co_name == "encode_varint":
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    with suppress(KeyboardInterrupt), Publisher(broker.address, topic, replay=True) as publisher:
        publisher.publish(dial(0))
        sys.setprofile(interrupt)
        publisher.publish(dial(50))
        pytest.fail("nobody was interrupted")
    found = [orjson.loads(record.value)["event_id"] for record in records(broker.address, topic)]
    assert found == ["e0", "e50"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_the_contract_refuses_is_told_back_and_never_sent(broker, topic):
    with Publisher(broker.address, topic) as publisher:
        publisher.publish(dial(1, at_ms=now_ms()))
        verdict = publisher.publish(dial(2, at_ms=now_ms(), type="coffee_break"))
        assert verdict.reason == "unknown_type"
        assert publisher.publish(b"nonsense", position=7).reason == "not_json"
        assert publisher.publish(dial(3, at_ms=now_ms() - 2 * YEAR_MS)).reason == "too_old"
    assert [(refused.position, refused.reason) for refused in publisher.refused] == [
        (2, "unknown_type"),
        (7, "not_json"),
        (8, "too_old"),
    ]
    assert publisher.refused[0] == Refused(2, verdict.reason, verdict.detail)
    assert (publisher.acknowledged, publisher.settled_through) == (1, 8)
    assert len(records(broker.address, topic)) == 1


def test_a_missing_topic_is_named_at_once_and_not_created(broker):
    with pytest.raises(TopicsWrong, match=r"has no topic no-such-topic.*callfunnel topics create"):
        Publisher(broker.address, "no-such-topic")
    with admin_client(broker.settings()) as admin:
        assert "no-such-topic" not in admin.list_topics()


def test_a_history_is_not_published_where_it_would_vanish(broker):
    topic = create_topic(broker, **{"retention.ms": "604800000", "message.timestamp.type": "CreateTime"})
    with Publisher(broker.address, topic, replay=True) as publisher:
        publisher.publish(dial(1, at_ms=now_ms() - 3_600_000))
        with pytest.raises(TopicsWrong, match=r"event 2.*retention\.ms=-1"):
            publisher.publish(dial(2))
    assert publisher.acknowledged == 1


def test_a_broker_that_is_away_is_named_with_its_address_and_the_remedy():
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1 does not answer.*--broker HOST:PORT"):
        Publisher("127.0.0.1:1", "events", timeout_seconds=1)


def test_a_topic_that_is_deleted_meanwhile_is_named_and_not_the_broker(broker, topic):
    publisher = Publisher(broker.address, topic, replay=True, timeout_seconds=4)
    if not publisher.topic_id:
        pytest.skip("the embedded broker gives topics no id")
    publisher.publish(dial(1))
    publisher.flush()
    with admin_client(broker.settings()) as admin:
        admin.delete_topics([topic])
    publisher.publish(dial(2))
    with pytest.raises(TopicsWrong, match=f"{topic} was deleted, or deleted and made anew, while"):
        publisher.flush()
    publisher.close()


def test_a_broker_that_goes_away_ends_the_run_and_the_next_one_loses_nothing(tmp_path):
    broker, topic = EmbeddedBroker(tmp_path), "events"
    settings = {"num_partitions": PARTITIONS, "replication_factor": 1, "configs": {"retention.ms": "-1"}}
    with broker:
        with admin_client(Settings(broker=broker.address)) as admin:
            admin.create_topics({topic: settings})
        publisher = Publisher(broker.address, topic, replay=True, timeout_seconds=2)
        for number in range(1, 101):
            publisher.publish(dial(number))
        publisher.flush()
        time.sleep(3)  # the embedded broker writes to disk a little later than it acknowledges
    for number in range(101, 151):
        publisher.publish(dial(number))
    with pytest.raises(BrokerUnavailable, match="100 events are acknowledged"):
        publisher.flush()
    with pytest.raises(BrokerUnavailable):
        publisher.publish(dial(151))
    publisher.close()
    assert (publisher.acknowledged, publisher.settled_through) == (100, 100)

    with broker:
        with Publisher(broker.address, topic, replay=True) as again:
            for number in range(publisher.settled_through + 1, 152):
                again.publish(dial(number))
        numbers = {orjson.loads(record.value)["event_id"] for record in records(broker.address, topic)}
    assert numbers == {f"e{number}" for number in range(1, 152)}


def callfunnel_publish(broker, topic, state, *arguments):
    command = [sys.executable, "-m", "callfunnel.agents.cli", "publish", *arguments]
    command += ["--broker", broker.address, "--topic", topic]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"XDG_STATE_HOME": str(state)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_accounts_for_every_line_and_its_verdict_is_no_if_one_is_refused(broker, topic, tmp_path):
    file = tmp_path / "day.jsonl"
    lines = [json.dumps(dial(1)), "", "nonsense", json.dumps(dial(2)), json.dumps(dial(3, lead_id=7))]
    file.write_text("\n".join(lines))
    run = callfunnel_publish(broker, topic, tmp_path, str(file), "--replay", "--json")
    out, err = ended(run, 60)
    report = json.loads(out)
    assert run.returncode == 1
    assert [line.split(":")[:2] for line in err.splitlines()] == [
        ["line 3", " not_json"],
        ["line 5", " wrong_type"],
    ]
    assert (report["finished"], report["acknowledged"], report["refused"]) == (True, 2, 2)
    assert [(each["line"], each["reason"]) for each in report["refusals"]] == [
        (3, "not_json"),
        (5, "wrong_type"),
    ]
    assert len(records(broker.address, topic)) == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_command_goes_on_where_it_stopped(broker, topic, tmp_path, how):
    file = tmp_path / "day.jsonl"
    file.write_text("".join(json.dumps(dial(number)) + "\n" for number in range(20_000)))
    run = callfunnel_publish(broker, topic, tmp_path, str(file), "--replay", "--rate", "3000")
    saved = tmp_path / "callfunnel" / "publish"
    nothing = '{"done": {"line": 0}}'
    while not any(json.loads(one.read_text() or nothing)["done"]["line"] for one in saved.glob("*.json")):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(how)
    _, err = ended(run, 60)
    assert run.returncode == (130 if how == signal.SIGINT else -how), err

    again = callfunnel_publish(broker, topic, tmp_path, str(file), "--replay", "--json")
    out, err = ended(again, 60)
    assert again.returncode == 0, err
    assert "Going on behind line" in err
    assert json.loads(out)["acknowledged"] == 20_000
    found = [orjson.loads(record.value)["event_id"] for record in records(broker.address, topic)]
    assert set(found) == {f"e{number}" for number in range(20_000)}
    assert len(found) < 30_000  # the second run did not begin at the start
    assert list(saved.glob("*")) == []


LINES = 600
STOPPED = 349


@pytest.fixture
def stopped(broker, topic, tmp_path, monkeypatch):
    """A file of which a run published the lines up to the one where it was told to stop."""
    file = tmp_path / "day.jsonl"
    file.write_text("".join(json.dumps(dial(number)) + "\n" for number in range(1, LINES + 1)))

    class Stopped(Publisher):
        def publish(self, event, *, position):
            if position > STOPPED:
                self.flush()
                raise KeyboardInterrupt
            return super().publish(event, position=position)

    checkpoint = Checkpoint.in_folder(tmp_path / "callfunnel", file, f"{topic} at {broker.address}")
    settings = broker.settings(source_topic=topic)
    with monkeypatch.context() as patched:
        patched.setattr("callfunnel.agents.publish.file.Publisher", Stopped)
        assert publish_file(settings, file, checkpoint, replay=True, rate=None, as_json=False) == 130
    assert msgspec.json.decode(checkpoint.path.read_bytes())["done"]["line"] == STOPPED
    assert len(records(broker.address, topic)) == STOPPED
    return SimpleNamespace(file=file, folder=tmp_path, progress=checkpoint.path)


def publish_again(broker, topic, stopped, *options):
    run = callfunnel_publish(broker, topic, stopped.folder, str(stopped.file), "--replay", *options)
    out, err = ended(run, 60)
    return SimpleNamespace(code=run.returncode, out=out, err=err)


def make_anew(broker, topic):
    with admin_client(broker.settings()) as admin:
        admin.delete_topics([topic])
        deadline = Deadline(30)
        while topic in admin.list_topics():
            assert not deadline.is_over
            time.sleep(0.05)
        wanted = {"num_partitions": PARTITIONS, "replication_factor": 1, "configs": {"retention.ms": "-1"}}
        while admin.create_topics({topic: wanted}, raise_errors=False)["topics"][0]["error_code"]:
            assert not deadline.is_over
            time.sleep(0.05)
        admin.wait_for_topics([topic])


def fill(broker, topic, first, count):
    with Publisher(broker.address, topic, replay=True) as publisher:
        for number in range(first, first + count):
            publisher.publish(dial(number))


@pytest.mark.parametrize("filled", [0, 2_000], ids=["empty", "filled beyond"])
def test_a_topic_that_was_made_anew_gets_nothing_until_a_person_has_decided(broker, topic, stopped, filled):
    make_anew(broker, topic)
    fill(broker, topic, 10_000, filled)
    before = stopped.progress.read_bytes()
    for _ in range(2):
        refused = publish_again(broker, topic, stopped)
        assert refused.code == 64, refused.err
        assert f"up to line {STOPPED}. But {topic} " in refused.err
        assert "It was made anew, or another cluster answers there" in refused.err
        assert "Nothing was published now. --from-start publishes every line" in refused.err
        assert f"--resume-anyway goes on behind line {STOPPED}" in refused.err
        assert "Traceback" not in refused.err
        assert stopped.progress.read_bytes() == before
        assert len(records(broker.address, topic)) == filled
    assert publish_again(broker, topic, stopped, "--from-start").code == 0
    assert len(records(broker.address, topic)) == filled + LINES
    assert not stopped.progress.exists()


def test_who_says_so_goes_on_in_another_topic(broker, topic, stopped):
    make_anew(broker, topic)
    assert publish_again(broker, topic, stopped, "--resume-anyway").code == 0
    found = [orjson.loads(record.value)["event_id"] for record in records(broker.address, topic)]
    assert sorted(found) == sorted(f"e{number}" for number in range(STOPPED + 1, LINES + 1))


def test_a_topic_of_which_retention_took_the_last_event_is_known_by_its_id(broker, topic, stopped):
    ends = [0] * PARTITIONS
    for record in records(broker.address, topic):
        ends[record.partition] = max(ends[record.partition], record.offset + 1)
    with admin_client(broker.settings()) as admin:
        admin.delete_records({TopicPartition(topic, number): end for number, end in enumerate(ends)})
    again = publish_again(broker, topic, stopped)
    if broker.kind == "kafka":
        assert again.code == 0, again.err
        assert len(records(broker.address, topic)) == LINES - STOPPED
    else:
        assert again.code == 64, again.err
        assert "its broker gives topics no id" in again.err


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole lines", "half of a line"])
def test_a_file_that_only_grew_goes_on(broker, topic, stopped, is_whole):
    more = json.dumps(dial(LINES + 1)) + "\n" * is_whole
    with stopped.file.open("a") as file:
        file.write(more)
    os.utime(stopped.file, (1, 1))
    again = publish_again(broker, topic, stopped)
    assert again.code == 0, again.err
    assert f"Going on behind line {STOPPED}, where an earlier run stopped." in again.err
    assert len(records(broker.address, topic)) == LINES + 1


def test_a_file_that_changed_before_the_place_gets_nothing_published_until_a_person_has_decided(
    broker, topic, stopped
):
    """A new line at its head: what is behind line 349 now was not published."""
    stopped.file.write_text(json.dumps(dial(0)) + "\n" + stopped.file.read_text())
    refused = publish_again(broker, topic, stopped)
    assert refused.code == 64, refused.err
    assert f"the first {STOPPED} lines of {stopped.file} are not those that were published" in refused.err
    assert len(records(broker.address, topic)) == STOPPED
    assert publish_again(broker, topic, stopped, "--from-start").code == 0
    found = {orjson.loads(record.value)["event_id"] for record in records(broker.address, topic)}
    assert found == {f"e{number}" for number in range(LINES + 1)}


def of_an_earlier_version(stopped):
    saved = msgspec.json.decode(stopped.progress.read_bytes())
    stat = stopped.file.stat()
    version = f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
    earlier = {"publishes": saved["publishes"], "file_version": version, "done": saved["done"]}
    stopped.progress.write_bytes(msgspec.json.encode(earlier))


def test_a_progress_file_of_an_earlier_version_goes_on_and_says_what_it_does_not_know(broker, topic, stopped):
    of_an_earlier_version(stopped)
    again = publish_again(broker, topic, stopped)
    assert again.code == 0, again.err
    assert f"Going on behind line {STOPPED}" in again.err
    assert "That run was of an earlier version, which kept no id of the topic" in again.err
    assert len(records(broker.address, topic)) == LINES


def test_a_progress_file_of_an_earlier_version_does_not_fit_a_topic_with_fewer_records(
    broker, topic, stopped
):
    of_an_earlier_version(stopped)
    make_anew(broker, topic)
    fill(broker, topic, 10_000, 100)
    refused = publish_again(broker, topic, stopped)
    assert refused.code == 64, refused.err
    assert f"{topic} never had more than 100 records" in refused.err
    assert len(records(broker.address, topic)) == 100


@pytest.mark.parametrize(
    ("answer", "code", "published"),
    [("from-start", 0, LINES), ("resume-anyway", 0, LINES - STOPPED), ("\x04", 130, 0)],
    ids=["from-start", "resume-anyway", "nothing"],
)
def test_at_a_terminal_it_asks(broker, topic, stopped, answer, code, published):
    make_anew(broker, topic)
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "callfunnel.agents.cli", "publish", str(stopped.file), "--replay"]
    command += ["--broker", broker.address, "--topic", topic]
    run = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"XDG_STATE_HOME": str(stopped.folder), "TERM": "dumb"},
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
    )
    os.close(end)
    said = b""
    with suppress(OSError):  # its end is closed
        while got := os.read(terminal, 65_536):
            said += got
            if said.endswith(b": ") and answer:
                assert len(records(broker.address, topic)) == 0
                os.write(terminal, answer.encode() + b"\n" * (len(answer) > 1))
                answer = ""
    os.close(terminal)
    assert run.wait(30) == code, said
    assert b"Which one (from-start, resume-anyway): " in said
    assert len(records(broker.address, topic)) == published


def test_two_runs_at_once_do_not_fight(broker, topic, stopped):
    """The second one is told, and publishes what is left when the first one has ended."""
    first = callfunnel_publish(broker, topic, stopped.folder, str(stopped.file), "--replay", "--rate", "2")
    saved = stopped.progress.read_bytes()
    while stopped.progress.read_bytes() == saved:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    second = publish_again(broker, topic, stopped)
    assert second.code == 75, second.err
    assert (
        f"Another `callfunnel publish` is at it: {stopped.file} to {topic} at {broker.address}" in second.err
    )
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 130, first.communicate()
    assert publish_again(broker, topic, stopped).code == 0
    found = [orjson.loads(record.value)["event_id"] for record in records(broker.address, topic)]
    assert set(found) == {f"e{number}" for number in range(1, LINES + 1)}
    assert list(stopped.progress.parent.iterdir()) == []
