"""Workers as real processes, and what they leave behind as a reader sees it that shares no code with them.

The expected tables come from the published events themselves, never from Kafka: a record that was lost before
the worker saw it would otherwise be missing on both sides.
"""

import asyncio
import heapq
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from confluent_kafka import Producer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.partitioner import murmur2

import patience
from callfunnel.agents.config import PREFIX, Settings, variable
from callfunnel.agents.demo import bank_marketing, generator
from callfunnel.agents.demo.broker import free_port, start_process
from callfunnel.agents.engine.rerouting import REROUTED
from callfunnel.agents.kafka import read_committed, topics
from callfunnel.agents.kafka.changelog import tables_of
from callfunnel.agents.kafka.connection import admin_client, aiokafka_options
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.schemas.topics import funnel_changelog, leads_changelog
from callfunnel.streams import oracle
from callfunnel.streams.log import entry_of
from callfunnel.streams.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    decode_position,
    generation_of,
)
from patience import Deadline

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("FUNNEL_TEST_SEED", "20080505"))
PARTITIONS = 4
BATCH_EVENTS = 100

PROGRAM = ("-m", "callfunnel.agents.cli")
"""What Python runs as a worker."""

Event = dict[str, Any]


class Record(NamedTuple):
    """What a publisher sends: the value's bytes, the key and the record's own time."""

    value: bytes
    key: bytes
    at_ms: int


def record(event: Event, at_ms: int | None = None) -> Record:
    return Record(
        orjson.dumps(event), event["lead_id"].encode(), event["occurred_at"] if at_ms is None else at_ms
    )


def calls(clients: int, live_events: int, seed: int = SEED) -> list[Record]:
    """The first clients of the bank's campaign, and from its second day on a floor with typical faults; a
    tenth of the bank's events is told twice, some of them much later."""
    chance = random.Random(seed)
    bank = list(bank_marketing.events(islice(bank_marketing.read(), clients)))
    told = [(event["occurred_at"], event) for event in bank]
    told += [
        (event["occurred_at"] + int(chance.expovariate(1 / 3_600_000)), event)
        for event in chance.sample(bank, len(bank) // 10)
    ]
    told.sort(key=lambda one: one[0])
    start_ms = bank[0]["occurred_at"] + 86_400_000
    floor = generator.live(seed, generator.FloorSettings(seats=30), start_ms, generator.TYPICAL_FAULTS)
    both = heapq.merge(told, islice(floor, live_events), key=lambda one: one[0])
    return [record(event, at_ms) for at_ms, event in both]


def grow(settings: Settings, partitions: int, *names: str) -> None:
    """Give these topics so many partitions; returns when the broker tells of them."""
    with admin_client(settings) as admin:
        admin.create_partitions(dict.fromkeys(names, partitions))
        while {spec.partitions for spec in topics.describe(admin, names).values()} != {partitions}:
            time.sleep(0.1)


def alter(settings: Settings, topic: str, **config: str) -> None:
    """Change settings of a topic; underscores stand for dots."""
    dotted = {name.replace("_", "."): value for name, value in config.items()}
    with admin_client(settings) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, dotted)])


def home(lead_id: str, partitions: int = PARTITIONS, digest: Callable[[bytes], int] = murmur2) -> int:
    return (digest(lead_id.encode()) & 0x7FFFFFFF) % partitions


def publish(settings: Settings, records: Iterable[Record], partitioner: str = "murmur2_random") -> None:
    """With librdkafka; returns when all are acknowledged. Small batches: a worker takes none in halves."""
    failed: list[Any] = []
    producer = Producer(
        {
            "bootstrap.servers": settings.broker,
            "partitioner": partitioner,
            "enable.idempotence": True,
            "batch.num.messages": BATCH_EVENTS,
        }
    )
    for value, key, at_ms in records:
        while True:
            try:
                producer.produce(
                    settings.source_topic,
                    value,
                    key,
                    timestamp=at_ms,
                    on_delivery=lambda error, _: failed.append(error) if error else None,
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(60) == 0
    assert failed == []


class Publishing:
    """Publishes in the background, evenly over `seconds`."""

    def __init__(self, settings: Settings, records: Sequence[Record], seconds: float) -> None:
        self._failure: BaseException | None = None
        self._arguments = settings, records, seconds
        self._thread = threading.Thread(target=self._run)
        self.done = False

    def _run(self) -> None:
        settings, records, seconds = self._arguments
        began = time.monotonic()
        steps = max(1, int(seconds / 0.25))
        try:
            for step in range(steps):
                size = -(-len(records) // steps)
                publish(settings, records[step * size : (step + 1) * size])
                time.sleep(max(0.0, began + (step + 1) * 0.25 - time.monotonic()))
            self.done = True
        except BaseException as failure:
            self._failure = failure

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._failure:
            raise self._failure


class Worker:
    """One process of `callfunnel worker`, or of another command that serves pages."""

    def __init__(
        self,
        settings: Settings,
        log: Path,
        environ: Mapping[str, str],
        program: Sequence[str] = PROGRAM,
        command: str = "worker",
    ) -> None:
        self.settings = settings
        self.url = f"http://127.0.0.1:{settings.http_port}"
        self._log = log
        words = [sys.executable, *program, command]
        self.process = start_process(words, log, {**environ, "PYTHONPATH": str(ROOT)})

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 when nobody listens."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The sum of the samples whose text begins with this name; 0 when there are none."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    @property
    def is_ready(self) -> bool:
        return self.get("/-/ready")[0] == 200

    def wait_until_ready(self, seconds: float = 60) -> Self:
        self.wait_until(lambda: self.is_ready, seconds, "is not ready")
        return self

    def wait_until(
        self, holds: Callable[[], object], seconds: float, otherwise: str, every_seconds: float = 0.03
    ) -> None:
        deadline = Deadline(seconds)
        while not holds():
            assert self.process.poll() is None, (
                f"the worker ended with {self.process.returncode}:\n{self.log}"
            )
            assert not deadline.is_over, f"the worker {otherwise} after {seconds} s:\n{self.log}"
            time.sleep(every_seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, seconds: float) -> int:
        """Wait for the end."""
        deadline = Deadline(seconds)
        while (code := self.process.poll()) is None:
            assert not deadline.is_over, f"the worker still runs after {seconds} s:\n{self.log}"
            time.sleep(0.02)
        return code


class Workers:
    """The workers of one test. Leaving it kills what still runs."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self._folder = folder
        self._started: list[Worker] = []

    def start(self, environ: Mapping[str, str] | None = None, **changes: Any) -> Worker:
        """Start a worker with the settings, `changes` to them and further variables."""
        settings = msgspec.structs.replace(self.settings, **{"http_port": free_port()} | changes)
        log = self._folder / f"worker-{len(self._started) + 1}.log"
        own = {"TMPDIR": str(self._folder)}  # what a killed worker leaves goes with the test's folder
        worker = Worker(settings, log, with_only(own | variables(settings) | dict(environ or {})))
        self._started.append(worker)
        return worker

    def publish(self, records: Iterable[Record], **options: Any) -> None:
        publish(self.settings, records, **options)

    def publishing(self, records: Sequence[Record], seconds: float) -> Publishing:
        return Publishing(self.settings, records, seconds)

    def wait(self, records: int, seconds: float = 90.0, **changes: Any) -> "Left":
        """What the workers have left behind when the whole source, at least `records`, is in the tables."""
        return self.wait_for(lambda left: left.is_complete(records), seconds, **changes)

    def wait_for(self, holds: Callable[["Left"], bool], seconds: float = 90.0, **changes: Any) -> "Left":
        """What the workers have left behind when this holds of it."""
        settings = msgspec.structs.replace(self.settings, **changes)
        return asyncio.run(_read(settings, holds, seconds, self.logs))

    def logs(self) -> str:
        return "\n".join(f"--- worker {i}\n{_ends(worker.log)}" for i, worker in enumerate(self._started, 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._started:
            worker.kill()
        print(f"FUNNEL_TEST_SEED={SEED}\n{self.logs()}")


def _ends(log: str) -> str:
    return log if len(log) <= 6000 else f"{log[:3000]}\n[…]\n{log[-3000:]}"


def with_only(own: Mapping[str, str]) -> dict[str, str]:
    """The environment with these settings of callfunnel and no others."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | {**own}


def callfunnel(own: Mapping[str, str], *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command with these settings and no others."""
    command = [sys.executable, *PROGRAM, *words]
    return patience.run(command, seconds, cwd=ROOT, env=with_only(own))


def variables(settings: Settings) -> dict[str, str]:
    """The environment that gives these settings."""
    defaults = Settings()
    values = msgspec.structs.asdict(settings)
    return {
        variable(name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in values.items()
        if value != getattr(defaults, name)
    }


class Left:
    """What is committed in the four topics."""

    def __init__(self, app_id: str, partitions: int) -> None:
        self._app_id = app_id
        self.source: dict[int, list[ConsumerRecord]] = {number: [] for number in range(partitions)}
        self.dead: list[ConsumerRecord] = []
        self.rows: dict[int, dict[bytes, bytes]] = defaultdict(dict)
        self.leads: dict[int, dict[bytes, bytes]] = defaultdict(dict)

    def position(self, partition: int) -> Position | None:
        row = self.rows[partition].get(POSITION_KEY)
        return None if row is None else decode_position(row)

    def is_complete(self, records: int) -> bool:
        """Whether the whole source, at least `records`, is in the tables, and what else they say was written.

        Kafka commits a transaction in one partition after the other: a position may be seen before a letter.
        """
        if sum(map(len, self.source.values())) < records:
            return False
        for partition, arrived in self.source.items():
            at = self.position(partition)
            if arrived and (at is None or at.offset <= arrived[-1].offset):
                return False
            if self.rows[partition].get(POSITION_KEY) != self.leads[partition].get(LEADS_POSITION_KEY):
                return False
        letters = sum(int(dict(one.headers).get("callfunnel.records", 1)) for one in self.dead)
        return letters >= self.total("rejected") and self._sent_home() >= self.total("rerouted")

    def _sent_home(self) -> int:
        """Records of the source that this app has sent there: its mark is their last one."""
        marks = (
            [mark for name, mark in one.headers if name == REROUTED]
            for records in self.source.values()
            for one in records
        )
        return sum(its[-1].startswith(self._app_id.encode() + b" ") for its in marks if its)

    @property
    def is_swept(self) -> bool:
        """Whether there are no rows but those in force."""
        return all(
            generation_of(key) == decode_position(rows[POSITION_KEY]).generation
            for rows in self.rows.values()
            for key in rows
            if key != POSITION_KEY
        )

    @cached_property
    def tables(self) -> dict[int, oracle.Tables]:
        return {partition: tables_of(rows).rows for partition, rows in self.rows.items()}

    def total(self, what: str) -> int:
        """`applied`, `duplicates`, `rejected` or `rerouted`, over all partitions."""
        positions = [self.position(partition) for partition in self.source]
        return sum(getattr(position, what) for position in positions if position)


async def _read(
    settings: Settings, done: Callable[[Left], bool], seconds: float, logs: Callable[[], str]
) -> Left:
    read_committed.repair()
    names = {
        settings.source_topic: "source",
        settings.dead_letter_topic: "dead",
        funnel_changelog(settings.app_id): "rows",
        leads_changelog(settings.app_id): "leads",
    }
    left = Left(settings.app_id, settings.partitions)
    consumer = AIOKafkaConsumer(
        **aiokafka_options(settings), isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(name, number) for name in names for number in left.source]
        consumer.assign(partitions)
        deadline = Deadline(seconds)
        while True:
            for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                _take(left, names[tp.topic], tp.partition, records)
            if done(left):
                ends = await consumer.end_offsets(partitions)
                behind = [tp for tp in partitions if await consumer.position(tp) < ends[tp]]
                if not behind:
                    return left
            positions = {number: left.position(number) for number in left.source}
            assert not deadline.is_over, (
                f"after {seconds} s the tables do not cover the source: seen "
                f"{ {n: records[-1].offset + 1 for n, records in left.source.items() if records} }, "
                f"tables {positions}\n{logs()}"
            )
    finally:
        await consumer.stop()


def _take(left: Left, what: str, partition: int, records: list[ConsumerRecord]) -> None:
    if what == "source":
        left.source[partition] += records
    elif what == "dead":
        left.dead += records
    else:
        rows = getattr(left, what)[partition]
        for one in records:
            if one.value is None:
                rows.pop(one.key, None)
            else:
                rows[one.key] = one.value


def assert_equal(left: Left, records: Sequence[Record], **fold: Any) -> None:
    """Every cell is the oracle's, and every record is accounted for. All `records` are good."""
    assert_counted_once(left, records, **fold)
    assert left.total("applied") + left.total("duplicates") == len(records)
    assert left.total("rejected") == len(left.dead)


def assert_counted_once(
    left: Left, records: Sequence[Record], digest: Callable[[bytes], int] = murmur2, **fold: Any
) -> None:
    """Every cell is the oracle's, however often and wherever the source holds the records."""
    events = Decoder(Limits(clock="event")).decode_all(
        [one.value for one in records], [one.key for one in records], [one.at_ms for one in records]
    )
    homes = {event.lead_id: home(event.lead_id, len(left.source), digest) for event in events}
    expected = oracle.partitioned(events, homes.__getitem__, **fold)
    for partition in left.source:
        wrong = oracle.differences(expected.get(partition, {}), left.tables.get(partition, {}))
        told = "\n".join(wrong[:20])
        assert not wrong, f"partition {partition}, FUNNEL_TEST_SEED={SEED}: {len(wrong)} cells differ\n{told}"
    for partition, arrived in left.source.items():
        at = left.position(partition) or Position(0, -1, "")
        accounted = at.applied + at.duplicates + at.rejected + at.rerouted
        assert accounted == len(arrived), f"partition {partition}: {at}, and {len(arrived)} records"
        leads = {lead_id.encode() for lead_id, at_home in homes.items() if at_home == partition}
        assert left.leads[partition].keys() - {LEADS_POSITION_KEY} == leads
    assert left.total("applied") == len({(event.lead_id, entry_of(event)) for event in events})
