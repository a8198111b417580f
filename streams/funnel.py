"""The funnel rows of one partition: counts in, changed rows out.

A batch is counted by minute (`streams.counts`); here it is summed up to each resolution, and rows whose pane
has passed out of its retention are dropped. Definitions: `streams/README.md`.

Rows are held under the tail of their changelog key, and a tail is made once for a group in a batch: most of
what a batch changes are a few resolutions and minutes of the same groups.
"""

from collections.abc import Iterable, Mapping
from datetime import tzinfo

from msgspec import Struct

from callfunnel.schemas.rows import (
    Columns,
    RowKey,
    decode_columns,
    decode_key,
    encode_columns,
    key_head,
    key_tail,
    split_key,
)
from callfunnel.streams.counts import Counts, Delta
from callfunnel.streams.panes import OF_ALL_TIME, Resolution, pane_start

Change = tuple[bytes, bytes | None]
"""A changelog record: key and value, None to delete."""

Rows = dict[bytes, Columns]
"""The rows of a pane by the tails of their keys."""


class Step(Struct):
    """How a batch gets from one resolution to the next."""

    pane_of: Mapping[int, int]
    """The pane that a finer pane is in."""
    from_minutes: bool
    """The finer panes are the minutes, not those of the step before."""
    held: Mapping[int, tuple[bytes, Rows]]
    """Of the panes that have not expired: the head of their keys, and their rows."""


class Funnel:
    """The rows of one partition, by resolution and pane."""

    def __init__(self, resolutions: tuple[Resolution, ...], zone: tzinfo) -> None:
        self._resolutions = resolutions
        self._panes: dict[str, dict[int, Rows]] = {r.name: {} for r in resolutions}
        self._zone = zone

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        for key, value in rows.items():
            resolution, pane, tail = split_key(key)
            self._panes[resolution].setdefault(pane, {})[tail] = decode_columns(value)

    def rows(self) -> dict[RowKey, Columns]:
        """Every row held. For tests and comparisons: the tables of a worker are large."""
        return {
            decode_key(key_head(resolution, pane) + tail): columns
            for resolution, panes in self._panes.items()
            for pane, held in panes.items()
            for tail, columns in held.items()
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
        steps = self._steps(counts, watermark)
        dated = [step for step, resolution in zip(steps, self._resolutions, strict=True) if resolution.length]
        for rollup, groups in counts.rollups():
            its_steps = steps if rollup == OF_ALL_TIME else dated
            for group, minutes in groups.items():
                tail = key_tail(rollup, *group)
                finer: Mapping[int, Delta] = minutes
                for step in its_steps:
                    finer = _sum(minutes if step.from_minutes else finer, step.pane_of)
                    for pane, delta in finer.items():
                        if pane not in step.held or not any(delta.values()):
                            continue
                        head, rows = step.held[pane]
                        columns = _count(rows, tail, delta)
                        changes.append((head + tail, encode_columns(columns) if columns else None))
        changes += self._expire(watermark)
        return changes

    def _steps(self, counts: Counts, watermark: int) -> list[Step]:
        minutes = {
            minute for _, groups in counts.rollups() for by_minute in groups.values() for minute in by_minute
        }
        steps = []
        finer = {minute: minute for minute in minutes}
        for resolution in self._resolutions:
            own = {minute: pane_start(resolution.name, minute, self._zone) for minute in minutes}
            pane_of = {pane: own[minute] for minute, pane in finer.items()}
            # Where clocks are half an hour off, or are set amid an hour, a day begins within one.
            from_minutes = any(pane_of[finer[minute]] != own[minute] for minute in minutes)
            if from_minutes:
                pane_of = own
            finer = own
            gone = horizon(resolution, watermark)
            panes = self._panes[resolution.name]
            held = {
                pane: (key_head(resolution.name, pane), panes.setdefault(pane, {}))
                for pane in set(own.values())
                if pane > gone
            }
            steps.append(Step(pane_of, from_minutes, held))
        return steps

    def _expire(self, watermark: int) -> Iterable[Change]:
        for resolution in self._resolutions:
            panes, gone = self._panes[resolution.name], horizon(resolution, watermark)
            for pane in [pane for pane in panes if pane <= gone]:
                head = key_head(resolution.name, pane)
                for tail in panes.pop(pane):
                    yield head + tail, None


def horizon(resolution: Resolution, watermark: int) -> int:
    """Panes that start here or before have expired."""
    return watermark - resolution.kept - resolution.length if resolution.kept else -(1 << 62)


def _sum(finer: Mapping[int, Delta], pane_of: Mapping[int, int]) -> Mapping[int, Delta]:
    """By pane, what the finer panes in it gain together."""
    if len(finer) == 1:
        ((pane, delta),) = finer.items()
        return {pane_of[pane]: delta}
    together: dict[int, Delta] = {}
    for pane, delta in finer.items():
        at = pane_of[pane]
        if at in together:
            sums = together[at]
            for column, n in delta.items():
                sums[column] = sums.get(column, 0) + n
        else:
            together[at] = dict(delta)
    return together


def _count(rows: Rows, tail: bytes, delta: Delta) -> Columns:
    """Add to a row; a column that comes to 0 is not held, nor a row without columns."""
    columns = rows.get(tail)
    if columns is None:
        columns = rows[tail] = dict(delta)
    else:
        for column, n in delta.items():
            columns[column] = columns.get(column, 0) + n
    if 0 in columns.values():
        columns = {column: n for column, n in columns.items() if n}
        if columns:
            rows[tail] = columns
        else:
            del rows[tail]
    return columns
