"""Events away from their leads' homes: publishers that hash otherwise, growths, copies, forged headers.

The promise: whatever the source holds, and wherever, an app that counts it has counted each event once; and
what a worker advises when it finds that the source has grown leads there.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions

from callfunnel.agents import exit_codes
from callfunnel.agents.kafka import topics
from faults import stream
from faults.lab import Lab, Size
from faults.run import PARTITIONS, Run, Slot
from faults.surroundings import ends_with
from faults.verify import Reader, Verdict, compare
from integration.workers import Record, publish
from patience import Deadline

REROUTED = "callfunnel.rerouted"
ADVICE = "(remedy count-anew)"


def anew(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Twice the source grows and is counted anew, as the worker advises; in between, some of it is copied."""
    with lab.run(name, seed=seed, events=size.events, workers=1) as run:
        (slot,) = run.slots
        sent = list(stream.records(seed, size.events, run.mix))
        half = len(sent) // 2
        slot.start().wait_until_ready()
        _publish(run, sent[:half])
        _grow(run, PARTITIONS + 2)
        _publish(run, sent[half:])
        ends_with(run, slot, exit_codes.CONFIG, f"{PARTITIONS} partitions when this worker started", 40)
        slot.start()
        ends_with(run, slot, exit_codes.CONFIG, ADVICE, 40)
        verdict = _counts_anew(run, slot, PARTITIONS + 2)
        run.figures["copies"] = _copy_some(run)
        verdict = _added(verdict, _verdict(run, slot, PARTITIONS + 2))
        slot.stop()
        _grow(run, PARTITIONS + 3)
        verdict = _added(verdict, _counts_anew(run, slot, PARTITIONS + 3))
        for watch in run.watches:
            watch.stop()
            verdict.differences += watch.complaints[:20]
        verdict.differences += run.differences
        return verdict, run.figures


def _publish(run: Run, sent: list[stream.Sent]) -> None:
    """By CRC32, as librdkafka does when nobody tells it otherwise."""
    records = (Record(one.value, one.key, one.at_ms) for one in sent)
    publish(run.settings, records, partitioner="consistent_random")


def _grow(run: Run, partitions: int) -> None:
    (grown,) = run.admin.create_partitions([NewPartitions(run.settings.source_topic, partitions)]).values()
    grown.result(20)
    run.until(
        lambda: (
            len(run.admin.list_topics(run.settings.source_topic).topics[run.settings.source_topic].partitions)
            == partitions
        ),
        20,
        "the broker tells of the new partitions",
    )


def _counts_anew(run: Run, slot: Slot, partitions: int) -> Verdict:
    """A worker of another app counts the source from its beginning."""
    app_id, dead_letters = (
        f"{name}-of-{partitions}" for name in (run.settings.app_id, run.settings.source_topic)
    )
    run.settings = msgspec.structs.replace(
        run.settings, app_id=app_id, dead_letter_topic=f"{dead_letters}.dlq"
    )
    topics.create(run.settings)
    run.carries_out("count-anew")
    slot.start().wait_until_ready()
    return _verdict(run, slot, partitions)


def _verdict(run: Run, slot: Slot, partitions: int) -> Verdict:
    """Wait until the tables hold the source, with what the worker itself adds to it, and compare."""
    expected = stream.expected(run.seed, run.events, partitions, run.mix)
    reasons = {
        (sent.value, sent.key): sent.reason
        for sent in stream.records(run.seed, run.events, run.mix)
        if sent.reason is not None
    }
    reader, before, deadline = Reader(run.settings), -1, Deadline(120)
    while True:
        source = list(_source(run))
        # An open transaction hides what comes behind it: that nothing more is seen does not mean the end.
        if len(source) == before and (reader.left.total("applied") >= expected.applied or deadline.is_over):
            break
        before = len(source)
        ends = {message.partition(): message.offset() + 1 for message in source}
        run.expect(reader.wait(ends, 60, run.tend), f"the tables do not cover the source: {ends}")
    reader.close()
    run.wait_for_pages(expected.counters[-1])
    read = dict.fromkeys(range(partitions), 0)
    dead = {}
    for message in source:
        read[message.partition()] += 1
        reason = reasons.get((message.value(), message.key()))
        if reason is not None:
            dead[message.partition(), message.offset(), reason] = 1
    left = reader.left
    run.figures.setdefault("records", []).append(len(source))
    run.figures.setdefault("counted", []).append(f"{left.total('applied')} of {expected.applied}")
    run.figures.setdefault("leads", []).append(f"{left.rows[1]} of {expected.leads}")
    return compare(left, expected, read, dead)


def _added(verdict: Verdict, another: Verdict) -> Verdict:
    return Verdict(
        lost=verdict.lost + another.lost,
        doubled=verdict.doubled + another.doubled,
        holes=verdict.holes + another.holes,
        exact=verdict.exact and another.exact,
        differences=verdict.differences + another.differences,
    )


def _source(run: Run) -> Iterator[Message]:
    """Every committed record of the source."""
    consumer = Consumer(
        {
            "bootstrap.servers": run.settings.broker,
            "group.id": f"verifier-{run.settings.app_id}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    source = run.settings.source_topic
    unread = set(consumer.list_topics(source, timeout=20).topics[source].partitions)
    consumer.assign([TopicPartition(source, number, OFFSET_BEGINNING) for number in unread])
    while unread:
        for message in consumer.consume(10_000, 0.2):
            if not message.error():
                yield message
            elif message.error().code() == KafkaError._PARTITION_EOF:
                unread.discard(message.partition())
    consumer.close()


def _copy_some(run: Run) -> int:
    """Records come once more, to any partition: with their headers, or with one that a worker would write."""
    source = run.settings.source_topic
    partitions = len(run.admin.list_topics(source, timeout=20).topics[source].partitions)
    own = f"{run.settings.app_id} murmur2 {partitions}".encode()
    producer = Producer({"bootstrap.servers": run.settings.broker, "log_level": 0})
    copied = list(_source(run))[::5]
    for message in copied:
        forged = run.chance.choice(([], [], [(REROUTED, b"1")], [(REROUTED, own)]))
        producer.produce(
            source, message.value(), message.key(), run.chance.randrange(partitions),
            timestamp=message.timestamp()[1], headers=[*(message.headers() or ()), *forged],
        )  # fmt: skip
        producer.poll(0)
    run.expect(producer.flush(60) == 0, "the copies were not acknowledged")
    return len(copied)
