"""Records that are refused: each is in the dead letters once, as it came, and in nobody's way."""

import signal
import subprocess
import time

import pytest

from callfunnel.agents.config import Settings
from callfunnel.agents.demo import generator
from callfunnel.agents.demo.broker import remove_dead_members
from callfunnel.schemas.codec import NOT_OF_THE_GATE, REASONS
from callfunnel.streams.tables import MOST_EVENTS
from integration.workers import (
    PARTITIONS,
    SEED,
    Left,
    Record,
    Worker,
    assert_equal,
    callfunnel,
    calls,
    home,
    record,
    variables,
)

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
    "from_the_future": record(GOOD | {"occurred_at": 4_070_908_800_000}, AT_MS),
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
        assert int(headers["callfunnel.received_at"]) > AT_MS
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


def flood(n: int, lead: str = "bad-lead") -> list[Record]:
    """So many rejected records of one lead, so of one partition."""
    return [record(GOOD | {"lead_id": lead, "type": f"coffee_break_{number}"}) for number in range(n)]


def letters(left: Left) -> list[bytes]:
    return sorted(letter.value for letter in left.dead)


def is_poisoned(worker: Worker, partition: int) -> bool:
    topic = worker.settings.source_topic
    return worker.metric(f'callfunnel_worker_poisoned{{partition="{partition}",topic="{topic}"}}') == 1


def test_1001_rejected_in_a_row_and_more_end_no_worker_before_or_after_a_restart(workers):
    good, bad = calls(clients=300, live_events=300), flood(2_500)
    workers.publish([*good[:500], *bad[:1_001]])
    first = workers.start(instance="w1").wait_until_ready()
    first.wait_until(lambda: is_poisoned(first, home("bad-lead")), 30, "does not name the partition")
    assert f"{first.settings.source_topic}/{home('bad-lead')} is poisoned: " in first.log
    assert "reasons: unknown_type (" in first.log
    assert not any(is_poisoned(first, other) for other in range(PARTITIONS) if other != home("bad-lead"))
    first.kill()
    workers.publish([*bad[1_001:], *good[500:]])
    second = workers.start(instance="w1").wait_until_ready()
    third = workers.start().wait_until_ready()
    left = workers.wait(len(good) + len(bad))
    assert_equal(left, good)
    assert letters(left) == sorted(one.value for one in bad)
    assert [one.process.poll() for one in (second, third)] == [None, None]
    assert left.position(home("bad-lead")).poison == "found"


def test_a_stopped_partition_is_stopped_for_every_worker_until_an_operator_lets_it_go_on(workers):
    """Killed and started again, taken over by another; meanwhile the other partitions are counted."""
    poisoned = home("bad-lead")
    good, bad = calls(clients=300, live_events=300), flood(1_500)
    stops = {"dlq_stop": True, "dlq_share_window": 500}
    workers.publish([*bad, *good])
    first = workers.start(instance="w1", **stops)
    first.wait_until(lambda: "--partition" in first.get("/-/ready")[1], 30, "does not stop")
    status, reason = first.get("/-/ready")
    assert (status, "is stopped at offset" in reason) == (503, True)
    first.kill()
    second = workers.start(instance="w1", **stops)
    second.wait_until(lambda: "--partition" in second.get("/-/ready")[1], 30, "does not stop")
    second.send(signal.SIGTERM)
    assert second.exit_code(10) == 0
    remove_dead_members(workers.settings)  # a name in the group keeps its place for a session
    third = workers.start(**stops)
    third.wait_until(lambda: "--partition" in third.get("/-/ready")[1], 30, "does not stop")
    away = [one for one in good if home(one.key.decode()) != poisoned]
    left = workers.wait_for(lambda left: left.total("applied") + left.total("duplicates") == len(away))
    stopped_at = left.position(poisoned)
    assert (stopped_at.poison, stopped_at.applied) == ("found", 0)
    assert stopped_at.rejected == len(left.dead) < len(bad)
    waiting = len(left.source[poisoned]) - stopped_at.rejected
    third.wait_until(lambda: third.metric(lag(third, poisoned)) == waiting, 30, "does not say how many wait")
    assert third.get("/-/healthy")[0] == 200

    told = resume(third.settings, "--partition", str(poisoned))
    assert told.returncode == 0, told.stderr
    assert f"{third.settings.source_topic}/{poisoned} may go on" in told.stdout
    left = workers.wait(len(good) + len(bad))
    assert_equal(left, good)
    assert letters(left) == sorted(one.value for one in bad)
    third.wait_until(lambda: third.get("/-/ready")[0] == 200, 10, "is not ready")


def lag(worker: Worker, partition: int) -> str:
    topic = worker.settings.source_topic
    return f'callfunnel_worker_consumer_lag{{partition="{partition}",topic="{topic}"}}'


def resume(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return callfunnel(variables(settings), "source", "resume", *arguments)


def test_a_partition_that_does_not_exist_cannot_go_on(workers):
    told = resume(workers.settings, "--partition", str(PARTITIONS))
    assert told.returncode == 64
    assert f"has no partition {PARTITIONS}: it has {PARTITIONS} of them" in told.stderr


def test_a_crowded_lead_is_the_trouble_of_that_lead_alone(workers):
    """As in a real bank's file, whose customer 0 has three in five calls."""
    good = calls(clients=200, live_events=200)
    crowd = [record(GOOD | {"lead_id": "0", "event_id": f"c{number}"}) for number in range(MOST_EVENTS + 700)]
    workers.publish([*crowd[:3_000], *good, *crowd[3_000:]])
    worker = workers.start(dlq_stop=True, dlq_share_window=500, batch_events=1_000)
    left = workers.wait(len(good) + len(crowd))
    reasons = {dict(letter.headers)["callfunnel.reason"] for letter in left.dead}
    assert (len(left.dead), reasons) == (700, {b"crowded_lead"})
    assert letters(left) == sorted(one.value for one in crowd[MOST_EVENTS:])
    assert_equal(left, [*good, *crowd[:MOST_EVENTS]])
    assert worker.metric("callfunnel_worker_crowded_leads_total") == 1
    assert "is crowded" in worker.log
    assert not any(is_poisoned(worker, partition) for partition in range(PARTITIONS))
