"""The view keeps sums as rows come; here they are added up anew, the slow way."""

from collections import defaultdict
from datetime import UTC

import orjson
from hypothesis import given
from hypothesis import strategies as st

from callfunnel.agents.view.snapshot import Funnel
from callfunnel.streams.rows import POSITION_KEY
from callfunnel.streams.windows import WINDOWS, due_panes, window_panes

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


def filled(sums, changes) -> Funnel:
    funnel = Funnel(UTC, new_sums=sums)
    for partition, ((resolution, pane), (rollup, *row)), columns in changes:
        key = orjson.dumps([resolution, pane, rollup, *row])
        funnel.apply(partition, key, None if columns is None else orjson.dumps(columns))
    return funnel


@given(records)
def test_a_window_is_the_sum_over_partitions_of_the_newest_rows_in_its_panes(sums, changes):
    newest = {(partition, key): columns for partition, key, columns in changes}
    snapshot = filled(sums, changes).snapshot(NOW)
    for window in (*WINDOWS, "all"):
        resolution, starts = window_panes(window, NOW, UTC)
        expected = defaultdict(lambda: defaultdict(int))
        for (_, (pane, (rollup, *row))), columns in newest.items():
            if pane[0] == resolution and pane[1] in starts and rollup == "campaign+source":
                for column, n in (columns or {}).items():
                    expected[tuple(row)][column] += n
        assert snapshot.windows[window]["campaign+source"] == expected


@given(records)
def test_due_and_met_are_sums_over_creation_panes(sums, changes):
    newest = {(partition, key): columns for partition, key, columns in changes}
    snapshot = filled(sums, changes).snapshot(NOW)
    for window in WINDOWS:
        created, not_due = due_panes(window, NOW, UTC)
        expected = defaultdict(lambda: [0, 0])
        for (_, ((resolution, pane), (rollup, *row))), columns in newest.items():
            sign = (resolution == created.resolution and pane in created.starts) - (
                resolution == not_due.resolution and pane in not_due.starts
            )
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
