"""Makes aiokafka read what is committed where the broker tells it too much about what was aborted.

With an answer the broker names the aborted transactions that reach into it. noida-db 0.2.3 names all that
ever were in the partition, and aiokafka then drops everything that their producers committed later.
The law that decides here holds on any broker: a producer has one transaction at a time, so what its next
marker commits was not aborted before. No other module knows the fetcher of aiokafka.
"""

from collections import deque
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
        self._batches: deque[Any] = deque()
        while records.has_next():
            batch = records.next_batch()
            self._batches.append(batch)
            if batch.is_control_batch:
                abort = ControlRecord.parse(next(batch).key) == ABORT_MARKER
                self.markers[batch.base_offset] = abort
                self.aborts.setdefault(batch.producer_id, abort)

    def has_next(self) -> bool:
        return bool(self._batches)

    def next_batch(self) -> Any:
        return self._batches.popleft()


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(
        self, tp: Any, records: Any, aborted_transactions: Any, fetch_offset: int, *options: Any
    ) -> None:
        self._ahead: _Batches | None = None
        aborted = list(aborted_transactions or ())
        if any(first < fetch_offset for _, first in aborted):
            records = self._ahead = _Batches(records)
            aborted = [
                (producer, first)
                for producer, first in aborted
                if first >= fetch_offset or self._ahead.aborts.get(producer, True)
            ]
        super().__init__(tp, records, aborted, fetch_offset, *options)

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        if self._ahead is not None:
            return self._ahead.markers[next_batch.base_offset]
        return bool(super()._contains_abort_marker(next_batch))


def repair() -> None:
    """Let every aiokafka consumer of this process, from now on, see what is committed."""
    fetcher.PartitionRecords = _PartitionRecords
