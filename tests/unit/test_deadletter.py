import pytest

from agents.deadletter import MOST_BYTES, DeadLetterLimits, dead_letters, source_offset
from agents.errors import TablesWrong
from agents.microbatch import MicroBatch
from schemas.codec import Rejected

WHY = Rejected("bad_value", "`$.agent` must not contain control character U+0007")


def a_batch(key, value, headers=()):
    batch = MicroBatch("call-events", 3, 40, 42, 1)
    batch.offsets, batch.timestamps = [40, 41], [1, 2]
    batch.keys, batch.values, batch.headers = [b"other", key], [b"other", value], [(), headers]
    return batch


def dead_letter(batch, received_ms=99):
    (letter,) = dead_letters(batch, [(1, WHY)], received_ms, "callfunnel")
    return letter


def test_a_dead_letter_is_the_record_as_it_came():
    (key, value), _, timestamp = dead_letter(a_batch(b"\xff", b"{nonsense"))
    assert (key, value, timestamp) == (b"\xff", b"{nonsense", None)


def test_its_headers_say_where_it_was_and_why_it_is_here():
    trace = ("trace", b"t1")
    headers = dead_letter(a_batch(b"k", b"v", (trace,)), 1_750_000_000_123)[1]
    assert headers[0] == trace
    assert dict(headers[1:]) == {
        "__connect.errors.topic": b"call-events",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"41",
        "__connect.errors.connector.name": b"callfunnel",
        "__connect.errors.exception.class.name": b"bad_value",
        "__connect.errors.exception.message": WHY.detail.encode(),
        "callfunnel.reason": b"bad_value",
        "callfunnel.detail": WHY.detail.encode(),
        "callfunnel.received_at": b"1750000000123",
    }


def test_a_dead_letter_tells_its_own_app_which_record_it_is_about():
    published_again = dead_letter(a_batch(b"k", b"v"))[1]
    headers = dead_letter(a_batch(b"k", b"v", (*published_again, ("__connect.errors.offset", b"7"))))[1]
    assert source_offset(headers, "callfunnel") == 41
    assert source_offset(headers, "another") is None
    assert source_offset((), "callfunnel") is None
    ours = "__connect.errors.connector.name", b"callfunnel"
    for nonsense in (b"", b"-1", b"seven", None):
        assert source_offset((ours, ("__connect.errors.offset", nonsense)), "callfunnel") is None


def test_a_rejected_tombstone_stays_one():
    assert dead_letter(a_batch(b"k", None))[0] == (b"k", None)


def test_a_record_of_nothing_at_all_becomes_one_that_can_be_written():
    assert dead_letter(a_batch(None, None))[0] == (None, b"")


def test_a_value_that_the_topic_would_refuse_is_left_out_and_its_size_told():
    for size, left in [(MOST_BYTES, MOST_BYTES), (MOST_BYTES + 1, 0)]:
        (_, value), headers, _ = dead_letter(a_batch(b"k", b"x" * size))
        assert len(value) == left
    assert headers[-1] == ("callfunnel.left_out", b"%d" % (MOST_BYTES + 1))


def limits(max_share=0.5, window=10, max_run=3):
    return DeadLetterLimits(max_share, window, max_run)


def test_a_run_of_rejected_records_stops_the_worker():
    check = limits().check
    check(5, [2, 3, 4])
    with pytest.raises(TablesWrong, match=r"4 records in a row.*CALLFUNNEL_DLQ_MAX_RUN"):
        check(1, [0])


def test_a_run_ends_with_a_good_record():
    check = limits(max_share=1).check
    for _ in range(50):
        check(4, [0, 1, 2])


def test_a_run_ends_with_a_good_record_within_a_batch():
    limits(max_share=1).check(8, [0, 1, 2, 4, 5, 7])


def test_a_good_record_at_the_end_of_a_batch_ends_the_run_of_the_next_batch_too():
    check = limits(max_share=1).check
    check(4, [0, 1, 2])
    check(3, [0, 1, 2])
    with pytest.raises(TablesWrong, match="4 records in a row"):
        check(2, [0, 1])


def test_an_empty_batch_neither_ends_nor_lengthens_a_run():
    check = limits(max_share=1).check
    check(3, [0, 1, 2])
    check(0, [])
    with pytest.raises(TablesWrong):
        check(1, [0])


def test_a_share_of_rejected_records_stops_the_worker_once_the_window_is_full():
    check = limits(max_run=100).check
    check(8, [0, 2, 3, 4, 5, 6])
    with pytest.raises(TablesWrong, match=r"6 of the last 10 records.*CALLFUNNEL_DLQ_MAX_SHARE"):
        check(2, [])


def test_exactly_the_share_is_allowed():
    check = limits(max_run=100).check
    check(10, [0, 2, 4, 6, 8])
    check(10, [0, 2, 4, 6, 8])


def test_what_has_left_the_window_counts_no_more():
    check = limits(max_run=100).check
    for _ in range(4):
        check(5, [0, 1, 2, 3])
        check(5, [0])


def test_a_single_batch_may_be_larger_than_the_window():
    check = limits(max_run=100).check
    check(100, range(0, 100, 2))
    with pytest.raises(TablesWrong, match="51 of the last 100 records"):
        check(100, [*range(0, 100, 2), 1])
