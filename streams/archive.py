"""Where the memory of a partition ends, and what it still knows of leads that it keeps no more.

The law: whether an event counts depends on the events that came before it, and not on how they were cut into
batches. A lead counts in full for ever: as long as its log is kept, in rows that follow from it; then in base
rows, which stay as the fold of that time counted it.
"""

from collections.abc import Iterable
from datetime import tzinfo
from zoneinfo import ZoneInfo

from msgspec import Struct

from callfunnel.schemas.codec import Limits
from callfunnel.streams.fold import Fold
from callfunnel.streams.panes import LENGTH_SECONDS, oldest_day
from callfunnel.streams.rows import (
    BASE,
    Columns,
    RowKey,
    decode_columns,
    decode_key,
    encode_base_key,
    encode_columns,
    generation_of,
)
from callfunnel.streams.tables import Archived

_DAY_S = LENGTH_SECONDS["1d"]


class Memory(Struct, frozen=True):
    """How long a partition knows what happened; a replay of history never forgets."""

    kept_s: int | None
    zone: tzinfo

    @classmethod
    def of(cls, fold: Fold, limits: Limits) -> "Memory":
        rows = (each.kept + (_DAY_S if each.name != "1d" else 0) for each in fold.resolutions if each.length)
        kept_s = max(fold.event_days * _DAY_S, *rows)
        return cls(kept_s if limits.clock == "wall" else None, ZoneInfo(fold.timezone))

    def moves_at_ms(self, horizon_ms: int) -> int | None:
        """The event time that moves the horizon on; None: there is none."""
        return None if self.kept_s is None else horizon_ms + (self.kept_s + _DAY_S) * 1000

    def horizon_ms(self, before_ms: int, watermark_ms: int) -> int:
        """The horizon at this watermark: the start of the oldest day that is kept. It never goes back."""
        moves_at_ms = self.moves_at_ms(before_ms)
        if self.kept_s is None or moves_at_ms is None or watermark_ms < moves_at_ms:
            return before_ms
        return oldest_day(self.kept_s, watermark_ms // 1000, self.zone) * 1000


class BaseRows:
    """What archived leads add, by the fold that counted it; a batch adds to it."""

    def __init__(self, funnel: dict[bytes, bytes]) -> None:
        """Takes base rows out of these rows of the funnel changelog."""
        keys = [key for key in funnel if generation_of(key) == BASE]
        self._rows = {key: decode_columns(funnel.pop(key)) for key in keys}

    def add(self, fold: str, archived: Iterable[Archived]) -> list[tuple[bytes, bytes | None]]:
        """The rows that change, as their changelog has them."""
        changed = set()
        for rollup, dimensions, more in archived:
            key = encode_base_key(fold, rollup, dimensions)
            _add(self._rows.setdefault(key, {}), more)
            changed.add(key)
        return [(key, encode_columns(self._rows[key])) for key in changed]

    def rows(self) -> dict[RowKey, Columns]:
        """What archived leads add, whatever fold counted it. For tests and comparisons."""
        sums: dict[RowKey, Columns] = {}
        for key, columns in self._rows.items():
            _add(sums.setdefault(decode_key(key), {}), columns)
        return sums


def _add(columns: Columns, more: Columns) -> None:
    for column, n in more.items():
        columns[column] = columns.get(column, 0) + n
