"""The harness finds what is wrong: a verdict that cannot be bad would prove nothing."""

from collections import Counter
from zoneinfo import ZoneInfo

import orjson
import pytest
from msgspec.structs import replace

from callfunnel.schemas.codec import NOT_OF_THE_GATE, REASONS, Decoder, Limits, Rejected
from callfunnel.streams import oracle
from callfunnel.streams.measures import SEGMENT
from callfunnel.streams.rows import encode_columns, encode_key
from faults import corpus, stream
from faults.verify import POSITION, Left, compare
from faults.watch import Answers, Promtool, Watch, business

PARTITIONS = 3
RECORDS = 400


@pytest.fixture
def expected():
    return stream.expected(7, RECORDS, PARTITIONS, after=[RECORDS // 2])


@pytest.fixture
def left(expected):
    """What a right run leaves: every cell, and a position that accounts for every record."""
    left = Left()
    for partition, rows in expected.tables.items():
        written = without_minutes(rows).items()
        left.funnel[partition] = {encode_key(key): encode_columns(row) for key, row in written}
        left.funnel[partition][POSITION] = at(applied=0)
    left.funnel[0][POSITION] = at(applied=expected.applied, rejected=2, duplicates=1)
    left.leads[0] = dict.fromkeys(map(str, range(expected.leads)), b"")
    left.dead.update([(0, 3, "not_json"), (0, 9, "bad_value")])
    return left


def without_minutes(rows):
    """As rows are written: what a minute holds is in no coarser row."""
    written = {key: Counter(columns) for key, columns in rows.items()}
    for (resolution, minute, *group), columns in rows.items():
        if resolution == "1m":
            for pane in oracle.panes(minute * 1000, ZoneInfo("UTC")):
                if pane[0] != "1m" and (coarse := written.get((*pane, *group))):
                    coarse.subtract(columns)
    left = {key: {name: n for name, n in columns.items() if n} for key, columns in written.items()}
    return {key: columns for key, columns in left.items() if columns}


def at(**counts):
    return orjson.dumps({"generation": 0, **counts})


def judge(left, expected):
    read = dict.fromkeys(range(1, PARTITIONS), 0) | {0: expected.applied + 3}
    return compare(left, expected, read, {(0, 3, "not_json"): 1, (0, 9, "bad_value"): 1})


def test_a_right_run_has_no_differences(left, expected):
    verdict = judge(left, expected)
    assert (verdict.lost, verdict.doubled, verdict.holes, verdict.differences) == (0, 0, 0, [])
    assert verdict.exact


def test_a_cell_too_small_is_lost_and_a_cell_too_large_is_doubled(left, expected):
    of_all_time = encode_key(("all", 0, SEGMENT.name, "nobody's", "list"))
    left.funnel[0][of_all_time] = encode_columns({"events_won": 5, "uncalled": 2})
    del left.funnel[1][next(key for key in left.funnel[1] if key != POSITION)]
    verdict = judge(left, expected)
    assert verdict.doubled == 7
    assert verdict.lost > 0
    assert len(verdict.differences) >= 3
    assert not verdict.exact


def test_a_record_that_nobody_accounts_for_is_a_hole(left, expected):
    left.funnel[0][POSITION] = at(applied=expected.applied, rejected=2)
    verdict = judge(left, expected)
    assert verdict.holes == 1
    assert verdict.differences


@pytest.mark.parametrize(
    ("letter", "lost", "doubled"),
    [((0, 3, "not_json"), 0, 1), ((0, 3, "not_utf8"), 0, 1), ((1, 9, "bad_value"), 0, 1)],
)
def test_a_dead_letter_too_many_or_with_another_reason_is_doubled(left, expected, letter, lost, doubled):
    left.dead[letter] += 1
    verdict = judge(left, expected)
    assert (verdict.lost, verdict.doubled) == (lost, doubled)


def test_a_dead_letter_that_is_missing_is_lost(left, expected):
    del left.dead[0, 3, "not_json"]
    assert judge(left, expected).lost == 1


def test_the_counters_are_those_of_the_oracle(expected):
    total = stream.oracle.total(expected.tables)
    for (stage, *segment), n in expected.counters[-1].items():
        assert total["all", 0, "campaign+source", *segment][f"events_{stage}"] == n
    assert sum(expected.counters[0].values()) < sum(expected.counters[1].values())


def test_the_stream_is_a_function_of_its_seed():
    assert list(stream.records(7, 300)) == list(stream.records(7, 300))
    assert list(stream.records(7, 300)) != list(stream.records(8, 300))


def test_what_a_record_is_spoilt_into_is_refused_for_that_reason():
    mix = replace(stream.Mix(), poison=1.0, hot=0.2)
    spoilt = [sent for sent in stream.records(7, 2_000, mix) if sent.reason]
    decoder = Decoder(Limits(clock="event"))
    verdicts = [decoder.decode(sent.value, sent.key, sent.at_ms) for sent in spoilt]
    assert [verdict.reason for verdict in verdicts] == [sent.reason for sent in spoilt]
    assert {sent.reason for sent in spoilt} == {reason for reason, _ in stream.POISON}


AT_MS = 1_740_830_400_000
CASES = corpus.cases(AT_MS)


def test_every_case_of_the_corpus_is_judged_as_it_says():
    decoder = Decoder(Limits())
    verdicts = [decoder.decode(case.value, case.key, AT_MS) for case in CASES]
    got = {
        case.name: verdict.reason if isinstance(verdict, Rejected) else None
        for case, verdict in zip(CASES, verdicts, strict=True)
    }
    assert got == {case.name: case.reason for case in CASES}
    assert len(got) >= 500
    assert {case.reason for case in CASES} == {*REASONS, None} - NOT_OF_THE_GATE


PAGE = """# HELP callfunnel_events_total Events.
# TYPE callfunnel_events_total counter
callfunnel_events_total{campaign="spring",source="web",funnel_stage="won"} %s
"""
CURRENT = """# HELP callfunnel_view_state State.
# TYPE callfunnel_view_state gauge
callfunnel_view_state{state="current"} 1.0
"""


def watch():
    return Watch("w1", 1, lambda: 1, Promtool(), Answers())


def test_a_counter_that_decreases_or_goes_is_told():
    one = watch()
    for value in (3, 5, 5):
        one._look(1, CURRENT + PAGE % value)
    assert one.complaints == []
    one._look(1, CURRENT + PAGE % 4)
    one._look(2, CURRENT + PAGE % 1)  # another process
    assert [complaint.partition("} ")[2] for complaint in one.complaints] == ["went from 5 to 4.0"]
    one._look(2, CURRENT)
    assert one.complaints[-1].endswith("went from 1 to None")


def test_numbers_of_a_view_that_is_not_current_are_told():
    one = watch()
    one._look(1, CURRENT + PAGE % 3)
    one._look(1, "")
    assert one.complaints == []
    one._look(1, PAGE % 3)
    assert one.complaints[-1].endswith("of a view that is not current")


def test_a_page_is_read_by_its_labels():
    assert business(PAGE % 4) == {("won", "spring", "web"): 4}


@pytest.mark.skipif(not Promtool().is_there, reason="promtool is not installed")
def test_promtool_sees_a_page_that_is_wrong():
    one = watch()
    one._look(1, PAGE.replace("_total", "") % 4)
    assert "promtool says" in one.complaints[-1]
