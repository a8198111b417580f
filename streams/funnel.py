"""The funnel rows of one partition, in plain Python: additions in, changed rows out.

Each addition counts in one pane of every resolution that has not expired; rows of expired panes are dropped.
Definitions: `streams/README.md`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import tzinfo

from callfunnel.streams.measures import ROLLUPS
from callfunnel.streams.panes import Bounds, Resolution, expired_until, pane_start
from callfunnel.streams.rows import Columns, RowKey, decode_columns, decode_key, encode_columns, encode_key

Change = tuple[bytes, bytes | None]
"""A changelog record: key and value, None to delete."""

Cell = tuple[int, str, tuple[str, ...], str]
"""The start of a minute, the name of a rollup with the values of its dimensions, a column."""

_ROLLUPS = {rollup.name: rollup for rollup in ROLLUPS}

Pane = tuple[str, int, str]
"""Resolution, start and rollup."""


class Funnel:
    """The rows of one partition, by pane."""

    def __init__(self, resolutions: tuple[Resolution, ...], zone: tzinfo, generation: int = 0) -> None:
        self._generation = generation
        self._resolutions = resolutions
        self._zone = zone
        self._panes: dict[Pane, dict[RowKey, Columns]] = {}

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        for data, value in rows.items():
            key = decode_key(data)
            self._panes.setdefault(key[:3], {})[key] = decode_columns(value)

    def rows(self) -> dict[RowKey, Columns]:
        """Every row held. For tests and comparisons: the tables of a worker are large."""
        return {key: columns for rows in self._panes.values() for key, columns in rows.items()}

    def records(self) -> list[tuple[bytes, bytes]]:
        """Every row as its changelog holds it."""
        return [
            (encode_key(key, self._generation), encode_columns(columns))
            for key, columns in self.rows().items()
        ]

    def __len__(self) -> int:
        return sum(map(len, self._panes.values()))

    def add(self, sums: Mapping[Cell, int], bounds: Bounds) -> list[Change]:
        """Add to every row that a cell belongs to; the changelog records that say so.

        `bounds` are those after the batch. What counts in a pane that has expired by then counts in the
        coarser rows alone.
        """
        changes: list[Change] = []
        for key, more in self._by_row(sums, bounds).items():
            rows = self._panes.setdefault(key[:3], {})
            columns = rows.get(key, {})
            held = columns | {column: columns.get(column, 0) + n for column, n in more.items()}
            if 0 in held.values():
                held = {column: n for column, n in held.items() if n}
            if held == columns:
                continue
            if held:
                rows[key] = held
            else:
                rows.pop(key, None)
            changes.append((encode_key(key, self._generation), encode_columns(held) if held else None))
        changes += self._expire(bounds.watermark_ms // 1000)
        return changes

    def _by_row(self, sums: Mapping[Cell, int], bounds: Bounds) -> Mapping[RowKey, Columns]:
        by_row = defaultdict[RowKey, Columns](dict)
        watermark_s, horizon_s = bounds.watermark_ms // 1000, bounds.horizon_ms // 1000
        changed = [(cell, n) for cell, n in sums.items() if n]
        minutes = {minute for (minute, *_), _ in changed}
        for resolution in self._resolutions:
            gone, name = _expired_until(resolution, watermark_s), resolution.name
            panes = {minute: pane_start(name, minute, self._zone) for minute in minutes}
            for (minute, rollup, dimensions, column), n in changed:
                pane = panes[minute]
                is_known = pane > gone[rollup] and minute >= horizon_s
                if is_known if resolution.length else _ROLLUPS[rollup].of_all_time:
                    columns = by_row[name, pane, rollup, *dimensions]
                    columns[column] = columns.get(column, 0) + n
        return by_row

    def _expire(self, watermark_s: int) -> Iterator[Change]:
        for resolution in self._resolutions:
            gone = _expired_until(resolution, watermark_s)
            for pane in self._of(resolution):
                if pane[1] <= gone[pane[2]]:
                    for key in self._panes.pop(pane):
                        yield encode_key(key, self._generation), None

    def _of(self, resolution: Resolution) -> Iterable[Pane]:
        return [pane for pane in self._panes if pane[0] == resolution.name]


def _expired_until(resolution: Resolution, watermark_s: int) -> Mapping[str, int]:
    """By rollup."""
    return {name: expired_until(resolution, rollup, watermark_s) for name, rollup in _ROLLUPS.items()}
