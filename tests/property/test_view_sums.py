"""The view keeps sums as rows come; here they are added up anew, the slow way."""

from collections import defaultdict
from datetime import UTC

import orjson
from hypothesis import given
from hypothesis import strategies as st

from callfunnel.agents.view.snapshot import Funnel
from callfunnel.streams.rows import POSITION_KEY, encode_columns, encode_key
from callfunnel.streams.windows import WINDOWS, Panes, due_panes, window_panes

NOW = 1_750_000_020
MINUTE, HOUR, DAY = NOW - NOW % 60, NOW - NOW % 3_600, NOW - NOW % 86_400

keys = st.tuples(
    st.sampled_from(
        [
            ("1m", MINUTE),
            ("1m", MINUTE - 60),
            ("1m", MINUTE - 420),
            ("1h", HOUR),
            ("1h", HOUR - 3_600),
            ("1d", DAY),
            ("all", 0),
        ]
    ),
    st.sampled_from(
        [("campaign+source", "spring", "web"), ("campaign+source", "fall", 'a"b'), ("location", "Köln")]
    ),
)
values = st.none() | st.dictionaries(
    st.sampled_from(["events_dialed", "leads_won", "awaited", "attempt_60", "attempt_900", "uncalled"]),
    st.integers(1, 1000),
)
records = st.lists(st.tuples(st.integers(0, 2), keys, values), max_size=40)


def filled(sums, changes, is_of_before=False) -> Funnel:
    """As this version writes rows, or as version 2 of the tables did."""
    funnel = Funnel(UTC, new_sums=sums)
    for partition, ((resolution, pane), (rollup, *row)), columns in changes:
        key = resolution, pane, rollup, *row
        if is_of_before:
            funnel.apply(partition, orjson.dumps(key), None if columns is None else orjson.dumps(columns))
        else:
            value = None if columns is None else encode_columns(columns)
            funnel.apply(partition, encode_key(key), value)
    return funnel


def holds(panes: Panes, resolution: str, start: int, is_of_before: bool) -> bool:
    """Whether a row is a part of these panes."""
    if resolution == panes.resolution:
        return start in panes.starts
    is_minute = resolution == "1m" and not is_of_before and bool(panes.starts)
    return is_minute and panes.starts[0] <= start < panes.end


@given(records, st.booleans())
def test_a_window_is_the_sum_over_partitions_of_the_newest_rows_in_its_panes(sums, changes, is_of_before):
    newest = {(partition, key): columns for partition, key, columns in changes}
    snapshot = filled(sums, changes, is_of_before).snapshot(NOW)
    for window in (*WINDOWS, "all"):
        panes = window_panes(window, NOW, UTC)
        expected = defaultdict(lambda: defaultdict(int))
        for (_, (pane, (rollup, *row))), columns in newest.items():
            if rollup == "campaign+source" and holds(panes, *pane, is_of_before):
                for column, n in (columns or {}).items():
                    expected[tuple(row)][column] += n
        assert snapshot.windows[window]["campaign+source"] == expected


@given(records, st.booleans())
def test_due_and_met_are_sums_over_creation_panes(sums, changes, is_of_before):
    newest = {(partition, key): columns for partition, key, columns in changes}
    snapshot = filled(sums, changes, is_of_before).snapshot(NOW)
    for window in WINDOWS:
        created, not_due = due_panes(window, NOW, UTC)
        expected = defaultdict(lambda: [0, 0])
        for (_, (pane, (rollup, *row))), columns in newest.items():
            sign = holds(created, *pane, is_of_before) - holds(not_due, *pane, is_of_before)
            if rollup == "campaign+source" and columns:
                expected[tuple(row)][0] += sign * columns.get("awaited", 0)
                expected[tuple(row)][1] += sign * columns.get("attempt_60", 0)
        found = {row: list(both) for row, both in snapshot.due[window].items() if any(both)}
        assert found == {row: both for row, both in expected.items() if any(both)}


@given(records)
def test_a_funnel_whose_rows_are_all_deleted_holds_nothing(sums, changes):
    funnel = filled(sums, [*changes, *((partition, key, None) for partition, key, _ in changes)])
    snapshot = funnel.snapshot(NOW)
    assert snapshot.rows == 0
    assert not any(rows for window in snapshot.windows.values() for rows in window.values())
    assert snapshot.uncalled == {}


@given(records, records)
def test_what_came_before_does_not_matter_only_the_newest_rows_do(sums, earlier, later):
    both = filled(sums, [*earlier, *later])
    newest = {(partition, key): columns for partition, key, columns in [*earlier, *later]}
    assert both.snapshot(NOW) == filled(sums, [(*at, columns) for at, columns in newest.items()]).snapshot(
        NOW
    )


def test_the_watermark_of_each_partition_is_the_newest_of_its_position_rows():
    funnel = Funnel(UTC)
    funnel.apply(0, POSITION_KEY, b'{"offset":1,"watermark_ms":1500,"fold":"x"}')
    funnel.apply(0, POSITION_KEY, b'{"offset":9,"watermark_ms":2500,"fold":"x"}')
    funnel.apply(1, POSITION_KEY, b'{"offset":3,"watermark_ms":700,"fold":"x"}')
    positions = funnel.snapshot(NOW).positions
    assert {number: its.watermark_ms for number, its in positions.items()} == {0: 2500, 1: 700}
