"""The funnel rows of one partition: counts in, changed rows out.

A batch is counted by minute (`Counts`), in every rollup at once; here it is summed up to each resolution, and
rows whose pane has passed out of its retention are dropped. Definitions: `streams/README.md`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import tzinfo

from schemas.rows import Columns, RowKey, decode_columns, decode_key, encode_columns, encode_key
from streams.columns import RESPONSE
from streams.lead import Cell
from streams.panes import LENGTH_SECONDS, Resolution, pane_start

Change = tuple[bytes, bytes | None]
"""A changelog record: key and value, None to delete."""

Group = tuple[str, *tuple[str, ...]]
"""(rollup, dimension values …)"""

Groups = dict[Group, dict[str, int]]
"""What a pane gains: by group and column."""

Spot = tuple[int, str, str, str, str, str]
"""(minute, campaign, source, team, agent, location): a cell without its column."""


class Counts(dict[Spot, tuple[dict[str, int], ...]]):
    """What a batch adds. `counts[spot]` are the columns to count in: by campaign, by team, by location."""

    def __init__(self) -> None:
        self.minutes: dict[int, Groups] = {}

    def __missing__(self, spot: Spot) -> tuple[dict[str, int], ...]:
        minute, campaign, source, team, agent, location = spot
        groups = self.minutes.get(minute)
        if groups is None:
            groups = self.minutes[minute] = _groups()
        columns = self[spot] = (
            groups["campaign+source", campaign, source],
            groups["team+agent", team, agent],
            groups["location", location],
        )
        return columns

    def add(self, cell: Cell, n: int) -> None:
        """Count in every rollup that carries the column."""
        column = cell[6]
        by_campaign, by_team, by_location = self[cell[:6]]
        by_campaign[column] += n
        if column not in RESPONSE:
            by_team[column] += n
            by_location[column] += n


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

    def add(self, counts: Counts, watermark_ms: int) -> list[Change]:
        """Add a batch's counts to every row they belong to; the changelog records that say so.

        `watermark_ms` is the partition's watermark after the batch. What counts in a pane that has expired by
        then counts in the coarser rows alone.
        """
        changes: list[Change] = []
        watermark = watermark_ms // 1000
        finer, length = counts.minutes, LENGTH_SECONDS["1m"]
        for resolution in self._resolutions:
            if not self._holds(resolution, finer, length):
                finer = counts.minutes
            finer, length = self._by_pane(resolution, finer), resolution.length
            horizon = watermark - resolution.kept - resolution.length if resolution.kept else -(1 << 62)
            panes = self._panes[resolution.name]
            for pane, groups in finer.items():
                if pane > horizon:
                    rows = panes.setdefault(pane, {})
                    changes += _count(resolution.name, pane, rows, groups)
            if resolution.kept:
                changes += self._expire(resolution, horizon)
        return changes

    def _holds(self, resolution: Resolution, finer: Iterable[int], length: int) -> bool:
        """Whether each finer pane lies in one pane; where clocks are half an hour off, days cut hours."""
        name, last = resolution.name, length - LENGTH_SECONDS["1m"]
        return all(
            pane_start(name, pane, self._zone) == pane_start(name, pane + last, self._zone) for pane in finer
        )

    def _by_pane(self, resolution: Resolution, finer: Mapping[int, Groups]) -> dict[int, Groups]:
        """By pane, what the finer panes in it gain together."""
        together: defaultdict[int, list[Groups]] = defaultdict(list)
        for pane, groups in finer.items():
            together[pane_start(resolution.name, pane, self._zone)].append(groups)
        return {pane: parts[0] if len(parts) == 1 else _sum(parts) for pane, parts in together.items()}

    def _expire(self, resolution: Resolution, horizon: int) -> Iterable[Change]:
        panes = self._panes[resolution.name]
        for pane in [pane for pane in panes if pane <= horizon]:
            for group in panes.pop(pane):
                yield encode_key((resolution.name, pane, *group)), None


def _groups() -> Groups:
    return defaultdict(lambda: defaultdict(int))


def _sum(parts: Iterable[Groups]) -> Groups:
    sums = _groups()
    for groups in parts:
        for group, delta in groups.items():
            columns = sums[group]
            for column, n in delta.items():
                columns[column] += n
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
