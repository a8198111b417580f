"""The funnel rows of one partition: cells in, changed rows out.

A batch is counted once, at the finest grain (`Cell`); here it is rolled up to each rollup's dimensions and to
each resolution, and rows whose pane has passed out of its retention are dropped. Definitions:
`streams/README.md`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import tzinfo

from schemas.rows import Columns, RowKey, decode_columns, decode_key, encode_columns, encode_key
from streams.columns import RESPONSE
from streams.lead import Cell
from streams.panes import Resolution, pane_start

Change = tuple[bytes, bytes | None]
"""A changelog record: key and value, None to delete."""

Group = tuple[str, *tuple[str, ...]]
"""(rollup, dimension values …)"""


Groups = defaultdict[Group, Columns]
"""What a pane gains."""


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
        minutes = _by_minute(cells)
        watermark = watermark_ms // 1000
        for resolution in self._resolutions:
            horizon = watermark - resolution.kept - resolution.length if resolution.kept else -(1 << 62)
            panes = self._panes[resolution.name]
            for pane, groups in self._by_pane(resolution, minutes).items():
                if pane > horizon:
                    rows = panes.setdefault(pane, {})
                    changes += _count(resolution.name, pane, rows, groups)
            if resolution.kept:
                changes += self._expire(resolution, horizon)
        return changes

    def _by_pane(self, resolution: Resolution, minutes: Mapping[int, Groups]) -> Mapping[int, Groups]:
        together: defaultdict[int, list[Groups]] = defaultdict(list)
        for minute, groups in minutes.items():
            together[pane_start(resolution.name, minute, self._zone)].append(groups)
        return {pane: parts[0] if len(parts) == 1 else _sum(parts) for pane, parts in together.items()}

    def _expire(self, resolution: Resolution, horizon: int) -> Iterable[Change]:
        panes = self._panes[resolution.name]
        for pane in [pane for pane in panes if pane <= horizon]:
            for group in panes.pop(pane):
                yield encode_key((resolution.name, pane, *group)), None


def _by_minute(cells: Mapping[Cell, int]) -> dict[int, Groups]:
    """The cells of each minute, rolled up."""
    minutes: defaultdict[int, Groups] = defaultdict(lambda: defaultdict(dict))
    for (minute, campaign, source, team, agent, location, column), n in cells.items():
        if not n:
            continue
        groups = minutes[minute]
        columns = groups["campaign+source", campaign, source]
        columns[column] = columns.get(column, 0) + n
        if column in RESPONSE:
            continue
        columns = groups["team+agent", team, agent]
        columns[column] = columns.get(column, 0) + n
        columns = groups["location", location]
        columns[column] = columns.get(column, 0) + n
    return minutes


def _sum(parts: Iterable[Groups]) -> Groups:
    sums: Groups = defaultdict(dict)
    for groups in parts:
        for group, delta in groups.items():
            columns = sums[group]
            for column, n in delta.items():
                columns[column] = columns.get(column, 0) + n
    return sums


def _count(resolution: str, pane: int, rows: dict[Group, Columns], groups: Groups) -> Iterable[Change]:
    """Add to the rows of a pane; a column that comes to 0 is not held, nor a row without columns."""
    for group, delta in groups.items():
        if not any(delta.values()):
            continue
        columns = rows.get(group)
        if columns is None:
            columns = rows[group] = {}
        for column, n in delta.items():
            total = columns.get(column, 0) + n
            if total:
                columns[column] = total
            else:
                columns.pop(column, None)
        key = encode_key((resolution, pane, *group))
        if columns:
            yield key, encode_columns(columns)
        else:
            del rows[group]
            yield key, None
