"""Makes aiokafka read what is committed where the broker tells it too much about what was aborted.

With an answer the broker names the aborted transactions that reach into it. noida-db 0.2.3 names all that
ever were in the partition, and aiokafka then drops everything that their producers committed later.
The law that decides here holds on any broker: a producer has one transaction at a time, so a transaction is
over at the producer's next marker. Where that can lie between an aborted transaction and the place where a
reader began, the reader goes back to see. No other module knows the fetcher of aiokafka.
"""

import logging
import time
from bisect import bisect, bisect_left, insort
from collections import defaultdict
from typing import Any
from weakref import WeakKeyDictionary

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord

from callfunnel.agents.kafka.batches import Batches, RecordBatch

log = logging.getLogger(__name__)


class Read:
    """What one reader has read of a partition, without a gap."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.first: dict[int, int] = {}
        """Producer: the offset of its first marker since the start."""
        self.aborts: defaultdict[int, list[int]] = defaultdict(list)
        """Producer: the offsets of its abort markers since the start."""

    def is_over(self, producer: int, first: int, at: int) -> bool | None:
        """Whether the aborted transaction that began at `first` ended before `at`; None: not to be known."""
        if first >= self.start:
            aborts = self.aborts[producer]
            return bisect(aborts, first) < bisect_left(aborts, at)
        return True if self.first.get(producer, at) < at else None


def _is_abort(batch: RecordBatch) -> bool:
    try:
        abort: bool = ControlRecord.parse(next(batch).key) == ABORT_MARKER
    except Exception:  # compacted away, or damaged: whoever reads the batch looks at its checksum
        return False
    return abort


class Repaired(fetcher.PartitionRecords):  # type: ignore[misc]
    _aborted_transactions: list[tuple[int, int]]

    def __init__(self, tp: Any, records: Batches, *more: Any) -> None:
        super().__init__(tp, records, *more)
        self._end = records.ahead[-1].next_offset
        self._markers = {
            batch.base_offset: (batch.producer_id, _is_abort(batch))
            for batch in records.ahead
            if batch.producer_id is not None and batch.is_control_batch
        }
        """Offset of a marker: its producer, and whether it is an abort."""
        self._producers = {batch.producer_id for batch in records.ahead if not batch.is_control_batch}

    def follow(self, read: Read) -> list[int]:
        """Forget the transactions that were over before; where those begin of which it cannot be known."""
        at = self.next_fetch_offset
        for offset, (producer, abort) in self._markers.items():
            read.first.setdefault(producer, offset)
            if abort and offset not in read.aborts[producer]:
                insort(read.aborts[producer], offset)
        read.end = max(read.end, self._end)
        next_is_abort = dict(reversed(self._markers.values()))
        aborted, unknown = [], []
        for producer, first in self._aborted_transactions:
            over = first < at and read.is_over(producer, first, at)
            if over is None:
                over = not next_is_abort.get(producer, True)
                if producer in self._producers and producer not in next_is_abort:
                    unknown.append(first)
            if not over:
                aborted.append((producer, first))
        self._aborted_transactions = aborted
        return unknown

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        return self._markers[next_batch.base_offset][1]


class Reader:
    def __init__(self) -> None:
        self.read: dict[TopicPartition, Read] = {}
        self.usual_wait_ms: int | None = None
        self.sought: set[tuple[TopicPartition, int]] = set()
        """Where it has gone back to and not arrived: what was there is deleted."""

    def follow(self, tp: TopicPartition, records: Repaired) -> int | None:
        """Where to go back to before the records may be seen."""
        at = records.next_fetch_offset
        self.sought.discard((tp, at))
        read = self.read.get(tp)
        if read is None or not read.start <= at <= read.end:
            read = self.read[tp] = Read(at)
        unknown = [first for first in records.follow(read) if (tp, first) not in self.sought]
        if not unknown:
            return None
        before = min(unknown)
        self.sought.add((tp, before))
        return before


LEAST_BYTES, FIRST_BYTES, MOST_BYTES = 2**16, 2**18, 50 * 2**20
SWIFT_SECONDS, SLOW_SECONDS = 1.0, 3.0


def pace(its: Any, seconds: float) -> None:
    """Ask for more at once after an answer that took less than a second, for less after more than three.

    Over a slow link, a full answer holds up heartbeats until the group forgets this member; one that takes
    longer than a request may is thrown away and asked for again, for ever.
    """
    before: int = its._fetch_max_bytes
    if seconds < SWIFT_SECONDS:
        its._fetch_max_bytes = min(2 * before, MOST_BYTES)
    elif seconds > SLOW_SECONDS:
        its._fetch_max_bytes = max(before // 4, LEAST_BYTES)
        log.info("an answer took %.1f s: asking for %s KiB at once", seconds, its._fetch_max_bytes // 1024)


QUIET_WAIT_MS = 1_000


def rest(its: Any, reader: Reader, something_came: bool) -> None:
    """Let the broker hold an empty answer for longer each time, up to a second, until something comes.

    Records end the wait at once. On a quiet topic this saves client and broker most of their empty answers.
    """
    if reader.usual_wait_ms is None:
        reader.usual_wait_ms = its._fetch_max_wait_ms
    longer = max(reader.usual_wait_ms, min(2 * its._fetch_max_wait_ms, QUIET_WAIT_MS))
    its._fetch_max_wait_ms = reader.usual_wait_ms if something_came else longer


_fetch = fetcher.Fetcher._proc_fetch_request
_readers: WeakKeyDictionary[fetcher.Fetcher, Reader] = WeakKeyDictionary()


async def _fetch_and_follow(self: Any, assignment: Any, node_id: Any, request: Any) -> Any:
    began = time.monotonic()
    woken = await _fetch(self, assignment, node_id, request)
    pace(self, time.monotonic() - began)
    reader = _readers.setdefault(self, Reader())
    rest(self, reader, bool(woken))
    for topic, partitions in request.topics:
        for partition, at, _ in partitions:
            tp = TopicPartition(topic, partition)
            records = getattr(self._records.get(tp), "_partition_records", None)
            if isinstance(records, Repaired) and records.next_fetch_offset == at:
                before = reader.follow(tp, records)
                if before is not None:
                    del self._records[tp]
                    assignment.state_value(tp).consumed_to(before)
    return woken


def repair() -> None:
    """Let every aiokafka consumer of this process, from now on, see what is committed."""
    fetcher.PartitionRecords = Repaired
    fetcher.Fetcher._proc_fetch_request = _fetch_and_follow
