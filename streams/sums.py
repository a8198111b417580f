"""What the rows of all partitions add up to over spans of panes, for a reader that keeps the rows.

There are two kinds, which give the same: the one here adds up what it is asked for; that of the core
(`streams.by_core`) keeps each span as rows come.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import ClassVar, Protocol

import msgspec

from callfunnel.streams.panes import SUMMED
from callfunnel.streams.records import Pairs, PlainRecords, Records
from callfunnel.streams.rows import BASE, POSITION_KEY, Columns, decode_columns, decode_key, generation_of

Dimensions = tuple[str, ...]
Figures = tuple[int, ...]


class NotARow(ValueError):
    """What came is no row of the funnel table."""

    def __init__(self, key: bytes, why: str) -> None:
        super().__init__(why)
        self.key = key


class Sums(Protocol):
    """The rows of all partitions.

    A span is the whole panes of a resolution from `start` to before `end`, in Unix seconds; it sums the rows
    of all resolutions that hold a part of them (`panes.SUMMED`). One that is asked for again has the same
    `name`, rollup and resolution; it may have moved.
    """

    records_type: ClassVar[type[Records]]
    """The records of changelogs that it takes fastest."""

    def __len__(self) -> int:
        """How many rows are held, whether they are summed or not."""

    def apply(self, partition: int, changes: Pairs) -> None:
        """Take keys of rows and their new values, in their order; None deletes. Raises `NotARow`.

        Positions are passed over.
        """

    def show(self, partition: int, generation: int) -> None:
        """Sum these rows of the partition from now on; those that were summed before are gone."""

    def total(
        self, name: str, rollup: str, resolution: str, start: int, end: int, depth: int | None = None
    ) -> Mapping[Dimensions, Columns]:
        """The sums of the rows of a span, by the first `depth` values of their dimensions, or by all."""

    def figures(
        self,
        name: str,
        rollup: str,
        resolution: str,
        start: int,
        end: int,
        columns: Sequence[Sequence[str]],
        depth: int | None = None,
    ) -> Mapping[Dimensions, Figures]:
        """As `total`, but of each row figures, each the sum of a few columns; no column is in two of them.

        A row whose figures are all 0 is left out. The columns go with the name of the span.
        """

    def seen(self, name: str, rollup: str, resolution: str, start: int, end: int) -> Set[Dimensions]:
        """The dimension values that have rows in a span."""

    def first(
        self, rollup: str, resolution: str, column: str, wanted: Set[Dimensions]
    ) -> Mapping[Dimensions, int]:
        """For each of these dimension values, the start of its first row with something in the column."""


class PlainSums(Sums):
    """In Python."""

    records_type = PlainRecords

    def __init__(self) -> None:
        self._shown = defaultdict[int, int](int)
        self._panes: dict[
            tuple[str, str], dict[int, dict[tuple[int, int, bytes], tuple[Dimensions, Columns]]]
        ]
        self._panes = {}

    def __len__(self) -> int:
        return sum(len(rows) for panes in self._panes.values() for rows in panes.values())

    def apply(self, partition: int, changes: Pairs) -> None:
        for key, value in changes:
            key = key or b""
            if key == POSITION_KEY:
                continue
            try:
                generation = generation_of(key)
                resolution, pane, rollup, *dimensions = decode_key(key)
                columns = None if value is None else decode_columns(value)
            except (msgspec.MsgspecError, ValueError, TypeError) as error:
                raise NotARow(key, str(error)) from error
            panes = self._panes.setdefault((rollup, resolution), {})
            rows = panes.setdefault(pane, {})
            if columns is not None:
                rows[partition, generation, key] = tuple(dimensions), columns
            else:
                rows.pop((partition, generation, key), None)
                if not rows:
                    del panes[pane]

    def show(self, partition: int, generation: int) -> None:
        before, self._shown[partition] = self._shown[partition], generation
        if before != generation:
            for panes in self._panes.values():
                for pane, rows in list(panes.items()):
                    panes[pane] = {at: row for at, row in rows.items() if at[:2] != (partition, before)}

    def total(
        self, name: str, rollup: str, resolution: str, start: int, end: int, depth: int | None = None
    ) -> Mapping[Dimensions, Columns]:
        sums: dict[Dimensions, Columns] = {}
        for _, dimensions, columns in self._rows(rollup, resolution, start, end):
            into = sums.setdefault(dimensions[:depth], {})
            for column, n in columns.items():
                into[column] = into.get(column, 0) + n
        found = {row: {column: n for column, n in columns.items() if n} for row, columns in sums.items()}
        return {row: columns for row, columns in found.items() if columns}

    def figures(
        self,
        name: str,
        rollup: str,
        resolution: str,
        start: int,
        end: int,
        columns: Sequence[Sequence[str]],
        depth: int | None = None,
    ) -> Mapping[Dimensions, Figures]:
        found = {
            row: tuple([sum(held.get(column, 0) for column in of_one) for of_one in columns])
            for row, held in self.total(name, rollup, resolution, start, end, depth).items()
        }
        return {row: figures for row, figures in found.items() if any(figures)}

    def seen(self, name: str, rollup: str, resolution: str, start: int, end: int) -> Set[Dimensions]:
        return {dimensions for _, dimensions, _ in self._rows(rollup, resolution, start, end)}

    def first(
        self, rollup: str, resolution: str, column: str, wanted: Set[Dimensions]
    ) -> Mapping[Dimensions, int]:
        found: dict[Dimensions, int] = {}
        for pane, dimensions, columns in self._rows(rollup, resolution, 0, 1 << 62):
            if dimensions in wanted and columns.get(column):
                found[dimensions] = min(pane, found.get(dimensions, pane))
        return found

    def _rows(
        self, rollup: str, resolution: str, start: int, end: int
    ) -> Iterator[tuple[int, Dimensions, Columns]]:
        """Those that are summed, with their panes."""
        of_rollup = chain.from_iterable(
            self._panes.get((rollup, each), {}).items() for each in SUMMED[resolution]
        )
        for pane, rows in of_rollup:
            if start <= pane < end:
                for (partition, generation, _), (dimensions, columns) in rows.items():
                    if generation in (BASE, self._shown[partition]):
                        yield pane, dimensions, columns
