"""Makes aiokafka read what is committed where the broker tells it too much about what was aborted.

With an answer the broker names the aborted transactions that reach into it. noida-db 0.2.3 names all that
ever were in the partition, and aiokafka then drops everything that their producers committed later.
The law that decides here holds on any broker: a producer has one transaction at a time, so a transaction is
over at the producer's next marker, whether that was read before or is in the answer, and what a marker
commits was not aborted before. No other module knows the fetcher of aiokafka.
"""

from bisect import bisect, bisect_left, insort
from collections import defaultdict, deque
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord


class _Batches:
    """The batches of an answer, looked at ahead of time."""

    def __init__(self, records: Any) -> None:
        self.aborts: dict[int, bool] = {}
        """Producer: whether its first marker in this answer is an abort."""
        self.markers: dict[int, bool] = {}
        """Offset of a marker: whether it is an abort."""
        self.ends: list[tuple[int, int]] = []
        """Producer and offset of each abort marker."""
        self._batches: deque[Any] = deque()
        while records.has_next():
            batch = records.next_batch()
            self._batches.append(batch)
            if batch.is_control_batch:
                abort = ControlRecord.parse(next(batch).key) == ABORT_MARKER
                self.markers[batch.base_offset] = abort
                self.aborts.setdefault(batch.producer_id, abort)
                if abort:
                    self.ends.append((batch.producer_id, batch.base_offset))

    def has_next(self) -> bool:
        return bool(self._batches)

    def next_batch(self) -> Any:
        return self._batches.popleft()


_ends: defaultdict[Any, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
"""By partition and producer, the offsets of the abort markers that any reader of this process has met."""


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(
        self, tp: Any, records: Any, aborted_transactions: Any, fetch_offset: int, *options: Any
    ) -> None:
        ahead = self._ahead = _Batches(records)
        ends = _ends[tp]
        for producer, end in ahead.ends:
            if end not in ends[producer]:
                insort(ends[producer], end)

        def over(producer: int, first: int) -> bool:
            known = ends[producer]
            return bisect(known, first) < bisect_left(known, fetch_offset)

        aborted = [
            (producer, first)
            for producer, first in aborted_transactions or ()
            if first >= fetch_offset or (not over(producer, first) and ahead.aborts.get(producer, True))
        ]
        super().__init__(tp, ahead, aborted, fetch_offset, *options)

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        return self._ahead.markers[next_batch.base_offset]


def repair() -> None:
    """Let every aiokafka consumer of this process, from now on, see what is committed."""
    fetcher.PartitionRecords = _PartitionRecords
