"""Tables that fold by the core (`streams/core/`): the same as the definition's, several times as fast.

The core reads ordinary records by itself; what it does not take for an event beyond doubt is judged by the
contract's decoder, and told to it.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, cast
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import astuple

from callfunnel.schemas.codec import Decoder, Rejected
from callfunnel.schemas.events import TYPES, Envelope
from callfunnel.schemas.fields import fields
from callfunnel.streams import _core
from callfunnel.streams.fold import Fold
from callfunnel.streams.funnel import Change
from callfunnel.streams.log import OWN, OwnField, entry_of
from callfunnel.streams.measures import ACTIVITY, COLUMNS, HISTOGRAMS, RETRACTED, ROLLUPS
from callfunnel.streams.panes import RESOLUTIONS, SUMMED, Bounds, pane_start
from callfunnel.streams.records import Pairs, Store
from callfunnel.streams.rows import (
    BASE,
    POSITION_KEY,
    Columns,
    RowKey,
    decode_columns,
    decode_key,
    encode_columns,
    encode_key,
    whole,
)
from callfunnel.streams.sums import Dimensions, Figures, NotARow, Sums
from callfunnel.streams.tables import Archived, Effects, Tables, archived, crowded

_NAMES = {id_: name for name, id_ in COLUMNS.items()}
_ROLLUP_IDS = {rollup.name: rollup.id for rollup in ROLLUPS}
_DIMENSIONS = {rollup.name: len(rollup.dimensions) for rollup in ROLLUPS}


class Verdicts:
    """What the records of a batch say: the core's events, and why others are none."""

    def __init__(self, events: Any, rejected: dict[int, Rejected]) -> None:
        self.events = events
        self.rejected = rejected


class CoreTables(Tables):
    """Those of the core."""

    records_type = _core.Records
    store_type = _core.Store
    murmur2_of_all = staticmethod(_core.murmur2)

    def __init__(self, fold: Fold, decoder: Decoder, generation: int = 0) -> None:
        self._zone = zone = ZoneInfo(fold.timezone)
        self._decoder = decoder
        self._crowded = crowded(fold.lead_events)
        self._core = _core.Tables(
            types=[
                (name, [_declared(kind, field) for field in OWN.get(kind, ())])
                for name, kind in TYPES.items()
            ],
            columns=dict(COLUMNS),
            rollups=[
                (rollup.id, list(rollup.dimensions), rollup.of_all_time, rollup.minutes_kept_s)
                for rollup in ROLLUPS
            ],
            resolutions=[(RESOLUTIONS[each.name], *astuple(each)) for each in fold.resolutions],
            activity=dict(ACTIVITY),
            retracted=dict(RETRACTED),
            histograms=[(each.name, list(each.bounds), list(each.bins), each.sum) for each in HISTOGRAMS],
            day_of=lambda minute: pane_start("1d", minute, zone),
            hangup_ms=fold.hangup_ms,
            late_ms=fold.late_ms,
            lead_events=fold.lead_events,
            max_bytes=decoder.limits.max_bytes,
            generation=generation,
        )

    def restore(self, funnel: Store, leads: Store) -> None:
        self._core.restore(cast(_core.Store, funnel), cast(_core.Store, leads))

    def derive(self, leads: Store, most: int, bounds: Bounds) -> None:
        self._core.derive(cast(_core.Store, leads), most, _pair(bounds))

    def records(self) -> list[tuple[bytes, bytes]]:
        return self._core.rows()

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], timestamps: Sequence[int]
    ) -> Verdicts:
        if not len(values) == len(keys) == len(timestamps):
            raise ValueError("a batch has a key and a time for each value")
        events = self._core.read(list(values), list(keys), *self._decoder.bounds_ms(timestamps))
        odd = events.odd()
        told = self._decoder.decode_all(
            [values[i] for i in odd], [keys[i] for i in odd], [timestamps[i] for i in odd]
        )
        rejected = {}
        for i, verdict in zip(odd, told, strict=True):
            if isinstance(verdict, Rejected):
                rejected[i] = verdict
            else:
                at_ms, rank, mark, call, *dimensions, own = entry_of(verdict)
                events.tell(i, (verdict.lead_id, mark, rank, at_ms, call, tuple(dimensions), own))
        return Verdicts(events, rejected)

    def refuse(self, verdicts: Verdicts, indices: Iterable[int], why: Rejected) -> None:
        for i in indices:
            verdicts.rejected.setdefault(i, why)
            verdicts.events.refuse(i)

    def new_leads(self, verdicts: Verdicts, keys: Sequence[bytes | None]) -> set[bytes]:
        return self._core.new_leads(verdicts.events)

    def first_at(
        self,
        verdicts: Verdicts,
        keys: Sequence[bytes | None],
        away: Mapping[bytes, int],
        at_ms: int,
        start: int,
    ) -> int | None:
        first: int | None = verdicts.events.first_at(at_ms, start, dict(away))
        return first

    def add(
        self,
        verdicts: Verdicts,
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        away: Mapping[bytes, int],
        bounds: Bounds,
        part: range,
    ) -> Effects:
        rows, leads, crowded, old, foreign, counts, newest_ms, kept = self._core.add(
            verdicts.events, list(timestamps), dict(away), _pair(bounds), part.start, part.stop
        )
        duplicates, conflicting, late = counts
        rejected = [(i, why) for i, why in verdicts.rejected.items() if i in part]
        rejected += [(i, self._crowded) for i in crowded]
        rejected += [(i, archived(bounds.horizon_ms)) for i in old]
        return Effects(
            funnel=rows,
            leads=leads,
            rejected=sorted(rejected, key=lambda one: one[0]),
            foreign=foreign,
            duplicates=duplicates,
            conflicting=conflicting,
            late=late,
            watermark_ms=max(bounds.watermark_ms, newest_ms),
            newest_ms=newest_ms,
            archived=_archived(kept),
        )

    def archive(self, place: int, most: int, bounds: Bounds) -> tuple[Effects, int | None]:
        rows, leads, next_place, kept = self._core.archive(place, most, _pair(bounds))
        gone: list[Change] = [(lead_id, None) for lead_id in leads]
        return Effects(rows, gone, [], [], bounds.watermark_ms, archived=_archived(kept)), next_place

    def rows(self) -> dict[RowKey, Columns]:
        return whole({decode_key(key): decode_columns(value) for key, value in self._core.rows()}, self._zone)

    def logs(self) -> dict[bytes, bytes]:
        return dict(self._core.leads())

    def sizes(self) -> tuple[int, int]:
        return self._core.row_count(), self._core.lead_count()


def _declared(kind: type[Envelope], field: OwnField) -> tuple[str, str, str, list[str], str, bool]:
    required = fields(kind)[field.given_as].required
    return field.name, field.kind, field.given_as, list(field.choices), field.unsaid, required


class CoreSums(Sums):
    """Those of the core."""

    records_type = _core.Records

    def __init__(self) -> None:
        self._core = _core.Sums({rollup.id: len(rollup.dimensions) for rollup in ROLLUPS}, _NAMES)

    def __len__(self) -> int:
        return len(self._core)

    def apply(self, partition: int, changes: Pairs) -> None:
        if not isinstance(changes, _core.Records):
            changes = _records(changes)
        if changes.has_key_with(_JSON, POSITION_KEY):
            changes = _records(_as_of_today(key or b"", value) for key, value in changes)
        try:
            self._core.apply(partition, changes, POSITION_KEY)
        except ValueError as error:
            why, key = error.args
            raise NotARow(key, why) from error

    def show(self, partition: int, generation: int) -> None:
        self._core.show(partition, generation)

    def total(
        self, name: str, rollup: str, resolution: str, start: int, end: int, depth: int | None = None
    ) -> Mapping[Dimensions, Columns]:
        return self._core.total(name, _summed(rollup, resolution), start, end, _depth(rollup, depth))

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
        ids = [[COLUMNS[column] for column in of_one] for of_one in columns]
        return self._core.figures(name, _summed(rollup, resolution), start, end, ids, _depth(rollup, depth))

    def seen(self, name: str, rollup: str, resolution: str, start: int, end: int) -> Set[Dimensions]:
        return self._core.seen(name, _summed(rollup, resolution), start, end)

    def first(
        self, rollup: str, resolution: str, column: str, wanted: Set[Dimensions]
    ) -> Mapping[Dimensions, int]:
        return self._core.first(_summed(rollup, resolution), COLUMNS[column], set(wanted))


_SUMMED = {
    resolution: [BASE if each == "base" else RESOLUTIONS[each] for each in summed]
    for resolution, summed in SUMMED.items()
}


def _summed(rollup: str, resolution: str) -> tuple[int, list[int]]:
    return _ROLLUP_IDS[rollup], _SUMMED[resolution]


def _depth(rollup: str, depth: int | None) -> int:
    return _DIMENSIONS[rollup] if depth is None else depth


_JSON = ord("[")
"""Keys of version 2 of the tables begin with it."""


def _records(changes: Pairs) -> _core.Records:
    pairs = list(changes)
    return _core.Records.of(range(len(pairs)), [key for key, _ in pairs], [value for _, value in pairs])


def _as_of_today(key: bytes, value: bytes | None) -> tuple[bytes, bytes | None]:
    """A row as this version writes it."""
    if key == POSITION_KEY:
        return key, value
    try:
        if key[:1] == b"[":
            key = encode_key(decode_key(key))
        return key, None if value is None else encode_columns(decode_columns(value))
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError) as error:
        raise NotARow(key, str(error)) from error


def _archived(kept: Iterable[tuple[int, list[str], list[tuple[int, int]]]]) -> list[Archived]:
    return [
        (ROLLUPS[rollup].name, tuple(values), {_NAMES[id_]: n for id_, n in columns})
        for rollup, values, columns in kept
    ]


def _pair(bounds: Bounds) -> tuple[int, int]:
    return bounds.watermark_ms, bounds.horizon_ms
