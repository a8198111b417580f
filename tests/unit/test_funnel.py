import itertools
from collections import Counter
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from callfunnel.streams.funnel import Funnel
from callfunnel.streams.measures import OF_SEGMENT, PERSON, SEGMENT
from callfunnel.streams.measures import PLACE as LOCATION
from callfunnel.streams.panes import Bounds, pane_start, resolutions
from callfunnel.streams.rows import decode_columns, decode_key, whole

MINUTE = 1_750_000_020
HOUR, DAY = MINUTE // 3_600 * 3_600, MINUTE // 86_400 * 86_400
PLACE = ("spring", "web", "north", "ann", "Köln")


def cells(**columns):
    return {(MINUTE, *PLACE, column): n for column, n in columns.items()}


def funnel(zone=UTC, **kept):
    return Funnel(resolutions(**kept), zone)


def readable(changes):
    return {decode_key(key): None if value is None else decode_columns(value) for key, value in changes}


def add(state, cells, watermark_s=MINUTE):
    return readable(state.add(counts(cells), Bounds(watermark_s * 1000)))


def counts(cells):
    counted = Counter()
    for (minute, campaign, source, team, agent, location, column), n in cells.items():
        counted[minute, SEGMENT.name, (campaign, source), column] += n
        if column not in OF_SEGMENT:
            counted[minute, PERSON.name, (team, agent), column] += n
            counted[minute, LOCATION.name, (location,), column] += n
    return counted


def only(resolution, changes):
    return {key[1:]: columns for key, columns in changes.items() if key[0] == resolution}


GROUPS = [("campaign+source", "spring", "web"), ("team+agent", "north", "ann"), ("location", "Köln")]
COARSER = [*itertools.product([("1h", HOUR), ("1d", DAY)], GROUPS), (("all", 0), GROUPS[0])]


def test_a_cell_counts_in_the_row_of_its_minute_in_every_rollup():
    changes = add(funnel(), cells(events_dialed=2))
    assert changes == {("1m", MINUTE, *group): {"events_dialed": 2} for group in GROUPS}


def test_a_row_of_a_minute_that_expires_goes_into_those_of_hour_day_and_all_time():
    state = funnel(minute_hours=1)
    add(state, cells(events_dialed=2))
    expired = add(state, {(MINUTE + 60, *PLACE, "events_won"): 1}, MINUTE + 60 + 3_600)
    assert expired == (
        {("1m", MINUTE, *group): None for group in GROUPS}
        | {("1m", MINUTE + 60, *group): {"events_won": 1} for group in GROUPS}
        | {(*pane, *group): {"events_dialed": 2} for pane, group in COARSER}
    )
    assert add(state, {}, MINUTE + 120 + 3_600) == (
        {("1m", MINUTE + 60, *group): None for group in GROUPS}
        | {(*pane, *group): {"events_dialed": 2, "events_won": 1} for pane, group in COARSER}
    )


def test_every_pane_is_the_sum_of_its_events_wherever_they_are_held():
    state = funnel(minute_hours=1)
    add(state, cells(events_dialed=2))
    before = whole(state.rows(), UTC)
    assert before == {
        (*pane, *group): {"events_dialed": 2}
        for pane, group in [*((("1m", MINUTE), group) for group in GROUPS), *COARSER]
    }
    add(state, {}, MINUTE + 60 + 3_600)
    assert whole(state.rows(), UTC) == {key: row for key, row in before.items() if key[0] != "1m"}


def test_the_changes_hold_whole_rows_not_differences():
    state = funnel()
    add(state, cells(events_dialed=2))
    assert only("1m", add(state, cells(events_dialed=1, events_won=1)))[MINUTE, "location", "Köln"] == {
        "events_dialed": 3,
        "events_won": 1,
    }


def test_only_rows_that_change_are_written():
    state = funnel()
    add(state, cells(events_dialed=2))
    elsewhere = {(MINUTE, "spring", "web", "south", "bo", "Ulm", "events_dialed"): 1}
    assert add(state, elsewhere).keys() == {
        ("1m", MINUTE, "campaign+source", "spring", "web"),
        ("1m", MINUTE, "team+agent", "south", "bo"),
        ("1m", MINUTE, "location", "Ulm"),
    }


def test_what_cancels_out_is_not_written():
    to_another_agent = {
        (MINUTE, *PLACE, "leads_dialed"): 1,
        (MINUTE, "spring", "web", "north", "bo", "Köln", "leads_dialed"): -1,
        (MINUTE, *PLACE, "implied"): 0,
    }
    state = funnel()
    add(state, {(MINUTE, "spring", "web", "north", "bo", "Köln", "leads_dialed"): 1})
    assert add(state, to_another_agent) == {
        ("1m", MINUTE, "team+agent", "north", "ann"): {"leads_dialed": 1},
        ("1m", MINUTE, "team+agent", "north", "bo"): None,
    }


def test_a_column_that_comes_to_zero_is_not_held():
    state = funnel()
    add(state, cells(leads_reached=1, events_reached=1))
    changes = add(state, cells(leads_reached=-1))
    assert changes["1m", MINUTE, "location", "Köln"] == {"events_reached": 1}


def test_a_row_without_columns_is_deleted():
    state = funnel()
    add(state, cells(leads_reached=1))
    assert set(add(state, cells(leads_reached=-1)).values()) == {None}
    assert len(state) == 0
    assert state.rows() == {}


def test_several_minutes_that_expire_are_written_once_into_the_row_of_their_hour():
    state = funnel()
    add(state, cells(events_dialed=1) | {(MINUTE + 60, *PLACE, "events_dialed"): 4})
    changes = state.add({}, Bounds((MINUTE + 86_400) * 1000))
    assert len(changes) == len(readable(changes))
    assert only("1h", readable(changes))[HOUR, "location", "Köln"] == {"events_dialed": 5}


def test_days_begin_at_midnight_in_the_time_zone():
    berlin = ZoneInfo("Europe/Berlin")
    changes = add(funnel(berlin), cells(events_dialed=1), MINUTE + 86_400)
    assert {pane for pane, *_ in only("1d", changes)} == {DAY - 2 * 3_600}


@pytest.mark.parametrize(
    ("resolution", "pane", "ends_s"),
    [("1m", MINUTE, 60 + 2 * 3_600), ("1h", HOUR, 3_600 + 3 * 86_400), ("1d", DAY, 86_400 + 400 * 86_400)],
)
def test_a_pane_is_deleted_row_by_row_once_the_watermark_has_passed_it(resolution, pane, ends_s):
    state = funnel(minute_hours=2)
    add(state, cells(events_dialed=1))
    if resolution != "1m":
        add(state, {}, MINUTE + 86_400)
    assert only(resolution, add(state, {}, pane + ends_s - 1)) == {}
    assert only(resolution, add(state, {}, pane + ends_s)) == {
        (pane, "campaign+source", "spring", "web"): None,
        (pane, "team+agent", "north", "ann"): None,
        (pane, "location", "Köln"): None,
    }
    assert only(resolution, add(state, {}, pane + ends_s + 1)) == {}
    assert resolution not in {key[0] for key in state.rows()}


def test_what_is_kept_is_a_setting():
    state = funnel(minute_hours=1)
    add(state, cells(events_dialed=1))
    assert len(only("1m", add(state, {}, MINUTE + 60 + 3_600))) == 3


def test_minutes_of_agents_and_places_are_kept_for_two_hours_at_most():
    state = funnel()
    add(state, cells(events_dialed=1))
    assert only("1m", add(state, {}, MINUTE + 60 + 2 * 3_600)) == {
        (MINUTE, "team+agent", "north", "ann"): None,
        (MINUTE, "location", "Köln"): None,
    }
    assert only("1m", add(state, cells(events_dialed=1), MINUTE + 60 + 2 * 3_600)) == {
        (MINUTE, "campaign+source", "spring", "web"): {"events_dialed": 2}
    }


def test_a_cell_of_an_expired_pane_counts_in_the_coarser_rows_alone():
    state = funnel()
    changes = add(state, cells(events_dialed=1), MINUTE + 60 + 6 * 3_600)
    assert {key[0] for key in changes} == {"1h", "1d", "all"}
    assert len(state) == 7


def test_restored_rows_go_on_counting():
    before, after = funnel(), funnel()
    after.restore(dict(before.add(counts(cells(events_dialed=2)), Bounds(MINUTE * 1000))))
    assert after.rows() == before.rows()
    assert add(after, cells(events_dialed=1))["1m", MINUTE, "location", "Köln"] == {"events_dialed": 3}


def test_the_day_of_a_minute_may_change_within_a_quarter_of_an_hour():
    st_johns = ZoneInfo("America/St_Johns")  # until 2006 its clocks went back at 00:01
    midnight = 1_162_089_000  # 2006-10-29T00:00 there
    assert pane_start("1d", midnight, st_johns) == midnight
    assert pane_start("1d", midnight + 60, st_johns) == midnight - 86_400


def test_a_day_that_begins_within_an_hour_takes_its_minutes_alone():
    midnight = int(datetime(2026, 3, 28, 18, 30, tzinfo=UTC).timestamp())  # 00:00 of the 29th there
    changes = add(
        funnel(ZoneInfo("Asia/Kolkata")),
        {(at, *PLACE, "events_dialed"): 1 for at in (midnight - 60, midnight)},
        midnight + 86_400,
    )
    days = {key[0]: columns for key, columns in only("1d", changes).items() if key[1] == "location"}
    assert days == {midnight - 86_400: {"events_dialed": 1}, midnight: {"events_dialed": 1}}
    hours = [columns for key, columns in only("1h", changes).items() if key[1] == "location"]
    assert hours == [{"events_dialed": 2}]
