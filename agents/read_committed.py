"""Makes aiokafka read what is committed where the broker tells it too much about what was aborted.

With an answer the broker names the aborted transactions that reach into it. noida-db 0.2.3 names all that
ever were in the partition, and aiokafka then drops everything that their producers committed later.
The law that decides here holds on any broker: a producer has one transaction at a time, so a transaction is
over at the producer's next marker, whether that was read before or is in the answer, and what a marker
commits was not aborted before. No other module knows the fetcher of aiokafka.
"""

from collections import defaultdict, deque
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord


class _Batches:
    """The batches of an answer, looked at ahead of time."""

    def __init__(self, records: Any) -> None:
        self.aborts: dict[int, bool] = {}
        """Producer: whether its first marker in this answer is an abort."""
        self.markers: dict[int, bool] = {}
        """Offset of a marker: whether it is an abort."""
        self.ended: dict[int, int] = {}
        """Producer: the offset of its last marker in this answer."""
        self._batches: deque[Any] = deque()
        while records.has_next():
            batch = records.next_batch()
            self._batches.append(batch)
            if batch.is_control_batch:
                abort = ControlRecord.parse(next(batch).key) == ABORT_MARKER
                self.markers[batch.base_offset] = abort
                self.aborts.setdefault(batch.producer_id, abort)
                self.ended[batch.producer_id] = batch.base_offset

    def has_next(self) -> bool:
        return bool(self._batches)

    def next_batch(self) -> Any:
        return self._batches.popleft()


_ended: defaultdict[Any, defaultdict[int, int]] = defaultdict(lambda: defaultdict(lambda: -1))
"""By partition and producer, the offset of the last marker that was read in this process."""


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(
        self, tp: Any, records: Any, aborted_transactions: Any, fetch_offset: int, *options: Any
    ) -> None:
        ahead = self._ahead = _Batches(records)
        ended = _ended[tp]
        aborted = [
            (producer, first)
            for producer, first in aborted_transactions or ()
            if first >= fetch_offset
            or (not first < ended[producer] < fetch_offset and ahead.aborts.get(producer, True))
        ]
        if options[-1] == READ_COMMITTED:  # another is ahead, and would hide what is behind it
            ended.update(ahead.ended)
        super().__init__(tp, ahead, aborted, fetch_offset, *options)

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        return self._ahead.markers[next_batch.base_offset]


def repair() -> None:
    """Let every aiokafka consumer of this process, from now on, see what is committed."""
    fetcher.PartitionRecords = _PartitionRecords
