from agents.deadletter import MOST_BYTES, dead_letters, source_offset
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
