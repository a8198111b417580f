import itertools
import re
from collections import Counter, defaultdict
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from callfunnel.agents.choice import not_built, sums_for
from callfunnel.agents.config import in_force
from callfunnel.streams import windows
from callfunnel.streams.measures import ROLLUPS, SEGMENT
from callfunnel.streams.panes import TWICE, expired_until, pane_start, resolutions
from callfunnel.streams.rows import encode_columns, encode_key
from callfunnel.streams.sums import PlainSums
from callfunnel.streams.windows import (
    AGES,
    DAYS_READ,
    WINDOWS,
    Panes,
    due_panes,
    window_panes,
)

NOW = int(datetime(2026, 3, 29, 14, 7, 31, tzinfo=UTC).timestamp())
MINUTE = NOW - NOW % 60
HOUR = NOW - NOW % 3_600
BERLIN = ZoneInfo("Europe/Berlin")
SPRING = ("spring", "web")
KEPT = 400 * 86_400


def at(text: str, zone=UTC) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp())


def table(**panes):
    return {
        resolution: {start: {SPRING: columns} for start, columns in rows.items()}
        for resolution, rows in panes.items()
    }


KINDS = [PlainSums, *([] if not_built() else [sums_for("core")])]


def asked(ask, rows, *arguments):
    """What each kind of sums gives of these panes, as each fold writes them, which is the same."""
    answers = []
    for kind, written in itertools.product(KINDS, (as_before_version_5(rows), as_written(rows))):
        sums = kind()
        sums.apply(
            0,
            [
                (encode_key((resolution, start, SEGMENT.name, *row)), encode_columns(columns))
                for resolution, panes in written.items()
                for start, its in panes.items()
                for row, columns in its.items()
            ],
        )
        answers.append(ask(sums, *arguments))
    assert all(answer == answers[0] for answer in answers), answers
    return answers[0]


def as_before_version_5(rows):
    return {TWICE if resolution == "1m" else resolution: panes for resolution, panes in rows.items()}


def as_written(rows):
    """What a minute holds is in no other row."""
    written = {
        resolution: {
            start: {row: dict(columns) for row, columns in its.items()} for start, its in panes.items()
        }
        for resolution, panes in rows.items()
    }
    for minute, its in rows.get("1m", {}).items():
        for resolution in ("1h", "1d", "all"):
            panes = written.get(resolution, {})
            pane = max((start for start in panes if start <= minute), default=None)
            for row, columns in its.items():
                coarse = panes.get(pane, {}).get(row, {})
                for column in columns.keys() & coarse.keys():
                    coarse[column] -= columns[column]
                    if not coarse[column]:
                        del coarse[column]
                if not coarse:
                    panes.get(pane, {}).pop(row, None)
    return written


def total(rows, panes):
    return asked(windows.total, rows, "a span", SEGMENT.name, panes)


def uncalled(rows, now_s, kept_s):
    return asked(windows.uncalled, rows, now_s, kept_s)


def seen(rows, now_s):
    return asked(windows.seen, rows, SEGMENT.name, now_s)


def test_the_pane_that_holds_now_is_the_last_of_a_window():
    assert window_panes("5m", NOW, UTC) == Panes("1m", range(MINUTE - 240, MINUTE + 1, 60), MINUTE + 60)
    assert len(window_panes("1h", NOW, UTC).starts) == 60
    assert window_panes("1h", NOW, UTC).starts[-1] == MINUTE
    assert list(window_panes("1d", NOW, UTC).starts) == [HOUR - hours * 3_600 for hours in range(23, -1, -1)]
    assert window_panes("1d", NOW, UTC).end == HOUR + 3_600
    assert window_panes("today", NOW, UTC) == Panes("1d", (at("2026-03-29"),), at("2026-03-30"))
    assert window_panes("today", NOW, BERLIN).end == at("2026-03-30", BERLIN)
    assert window_panes("all", NOW, UTC).starts == (0,)


def test_days_begin_at_midnight_in_the_configured_time_zone():
    assert pane_start("1d", NOW, BERLIN) == at("2026-03-29", BERLIN) == at("2026-03-28T23:00")
    assert pane_start("1d", at("2026-03-29T22:30"), BERLIN) == at("2026-03-29T22:00")  # this day has 23 hours
    assert pane_start("1d", at("2026-03-29T18:29"), ZoneInfo("Asia/Kolkata")) == at("2026-03-28T18:30")


@pytest.mark.parametrize(
    ("now", "first", "hours"),
    [
        ("2026-04-01T12:00", "2026-03-26", 7 * 24 - 1),
        ("2026-03-29T01:30", "2026-03-23", 7 * 24 - 1),
        ("2026-10-31T23:59", "2026-10-25", 7 * 24 + 1),
        ("2026-07-01T00:00", "2026-06-25", 7 * 24),
    ],
)
def test_a_window_of_days_goes_from_midnight_to_midnight_whatever_the_clocks_do(
    monkeypatch, now, first, hours
):
    monkeypatch.setitem(windows.WINDOWS_AND_ALL, "week", windows.Window("week", "1d", 7, "a week"))
    days = window_panes("week", at(now, BERLIN), BERLIN).starts
    assert len(days) == 7
    assert all(day == pane_start("1d", day, BERLIN) for day in days)
    assert days[0] == at(first, BERLIN)
    assert days[-1] <= at(now, BERLIN) < days[0] + hours * 3_600
    created, not_due = due_panes("week", at(now, BERLIN), BERLIN)
    assert (created.starts, not_due.starts[-1]) == (days, days[0] + hours * 3_600 - 60)


def test_due_minutes_are_the_windows_minutes_five_minutes_earlier():
    created, not_due = due_panes("5m", NOW, UTC)
    assert list(created.starts) == [MINUTE - 60 * n for n in range(9, 4, -1)]
    assert list(not_due.starts) == []


@pytest.mark.parametrize("window", ["1d", "today", "all"])
def test_a_long_window_leaves_out_the_leads_that_are_not_due_yet(window):
    created, not_due = due_panes(window, NOW, UTC)
    assert created == window_panes(window, NOW, UTC)
    assert not_due.starts[0] == MINUTE - 240
    assert MINUTE + 120 in not_due.starts  # events may be some minutes ahead of the clock


def test_in_the_first_five_minutes_of_a_day_no_lead_of_today_is_due():
    now = at("2026-03-29T00:03:10", BERLIN)
    midnight = at("2026-03-29", BERLIN)
    rows = table(
        **{"1d": {midnight: {"awaited": 3}}, "1m": {midnight: {"awaited": 1}, midnight + 120: {"awaited": 2}}}
    )
    created, not_due = due_panes("today", now, BERLIN)
    assert total(rows, created)[SPRING]["awaited"] - total(rows, not_due)[SPRING]["awaited"] == 0
    assert not_due.starts[-1] == at("2026-03-29T23:59", BERLIN)


def test_a_window_is_the_sum_of_its_panes():
    rows = {
        "1m": {
            MINUTE: {SPRING: {"events_dialed": 2}, ("b", "c"): {"events_won": 1}},
            MINUTE - 240: {SPRING: {"events_dialed": 3, "events_won": 1}},
            MINUTE - 300: {SPRING: {"events_dialed": 9}},
        }
    }
    assert total(rows, window_panes("5m", NOW, UTC)) == {
        SPRING: {"events_dialed": 5, "events_won": 1},
        ("b", "c"): {"events_won": 1},
    }
    assert rows["1m"][MINUTE][SPRING] == {"events_dialed": 2}


def test_every_uncalled_lead_has_one_age():
    created = {  # age in seconds -> leads
        0: 1,
        240: 2,
        300: 4,
        840: 8,
        900: 16,
        3_540: 32,
        3_600: 64,
        4 * 3_600 - 60: 128,
        4 * 3_600: 256,
        23 * 3_600: 512,
        24 * 3_600: 1024,
        40 * 86_400: 2048,
    }
    rows = {"1m": {}, "1h": {}, "1d": {}, "all": {0: {SPRING: {"uncalled": sum(created.values())}}}}
    for age, n in created.items():
        start = MINUTE - age
        for resolution, kept in (("1m", 6 * 3_600), ("1h", 3 * 86_400), ("1d", 400 * 86_400)):
            if age < kept:
                columns = (
                    rows[resolution].setdefault(pane_start(resolution, start, UTC), {}).setdefault(SPRING, {})
                )
                columns["uncalled"] = columns.get("uncalled", 0) + n
    found = uncalled(rows, NOW, KEPT)[SPRING]
    assert dict(zip(AGES, found.by_age, strict=True)) == {
        "0-5m": 1 + 2,
        "5-15m": 4 + 8,
        "15-60m": 16 + 32,
        "1-4h": 64 + 128,
        "4-24h": 256 + 512,
        "over-24h": 1024 + 2048,
    }
    assert found.oldest_s == pane_start("1d", NOW - 40 * 86_400, UTC)


def test_the_oldest_uncalled_lead_is_told_as_finely_as_it_is_held():
    lead = {"uncalled": 1}
    day = at("2026-03-29")
    everything = {"1m": {MINUTE: lead}, "1h": {HOUR: lead}, "1d": {day: lead}, "all": {0: lead}}
    assert uncalled(table(**everything), NOW, KEPT)[SPRING].oldest_s == MINUTE
    assert uncalled(table(**everything | {"1m": {}}), NOW, KEPT)[SPRING].oldest_s == HOUR
    assert uncalled(table(**everything | {"1m": {}, "1h": {}}), NOW, KEPT)[SPRING].oldest_s == day


def test_a_minute_that_is_held_does_not_hide_an_older_lead_that_is_not():
    rows = table(
        **{
            "1m": {MINUTE: {"uncalled": 1}},
            "1h": {HOUR: {"uncalled": 1}, HOUR - 7 * 3_600: {"uncalled": 1}},
            "1d": {at("2026-03-29"): {"uncalled": 2}},
            "all": {0: {"uncalled": 2}},
        }
    )
    assert uncalled(rows, NOW, KEPT)[SPRING].oldest_s == HOUR - 7 * 3_600


def test_a_lead_older_than_every_day_held_is_at_least_that_old():
    assert uncalled(table(all={0: {"uncalled": 1}}), NOW, KEPT)[SPRING].oldest_s == NOW - KEPT


def test_a_day_that_is_held_does_not_hide_an_older_lead_that_is_not():
    days_30 = 30 * 86_400
    rows = table(**{"1d": {at("2026-03-29"): {"uncalled": 1}}, "all": {0: {"uncalled": 2}}})
    assert uncalled(rows, NOW, days_30)[SPRING].oldest_s == NOW - days_30
    rows["1d"][at("2026-02-20")] = {SPRING: {"uncalled": 0}}
    assert uncalled(rows, NOW, days_30)[SPRING].oldest_s == NOW - days_30


def test_a_day_that_a_slow_partition_still_holds_is_older_than_what_is_kept():
    rows = table(**{"1d": {at("2026-02-20"): {"uncalled": 1}}, "all": {0: {"uncalled": 2}}})
    assert uncalled(rows, NOW, 30 * 86_400)[SPRING].oldest_s == at("2026-02-20")


def least_kept():
    """What the settings ask for at least, and nothing more."""
    allowed = {setting.name: setting.allowed for setting in in_force({})}
    names = ("minute_hours", "hour_days", "day_days")
    least = {name: re.search(r"from (\d+) to", allowed[f"pane_retention_{name}"])[1] for name in names}
    return resolutions(**{name: int(n) for name, n in least.items()})


@pytest.mark.parametrize("now", [HOUR - 1, HOUR, MINUTE - 1, MINUTE, at("2026-10-25T22:59:59")])
def test_the_least_retention_keeps_what_is_read_while_a_watermark_is_an_hour_ahead_of_the_clock(now):
    everything = {name: defaultdict(lambda: defaultdict(Counter)) for name in ("1m", "1h", "1d", "all")}
    for minute in range(now - now % 60 - (DAYS_READ + 2) * 86_400, now + 1, 60):
        for name, panes in everything.items():
            of_pane = panes[pane_start(name, minute, BERLIN)]
            of_pane[SPRING]["uncalled"] += 1
            of_pane[str(pane_start("1h", minute, BERLIN)), ""]["events_won"] += 1
    kept = dict(everything)
    for resolution in least_kept()[:3]:
        name, gone = resolution.name, expired_until(resolution, SEGMENT, now + 3_600)
        kept[name] = {start: rows for start, rows in everything[name].items() if start > gone}
    assert uncalled(kept, now, KEPT)[SPRING].by_age == uncalled(everything, now, KEPT)[SPRING].by_age
    assert seen(kept, now) == seen(everything, now)
    for window in WINDOWS:
        panes = window_panes(window, now, BERLIN), *due_panes(window, now, BERLIN)
        assert [total(kept, each) for each in panes] == [total(everything, each) for each in panes]


@pytest.mark.parametrize("rollup", ROLLUPS, ids=lambda rollup: rollup.name)
@pytest.mark.parametrize("now", [HOUR - 1, HOUR, MINUTE - 1, MINUTE])
def test_minutes_are_kept_that_a_window_is_made_of_which_ends_an_hour_behind_the_newest_event(now, rollup):
    gone = {each.name: expired_until(each, rollup, now + 3_600) for each in least_kept()}
    read = [window_panes(window, now, BERLIN) for window in WINDOWS]
    assert min(panes.starts[0] - gone[panes.resolution] for panes in read) > 0


def test_a_called_lead_is_not_among_the_uncalled():
    assert uncalled(table(all={0: {"awaited": 1}}), NOW, KEPT) == {}


def test_dimensions_without_an_event_for_two_days_are_not_seen():
    assert seen(table(**{"1h": {HOUR - 47 * 3_600: {"events_won": 1}}}), NOW) == {SPRING}
    assert seen(table(**{"1h": {HOUR - 48 * 3_600: {"events_won": 1}}}), NOW) == set()
