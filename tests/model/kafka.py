"""What the law needs of Kafka, in memory: logs with offsets, transactions, fencing, retention, compaction.

As unkind as Kafka may be: the markers of a transaction take up offsets and reach the partitions one by one,
or one of them never, an answer may be lost, a partition may be cut off or made anew. Nothing here is random;
the schedule decides.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from aiokafka.errors import ProducerFenced
from faust.types import TP

from callfunnel.agents.kafka.microbatch import MicroBatch


class Name(str):
    """The name of a topic; its hash is the same in every process, so that a seed repeats a schedule."""

    __slots__ = ()

    __hash__ = str.__len__  # type: ignore[assignment]


class Transaction:
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.unmarked: dict[TP, None] = {}
        """Its partitions that have no marker of it yet."""
        self.verdict: bool | None = None
        """Whether it was committed; None while it is open."""
        self.is_by_hand = False
        """Whether the worker itself aborted it."""
        self.torn_from: Transaction | None = None
        """What it belonged to before its marker was left out: it hangs since then."""
        self.left_out: set[TP] = set()
        """Where its marker was left out."""
        self.holes: list[tuple[int, int]] | None = None
        """What the worker said was gone from the source before it made this; None: it said nothing yet."""


class Entry(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int
    transaction: Transaction | None
    is_marker: bool = False

    @property
    def is_committed(self) -> bool:
        return not self.is_marker and (self.transaction is None or self.transaction.verdict is True)


def offset_of(entry: Entry) -> int:
    return entry.offset


class Log:
    """One partition of a topic."""

    def __init__(self) -> None:
        self.start = self.end = 0
        self.entries: list[Entry] = []
        self.gone: list[Entry] = []
        """What retention took."""
        self.open: dict[Transaction, int] = {}
        """The first offset of each transaction without a marker here."""

    @property
    def stable_end(self) -> int:
        """A reader of what is committed gets no further."""
        return min(self.open.values(), default=self.end)

    def append(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]] = (),
        timestamp: int = 0,
        transaction: Transaction | None = None,
        is_marker: bool = False,
    ) -> int:
        offset = self.end
        self.entries.append(Entry(offset, key, value, tuple(headers), timestamp, transaction, is_marker))
        self.end += 1
        return offset

    def committed(self, start: int, end: int) -> list[Entry]:
        entries = self.entries
        first = bisect_left(entries, start, key=offset_of)
        last = bisect_left(entries, min(end, self.stable_end), key=offset_of)
        return [entry for entry in entries[first:last] if entry.is_committed]

    def ever_committed(self) -> list[Entry]:
        return [entry for entry in (*self.gone, *self.entries) if entry.is_committed]

    def retain(self, start: int) -> None:
        kept = bisect_left(self.entries, start, key=offset_of)
        self.gone += self.entries[:kept]
        del self.entries[:kept]
        self.start = max(self.start, start)

    def compact(self, end: int, *, tombstones: bool) -> None:
        """Of what lies before `end`, keep the newest of each key; with `tombstones` off, those go too."""
        end = min(end, self.stable_end)
        newest = {entry.key: entry.offset for entry in self.committed(0, end)}
        self.entries = [
            entry
            for entry in self.entries
            if entry.offset >= end
            or (
                entry.is_committed
                and newest[entry.key] == entry.offset
                and (tombstones or entry.value is not None)
            )
        ]


class Kafka:
    def __init__(self, changelogs: Collection[str], dead_letters: str) -> None:
        self.topic_id = "t1"
        """Of the source; "" where the broker gives none."""
        self.dead_letters = dead_letters
        self.changelogs = changelogs
        """The topics that a transaction of a partition always writes to."""
        self.logs: defaultdict[TP, Log] = defaultdict(Log)
        self.former: dict[TP, Log] = {}
        """Partitions as they were before they were made anew."""
        self.epochs: defaultdict[str, int] = defaultdict(int)
        self.running: dict[str, Transaction] = {}
        """The transaction of each transactional id, as long as a marker of it is missing."""
        self.group_offsets: dict[tuple[str, TP], int] = {}
        self.holes: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        """By the owner of committed transactions, what they say was gone of its source partition."""
        self.hanging: dict[Transaction, TP] = {}
        """Parts of transactions that nobody has decided, and where they are."""
        self.torn: set[TP] = set()
        """Where something was aborted that is committed elsewhere."""

    def fetch(self, tp: TP, start: int, end: int, generation: int) -> MicroBatch:
        batch = MicroBatch(*tp, start, min(end, self.logs[tp].stable_end), generation)
        for entry in self.logs[tp].committed(start, end):
            batch.offsets.append(entry.offset)
            batch.timestamps.append(entry.timestamp)
            batch.keys.append(entry.key)
            batch.values.append(entry.value)
            batch.headers.append(entry.headers)
        return batch

    def replace(self, tp: TP, keep: int) -> None:
        """The topic is made anew, or cut off, with so many of its records and another one."""
        log = self.former[tp] = self.logs[tp]
        new = self.logs[tp] = Log()
        for entry in log.entries[:keep]:
            new.append(entry.key, entry.value, entry.headers, entry.timestamp)
        new.append(b"a", b"{")

    def make_anew(self, tps: Iterable[TP], keep: int | None, others: int) -> None:
        """The topic is another one that holds what it held, or what lay before `keep`, and then others.

        Markers at the end are not copied: in the copy, records come in their place.
        """
        for tp in tps:
            log = self.former[tp] = self.logs[tp]
            new = self.logs[tp] = Log()
            new.start = min(log.start, log.end if keep is None else keep)
            new.gone, new.entries = (
                [one for one in entries if keep is None or one.offset < keep]
                for entries in (log.gone, log.entries)
            )
            while new.entries and new.entries[-1].is_marker:
                del new.entries[-1]
            new.end = new.entries[-1].offset + 1 if new.entries else new.start
            while keep is not None and new.end < log.end + others:
                new.append(b"a", b"{", timestamp=1 + new.end)

    # Transactions

    def init_producer(self, name: str) -> int:
        """Whoever asks is the producer from now on."""
        self.abort(name)
        self.settle(name)
        self.epochs[name] += 1
        return self.epochs[name]

    def time_out(self, name: str) -> None:
        self.abort(name)
        self.epochs[name] += 1

    def check(self, name: str, epoch: int) -> None:
        if self.epochs[name] != epoch:
            raise ProducerFenced

    def begin(self, name: str, epoch: int) -> Transaction:
        self.check(name, epoch)
        self.settle(name)
        transaction = self.running[name] = Transaction(name)
        return transaction

    def add(self, epoch: int, transaction: Transaction, tps: Iterable[TP]) -> None:
        self.check(transaction.owner, epoch)
        transaction.unmarked.update(dict.fromkeys(tps))

    def append(self, epoch: int, transaction: Transaction, tp: TP, records: Iterable[Any]) -> int:
        """The offset of the first record."""
        self.check(transaction.owner, epoch)
        assert tp in transaction.unmarked
        log = self.logs[tp]
        first = log.end
        log.open.setdefault(transaction, first)
        for (key, value), headers, timestamp in records:
            log.append(key, value, headers, timestamp, transaction)
        return first

    def commit(self, epoch: int, transaction: Transaction) -> None:
        """Decided at once; the markers follow."""
        self.check(transaction.owner, epoch)
        transaction.verdict = True
        self.holes[transaction.owner] += transaction.holes or ()

    def abort(self, name: str) -> None:
        transaction = self.running.get(name)
        if transaction is not None and transaction.verdict is None:
            transaction.verdict = False

    def mark(self, transaction: Transaction, tp: TP) -> None:
        """The marker of a decided transaction reaches a partition, and decides what hangs there, too."""
        del transaction.unmarked[tp]
        log = self.logs[tp]
        for part in [one for one in log.open if one.owner == transaction.owner]:
            del log.open[part]
            if part.torn_from is not None:
                del self.hanging[part]
                part.verdict = transaction.verdict
                if part.torn_from.verdict and not part.verdict:
                    self._tear(part.torn_from, transaction, tp)
        log.append(None, None, transaction=transaction, is_marker=True)

    def _tear(self, whole: Transaction, by: Transaction, tp: TP) -> None:
        """What was committed is aborted here: nowhere else, unless this happens to both its changelogs.

        Then it is done again, and where nobody was asked, so are its dead letters that were committed.
        """
        both = {TP(topic, tp.partition) for topic in self.changelogs}
        if both <= whole.left_out and (tp in both or tp.topic == self.dead_letters):
            if not by.is_by_hand:
                self.torn.add(TP(self.dead_letters, tp.partition))
            return
        assert not by.is_by_hand or tp in self.torn, f"what is committed elsewhere is aborted in {tp}"
        self.torn.add(tp)

    def leave_out(self, transaction: Transaction, tp: TP) -> None:
        """The marker will never reach this partition, as if that had been deleted."""
        del transaction.unmarked[tp]
        transaction.left_out.add(tp)
        log = self.logs[tp]
        if transaction in log.open:
            part = Transaction(transaction.owner)
            part.torn_from = transaction
            if any(before.torn_from is not None for before in log.open):  # two that hang in a row
                self.torn.add(tp)
            log.open[part] = log.open.pop(transaction)
            log.entries = [
                entry._replace(transaction=part) if entry.transaction is transaction else entry
                for entry in log.entries
            ]
            self.hanging[part] = tp

    def settle(self, name: str) -> None:
        """All markers reach their partitions: until then the broker answers nothing for this producer."""
        transaction = self.running.pop(name, None)
        for tp in list(transaction.unmarked) if transaction is not None else ():
            self.mark(transaction, tp)
