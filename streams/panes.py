"""The panes of time that rows stand for: the same for those who write rows and those who read them."""

from datetime import datetime, tzinfo
from functools import lru_cache

from msgspec import Struct

from callfunnel.streams.measures import Rollup


class Resolution(Struct, frozen=True, array_like=True):
    """The length of a resolution's panes and how long its rows are kept; both in seconds, 0 for ever."""

    name: str
    length: int = 0
    kept: int = 0


class Bounds(Struct, frozen=True):
    """What a partition knows of time; in Unix milliseconds."""

    watermark_ms: int
    """The largest event time; -1 before the first event."""
    horizon_ms: int = 0
    """What happened before it counts in the rows of all time alone; a local midnight."""


def resolutions(
    minute_hours: float = 6, hour_days: float = 3, day_days: float = 400
) -> tuple[Resolution, ...]:
    return (
        Resolution("1m", LENGTH_SECONDS["1m"], int(minute_hours * 3_600)),
        Resolution("1h", LENGTH_SECONDS["1h"], int(hour_days * 86_400)),
        Resolution("1d", LENGTH_SECONDS["1d"], int(day_days * 86_400)),
        Resolution("all"),
    )


TWICE = "1m, counted in coarser rows"
"""The minutes of folds before version 5. Their hours, days and all time hold them, too."""

RESOLUTIONS = {TWICE: 0, "1h": 1, "1d": 2, "all": 3, "1m": 4}
"""Their ids in the changelogs: only ever added to."""

SUMMED = {
    "1m": ("1m", TWICE),
    "1h": ("1h", "1m"),
    "1d": ("1d", "1m"),
    "all": ("all", "1m"),
    "base": ("base",),
}
"""By resolution, the rows that its panes are the sums of."""

LENGTH_SECONDS = {"1m": 60, "1h": 3_600, "1d": 86_400}
"""A day counts as 86,400 s, whatever the clocks do."""


def pane_start(resolution: str, at_s: int, zone: tzinfo) -> int:
    """The start of the pane that holds the Unix second `at_s`; days begin at midnight in `zone`."""
    if resolution == "all":
        return 0
    if resolution == "1d":
        return _day_start(at_s // 60, zone)
    return at_s - at_s % LENGTH_SECONDS[resolution]


@lru_cache(maxsize=4096)
def _day_start(minute: int, zone: tzinfo) -> int:
    at = datetime.fromtimestamp(minute * 60, zone)
    return int(datetime(at.year, at.month, at.day, tzinfo=zone).timestamp())


def day_after(day: int, zone: tzinfo) -> int:
    """The start of the day behind the one that starts at `day`: a day has 23 to 25 hours."""
    return pane_start("1d", day + 36 * 3_600, zone)


def expired_until(resolution: Resolution, rollup: Rollup, watermark_s: int) -> int:
    """The rollup's panes that start here or before have expired. A day counts as 86,400 s."""
    if not resolution.kept:
        return -(1 << 62)
    kept = min(resolution.kept, rollup.minutes_kept_s) if resolution.name == "1m" else resolution.kept
    return watermark_s - kept - resolution.length


def oldest_day(kept_s: int, watermark_s: int, zone: tzinfo) -> int:
    """The start of the oldest day that has not expired, where days are kept for so long; not before 1970."""
    gone = watermark_s - kept_s - LENGTH_SECONDS["1d"]
    return day_after(pane_start("1d", gone, zone), zone) if gone >= 0 else 0
