"""How the rows of one partition of the changelog come to a view: from the broker, or in memory.

What the worker of this process has committed comes in memory. The law: batches are taken whole and in their
order, each once, whichever way they come. One in memory is taken only where nothing but transaction markers
lies between what was taken before and its first row; else it is read from the broker, as what others write.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from callfunnel.agents.kafka.microbatch import MicroBatch
from callfunnel.streams.funnel import Change
from callfunnel.streams.rows import POSITION_KEY

Changes = dict[bytes | None, bytes | None]
"""The newest value of each row that changed, by its key; `None` deletes it."""

MOST_ROWS = 200_000
"""So many wait for a view in memory at most: what it does not take is read from the broker."""


class Committed(NamedTuple):
    """The rows of a transaction that this process has committed, as they lie in the changelog."""

    partition: int
    after: int
    """From this offset to the first row, there is nothing but markers."""
    offsets: range
    rows: Sequence[Change]


OnCommit = Callable[[Committed], object]


class Waiting:
    """What was committed and waits for the view. Any thread may put, one takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_open = False
        self._waiting: list[Committed] = []
        self._rows = 0

    def open(self) -> None:
        """From now on, what was committed is taken; what was before is forgotten."""
        with self._lock:
            self._is_open, self._waiting, self._rows = True, [], 0

    def close(self) -> None:
        with self._lock:
            self._is_open, self._waiting, self._rows = False, [], 0

    def put(self, committed: Committed) -> None:
        """Keep it for the view; without one that takes, or where too much waits, forget it."""
        with self._lock:
            if not self._is_open:
                return
            if self._rows > MOST_ROWS:
                self._waiting, self._rows = [], 0
            self._waiting.append(committed)
            self._rows += len(committed.rows)

    def take(self) -> list[Committed]:
        with self._lock:
            taken, self._waiting, self._rows = self._waiting, [], 0
            return taken


class Feed:
    """One partition: up to where its rows are taken, and what came of a batch that is not whole yet.

    `start` is where reading begins, `end` where the log ended then.
    """

    def __init__(self, start: int, end: int) -> None:
        self.position = start
        self.is_behind = True
        """Whether not all is taken yet that there was at the start."""
        self._end = end
        self._unfinished: Changes = {}
        self._ahead: deque[Committed] = deque()

    @property
    def left(self) -> int:
        """How many offsets are left up to where the log ended at the start."""
        return max(0, self._end - self.position)

    def read(self, batch: MicroBatch | None, position: int, stable_end: int | None) -> Changes:
        """Take what the broker sent, up to `position`; the rows that change by it.

        Those of whole batches; until all is taken that there was at the start, and nothing is shown, those of
        any batch without its position. `stable_end` is where the broker said that what is committed ends. A
        reader may go back behind what was taken, to see what became of a transaction: that is skipped.
        """
        if position < self.position:
            return {}
        if batch is not None and batch.start < self.position:
            batch = batch.since(self.position)
        keys, values = (batch.keys, batch.values) if batch else ([], [])
        self.position = position
        if self.is_behind and position < self._end:
            rows: Changes = dict(zip(keys, values, strict=True))
            if POSITION_KEY in rows:
                self._unfinished[POSITION_KEY] = rows.pop(POSITION_KEY)
            return rows
        # The end of a log that is read committed is the end of a batch.
        whole = position == stable_end or position == self._end
        end = len(keys) if whole else _end_of_batches(keys)
        if not (whole or end):
            self._unfinished.update(zip(keys, values, strict=True))
            return {}
        finished, self._unfinished = self._unfinished, dict(zip(keys[end:], values[end:], strict=True))
        finished.update(zip(keys[:end], values[:end], strict=True))
        self.is_behind = False
        return finished

    def hand(self, committed: Committed) -> None:
        """Keep a batch that this process committed until it is its turn."""
        if not self.is_behind:
            self._ahead.append(committed)

    def follow(self) -> Changes:
        """The rows of the batches in memory that go on where the last one ended."""
        found: Changes = {}
        while self._ahead and self._ahead[0].after <= self.position:
            first = self._ahead.popleft()
            if self.position <= first.offsets.start:
                found.update(first.rows)
                self.position = first.offsets.stop
        if sum(len(each.rows) for each in self._ahead) > MOST_ROWS:
            self._ahead.clear()
        return found


def _end_of_batches(keys: Sequence[bytes | None]) -> int:
    """How many of the records are whole batches: a position row is the last of its batch."""
    return next((n for n in range(len(keys), 0, -1) if keys[n - 1] == POSITION_KEY), 0)
