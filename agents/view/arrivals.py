"""How many records of the source are not in the numbers yet, and up to when the numbers are complete.

No worker is asked: the broker says where the source ends, and the tables say how far they go. So a view sees
dead workers and partitions without an owner.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from callfunnel.agents.config import Settings
from callfunnel.agents.errors import Failure
from callfunnel.agents.kafka.connection import admin_client
from callfunnel.agents.kafka.described import described
from callfunnel.streams.rows import Position

if TYPE_CHECKING:
    from kafka import KafkaAdminClient

ASK_SECONDS = 1.0
QUIET_ASK_SECONDS = 3.0
"""How often while nothing comes and nothing waits."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the broker said of the source, asked at `asked_at`."""

    asked_at: float
    """By the monotonic clock, before the request: records that arrived earlier lie before the ends."""
    ranges: Mapping[int, range]
    """Partition: the offsets that it holds and that are committed."""
    offsets: Mapping[int, int]
    """Partition: how far the numbers went at that time."""

    def is_quiet_since(self, before: Self | None) -> bool:
        """Whether nothing has come since, and nothing waits to be counted."""
        return (
            before is not None
            and before.ranges == self.ranges
            and all(held.stop <= self.offsets.get(number, 0) for number, held in self.ranges.items())
        )


class Arrivals:
    """Compares what the broker tells of the source with the numbers. One thread compares, any may read."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._now = now
        self.lags: Mapping[int, int] = {}
        """Partition: records that are not in the numbers yet; without partitions where that is unknown."""
        self.shrunk: Mapping[int, int] = {}
        """Partition: its end, if it ends before what is in the numbers."""
        self.complete_at: float | None = None
        """The numbers hold every record that had arrived by then; `None` while that is unknown."""
        self._complete: dict[int, float] = {}
        """The same for each partition."""
        self._marks: dict[int, tuple[float, int]] = {}
        """Partition: a time, and its end then. Numbers that reach this end are complete up to this time."""

    def compare(self, told: Told, positions: Mapping[int, Position]) -> None:
        """Take the newest answer, and how far the numbers go now."""
        ends = {number: told.ranges.get(number, range(0)).stop for number in told.offsets}
        self.shrunk = {number: end for number, end in ends.items() if end < told.offsets[number]}
        self.lags = {
            number: self._lag(number, its, told.asked_at, positions.get(number))
            for number, its in told.ranges.items()
            if number not in self.shrunk
        }
        self.complete_at = min(self._complete.values(), default=None)

    def _lag(self, number: int, its: range, asked_at: float, position: Position | None) -> int:
        at = max(its.start, position.offset if position else 0)
        if number not in self._complete:
            newest_s = (
                position.watermark_ms / 1000 if position and position.watermark_ms >= 0 else self._now()
            )
            self._complete[number] = self._clock() - max(0.0, self._now() - newest_s)
        marked_at, mark = self._marks.get(number, (self._complete[number], -1))
        if at >= mark:
            self._complete[number] = max(self._complete[number], marked_at)
            self._marks[number] = asked_at, its.stop
        if at >= its.stop:
            self._complete[number] = asked_at
        return max(0, its.stop - at)


class Source:
    """Asks the broker about the source topic once a second, while it is quiet less often, in its own thread.

    It has a client of its own: aiokafka's metadata requests create a missing topic if the broker lets them.
    """

    def __init__(
        self, settings: Settings, offsets: Callable[[], Mapping[int, int]], on_answer: Callable[[], object]
    ) -> None:
        self.topic = settings.source_topic
        self.told: Told | None = None
        """The newest answer, or `None` while there is none."""
        self.trouble: str | None = None
        """Why the broker does not tell this client, in words; `None` while it does."""
        self._settings = settings
        self._offsets = offsets
        self._on_answer = on_answer
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def start(self) -> None:
        """Begin to ask; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking. A request that is not answered yet is not waited for."""
        self._stopped.set()

    def _run(self) -> None:
        from kafka.errors import KafkaError

        while not self._stopped.is_set():
            with suppress(KafkaError, OSError, Failure), admin_client(self._settings) as admin:
                while not self._stopped.is_set():
                    before = self.told
                    self._ask(admin)
                    self._on_answer()
                    is_quiet = self.told is not None and self.told.is_quiet_since(before)
                    self._stopped.wait(QUIET_ASK_SECONDS if is_quiet else ASK_SECONDS)
            self._stopped.wait(ASK_SECONDS)

    def _ask(self, admin: KafkaAdminClient) -> None:
        from kafka import IsolationLevel, OffsetSpec, TopicPartition
        from kafka.errors import TopicAuthorizationFailedError, UnknownTopicOrPartitionError, for_code

        asked_at, offsets = time.monotonic(), self._offsets()
        (topic,) = described(admin, [self.topic])
        error = for_code(topic["error_code"])
        if error in (TopicAuthorizationFailedError, UnknownTopicOrPartitionError):
            self.told = None
            self.trouble = (
                f"the topic {self.topic} does not exist"
                if error is UnknownTopicOrPartitionError
                else f"this client may not ask about the topic {self.topic}; grant it Describe"
            )
            return
        if topic["error_code"]:
            raise error()
        partitions = [TopicPartition(self.topic, one["partition_index"]) for one in topic["partitions"]]
        ends = admin.list_partition_offsets(
            dict.fromkeys(partitions, OffsetSpec.LATEST), IsolationLevel.READ_COMMITTED
        )
        # Records that retention deleted unread do not wait to be counted.
        behind = [tp for tp in partitions if ends[tp].offset > offsets.get(tp.partition, 0)]
        starts = admin.list_partition_offsets(dict.fromkeys(behind, OffsetSpec.EARLIEST)) if behind else {}
        ranges = {
            tp.partition: range(starts[tp].offset if tp in starts else 0, ends[tp].offset)
            for tp in partitions
        }
        self.told, self.trouble = Told(asked_at, ranges, offsets), None
