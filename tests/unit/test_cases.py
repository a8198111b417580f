"""What real systems send, each kind in a small file of its own: `tests/cases`."""

from collections import Counter
from pathlib import Path

import pytest

from callfunnel.schemas.codec import Decoder, Limits, Rejected
from callfunnel.schemas.events import STAGES
from callfunnel.streams import oracle
from callfunnel.streams.engine import Partition
from callfunnel.streams.measures import FIGURES
from callfunnel.streams.oracle import differences
from callfunnel.streams.rates import RATES, total
from property.test_fold import DECODER, FOLD, KEPT, ZONE

CASES = Path(__file__).parents[1] / "cases"


def verdicts(name):
    lines = (CASES / f"{name}.jsonl").read_bytes().splitlines()
    return Decoder(Limits(clock="event")).decode_all(lines, [None] * len(lines), [-1] * len(lines))


def columns(name):
    """Of all time."""
    sums = Counter()
    for (resolution, *_), row in oracle.tables(verdicts(name)).items():
        if resolution == "all":
            sums.update(row)
    return sums


def figures(name):
    """What is shown of all time."""
    return {figure: found.read(columns(name)) for figure, found in FIGURES.items()}


def reach(shown):
    return total(RATES["reach"].numerator, shown), total(RATES["reach"].denominator, shown)


def test_a_transferred_call_ends_with_its_last_leg_and_counts_once():
    shown = figures("transfer")
    assert shown["leads_reached"] == 1
    assert shown["dm_hangups"] == shown["agent_hangups"] == 0
    assert reach(shown) == (1, 1)


def test_a_machine_s_verdict_that_comes_late_takes_the_answer_back():
    shown = figures("late-machine")
    assert shown["leads_connected"] == shown["events_connected"] == 0
    assert shown["machine_answers"] == shown["connects_voided"] == 1
    assert columns("late-machine")["events_connected"] == 1


def test_one_id_may_serve_a_whole_call():
    shown = figures("one-id-per-call")
    for stage in ("dialed", "connected", "reached", "won"):
        assert (shown[f"events_{stage}"], shown[f"leads_{stage}"]) == (1, 1)


def test_a_lead_that_calls_is_reached_by_no_dial():
    shown = figures("answered-inbound")
    assert shown["leads_reached"] == 1
    assert reach(shown) == (0, 0)


def test_a_lead_that_another_campaign_creates_again_is_a_unit_of_its_own():
    of = {key[3]: row for key, row in oracle.tables(verdicts("second-campaign")).items() if key[0] == "all"}
    spring, autumn = of["spring"], of["autumn"]
    assert (spring["leads_created"], spring["leads_dialed"], spring["events_lost"]) == (1, 1, 1)
    assert "leads_won" not in spring
    assert [autumn[f"leads_{stage}"] for stage in STAGES] == [1] * len(STAGES)
    assert (autumn["attempt_ms"], autumn["attempt_1800"]) == (1_800_000, 1)


def test_seconds_in_the_place_of_milliseconds_are_refused_with_a_hint():
    [refused] = verdicts("epoch-seconds")
    assert isinstance(refused, Rejected)
    assert refused.reason == "bad_value"
    assert refused.detail.endswith("send milliseconds, not seconds")


def test_a_win_that_is_taken_back_is_none():
    shown, held = figures("win-taken-back"), columns("win-taken-back")
    assert (held["events_won"], held["retracted_won"]) == (1, 1)
    assert shown["events_won"] == shown["leads_won"] == 0
    assert shown["events_lost"] == 1


@pytest.mark.parametrize("path", sorted(CASES.iterdir()), ids=lambda path: path.stem)
def test_both_kinds_of_tables_say_the_same(path, tables):
    lines = path.read_bytes().splitlines()
    state = Partition(0, 1, FOLD, DECODER, tables)
    state.apply(lines, [None] * len(lines), [-1] * len(lines), len(lines))
    accepted = [event for event in verdicts(path.stem) if not isinstance(event, Rejected)]
    assert differences(oracle.tables(accepted, timezone=ZONE, **KEPT), state.tables.rows()) == []
