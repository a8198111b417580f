"""Record batches are read within bounds, each record by itself, and it does not show how."""

import gc
import struct
import tracemalloc
import weakref
from itertools import islice

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st
from zstandard import ZstdCompressor

from callfunnel.agents.engine.deadletter import dead_letters
from callfunnel.agents.errors import TablesWrong
from callfunnel.agents.kafka import batches, microbatch, read_committed
from callfunnel.agents.kafka.batches import BOMB_BYTES, HELD_BYTES, RECORD_BYTES, Batches, Damaged, LeftOut
from callfunnel.agents.kafka.microbatch import MicroBatch
from callfunnel.schemas.codec import Decoder, Limits, Rejected
from callfunnel.streams.records import PlainRecords
from callfunnel.streams.sums import PlainSums
from contract.batches import PACK, assembled, fetched, message, packed, record, varint
from contract.batches import batch as record_batch
from faults import corpus

MIB = 1 << 20
GOOD = b'{"event_id":"e%d","type":"dial","occurred_at":1740830400000,"lead_id":"lead-1"}'
NOT_RAW = [name for name in PACK if name != "snappy"]
"""What can be read piece by piece."""


def good(n):
    return record(n, b"lead-1", GOOD % n)


def drained(*answer, at=0, limit=1_000):
    """What a worker takes of an answer, until there is no more."""
    result, state = fetched(batches.fetcher.PartitionRecords, answer, at=at)
    taken = []
    while result.has_more():
        batch = microbatch.drain(result, limit, generation=7)
        if batch is not None and batch.end > batch.start:
            assert batch.start == (taken[-1].end if taken else at)
            taken.append(batch)
            assert state.position == batch.end
    return taken


def one(*answer, **how):
    taken = drained(*answer, **how)
    whole = taken[0]
    for following in taken[1:]:
        whole.in_bomb = following.in_bomb
        whole = whole.joined([following])
    return whole


def letters(batch):
    """The dead letters of a batch, by the engine's own judge."""
    verdicts = Decoder(Limits(clock="event")).decode_all(batch.values, batch.keys, batch.timestamps)
    rejected = [(i, why) for i, why in enumerate(verdicts) if isinstance(why, Rejected)]
    return list(dead_letters(batch, rejected, 99, "callfunnel"))


# What is ordinary.

text = st.binary(max_size=40)
records = st.lists(
    st.tuples(
        st.none() | text,
        st.none() | text | st.binary(min_size=100, max_size=300),
        st.lists(st.tuples(st.text(max_size=5).map(str.encode), st.none() | text), max_size=3),
        st.integers(-5, 2**41),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=30,
)
limits = st.fixed_dictionaries(
    {
        "PORTION_BYTES": st.integers(1, 2_000),
        "PORTION_RECORDS": st.integers(1, 40),
        "RECORD_BYTES": st.integers(1, 400),
    }
)


@given(
    given=records,
    compression=st.sampled_from(sorted(PACK)),
    small=limits,
    limit=st.integers(1, 40),
    log_append_time=st.booleans(),
    skipped=st.integers(0, 40),
)
def test_however_a_batch_is_read_it_is_the_same(given, compression, small, limit, log_append_time, skipped):
    made, delta = [], 0
    for key, value, headers, timestamp, step in given:
        made.append(record(delta, key, value, headers, timestamp=timestamp))
        delta += step
    how = {"first": 1_000, "last": 1_000 + delta + 5, "log_append_time": log_append_time}
    reference = list(DefaultRecordBatch(packed(made, **how)))
    answer = packed(made, compression, **how)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(batches, name, value)
        taken = one(answer, at=1_000, limit=limit)
        rest = drained(answer, at=1_000 + skipped, limit=limit)
    assert taken.offsets == [each.offset for each in reference]
    assert taken.timestamps == [each.timestamp for each in reference]
    assert taken.keys == [each.key for each in reference]
    assert taken.values == [each.value for each in reference]
    assert [list(each) for each in taken.headers] == [each.headers for each in reference]
    assert (taken.start, taken.end, taken.lumps, taken.left_out) == (1_000, how["last"] + 1, [], {})
    seen = [offset for batch in rest for offset in batch.offsets]
    assert seen == [offset for offset in taken.offsets if offset >= 1_000 + skipped]


@given(
    sizes=st.lists(st.tuples(*[st.sampled_from([0, 1, 50, 90, 200, 700])] * 4), min_size=1, max_size=4),
    compression=st.sampled_from(sorted(PACK)),
)
def test_the_dead_letter_of_a_large_record_does_not_say_how_it_was_read(sizes, compression):
    made = [
        record(n, b"k" * key, b"v" * value, [(b"h", b"x" * header), (b"h" * name, b"y")])
        for n, (key, value, header, name) in enumerate(sizes)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("callfunnel.agents.engine.deadletter.HELD_BYTES", 400)
        patch.setattr(batches, "HELD_BYTES", 400)
        patch.setattr(batches, "JUDGED_BYTES", 1_000)
        at_once = letters(one(packed(made, compression)))
        patch.setattr(batches, "PORTION_BYTES", 1)
        patch.setattr(batches, "RECORD_BYTES", 100)
        assert letters(one(packed(made, compression))) == at_once


def test_a_batch_of_which_some_is_read_keeps_nothing_in_memory():
    """As of a transaction marker: what refers to itself stays until the collector comes, which is seldom."""
    gc.disable()
    try:
        batch = Batches(packed([good(0), good(1)])).next_batch()
        assert next(batch).offset == 0
        gone = weakref.ref(batch)
        del batch
        assert gone() is None
    finally:
        gc.enable()


def test_formats_do_not_disturb_each_other():
    old = message(0, b"k", b"v", magic=0), message(1, b"k", b"w")
    taken = one(*old, packed([good(0)], "lz4", first=2), message(3, b"k", b"x"))
    assert taken.offsets == [0, 1, 2, 3]
    assert taken.values == [b"v", b"w", GOOD % 0, b"x"]
    assert taken.timestamps == [-1, 1_000, 1_000, 1_000]


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("compression", ["gzip", "snappy", "xerial", "lz4"])
def test_messages_in_a_message_are_read(magic, compression):
    codec, pack = PACK[compression]
    inner = [
        message(100 + n if magic == 0 else n, b"key %d" % n, b"value %d" % n, magic=magic, timestamp=n)
        for n in range(5)
    ]
    outer = message(104, None, pack(b"".join(inner)), magic=magic, attributes=codec, timestamp=9)
    stamped = message(104, None, pack(b"".join(inner)), magic=magic, attributes=codec | 8, timestamp=9)
    taken = one(outer, at=102)
    assert taken.offsets == [102, 103, 104]
    assert taken.keys == [b"key 2", b"key 3", b"key 4"]
    assert taken.timestamps == ([2, 3, 4] if magic else [-1] * 3)
    assert one(stamped, at=102).timestamps == ([9] * 3 if magic else [-1] * 3)


# What nobody expects.


def test_a_header_that_is_not_utf8_keeps_no_event_back():
    made = [
        good(n) if n != 3 else record(n, b"lead-1", GOOD % n, [(b"\xff", b"x"), (b"b", None)])
        for n in range(9)
    ]
    taken = one(packed(made, "zstd"))
    assert taken.values == [GOOD % n for n in range(9)]
    assert taken.headers[3] == [("\\xff", b"x"), ("b", None)]
    assert letters(taken) == []


@pytest.mark.parametrize("compression", NOT_RAW)
def test_large_keys_and_headers_are_left_out_and_the_record_is_judged(compression):
    large = b"x" * (HELD_BYTES + 1)
    made = [
        good(0),
        record(1, large, GOOD % 1, [(b"trace", b"t")]),
        record(2, b"lead-1", GOOD % 2, [(b"trace", b"t"), (b"large", large), (b"more", b"m")]),
        record(3, b"lead-1", large),
        good(4),
    ]
    taken = one(packed(made, compression))
    assert taken.offsets == [0, 1, 2, 3, 4]
    assert taken.left_out[1].key == taken.left_out[3].value == len(large)
    assert taken.left_out[2].key is taken.left_out[2].value is None
    assert taken.values[2] == GOOD % 2
    assert taken.headers[2] == [("trace", b"t")]
    mismatch, too_large = letters(taken)
    assert dict(mismatch[1])["callfunnel.reason"] == b"key_mismatch"
    assert dict(too_large[1])["callfunnel.detail"] == b"the value has %d bytes, allowed are 65536" % len(
        large
    )


def framed(body):
    return varint(len(body)) + body


UP_TO_THE_KEY = b"\0" + varint(0) + varint(1)


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        (record(1, b"k", b"v", behind=b"\0" * 33), "33 bytes more than its parts"),
        (framed(UP_TO_THE_KEY + varint(80) + b"x" * 5), "longer than the whole"),
        (framed(UP_TO_THE_KEY + varint(-1) + varint(-1) + varint(-3)), "negative"),
        (framed(UP_TO_THE_KEY + varint(-1) + varint(-1) + varint(1) + varint(-1)), "no name"),
        (framed(b"\xff" * 3), "longer than the whole"),
        (framed(b""), "longer than the whole"),
        (framed(b"\0" + b"\xff" * 10), "does not end"),
    ],
    ids=["longer", "shorter", "headers", "name", "cut off", "empty", "endless"],
)
@pytest.mark.parametrize("compression", PACK)
def test_a_record_that_is_none_is_one_dead_letter(spoilt, why, compression):
    made = [good(0), spoilt, good(2)]
    taken = one(packed(made, compression))
    assert (taken.values, taken.end, taken.records) == ([GOOD % 0, GOOD % 2], 3, 3)
    (lump,) = taken.lumps
    assert (lump.first, lump.last, lump.records, lump.reason) == (1, 1, 1, "unreadable")
    assert why in lump.detail
    assert spoilt.endswith(lump.value)


@pytest.mark.parametrize("compression", NOT_RAW)
def test_what_is_in_front_of_a_damage_is_read_and_the_rest_is_one_dead_letter(compression):
    codec, pack = PACK[compression]
    whole = pack(b"".join(map(good, range(50_000))))
    batch = assembled(whole[: len(whole) // 2], 50_000, first=100, codec=codec)
    taken = one(batch, packed([good(0)], first=50_100), at=100)
    read = len(taken) - 1
    assert 10_000 < read < 40_000
    assert taken.offsets == [*range(100, 100 + read), 50_100]
    (lump,) = taken.lumps
    assert (lump.first, lump.last, lump.records) == (100 + read, 50_099, 50_000 - read)
    assert (lump.reason, lump.value) == ("unreadable", batch)
    assert taken.records == 50_001
    (letter,) = letters(taken)
    assert dict(letter[1])["callfunnel.records"] == b"%d" % lump.records


@pytest.mark.parametrize("count", [1, 3, -7, 0])
def test_a_batch_that_miscounts_its_records_loses_none_of_those_it_counts(count):
    taken = one(assembled(good(0) + good(1), count, last=1))
    (lump,) = taken.lumps
    assert len(taken) == min(max(count, 0), 2)
    assert lump.records == max(count - 2, 0)
    assert taken.end == 2


def test_a_codec_that_nobody_knows_is_one_dead_letter():
    taken = one(packed([good(0)]), assembled(b"whatever", 4, first=1, codec=5))
    assert (taken.offsets, taken.end, taken.records) == ([0], 5, 5)
    assert "compression is not known" in taken.lumps[0].detail


def test_an_old_message_of_nonsense_is_one_dead_letter():
    inner = message(0, b"k", b"v") + message(1, b"k", b"v", size=11)
    taken = one(message(9, None, PACK["gzip"][1](inner), attributes=1), at=8)
    (lump,) = taken.lumps
    assert (lump.first, lump.last, lump.records, taken.end) == (8, 9, 2, 10)


# Bombs.


@pytest.fixture
def held():
    """The most memory, in MiB, that the test has held at a time."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1] / MIB
    tracemalloc.stop()


SIZE = 40 * MIB


def bomb(of, compression, first=1):
    codec, pack = PACK[compression]
    return assembled(pack(of), 1, first=first, codec=codec)


ONE_VALUE = record(0, b"lead-1", b"\0" * SIZE)
ONE_KEY = record(0, b"\0" * SIZE, GOOD % 0)
ONE_HEADER = record(0, b"lead-1", GOOD % 0, [(b"h", b"\0" * SIZE)])
MANY_HEADERS = record(0, b"lead-1", GOOD % 0, [(b"", None)] * (SIZE // 200))


@pytest.mark.parametrize("compression", ["gzip", "lz4", "zstd", "xerial"])
@pytest.mark.parametrize(
    ("of", "reason"),
    [(ONE_VALUE, b"too_large"), (ONE_KEY, b"key_mismatch"), (ONE_HEADER, None), (MANY_HEADERS, None)],
    ids=["a value", "a key", "a header", "many headers"],
)
def test_a_bomb_is_one_record_and_is_not_held(of, reason, compression, held):
    answer = packed([good(0)]), bomb(of, compression), packed([good(0)], first=2)
    before = held()
    taken = drained(*answer)
    assert held() - before < 4 * RECORD_BYTES / MIB + HELD_BYTES / MIB + 40
    assert [offset for batch in taken for offset in batch.offsets] == [0, 1, 2]
    told = [letter for batch in taken for letter in letters(batch)]
    assert [dict(headers)["callfunnel.reason"] for _, headers, _ in told] == ([reason] if reason else [])


@pytest.mark.parametrize("compression", ["gzip", "lz4", "zstd", "xerial"])
def test_a_bomb_of_many_records_is_read_in_parts_and_repeated_nowhere(compression, held):
    n = 800
    made = [good(0), *(record(i, b"lead-1", b"\0" * 65_000) for i in range(1, n)), good(n)]
    answer = packed(made, compression)
    del made
    before = held()
    offsets, written, values = [], 0, []
    result, _ = fetched(batches.fetcher.PartitionRecords, [answer], at=0)
    most = 0
    while result.has_more():
        batch = microbatch.drain(result, 1_000, generation=7)
        offsets += batch.offsets
        most = max(most, sum(map(len, batch.values)))
        written += sum(len(value) for (_, value), _, _ in letters(batch))
        values += [value for value in batch.values if not value.startswith(b"\0")]
    assert held() - before < 80
    assert offsets == list(range(n + 1))
    assert values == [GOOD % 0, GOOD % n]
    assert most <= microbatch.MOST_BYTES + batches.PORTION_BYTES
    assert written <= BOMB_BYTES + microbatch.MOST_BYTES


def test_a_bomb_is_skipped_in_turns():
    result, state = fetched(batches.fetcher.PartitionRecords, [bomb(ONE_VALUE, "zstd", 0)], at=0)
    turns = [microbatch.drain(result, 1_000, 7) for _ in range(SIZE // microbatch.MOST_BYTES - 1)]
    assert [(turn.start, turn.end) for turn in turns] == [(0, 0)] * len(turns)
    assert state.position == 0
    assert one(bomb(ONE_VALUE, "zstd", 0)).left_out == {0: LeftOut(value=SIZE)}


@pytest.mark.parametrize("magic", [0, 1])
def test_a_bomb_in_an_old_message_is_one_record(magic, held):
    inner = b"".join(
        message(n, b"lead-1", value, magic=magic)
        for n, value in enumerate((GOOD % 0, b"\0" * SIZE, GOOD % 2))
    )
    answer = message(2, None, PACK["gzip"][1](inner), magic=magic, attributes=1)
    del inner
    before = held()
    taken = one(answer)
    assert held() - before < 30
    assert (taken.offsets, taken.values[::2]) == ([0, 1, 2], [GOOD % 0, GOOD % 2])
    assert taken.left_out == {1: LeftOut(value=SIZE)}


@pytest.mark.parametrize(
    "declared", [b"\xff\xff\xff\xff\x0f", PACK["snappy"][1](b"\0" * (BOMB_BYTES + 1))], ids=["a lie", "true"]
)
def test_a_block_that_declares_too_much_is_one_dead_letter(declared, held):
    before = held()
    taken = one(packed([good(0)]), assembled(declared, 12, first=1, codec=2), packed([good(0)], first=13))
    assert held() - before < 30
    assert (taken.offsets, taken.end, taken.records) == ([0, 13], 14, 14)
    (lump,) = taken.lumps
    assert (lump.first, lump.last, lump.records, lump.reason) == (1, 12, 12, "too_large")


def test_zstd_that_looks_back_far_is_read_as_long_as_it_can_be_held(held):
    codec = PACK["zstd"][0]
    few = b"".join(map(good, range(1_000)))
    taken = one(assembled(PACK["zstd"][1](few, window_log=27), 1_000, codec=codec))
    assert len(taken) == 1_000
    taken = one(assembled(PACK["zstd"][1](b"".join((few, ONE_VALUE)), window_log=27), 1_001, codec=codec))
    (lump,) = taken.lumps
    assert (lump.records, lump.reason) == (1_001, "too_large")


@pytest.mark.parametrize("first", ["nothing", "to be skipped", "a record"])
def test_zstd_in_several_frames_is_read_to_the_end(first):
    codec, pack = PACK["zstd"]
    whole = ZstdCompressor().compress  # such a frame says its size
    frames = {
        "nothing": whole(b"") + whole(good(0) + good(1)),
        "to be skipped": b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"skip" + pack(good(0) + good(1)),
        "a record": whole(good(0)) + pack(good(1)),
    }
    assert one(assembled(frames[first], 2, codec=codec)).values == [GOOD % 0, GOOD % 1]


def test_a_record_that_claims_to_be_endless_is_skipped_to_the_end(held):
    claims = varint(2**62) + b"\0\0\0" + varint(2**61)
    taken = one(packed([good(0), claims + b"x" * 5_000_000], "zstd"), packed([good(0)], first=2))
    assert (taken.offsets, taken.end, taken.records) == ([0, 2], 3, 3)
    assert held() < 60


def test_headers_without_content_are_counted_as_what_they_take():
    made = [record(n, b"k", b"v", [(b"", None)] * 1_000) for n in range(500)]
    taken = one(packed(made, "lz4"))
    assert taken.size > 500 * 1_000 * batches.HEADER_BYTES


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_every_batch_of_the_corpus_is_judged_as_it_says(codec):
    decoder = Decoder(Limits())
    at_ms = 1_740_830_400_000
    made = list(corpus.batches(at_ms, "lead-1", "lead-2", [codec], 40 * MIB))
    assert len(made) >= 5
    for each in made:
        got = []
        for batch in drained(each.batch):
            verdicts = decoder.decode_all(batch.values, batch.keys, [at_ms] * len(batch))
            got += [verdict.reason if isinstance(verdict, Rejected) else None for verdict in verdicts]
        assert got == list(each.reasons), each.name
        assert len(got) == each.records


# What is not the sender's.

written = st.lists(
    st.tuples(
        st.sampled_from(["alone", "commit", "abort", "open"]),
        st.integers(0, 2),  # the id of the producer
        st.integers(1, 4),  # so many record batches
        st.integers(1, 5),  # of so many records
        st.sampled_from([0, 0, 1, 4, 4]),
    ),
    min_size=1,
    max_size=8,
)


def changelog(written):
    """The bytes of these transactions, which of them were aborted, and where they end."""
    data, aborted, at = [], [], 0
    for outcome, producer, count, size, codec in written:
        first, who = at, -1 if outcome == "alone" else producer
        for _ in range(count):
            data.append(record_batch(range(at, at + size), producer=who, compression=codec))
            at += size
        if outcome in ("commit", "abort"):
            data.append(record_batch([at], producer=producer, marker=outcome))
            at += 1
        if outcome == "abort":
            aborted.append((producer, first))
    return data, aborted, at


def read(kind, answer, *, at, limit, aborted):
    """All records from `at` on, up to where they can be read, and why no farther."""
    how = {"at": at, "aborted": aborted, "isolation": READ_COMMITTED}
    result, state = fetched(read_committed.Repaired, answer, **how)
    found = []
    while result.has_more():
        try:
            taken = microbatch.drain(result, limit, 7, kind)
        except Damaged as why:
            return found, state.position, why.first
        if taken is not None:
            found += taken.changes(PlainRecords if kind is None else kind)
    return found, state.position, None


def told(kind, answer, **how):
    """What is read, or why nothing can be."""
    try:
        return read(kind, answer, **how)
    except TablesWrong as why:
        return str(why)


@given(written, st.integers(0, 20), st.integers(1, 30), st.none() | st.tuples(st.integers(0), st.integers(0)))
def test_which_way_a_changelog_is_read_shows_in_nothing(sums, written, at, limit, damage):
    data, aborted, end = changelog(written)
    if damage is not None:
        one = bytearray(data[damage[0] % len(data)])
        one[17 + damage[1] % (len(one) - 17)] ^= 0x20  # what is before is not in the checksum
        data[damage[0] % len(data)] = bytes(one)
    # With damage it begins at 0: amid a transaction with a damaged marker, a reader would go back first.
    how = {"at": 0 if damage else min(at, end - 1), "limit": limit, "aborted": aborted}
    assert read(sums.records_type, data, **how) == read(None, data, **how)


@pytest.mark.parametrize(
    "section",
    [
        b"\x0e\0\0\0\2k\1\1",  # a negative number of headers
        b"\x0e\0\0\1\2k\1\0",  # an offset before that of the batch
        b"\x10\0\0\0\2k\1\0\0",  # a byte more than its parts
        b"\x0c\0\0\0\2k\1",  # no headers
        b"\1",
    ],
)
def test_whatever_is_odd_about_a_record_it_is_told_as_it_is_without_the_core(sums, section):
    answer, how = [assembled(good(0) + section, 2, first=7)], {"at": 7, "limit": 9, "aborted": ()}
    assert told(sums.records_type, answer, **how) == told(None, answer, **how)


def test_what_the_core_reads_is_not_taken_apart_in_python(sums, monkeypatch):
    data, aborted, end = changelog([("commit", 1, 3, 5, 4), ("abort", 1, 2, 5, 0), ("alone", 0, 1, 5, 4)])
    result, state = fetched(read_committed.Repaired, data, at=0, aborted=aborted, isolation=READ_COMMITTED)
    if sums is not PlainSums:
        monkeypatch.setattr(batches.RecordBatch, "begin", None)
    (taken,) = drained_of(result, sums.records_type)
    assert [key for key, _ in taken.changes(sums.records_type)] == [
        b"key %d" % n for n in (*range(15), *range(27, 32))
    ]
    assert (taken.start, taken.end, state.position) == (0, end, end)


def drained_of(result, kind):
    while result.has_more():
        yield microbatch.drain(result, 1_000, 7, kind)


def test_a_changelog_with_anything_missing_is_refused():
    batch = MicroBatch("app-funnel-changelog", 3, 0, 2, 7)
    batch.offsets, batch.keys, batch.values = [0, 1], [b"a", b"b"], [b"1", None]
    assert list(batch.changes(PlainRecords)) == [(b"a", b"1"), (b"b", None)]
    batch.left_out = {1: LeftOut(value=9)}
    with pytest.raises(TablesWrong, match="at offset 1 what callfunnel never writes"):
        batch.changes(PlainRecords)
    batch = one(assembled(b"whatever", 4, codec=5))
    with pytest.raises(TablesWrong, match=r"at offset 0 .*compression is not known"):
        batch.changes(PlainRecords)


def test_for_the_client_itself_a_batch_is_its_records():
    whole, half = Batches(packed([good(0), good(1)], "lz4") + packed([good(2)[:-1]], first=2)).ahead
    assert [each.value for each in whole] == [GOOD % 0, GOOD % 1]
    with pytest.raises(Exception, match="not all of it can be read"):
        list(islice(half, 5))


def test_a_large_record_is_read_by_itself_only_where_it_has_to_be():
    value = b"v" * (RECORD_BYTES + 5)
    taken = one(
        packed([record(0, b"k", value), good(1)], "lz4"), packed([record(0, b"k", value * 2)], first=2)
    )
    assert taken.values == [value, GOOD % 1, value * 2]
    assert taken.left_out == {}
