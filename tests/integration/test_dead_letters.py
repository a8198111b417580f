"""Records that are refused: each is in the dead letters once, as it came, and in nobody's way."""

import time

import pytest

from agents import generator
from integration.workers import SEED, Record, assert_equal, calls, record
from schemas.codec import NOT_OF_THE_GATE, REASONS

GOOD = {"event_id": "e1", "type": "dial", "occurred_at": 1_210_000_000_000, "lead_id": "bad-lead"}
AT_MS = GOOD["occurred_at"]
KEY = b"bad-lead"

BAD = {
    "too_large": record(GOOD | {"agent": "a" * 70_000}),
    "not_utf8": Record(b'{"type":"dial\xff"}', KEY, AT_MS),
    "too_deep": record(GOOD | {"x": [[[[[[[[[[]]]]]]]]]]}),
    "not_json": Record(b"\0\0\0\0\1binary", KEY, AT_MS),
    "not_an_object": Record(b"[1]", KEY, AT_MS),
    "unsupported_version": record(GOOD | {"schema_version": 2}),
    "unknown_type": record(GOOD | {"type": "coffee_break"}),
    "missing_field": Record(b'{"event_id":"e1","type":"dial","lead_id":"bad-lead"}', KEY, AT_MS),
    "wrong_type": record(GOOD | {"campaign": 7}),
    "bad_value": record(GOOD | {"lead_id": "bad-lead", "agent": "a\u0007"}),
    "key_mismatch": record(GOOD)._replace(key=b"another"),
    "from_the_future": record(GOOD | {"occurred_at": 4_070_908_800_000}),
}
"""One record for each reason that holds on a replay; on one no event is too old."""

ON_A_LIVE_FLOOR = {"too_old"}


def test_every_reason_of_the_gate_has_its_record_here():
    assert BAD.keys() | ON_A_LIVE_FLOOR == REASONS.keys() - NOT_OF_THE_GATE


def among(good: list[Record], bad: list[Record]) -> list[Record]:
    """The bad ones evenly between the good ones."""
    step = len(good) // (len(bad) + 1)
    mixed = list(good)
    for number, one in reversed(list(enumerate(bad, 1))):
        mixed.insert(number * step, one)
    return mixed


def test_each_reason_is_told_once_with_the_record_as_it_came(workers):
    good = calls(clients=500, live_events=500)
    workers.start()
    workers.publish(among(good, list(BAD.values())))
    left = workers.wait(len(good) + len(BAD))
    assert_equal(left, good)
    assert left.total("rejected") == len(BAD)
    found = {}
    for letter in left.dead:
        headers = dict(letter.headers)
        found[headers["callfunnel.reason"].decode()] = Record(letter.value, letter.key, AT_MS)
        partition, offset = (int(headers[f"__connect.errors.{name}"]) for name in ("partition", "offset"))
        (origin,) = (one for one in left.source[partition] if one.offset == offset)
        assert (origin.value, origin.key) == (letter.value, letter.key)
        assert headers["callfunnel.detail"] == headers["__connect.errors.exception.message"] != b""
        assert int(headers["callfunnel.received_at"]) > origin.timestamp
        assert headers["__connect.errors.topic"].decode() == workers.settings.source_topic
        assert letter.partition == partition
    assert found == BAD
    assert len(left.dead) == len(BAD)


@pytest.mark.parametrize("clock", ["wall"])
def test_on_a_live_floor_early_and_old_events_are_refused_too(workers):
    now_ms = time.time_ns() // 1_000_000
    floor = generator.live(SEED, generator.FloorSettings(seats=10), now_ms, generator.TYPICAL_FAULTS)
    good = [
        record(event, now_ms)
        for event in (next(floor)[1] for _ in range(300))
        if event["occurred_at"] <= now_ms
    ]
    early = record(GOOD | {"occurred_at": now_ms + 3_600_000})
    workers.start()
    workers.publish(among(good, [early, record(GOOD)]))
    left = workers.wait(len(good) + 2)
    assert_equal(left, good)
    reasons = {dict(letter.headers)["callfunnel.reason"]: letter.value for letter in left.dead}
    assert reasons == {b"from_the_future": early.value, b"too_old": record(GOOD).value}


def test_too_many_in_a_row_end_the_worker_and_a_higher_limit_loses_nothing(workers):
    good = calls(clients=300, live_events=300)
    flood = [record(GOOD | {"type": f"coffee_break_{number}"}) for number in range(50)]
    workers.publish([*good[:500], *flood, *good[500:]])
    for _ in range(2):
        worker = workers.start(dlq_max_run=20, instance="w1")
        assert worker.exit_code(40) == 78
        assert "records in a row were rejected" in worker.log
        assert "CALLFUNNEL_DLQ_MAX_RUN" in worker.log
    workers.start(instance="w1")
    left = workers.wait(len(good) + len(flood))
    assert_equal(left, good)
    assert sorted(letter.value for letter in left.dead) == sorted(one.value for one in flood)
