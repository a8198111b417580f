"""The funnel rows of one partition: cells in, changed rows out.

A batch is counted once, at the finest grain (`Cell`); here it is rolled up to each rollup's dimensions and to
each resolution, and rows whose pane has passed out of its retention are dropped. Definitions:
`streams/README.md`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from zoneinfo import ZoneInfo

from msgspec import Struct

from schemas.rows import Columns, RowKey, decode_columns, decode_key, encode_columns, encode_key
from streams.columns import RESPONSE
from streams.lead import Cell

Change = tuple[bytes, bytes | None]
"""A changelog record: key and value, None to delete."""


class Rollup(Struct, frozen=True):
    """A table of the funnel: the dimensions it is grouped by, and whether it carries the response columns."""

    dimensions: tuple[str, ...]
    response: bool = False

    @property
    def name(self) -> str:
        return "+".join(self.dimensions)


ROLLUPS = (Rollup(("campaign", "source"), response=True), Rollup(("team", "agent")), Rollup(("location",)))

_CELL_DIMENSIONS = ("campaign", "source", "team", "agent", "location")


class Resolution(Struct, frozen=True):
    """The length of a resolution's panes and how long its rows are kept; both in seconds, 0 for ever."""

    name: str
    length: int = 0
    kept: int = 0


def resolutions(
    minute_hours: float = 6, hour_days: float = 3, day_days: float = 400
) -> tuple[Resolution, ...]:
    return (
        Resolution("1m", 60, int(minute_hours * 3600)),
        Resolution("1h", 3600, int(hour_days * 86_400)),
        Resolution("1d", 86_400, int(day_days * 86_400)),
        Resolution("all"),
    )


def day_starts(timezone: str) -> Callable[[int], int]:
    """The function from a Unix second to the second at which its calendar day began in the time zone."""
    if timezone == "UTC":
        return lambda at: at // 86_400 * 86_400
    zone = ZoneInfo(timezone)

    @lru_cache(maxsize=4096)
    def start_of_day(quarter: int) -> int:
        local = datetime.fromtimestamp(quarter, zone)
        midnight = local.replace(hour=0, minute=0, second=0, fold=0)
        if midnight.timestamp() > quarter:  # a day whose first hour repeats
            midnight -= timedelta(days=1)
        return int(midnight.timestamp())

    return lambda at: start_of_day(at // 900 * 900)


class Funnel:
    """The rows of one partition, by resolution and pane."""

    def __init__(self, resolutions: tuple[Resolution, ...], day_start: Callable[[int], int]) -> None:
        self._resolutions = resolutions
        self._panes: dict[str, dict[int, dict[tuple[str, ...], Columns]]] = {r.name: {} for r in resolutions}
        self._day_start = day_start

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        for key, value in rows.items():
            resolution, pane, *dims = decode_key(key)
            self._panes[resolution].setdefault(pane, {})[tuple(dims)] = decode_columns(value)

    def rows(self) -> dict[RowKey, Columns]:
        """Every row held. For tests and comparisons: the tables of a worker are large."""
        return {
            (resolution, pane, *dims): columns
            for resolution, panes in self._panes.items()
            for pane, group in panes.items()
            for dims, columns in group.items()
        }

    def __len__(self) -> int:
        return sum(len(group) for panes in self._panes.values() for group in panes.values())

    def add(self, cells: Mapping[Cell, int], watermark_ms: int) -> list[Change]:
        """Count the cells of a batch into every row they belong to; the changelog records that say so.

        `watermark_ms` is the partition's watermark after the batch. A cell whose pane has expired by then
        counts in the coarser rows alone.
        """
        changes: list[Change] = []
        finest = self._rolled_up(cells)
        watermark = watermark_ms // 1000
        for resolution in self._resolutions:
            horizon = watermark - resolution.kept - resolution.length if resolution.kept else -(1 << 62)
            panes = self._panes[resolution.name]
            for pane, groups in self._by_pane(resolution, finest).items():
                if pane <= horizon:
                    continue
                held = panes.get(pane)
                if held is None:
                    held = panes[pane] = {}
                for dims, delta in groups.items():
                    columns = held.get(dims)
                    if columns is None:
                        columns = held[dims] = {}
                    _merge(columns, delta)
                    key = encode_key((resolution.name, pane, *dims))
                    if columns:
                        changes.append((key, encode_columns(columns)))
                    else:
                        del held[dims]
                        changes.append((key, None))
            if resolution.kept:
                changes += self._expire(resolution, horizon)
        return changes

    def _rolled_up(self, cells: Mapping[Cell, int]) -> dict[int, dict[tuple[str, ...], Columns]]:
        """The cells by minute and by the key of each rollup."""
        minutes: dict[int, dict[tuple[str, ...], Columns]] = defaultdict(lambda: defaultdict(dict))
        for cell, n in cells.items():
            if not n:
                continue
            minute = minutes[cell[0]]
            column = cell[6]
            for group_of in _GROUPS_OF_RESPONSE if column in RESPONSE else _GROUPS:
                columns = minute[group_of(cell)]
                columns[column] = columns.get(column, 0) + n
        return minutes

    def _by_pane(
        self, resolution: Resolution, minutes: Mapping[int, Mapping[tuple[str, ...], Columns]]
    ) -> Mapping[int, Mapping[tuple[str, ...], Columns]]:
        if resolution.length == 60:
            return minutes
        panes: dict[int, dict[tuple[str, ...], Columns]] = defaultdict(lambda: defaultdict(dict))
        for minute, groups in minutes.items():
            pane = panes[self._pane_of(resolution, minute)]
            for dims, delta in groups.items():
                _merge(pane[dims], delta)
        return panes

    def _pane_of(self, resolution: Resolution, minute: int) -> int:
        if resolution.length == 86_400:
            return self._day_start(minute)
        return minute // resolution.length * resolution.length if resolution.length else 0

    def _expire(self, resolution: Resolution, horizon: int) -> Iterable[Change]:
        panes = self._panes[resolution.name]
        for pane in [pane for pane in panes if pane <= horizon]:
            for dims in panes.pop(pane):
                yield encode_key((resolution.name, pane, *dims)), None


def _merge(columns: Columns, delta: Mapping[str, int]) -> None:
    for column, n in delta.items():
        total = columns.get(column, 0) + n
        if total:
            columns[column] = total
        else:
            columns.pop(column, None)


def _group_of(rollup: Rollup) -> Callable[[Cell], tuple[str, ...]]:
    pick = itemgetter(*(1 + _CELL_DIMENSIONS.index(name) for name in rollup.dimensions))
    name = rollup.name
    if len(rollup.dimensions) == 1:
        return lambda cell: (name, pick(cell))
    return lambda cell: (name, *pick(cell))


_GROUPS = tuple(_group_of(rollup) for rollup in ROLLUPS)
_GROUPS_OF_RESPONSE = tuple(_group_of(rollup) for rollup in ROLLUPS if rollup.response)
