"""What a run has left behind, as a reader sees it that shares no code with the product, and the verdict.

The reader is librdkafka (the product reads with aiokafka), the rows are parsed here, and each cell is
compared with the oracle's.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from callfunnel.agents.config import Settings
from callfunnel.schemas.topics import funnel_changelog, leads_changelog
from callfunnel.streams import oracle
from callfunnel.streams.measures import COLUMNS, ROLLUPS, SEGMENT
from callfunnel.streams.panes import RESOLUTIONS
from faults.stream import Expected
from patience import Deadline

POSITION = b'["position"]'
LEADS_POSITION = b"\x00position"
ROLLUP_NAMES = {rollup.id: rollup.name for rollup in ROLLUPS}
RESOLUTION_NAMES = {id_: name for name, id_ in RESOLUTIONS.items()}
COLUMN_NAMES = {id_: name for name, id_ in COLUMNS.items()}
unpack = msgspec.msgpack.Decoder(strict=True).decode


class Left:
    """The newest row of each key, and every dead letter."""

    def __init__(self) -> None:
        self.funnel: dict[int, dict[bytes, bytes]] = defaultdict(dict)
        self.leads: dict[int, dict[bytes, bytes]] = defaultdict(dict)
        self.dead: Counter[tuple[int, int, str]] = Counter()
        """Source partition, source offset and reason of each dead letter."""

    def position(self, partition: int) -> dict[str, Any]:
        row = self.funnel[partition].get(POSITION)
        return orjson.loads(row) if row else {}

    def total(self, what: str) -> int:
        return sum(self.position(partition).get(what, 0) for partition in list(self.funnel))

    @property
    def rows(self) -> tuple[int, int]:
        """Rows of the funnel and of the leads table, as a worker counts its own."""
        return (
            sum(len(rows) - (POSITION in rows) for rows in self.funnel.values()),
            sum(len(rows) - (LEADS_POSITION in rows) for rows in self.leads.values()),
        )

    def tables(self, partition: int) -> oracle.Tables:
        """The rows of the changelog, and what they hold of minutes in every pane that these lie in."""
        position = self.position(partition)
        in_force, zone = position.get("generation"), ZoneInfo(position.get("timezone") or "UTC")
        rows: defaultdict[oracle.RowKey, Counter[str]] = defaultdict(Counter)
        for key, value in self.funnel[partition].items():
            if key == POSITION:
                continue
            generation, rollup, resolution, start, *dimensions = unpack(key)
            if generation != in_force:
                continue
            columns = {COLUMN_NAMES[id_]: n for id_, n in unpack(value).items()}
            name, rollup = RESOLUTION_NAMES[resolution], ROLLUP_NAMES[rollup]
            for pane in oracle.panes(start * 1000, zone) if name == "1m" else [(name, start)]:
                if pane != ("all", 0) or rollup == SEGMENT.name:
                    rows[*pane, rollup, *dimensions].update(columns)
        return {key: dict(columns) for key, columns in rows.items()}


class Reader:
    """Reads the changelogs and the dead letters, committed records only, from their beginning on."""

    def __init__(self, settings: Settings, dead_letters: bool = True) -> None:
        self.left = Left()
        self._names = {
            funnel_changelog(settings.app_id): self.left.funnel,
            leads_changelog(settings.app_id): self.left.leads,
        }
        self._dead_letters = settings.dead_letter_topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.broker,
                "group.id": f"verifier-{settings.app_id}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.queue.backoff.ms": 5,
                "log_level": 0,
            }
        )
        topics = self._consumer.list_topics(timeout=20).topics
        partitions = [
            TopicPartition(topic, number, OFFSET_BEGINNING)
            for topic in (*self._names, *[self._dead_letters] * dead_letters)
            for number in topics[topic].partitions
        ]
        self._consumer.assign(partitions)
        self._unread = {(each.topic, each.partition) for each in partitions}

    def close(self) -> None:
        self._consumer.close()

    @property
    def is_at_end(self) -> bool:
        return not self._unread

    def first_offset(self, topic: str, partition: int) -> int:
        """The first offset that the broker still has."""
        return self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=20)[0]

    def read(self, seconds: float) -> None:
        """Take what has come within `seconds`."""
        for message in self._consumer.consume(10_000, seconds):
            where = message.topic(), message.partition()
            if message.error():
                if message.error().code() == KafkaError._PARTITION_EOF:
                    self._unread.discard(where)
                continue
            self._unread.add(where)
            if where[0] == self._dead_letters:
                headers = dict(message.headers())
                self.left.dead[
                    int(headers["__connect.errors.partition"]),
                    int(headers["__connect.errors.offset"]),
                    headers["callfunnel.reason"].decode(),
                ] += 1
                continue
            rows = self._names[where[0]][where[1]]
            if message.value() is None:
                rows.pop(message.key(), None)
            else:
                rows[message.key()] = message.value()

    def wait(self, ends: Mapping[int, int], seconds: float, tend: Callable[[], object]) -> bool:
        """Read until the tables cover the source up to `ends`; False when they do not in time."""
        deadline = Deadline(seconds)
        while not deadline.is_over:
            tend()
            self.read(0.2)
            if self.is_at_end and all(self._covers(partition, end) for partition, end in ends.items()):
                return True
        return False

    def _covers(self, partition: int, end: int) -> bool:
        left = self.left
        at = left.funnel[partition].get(POSITION)
        return (
            at is not None
            and at == left.leads[partition].get(LEADS_POSITION)
            and (orjson.loads(at)["offset"] >= end)
        )


class Verdict(msgspec.Struct):
    """The end of a run. `differences` is empty when everything is as it must be."""

    lost: int = 0
    doubled: int = 0
    holes: int = 0
    replayed: int = 0
    exact: bool = True
    """Whether every number is right; what else is not as it must be is a matter of time."""
    differences: list[str] = []

    def __str__(self) -> str:
        return f"lost={self.lost} doubled={self.doubled} holes={self.holes} replayed={self.replayed}"

    def expect(self, holds: object, otherwise: str) -> None:
        if not holds:
            self.differences.append(otherwise)


def compare(
    left: Left, expected: Expected, read: Mapping[int, int], dead: Mapping[tuple[int, int, str], int]
) -> Verdict:
    """Every cell, every record and every dead letter. `read` holds how many records there were to read of
    each partition, `dead` which dead letters there must be."""
    verdict = Verdict()
    for partition in sorted({*expected.tables, *left.funnel}):
        want, got = expected.tables.get(partition, {}), left.tables(partition)
        lost, doubled = oracle.lost_and_doubled(want, got)
        verdict.lost += lost
        verdict.doubled += doubled
        verdict.differences += [f"partition {partition}: {line}" for line in oracle.differences(want, got)]
    for partition, records in read.items():
        at = left.position(partition)
        accounted = sum(at.get(what, 0) for what in ("applied", "duplicates", "rejected", "rerouted"))
        verdict.holes += max(0, records - accounted)
        verdict.expect(accounted == records, f"partition {partition}: {records} records, tables say {at}")
    verdict.expect(
        left.total("applied") == expected.applied,
        f"applied: expected {expected.applied}, got {left.total('applied')}",
    )
    verdict.expect(left.rows[1] == expected.leads, f"leads: expected {expected.leads}, got {left.rows[1]}")
    for letter in {*dead, *left.dead}:
        want, got = dead.get(letter, 0), left.dead[letter]
        verdict.lost += max(0, want - got)
        verdict.doubled += max(0, got - want)
        verdict.expect(want == got, f"dead letters of {letter}: expected {want}, got {got}")
    verdict.exact = not verdict.differences
    return verdict
