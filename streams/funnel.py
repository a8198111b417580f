"""The funnel rows of one partition: cells in, changed rows out.

A batch is counted once, at the finest grain (`Cell`); here it is rolled up to each rollup's dimensions and to
each resolution, and rows whose pane has passed out of its retention are dropped. Definitions:
`streams/README.md`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import tzinfo
from operator import itemgetter

from msgspec import Struct

from schemas.rows import Columns, RowKey, decode_columns, decode_key, encode_columns, encode_key
from streams.columns import RESPONSE
from streams.lead import Cell
from streams.panes import Resolution, pane_start

Change = tuple[bytes, bytes | None]
"""A changelog record: key and value, None to delete."""

Group = tuple[str, *tuple[str, ...]]
"""(rollup, dimension values …)"""


class Rollup(Struct, frozen=True):
    """A table of the funnel: the dimensions it is grouped by, and whether it carries the response columns."""

    dimensions: tuple[str, ...]
    response: bool = False

    @property
    def name(self) -> str:
        return "+".join(self.dimensions)


ROLLUPS = (Rollup(("campaign", "source"), response=True), Rollup(("team", "agent")), Rollup(("location",)))

_CELL_DIMENSIONS = ("campaign", "source", "team", "agent", "location")


class Funnel:
    """The rows of one partition, by resolution and pane."""

    def __init__(self, resolutions: tuple[Resolution, ...], zone: tzinfo) -> None:
        self._resolutions = resolutions
        self._panes: dict[str, dict[int, dict[Group, Columns]]] = {r.name: {} for r in resolutions}
        self._zone = zone

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        for key, value in rows.items():
            resolution, pane, rollup, *dimensions = decode_key(key)
            self._panes[resolution].setdefault(pane, {})[rollup, *dimensions] = decode_columns(value)

    def rows(self) -> dict[RowKey, Columns]:
        """Every row held. For tests and comparisons: the tables of a worker are large."""
        return {
            (resolution, pane, *group): columns
            for resolution, panes in self._panes.items()
            for pane, held in panes.items()
            for group, columns in held.items()
        }

    def __len__(self) -> int:
        return sum(len(held) for panes in self._panes.values() for held in panes.values())

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
                for group, delta in groups.items():
                    columns = held.get(group)
                    if columns is None:
                        columns = held[group] = {}
                    _merge(columns, delta)
                    key = encode_key((resolution.name, pane, *group))
                    if columns:
                        changes.append((key, encode_columns(columns)))
                    else:
                        del held[group]
                        changes.append((key, None))
            if resolution.kept:
                changes += self._expire(resolution, horizon)
        return changes

    def _rolled_up(self, cells: Mapping[Cell, int]) -> dict[int, dict[Group, Columns]]:
        """The cells by minute and by the key of each rollup."""
        minutes: dict[int, dict[Group, Columns]] = defaultdict(lambda: defaultdict(dict))
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
        self, resolution: Resolution, minutes: Mapping[int, Mapping[Group, Columns]]
    ) -> Mapping[int, Mapping[Group, Columns]]:
        if resolution.name == "1m":
            return minutes
        panes: dict[int, dict[Group, Columns]] = defaultdict(lambda: defaultdict(dict))
        for minute, groups in minutes.items():
            pane = panes[pane_start(resolution.name, minute, self._zone)]
            for group, delta in groups.items():
                _merge(pane[group], delta)
        return panes

    def _expire(self, resolution: Resolution, horizon: int) -> Iterable[Change]:
        panes = self._panes[resolution.name]
        for pane in [pane for pane in panes if pane <= horizon]:
            for group in panes.pop(pane):
                yield encode_key((resolution.name, pane, *group)), None


def _merge(columns: Columns, delta: Mapping[str, int]) -> None:
    for column, n in delta.items():
        total = columns.get(column, 0) + n
        if total:
            columns[column] = total
        else:
            columns.pop(column, None)


def _group_of(rollup: Rollup) -> Callable[[Cell], Group]:
    pick = itemgetter(*(1 + _CELL_DIMENSIONS.index(name) for name in rollup.dimensions))
    name = rollup.name
    if len(rollup.dimensions) == 1:
        return lambda cell: (name, pick(cell))
    return lambda cell: (name, *pick(cell))


_GROUPS = tuple(_group_of(rollup) for rollup in ROLLUPS)
_GROUPS_OF_RESPONSE = tuple(_group_of(rollup) for rollup in ROLLUPS if rollup.response)
