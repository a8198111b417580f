import pytest

from callfunnel.agents.engine.deadletter import (
    BOMB_BYTES,
    SENT_HOME_BYTES,
    dead_letters,
    sent_home,
    source_offset,
)
from callfunnel.agents.kafka.batches import HEADER_BYTES, HELD_BYTES, LeftOut, Lump
from callfunnel.agents.kafka.microbatch import MicroBatch
from callfunnel.schemas.codec import Rejected
from callfunnel.schemas.topics import LARGEST_MESSAGE, SOURCE_MESSAGE

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


def left_out(headers):
    return {
        name.removeprefix("callfunnel.left_out."): int(size) for name, size in headers if "left_out" in name
    }


def size(record):
    (key, value), headers, _ = record
    return len(key or b"") + len(value or b"") + sum(len(name) + len(content) for name, content in headers)


MORE = HELD_BYTES + 1
HEADER = ("trace", b"t")


@pytest.mark.parametrize(
    ("key", "value", "headers", "is_left_out"),
    [
        (b"k", b"x" * (HELD_BYTES - 1), (), {}),
        (b"k", b"x" * HELD_BYTES, (), {"value": HELD_BYTES}),
        (b"k" * MORE, b"v", (HEADER,), {"key": MORE}),
        (b"k" * HELD_BYTES, b"v", (HEADER,), {"value": 1, "headers": 1 + 5 + 1 + 1}),
        (None, b"v", (HEADER, ("h", b"x" * MORE), HEADER), {"headers": 1 + 1 + 4 + MORE + 8}),
        (
            b"k",
            b"v" * 70_000,
            (("h", None), ("h", b"x" * (HELD_BYTES - 70_000 - 3 * HEADER_BYTES - 9)), HEADER),
            {},
        ),
        (b"k" * MORE, b"v" * MORE, (("h", b"x" * MORE),), {"key": MORE, "value": MORE, "headers": 6 + MORE}),
    ],
    ids=["as it came", "value", "key", "value and headers", "headers", "as large as allowed", "all"],
)
def test_what_the_topic_would_refuse_is_left_out_and_its_size_told(key, value, headers, is_left_out):
    letter = dead_letter(a_batch(key, value, headers))
    (its_key, its_value), its_headers, _ = letter
    assert left_out(its_headers) == is_left_out
    assert its_key == (None if "key" in is_left_out else key)
    assert its_value == (b"" if "value" in is_left_out else value)
    whole = [header for header in headers if len(header[1] or b"") < MORE]
    assert its_headers[: len(whole)] == whole or "headers" in is_left_out
    if not is_left_out:
        assert dead_letter(a_batch(key, value, headers))[1][: len(headers)] == list(headers)
    assert sum(len(content or b"") for _, content in its_headers) < LARGEST_MESSAGE - len(its_value) - 100_000


def test_what_was_never_held_is_left_out_of_the_dead_letter():
    batch = a_batch(b"k" * 65_537, b"v" * 65_537, (HEADER,))
    batch.left_out = {1: LeftOut(key=9_000_000, value=8_000_000, headers=7_000_000)}
    why = Rejected("too_large", "the value has 65537 bytes, allowed are 65536")
    ((parts, headers, _),) = dead_letters(batch, [(1, why)], 99, "callfunnel")
    assert parts == (None, b"")
    assert headers[0] == HEADER
    assert left_out(headers) == {"key": 9_000_000, "value": 8_000_000, "headers": 7_000_000}
    assert dict(headers)["callfunnel.detail"] == b"the value has 8000000 bytes, allowed are 65536"


def test_of_a_bomb_little_is_repeated():
    batch = a_batch(b"lead-1", b"{" * 65_000, (HEADER,))
    batch.in_bomb = True
    (key, value), headers, _ = dead_letter(batch)
    assert (key, value, headers[0]) == (b"lead-1", b"", HEADER)
    assert left_out(headers) == {"value": 65_000}
    assert size(dead_letter(batch)) < 2 * BOMB_BYTES


def test_a_lump_is_one_dead_letter_that_says_for_how_many_records_it_stands():
    batch = a_batch(b"k", b"v")
    lumps = [
        Lump(35, 39, 5, "too_large", "a block declares too much", 7, 4, b"\x82SNA"),
        Lump(42, 60, 3, "unreadable", "it ends before they do", 7, MORE, b"x" * MORE),
    ]
    batch.lumps = lumps
    before, between, behind = dead_letters(batch, [(1, WHY)], 99, "callfunnel")
    assert source_offset(between[1], "callfunnel") == 41
    for letter, lump, value in ((before, lumps[0], b"\x82SNA"), (behind, lumps[1], b"")):
        assert letter[0] == (None, value)
        headers = dict(letter[1])
        assert source_offset(letter[1], "callfunnel") == lump.first
        assert headers["callfunnel.reason"] == lump.reason.encode()
        assert headers["callfunnel.detail"] == lump.detail.encode()
        assert int(headers["callfunnel.records"]) == lump.records
        assert int(headers["callfunnel.last_offset"]) == lump.last
    assert left_out(behind[1]) == {"value": MORE}


def test_an_event_is_sent_home_with_as_many_headers_as_fit():
    headers = (HEADER, ("h", b"x" * 2_000_000))
    batch = a_batch(b"lead-1", b"{" * 65_000, headers)
    (parts, its_headers, timestamp) = sent_home(batch, 1)
    assert (parts, timestamp) == ((b"lead-1", b"{" * 65_000), 2)
    assert its_headers == [HEADER, ("callfunnel.left_out.headers", b"%d" % (2_000_000 + 1 + 1 + 4))]
    assert sent_home(a_batch(b"lead-1", b"{}", (HEADER,)), 1)[1] == [HEADER]
    batch.left_out = {1: LeftOut(value=65_000, headers=9_000_000)}
    batch.headers[1] = (HEADER,)
    assert sent_home(batch, 1) == (
        (b"lead-1", b"{" * 65_000),
        [HEADER, ("callfunnel.left_out.headers", b"9000000")],
        2,
    )
    assert SENT_HOME_BYTES < SOURCE_MESSAGE
