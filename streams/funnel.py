"""The funnel rows of one partition, in plain Python: additions in, changed rows out.

Each addition is in the row of its minute until that expires, and then in the rows of its hour, its day and
all time that have not; rows of expired panes are dropped. Definitions: `streams/README.md`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import tzinfo

from callfunnel.streams.measures import ROLLUPS
from callfunnel.streams.panes import Bounds, Resolution, expired_until, pane_start
from callfunnel.streams.rows import (
    COARSER,
    Columns,
    RowKey,
    added,
    decode_columns,
    decode_key,
    encode_columns,
    encode_key,
)

Change = tuple[bytes, bytes | None]
"""A changelog record: key and value, None to delete."""

Cell = tuple[int, str, tuple[str, ...], str]
"""The start of a minute, the name of a rollup with the values of its dimensions, a column."""

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
        """Every row held, as its changelog holds it."""
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
        """Add each cell to its row; the changelog records that say so.

        `bounds` are those after the batch. A cell of a minute that is kept then goes into the row of that
        minute. When that expires, what it holds goes into all coarser rows, and so does what comes later.
        """
        gone = {resolution.name: _expired_until(resolution, bounds) for resolution in self._resolutions}
        by_row = defaultdict[RowKey, Columns](dict)
        for (minute, rollup, dimensions, column), n in sums.items():
            if not n:
                continue
            is_kept = minute > gone["1m"][rollup] and minute * 1000 >= bounds.horizon_ms
            for key in self._rows_of(minute, rollup, dimensions, gone, bounds, is_kept):
                columns = by_row[key]
                columns[column] = columns.get(column, 0) + n
        changes = self._add(by_row)
        by_row.clear()
        for pane in [pane for pane in self._panes if pane[0] != "all" and pane[1] <= gone[pane[0]][pane[2]]]:
            for key, columns in self._panes.pop(pane).items():
                changes.append((encode_key(key, self._generation), None))
                if key[0] == "1m":
                    _, minute, rollup, *values = key
                    for coarser in self._rows_of(minute, rollup, values, gone, bounds, is_kept=False):
                        by_row[coarser] = added(by_row[coarser], columns)
        return changes + self._add(by_row)

    def _rows_of(
        self,
        minute: int,
        rollup: str,
        dimensions: Iterable[str],
        gone: Mapping[str, Mapping[str, int]],
        bounds: Bounds,
        is_kept: bool,
    ) -> Iterator[RowKey]:
        """The rows that hold what happened in a minute, by whether rows of that minute are kept."""
        if is_kept:
            yield "1m", minute, rollup, *dimensions
            return
        for resolution in COARSER[rollup]:
            pane = pane_start(resolution, minute, self._zone)
            if resolution == "all" or (
                pane > gone[resolution][rollup] and minute * 1000 >= bounds.horizon_ms
            ):
                yield resolution, pane, rollup, *dimensions

    def _add(self, by_row: Mapping[RowKey, Columns]) -> list[Change]:
        changes: list[Change] = []
        for key, more in by_row.items():
            rows = self._panes.setdefault(key[:3], {})
            columns = rows.get(key, {})
            held = added(columns, more)
            if held == columns:
                continue
            if held:
                rows[key] = held
            else:
                rows.pop(key, None)
            changes.append((encode_key(key, self._generation), encode_columns(held) if held else None))
        return changes


def _expired_until(resolution: Resolution, bounds: Bounds) -> Mapping[str, int]:
    """By rollup."""
    watermark_s = bounds.watermark_ms // 1000
    return {rollup.name: expired_until(resolution, rollup, watermark_s) for rollup in ROLLUPS}
