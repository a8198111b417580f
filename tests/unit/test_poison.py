"""When a partition is poisoned, and what is told of it."""

import json
import logging
from collections import Counter

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from callfunnel.agents.engine.metrics import EngineMetrics
from callfunnel.agents.engine.poison import Refusals
from callfunnel.agents.kafka.microbatch import MicroBatch
from callfunnel.schemas.codec import CROWDED, Rejected
from callfunnel.streams.log import pseudonym
from callfunnel.streams.poison import Tolerance
from callfunnel.streams.rows import Position, decode_position, encode_position

TOLERANCE = Tolerance(window=10, max_share=0.5)
CLEAN = Position(offset=0, watermark_ms=-1, fold="f")
SPRING = {"campaign": "spring", "source": "web", "lead_id": "+49-170-5550199"}


def share(*batches, before=0.0, tolerance=TOLERANCE):
    """After batches, each as its verdicts: `x` is rejected."""
    for batch in batches:
        before = tolerance.share(before, len(batch), [i for i, one in enumerate(batch) if one == "x"])
    return before


# The share


def test_a_batch_of_a_whole_window_and_more_is_counted_to_the_record():
    assert share("xxxxx.....") == 0.5
    assert share("xxxxxxxxxxxxxxx..........") == 0.0
    assert share("....................xxx.......") == 0.3


def test_records_before_the_batch_count_with_the_share_they_had():
    assert share("xxxxx", before=0.0) == 0.5
    assert share(".....", before=1.0) == 0.5
    assert share("xx", before=0.5) == pytest.approx(0.6)


def test_a_steady_stream_has_its_share_in_batches_of_any_size():
    for size in (1, 3, 10, 100):
        batch = ("x..." * 100)[: 4 * size]
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        assert share(*parts * 100) == pytest.approx(0.25, abs=0.1)


def test_a_partition_that_was_never_read_is_clean():
    assert share("x") == 0.1


# The state


def states(*shares, before="none", tolerance=TOLERANCE):
    for one in shares:
        before = tolerance.poison(before, one)
        yield before


def test_a_partition_is_poisoned_above_the_limit_and_until_half_of_it():
    assert list(states(0.5, 0.51, 0.3, 0.26, 0.25, 0.3)) == [
        "none",
        "found",
        "found",
        "found",
        "none",
        "none",
    ]


def test_what_an_operator_has_accepted_is_accepted_until_the_partition_is_clean():
    assert list(states(1.0, 0.3, 0.9, 0.2, 0.9, before="accepted")) == [
        *("accepted", "accepted", "accepted", "none", "found")
    ]


def test_where_nothing_may_be_rejected_a_partition_becomes_clean_all_the_same():
    nothing = Tolerance(window=10, max_share=0.0)
    assert list(states(0.1, 0.06, 0.04, before="none", tolerance=nothing)) == ["found", "found", "none"]


def test_a_share_of_one_is_never_exceeded():
    assert list(states(1.0, tolerance=Tolerance(10, 1.0))) == ["none"]


def test_a_position_of_an_earlier_version_says_nothing_of_it():
    before = b'{"offset":7,"watermark_ms":5,"fold":"f","applied":7,"duplicates":0,"rejected":0,"rerouted":0}'
    assert decode_position(before) == Position(offset=7, watermark_ms=5, fold="f", applied=7)
    poisoned = replace(CLEAN, rejected_share=0.75, poison="accepted")
    assert decode_position(encode_position(poisoned)) == poisoned


# What is told


class Told:
    """Refusals, their metrics, and the log."""

    def __init__(self, caplog):
        caplog.set_level(logging.INFO)
        self.registry = CollectorRegistry()
        self.refusals = Refusals(EngineMetrics(self.registry), "call-events", "call-events.dlq", 0.5)
        self._log = caplog

    @property
    def log(self):
        return [record.getMessage() for record in self._log.records]

    def metric(self, name, **labels):
        return self.registry.get_sample_value(f"callfunnel_worker_{name}", labels)

    @property
    def gauges(self):
        labels = {"topic": "call-events", "partition": "3"}
        return self.metric("rejected_share", **labels), self.metric("poisoned", **labels)


@pytest.fixture
def told(caplog):
    return Told(caplog)


def a_batch(*values, keys=None, start=40):
    batch = MicroBatch("call-events", 3, start, start + len(values), 1)
    batch.offsets = list(range(start, start + len(values)))
    batch.values = [one if isinstance(one, bytes | None) else json.dumps(one).encode() for one in values]
    batch.keys = keys or [None] * len(values)
    batch.headers, batch.timestamps = [()] * len(values), [1] * len(values)
    return batch


def refused(*reasons):
    return [(i, Rejected(reason, "…")) for i, reason in enumerate(reasons) if reason]


POISONED = replace(CLEAN, offset=44, rejected_share=0.63, poison="found")


def test_a_poisoned_partition_is_named_with_offsets_reasons_and_senders(told):
    batch = a_batch(SPRING, b"\xff{", {"campaign": "autumn"}, SPRING, {"lead_id": "l"})
    told.refusals.observe(
        batch, refused("unknown_type", "not_utf8", "", "unknown_type", "bad_value"), CLEAN, POISONED
    )
    (line,) = told.log
    assert line.startswith("call-events/3 is poisoned: 63% of its newest records were rejected")
    assert "Of the last 5 records, 4 were, at offsets 40 to 44" in line
    assert "reasons: unknown_type (2), not_utf8 (1), bad_value (1)" in line
    assert "senders: campaign spring, source web (2), unknown (2)" in line
    assert "in call-events.dlq/3" in line
    assert told.gauges == (0.63, 1.0)
    assert told.metric("events_rejected_total", reason="unknown_type") == 2


def test_a_poisoned_partition_is_named_once_and_its_end_too(told):
    worse = replace(POISONED, rejected_share=0.9)
    clean = replace(POISONED, rejected_share=0.2, poison="none")
    told.refusals.observe(a_batch(b"{"), refused("not_json"), CLEAN, POISONED)
    told.refusals.observe(a_batch(b"{"), refused("not_json"), POISONED, worse)
    told.refusals.observe(a_batch(SPRING), [], worse, clean)
    told.refusals.observe(a_batch(SPRING), [], clean, clean)
    assert len(told.log) == 2
    assert told.log[1] == "call-events/3 is no longer poisoned: 20% of its newest records were rejected"
    assert told.gauges == (0.2, 0.0)


def test_whoever_takes_a_poisoned_partition_over_names_it_too(told):
    told.refusals.take_over(3, POISONED)
    told.refusals.take_over(4, CLEAN)
    (line,) = told.log
    assert line.startswith("call-events/3 is poisoned: 63%")


def test_every_owned_partition_has_its_gauges_from_the_beginning(told):
    told.refusals.show(3, CLEAN)
    assert told.gauges == (0.0, 0.0)


def test_a_lower_limit_may_find_poison_where_the_newest_records_are_good(told):
    told.refusals.observe(a_batch(SPRING), [], CLEAN, POISONED)
    assert "Of the last 1 records, none was" in told.log[0]


SECRET = "+49-170-5550199"


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"\xff",
        b"[" * 60_000,
        b'{"campaign":"a\\nb"}',
        b'{"campaign":"%s"}' % (b"x" * 65),
        b'{"campaign":{"of":"%s"}}' % SECRET.encode(),
        b'{"lead_id":"%s","phone":"%s"}' % (SECRET.encode(), SECRET.encode()),
        b'{"campaign":"spring","x":"%s"}' % (b"x" * 70_000),
    ],
)
def test_what_does_not_name_its_sender_safely_is_of_an_unknown_one(told, value):
    told.refusals.observe(a_batch(value, keys=[SECRET.encode()]), refused("not_json"), CLEAN, POISONED)
    (line,) = told.log
    assert "senders: unknown (1)" in line
    assert SECRET not in line


# Crowded leads


def test_a_crowded_lead_is_counted_and_named_once_without_its_id(told):
    clean = replace(CLEAN, rejected_share=0.0)
    other = SPRING | {"lead_id": "0"}
    for start in (40, 50):
        batch = a_batch(SPRING, SPRING, other, keys=[None, SECRET.encode(), b"0"], start=start)
        told.refusals.observe(batch, refused(CROWDED, CROWDED, CROWDED), clean, clean)
    assert told.metric("crowded_leads_total") == 2
    assert told.metric("events_rejected_total", reason=CROWDED) == 6
    assert [line.partition(":")[0] for line in told.log] == ["call-events/3"] * 2
    assert f"lead #{pseudonym(SECRET.encode())} is crowded" in told.log[0]
    assert "offset 40 is one more" in told.log[0]
    assert all(SECRET not in line for line in told.log)


def test_a_crowded_lead_is_read_as_the_gate_reads_it(told):
    value = b'{"x":1e999,"y":"\\ud800","lead_id":"other","lead_id":"0"}'
    told.refusals.observe(a_batch(value), refused(CROWDED), CLEAN, CLEAN)
    assert f"lead #{pseudonym(b'0')} is crowded" in told.log[0]


def test_a_pseudonym_stands_for_many_ids():
    names = Counter(pseudonym(b"%d" % number) for number in range(100_000))
    assert all(len(name) == 5 for name in names)
    assert 80_000 < len(names) < 100_000
