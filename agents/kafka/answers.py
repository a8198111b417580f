"""When brokers last answered, and the end of each partition that they told.

The law: an end that no broker has confirmed within the patience is unknown, and unknown is never a number.
Only a protocol answer counts: the connections of a frozen broker stay open like those of a quiet one.
"""

import time
from collections.abc import Callable, Collection, Mapping

from aiokafka import TopicPartition


class Answers:
    """What was heard, and when. One thread watches and hears, any thread may read."""

    def __init__(self, patience_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience_seconds = patience_seconds
        self._clock = clock
        self._began = clock()
        self._last: float | None = None
        self._since: Mapping[TopicPartition, float] = {}
        """Partition: when its leader last answered, or when it was first watched."""
        self._ends: Mapping[TopicPartition, int] = {}

    def watch(self, partitions: Collection[TopicPartition]) -> None:
        """Watch these partitions and no others."""
        if self._since.keys() != set(partitions):
            now = self._clock()
            self._since = {tp: self._since.get(tp, now) for tp in partitions}
            self._ends = {tp: end for tp, end in self._ends.items() if tp in self._since}

    def hear(self, ends: Mapping[TopicPartition, int]) -> None:
        """Note that a broker told where these partitions end; without any, that it answered something."""
        self._last = now = self._clock()
        mine = ends.keys() & self._since.keys()
        self._since = {tp: now if tp in mine else since for tp, since in self._since.items()}
        self._ends = {**self._ends, **{tp: ends[tp] for tp in mine}}

    def end(self, partition: TopicPartition) -> int | None:
        """The end of a partition; None while it is unknown."""
        since = self._since.get(partition)
        if since is None or self._clock() - since > self.patience_seconds:
            return None
        return self._ends.get(partition)

    @property
    def timestamp_seconds(self) -> float | None:
        """When a broker last answered, by the wall clock; None before any has."""
        return None if self._last is None else time.time() - (self._clock() - self._last)

    def silence(self) -> str | None:
        """Which brokers have not answered within the patience, in words; None when all have."""
        now = self._clock()
        alone = now - (self._began if self._last is None else self._last)
        if alone > self.patience_seconds:
            return f"no broker has answered for {alone:.0f} s"
        silent = {tp: now - since for tp, since in self._since.items()}
        silent = {tp: seconds for tp, seconds in silent.items() if seconds > self.patience_seconds}
        if not silent:
            return None
        names = ", ".join(f"{tp.topic}/{tp.partition}" for tp in sorted(silent)[:5])
        more = f" and {len(silent) - 5} more" if len(silent) > 5 else ""
        return f"the leader of {names}{more} has not answered for {max(silent.values()):.0f} s"
