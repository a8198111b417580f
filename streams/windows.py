"""Which panes a window is made of, and what is read from them.

A row carries its pane; a window is a set of panes, chosen at a moment `now_s` that the caller names.
The law: every lead counts once in every figure, although each partition drops old panes by its own watermark.
"""

from collections.abc import Mapping, Sequence, Set
from datetime import tzinfo
from itertools import pairwise
from typing import NamedTuple, cast

from msgspec import Struct

from callfunnel.streams.measures import AWAITED, FIRST_DIAL, SEGMENT, UNCALLED
from callfunnel.streams.panes import LENGTH_SECONDS, day_after, pane_start
from callfunnel.streams.rows import Columns
from callfunnel.streams.sums import Dimensions, Figures, Sums


class Window(Struct, frozen=True):
    """The newest panes of a resolution."""

    name: str
    resolution: str
    panes: int
    title: str
    """What a person reads."""


WINDOWS: Mapping[str, Window] = {
    window.name: window
    for window in (
        Window("5m", "1m", 5, "5 min"),
        Window("1h", "1m", 60, "1 h"),
        Window("1d", "1h", 24, "24 h"),
        Window("today", "1d", 1, "today"),
    )
}
"""The windows of the metrics."""

WINDOWS_AND_ALL: Mapping[str, Window] = {**WINDOWS, "all": Window("all", "all", 1, "all time")}
"""With the time since the beginning, which has rows of one rollup alone."""

DAYS_READ = max(window.panes for window in WINDOWS.values() if window.resolution == "1d")
"""So many days day rows are kept at least."""

DUE_SECONDS = 300
"""A new lead is to be called within five minutes."""

_AWAITED = (AWAITED,)
_MET = FIRST_DIAL.bins[: FIRST_DIAL.bounds.index(DUE_SECONDS) + 1]

DUE, MET = "due", "met"
"""Figures that no row holds: of `due_panes`, the leads whose time has ended, and those called by then."""

AGES = ("0-5m", "5-15m", "15-60m", "1-4h", "4-24h", "over-24h")
_EVER = 1 << 62
_YOUNGER = (("1m", 5), ("1m", 15), ("1m", 60), ("1m", 240), ("1h", 24))
"""How far back each age but the last reaches: that many newest panes. Each span holds the one before."""


class Panes(NamedTuple):
    """Panes of one resolution that follow each other, oldest first, in Unix seconds."""

    resolution: str
    starts: Sequence[int]
    end: int
    """Of the last one."""


class Uncalled(NamedTuple):
    """Leads that nobody has called yet: how many of each age, and the start of the oldest one's pane."""

    by_age: tuple[int, ...]
    oldest_s: int


def window_panes(window: str, now_s: int, zone: tzinfo) -> Panes:
    """The panes of a window; the one that holds `now_s` is the last."""
    resolution, count = WINDOWS_AND_ALL[window].resolution, WINDOWS_AND_ALL[window].panes
    last = pane_start(resolution, now_s, zone)
    if resolution in ("1m", "1h"):
        length = LENGTH_SECONDS[resolution]
        return Panes(resolution, range(last - (count - 1) * length, last + 1, length), last + length)
    if resolution == "all":
        return Panes(resolution, (0,), _EVER)
    days = [last]
    while len(days) < count:  # from midnight to midnight: they have 23 to 25 hours
        days.append(pane_start(resolution, days[-1] - 1, zone))
    return Panes(resolution, tuple(reversed(days)), day_after(last, zone))


def due_panes(window: str, now_s: int, zone: tzinfo) -> tuple[Panes, Panes]:
    """Where the leads were created whose five minutes end in the window: the first panes without the second.

    Minute panes are shifted by five minutes. Hours and days cannot be: they stay the window's own, without
    the minutes that are not due yet. So `today` holds the leads that were created today and are due.
    """
    of_window = window_panes(window, now_s, zone)
    if of_window.resolution == "1m":
        shifted = range(of_window.starts[0] - DUE_SECONDS, of_window.end - DUE_SECONDS, 60)
        return Panes("1m", shifted, of_window.end - DUE_SECONDS), Panes("1m", (), 0)
    ahead_of_the_clock = now_s + 3_600
    end = ahead_of_the_clock if of_window.resolution == "all" else of_window.end
    not_due = max(pane_start("1m", now_s - DUE_SECONDS, zone) + 60, of_window.starts[0])
    return of_window, Panes("1m", range(not_due, end, 60), end)


def total(
    sums: Sums, name: str, rollup: str, panes: Panes, depth: int | None = None
) -> Mapping[Dimensions, Columns]:
    """The rows of these panes, summed over time; of all time with what archived leads add.

    `name` is that of the span (`Sums`), `depth` how many of the dimensions rows differ by.
    """
    found = sums.total(f"{name} of {rollup}", rollup, panes.resolution, *_from_to(panes), depth)
    if panes.resolution != "all" or not (archived := of_archived(sums, rollup, depth)):
        return found
    both = dict(found)
    for row, columns in archived.items():
        both[row] = (into := both.get(row, {}).copy())
        for column, n in columns.items():
            into[column] = into.get(column, 0) + n
    return both


def of_archived(sums: Sums, rollup: str, depth: int | None = None) -> Mapping[Dimensions, Columns]:
    """What archived leads add to all time. It has no age any more."""
    return sums.total(f"archived of {rollup}", rollup, "base", 0, 1, depth)


def due(
    sums: Sums, window: str, now_s: int, zone: tzinfo, depth: int | None = None
) -> Mapping[Dimensions, tuple[int, int]]:
    """Leads due in the window and those of them that were met, where there are any."""
    created, not_due = due_panes(window, now_s, zone)
    found = _due(sums, f"due {window}", created, depth)
    parts = [(_due(sums, f"not due {window}", not_due, depth), -1)]
    if window == "all":
        parts.append((_due(sums, "due, archived", Panes("base", (0,), 1), depth), 1))
    both = dict(found) if any(part for part, _ in parts) else found
    for part, sign in parts:
        for row, (due, met) in part.items():
            its_due, its_met = both.get(row, (0, 0))
            both[row] = its_due + sign * due, its_met + sign * met
    return both


def _due(sums: Sums, name: str, panes: Panes, depth: int | None) -> dict[Dimensions, tuple[int, int]]:
    found = sums.figures(name, SEGMENT.name, panes.resolution, *_from_to(panes), (_AWAITED, _MET), depth)
    return cast(dict[Dimensions, tuple[int, int]], found)


def _from_to(panes: Panes) -> tuple[int, int]:
    return (panes.starts[0], panes.end) if panes.starts else (0, 0)


def seen(sums: Sums, rollup: str, now_s: int) -> Set[Dimensions]:
    """Dimension values with a row in the last 48 hour panes: windows of up to a day were 0 for a day else."""
    first = now_s - now_s % 3_600 - 47 * 3_600
    return sums.seen(f"seen of {rollup}", rollup, "1h", first, _EVER)


def uncalled(sums: Sums, now_s: int, days_kept_s: int) -> dict[Dimensions, Uncalled]:
    """The uncalled leads of each `campaign+source` by age at `now_s`; day panes are kept for `days_kept_s`.

    Ages are differences of spans that lie inside each other (the last four hours of minutes, the last day of
    hours, all), so no creation is counted twice or left out. A pane counts as a whole, a future one as new.
    """
    totals = _uncalled_since(sums, "all", 0)
    none = (0,)
    spans = []
    for resolution, count in _YOUNGER:
        length = LENGTH_SECONDS[resolution]
        first = now_s - now_s % length - (count - 1) * length
        spans.append(_uncalled_since(sums, resolution, first, str(count)))
    oldest = _oldest_uncalled(sums, totals, now_s - days_kept_s)
    result = {}
    for row, n in totals.items():
        younger = [0, *[span.get(row, none)[0] for span in spans], *n]
        ages = tuple([after - before for before, after in pairwise(younger)])
        result[row] = Uncalled(ages, oldest[row])
    return result


def _uncalled_since(
    sums: Sums, resolution: str, first: int, name: str = "all"
) -> Mapping[Dimensions, Figures]:
    span = f"uncalled, {name} {resolution}"
    return sums.figures(span, SEGMENT.name, resolution, first, _EVER, ((UNCALLED,),))


def _oldest_uncalled(
    sums: Sums, totals: Mapping[Dimensions, Figures], days_begin_s: int
) -> dict[Dimensions, int]:
    """The start of each row's oldest pane with an uncalled lead, in the finest resolution that holds all.

    A dropped pane is missing from the sum of its resolution, whichever partition dropped it: an equal sum
    proves that the oldest is in a pane that is held. It is as old as its row says. Where not even the days
    hold all, the oldest is from before `days_begin_s`.
    """
    oldest: dict[Dimensions, int] = {}
    for resolution in ("1m", "1h", "1d"):
        held = _uncalled_since(sums, resolution, 0)
        complete = {row for row, n in totals.items() if row not in oldest and held.get(row) == n}
        if complete:
            oldest |= sums.first(SEGMENT.name, resolution, UNCALLED, complete)
    beyond = totals.keys() - oldest.keys()
    first = sums.first(SEGMENT.name, "1d", UNCALLED, beyond) if beyond else {}
    return oldest | {row: min(first.get(row, days_begin_s), days_begin_s) for row in beyond}
