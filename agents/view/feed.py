"""How the rows of one partition of the changelog come to a view: from the broker, or in memory.

What the worker of this process has committed comes in memory. The law: batches are taken whole and in their
order, each once, whichever way they come. One in memory is taken only where nothing but transaction markers
lies between what was taken before and its first row; else it is read from the broker, as what others write.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from callfunnel.streams.funnel import Change
from callfunnel.streams.records import PlainRecords, Records
from callfunnel.streams.rows import POSITION_KEY


class Changes(NamedTuple):
    """What is new of the rows of a partition."""

    parts: Sequence[Records] = ()
    """In their order. Positions among them say nothing by themselves."""
    position: bytes | None = None
    """The newest position; None where that is the same, or nothing is to be shown yet."""


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

    def __init__(self, start: int, end: int, kind: type[Records] = PlainRecords) -> None:
        self.position = start
        self.is_behind = True
        """Whether not all is taken yet that there was at the start."""
        self._end = end
        self._kind = kind
        self._held_back: bytes | None = None
        """The newest position of what is taken already and not shown."""
        self._unfinished: list[Records] = []
        self._ahead: deque[Committed] = deque()

    @property
    def left(self) -> int:
        """How many offsets are left up to where the log ended at the start."""
        return max(0, self._end - self.position)

    def read(self, records: Records | None, position: int, stable_end: int | None) -> Changes:
        """Take what the broker sent, up to `position`; what is new by it.

        Whole batches; until all is taken that there was at the start, and nothing is shown, any part of one,
        and no position. `stable_end` is where the broker said that what is committed ends. A reader may go
        back behind what was taken, to see what became of a transaction: that is skipped.
        """
        if position < self.position:
            return Changes()
        new = (records or self._kind.of((), (), ())).since(self.position)
        self.position = position
        if self.is_behind and position < self._end:
            self._held_back = new.newest(POSITION_KEY) or self._held_back
            return Changes([new])
        # The end of a log that is read committed is the end of a batch.
        is_at_the_end = position in (stable_end, self._end)
        whole = len(new) if is_at_the_end else new.up_to(POSITION_KEY)
        finished, rest = new.split(whole)
        rests = [rest] if len(rest) else []  # else it would keep all that was read with it
        if not (whole or is_at_the_end):
            self._unfinished += rests
            return Changes()
        parts, self._unfinished = [*self._unfinished, finished], rests
        newest, self._held_back = _newest(parts) or self._held_back, None
        self.is_behind = False
        return Changes(parts, newest)

    def hand(self, committed: Committed) -> None:
        """Keep a batch that this process committed until it is its turn."""
        if not self.is_behind:
            self._ahead.append(committed)

    def follow(self) -> Changes:
        """The batches in memory that go on where the last one ended."""
        found: list[Records] = []
        while self._ahead and self._ahead[0].after <= self.position:
            first = self._ahead.popleft()
            if self.position <= first.offsets.start:
                keys, values = zip(*first.rows, strict=True)
                found.append(self._kind.of(first.offsets, keys, values))
                self.position = first.offsets.stop
        if sum(len(each.rows) for each in self._ahead) > MOST_ROWS:
            self._ahead.clear()
        return Changes(found, _newest(found))


def _newest(parts: Sequence[Records]) -> bytes | None:
    """The newest position in them."""
    return next((at for part in reversed(parts) if (at := part.newest(POSITION_KEY)) is not None), None)
