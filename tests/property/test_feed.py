"""Rows that come to a view by two ways at once, from the broker and in memory, are those of the log."""

from hypothesis import given
from hypothesis import strategies as st

from callfunnel.agents.view import feed
from callfunnel.agents.view.feed import Changes, Committed, Feed
from callfunnel.streams.records import Records
from callfunnel.streams.rows import POSITION_KEY

rows = st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.none() | st.binary(max_size=1)), max_size=4)
writers = st.sampled_from(["own", "own", "own", "another", "aborted"])
transactions = st.lists(st.tuples(writers, rows), min_size=3, max_size=12)


class Log:
    """A changelog as a broker holds it, and what of it comes in memory."""

    def __init__(self, transactions) -> None:
        self.records: list[tuple[int, bytes, bytes | None]] = []
        """Offset, key and value of what is committed."""
        self.handed: list[Committed] = []
        self.ends = [0]
        """Of each transaction: behind its last row, where its marker is."""
        at, known_end = 0, None
        for number, (writer, its_rows) in enumerate(transactions):
            whole = [*its_rows, (POSITION_KEY, b"%d" % number)]
            offsets = range(at, at + len(whole))
            at = offsets.stop + 1  # its marker
            if writer == "aborted":
                continue
            self.records += [(offset, *row) for offset, row in zip(offsets, whole, strict=True)]
            self.ends.append(offsets.stop)
            if writer == "own":
                if known_end is not None:
                    self.handed.append(Committed(0, known_end, offsets, whole))
                known_end = offsets.stop
            else:
                known_end = None  # our writer has lost the partition: it does not know where the log ends
        self.end = at

    def state_at(self, position: int) -> dict[bytes, bytes | None]:
        return {key: value for offset, key, value in self.records if offset < position}

    def read(self, kind: type[Records], start: int, end: int) -> Records | None:
        records = [record for record in self.records if start <= record[0] < end]
        offsets, keys, values = zip(*records, strict=True) if records else ((), (), ())
        return kind.of(offsets, keys, values) if end > start else None


def taken(changes: Changes) -> dict[bytes, bytes | None]:
    rows = {key: value for part in changes.parts for key, value in part if key != POSITION_KEY}
    return rows if changes.position is None else rows | {POSITION_KEY: changes.position}


steps = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "hand", "hand", "lose", "seek", "go back"]), st.integers(0, 100)
    ),
    min_size=10,
    max_size=40,
)


@given(transactions, st.just(0) | st.integers(0, 100), steps)
def test_whichever_way_batches_come_the_view_stands_at_the_end_of_one(sums, transactions, begins, steps):
    log, kind = Log(transactions), sums.records_type
    its = Feed(0, log.ends[begins % len(log.ends)], kind)
    state: dict[bytes, bytes | None] = {}
    handed = iter(log.handed)
    reader = before = 0
    for step, n in [*steps, ("seek", 0), ("read", -1)]:
        if step == "read":
            end = log.end if n < 0 else min(reader + n % 8, log.end)
            stable = next((e for e in (*log.ends[n % 3 :], log.end) if e >= end), log.end)
            state |= taken(its.read(log.read(kind, reader, end), end, stable))
            reader = end
        elif step in ("hand", "lose"):
            committed = next(handed, None)
            if committed and step == "hand":
                its.hand(committed)
        elif step == "seek":
            reader = max(reader, its.position)
        else:
            reader = max(0, reader - n % 8)
        state |= taken(its.follow())
        assert its.position >= before
        before = its.position
        whole = max((end for end in log.ends if end <= its.position), default=0)
        if its.is_behind:
            assert POSITION_KEY not in state
        else:
            assert state == log.state_at(whole)
    assert state == log.state_at(log.end)


def test_a_batch_behind_a_gap_is_not_taken():
    its = Feed(0, 0)
    its.read(None, 0, 0)
    its.hand(Committed(0, 5, range(6, 8), [(b"a", b"1"), (POSITION_KEY, b"2")]))
    assert (its.follow(), its.position) == (Changes([]), 0)


def test_what_is_not_taken_in_memory_does_not_pile_up(monkeypatch):
    monkeypatch.setattr(feed, "MOST_ROWS", 3)
    its = Feed(0, 0)
    its.read(None, 0, 0)
    for start in (10, 20, 30):
        its.hand(Committed(0, start - 1, range(start, start + 2), [(b"a", b"1"), (POSITION_KEY, b"2")]))
        its.follow()
    its.read(None, 9, 9)
    assert (its.follow(), its.position) == (Changes([]), 9)


def test_what_waits_for_a_view_that_does_not_come_does_not_pile_up(monkeypatch):
    monkeypatch.setattr(feed, "MOST_ROWS", 3)
    waiting = feed.Waiting()
    batch = Committed(0, 0, range(2), [(b"a", b"1"), (POSITION_KEY, b"2")])
    waiting.put(batch)
    assert waiting.take() == []
    waiting.open()
    for _ in range(3):
        waiting.put(batch)
    assert waiting.take() == [batch]
