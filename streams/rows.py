"""The records of the changelogs, as bytes and back: what a worker leaves behind and every reader may rely on.

Funnel changelog, in msgpack: key `[generation, rollup, resolution, pane, dimension values…]`, value
`{column: n, …}`, with the ids of `streams.measures` and `streams.panes`; base rows, which hold what archived
leads add, have the key `[-1, rollup, fold, dimension values…]`. Leads changelog: key = lead id, value = its
log (`streams.log`). Both hold one position record per partition, in JSON, written in the same transaction as
the rows it covers. Funnel rows in JSON are of folds before version 3: readers know them,
workers do not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Literal, Self, cast
from zlib import crc32

import msgspec

from callfunnel.streams.fold import Fold
from callfunnel.streams.measures import COLUMNS, ROLLUPS
from callfunnel.streams.panes import RESOLUTIONS, TWICE, pane_start

RowKey = tuple[str, int, str, *tuple[str, ...]]
"""(resolution, pane start in Unix seconds, rollup, dimension values …); `base` and 0 of archived leads.

What a row of a minute holds is in no coarser row until that minute expires (`whole`)."""

Columns = dict[str, int]

Poison = Literal["none", "found", "accepted"]
"""Whether a partition is poisoned; "accepted" by an operator, who wants it to go on where poison stops it."""

BASE = -1
"""The generation of base rows: no change of the fold makes them anew, because the logs are gone."""

POSITION_KEY = b'["position"]'
"""No lead id can equal it in the leads changelog: the record there has its own key, `LEADS_POSITION_KEY`."""

LEADS_POSITION_KEY = b"\x00position"
"""Identities hold no control characters, so this is never a lead."""


class Witness(msgspec.Struct, frozen=True):
    """A record of the source: enough to know it again."""

    offset: int
    timestamp_ms: int
    crc: int
    """The `checksum` of its key and value."""

    @classmethod
    def of(cls, offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None) -> Self:
        return cls(offset, timestamp_ms, checksum(key, value))


def checksum(key: bytes | None, value: bytes | None) -> int:
    """CRC-32 of both, each behind its length."""
    crc = 0
    for part in (key, value):
        crc = crc32(b"null" if part is None else b"%d:" % len(part), crc)
        crc = crc32(part or b"", crc)
    return crc


class Position(msgspec.Struct, frozen=True):
    """How far the rows of a partition go, and of what they are made.

    The fields from `topic` on have defaults that mean: written before this was kept.
    """

    offset: int
    """The next source offset to apply: everything before it is in the rows."""
    watermark_ms: int
    """The largest event time among them, Unix milliseconds; -1 before the first event."""
    fold: str
    """The fingerprint of the settings that shaped the rows."""
    applied: int = 0
    """Records taken in so far; with the next three, every record that was read is accounted for."""
    duplicates: int = 0
    rejected: int = 0
    rerouted: int = 0
    partitions: int = 0
    """How many the source has: with the partitioner, it says where a lead is at home. 0: written before this
    was kept."""
    topic: str = ""
    """The source topic."""
    topic_id: str = ""
    """The id that its broker gave it (KIP-516), as Kafka's tools show it; "" where it gives none."""
    witness: Witness | None = None
    """The last record that was taken in."""
    timezone: str = ""
    """Where the days of the rows begin and end."""
    days_kept: int = 0
    """How many days day rows are kept."""
    replay_until_ms: int | None = None
    """With the clock "event": later events are refused. None: none is, or the clock was "wall"."""
    lost: int = 0
    """Offsets that were gone before they could be read; at most so many records are missing."""
    lost_at_ms: int = 0
    """When that was last found, Unix milliseconds; 0: never, or written before this was kept."""
    rejected_share: float = 0.0
    """Of the newest records, how many were rejected (`streams.poison`), but for those of crowded leads."""
    poison: Poison = "none"
    generation: int = 0
    """Which rows are in force. Those of another generation are being made, or are left to be deleted."""
    settings: Fold | None = None
    """Of the fold; None: of a version before 3."""
    replaced: tuple[str, ...] = ()
    """The fingerprints of the folds that made the rows before, oldest first: a worker goes back to none of
    them by itself."""
    parts: int = 0
    """Transactions that took in no record: they derive rows, or delete rows that are not in force.

    They are counted because `agents.engine.in_doubt` tells transactions by their positions.
    """
    horizon_ms: int = 0
    """A local midnight, Unix milliseconds: events before it are refused as archived. It never goes back."""
    conflicting: int = 0
    """Of the applied records, those that contradict another one of the same event id."""


COARSER = {rollup.name: ("1h", "1d", "all") if rollup.of_all_time else ("1h", "1d") for rollup in ROLLUPS}
"""By rollup, the resolutions whose rows take over what rows of minutes hold when these expire."""

_ROLLUP_NAMES = {rollup.id: rollup.name for rollup in ROLLUPS}
_ROLLUP_IDS = {name: id_ for id_, name in _ROLLUP_NAMES.items()}
_RESOLUTION_NAMES = {id_: name for name, id_ in RESOLUTIONS.items()}
_COLUMN_NAMES = {id_: name for name, id_ in COLUMNS.items()}

_pack = msgspec.msgpack.Encoder().encode
_unpack_key = msgspec.msgpack.Decoder(list[int | str]).decode
_unpack_columns = msgspec.msgpack.Decoder(dict[int, int]).decode
_key_in_json = msgspec.json.Decoder(list[str | int]).decode
_columns_in_json = msgspec.json.Decoder(Columns).decode

encode_position: Callable[[Position], bytes] = msgspec.json.Encoder().encode
decode_position: Callable[[bytes], Position] = msgspec.json.Decoder(Position).decode


def encode_key(key: RowKey, generation: int = 0) -> bytes:
    resolution, pane, rollup, *dimensions = key
    return _pack((generation, _ROLLUP_IDS[rollup], RESOLUTIONS[resolution], pane, *dimensions))


def encode_base_key(fold: str, rollup: str, dimensions: Sequence[str]) -> bytes:
    return _pack((BASE, _ROLLUP_IDS[rollup], fold, *dimensions))


def generation_of(data: bytes) -> int:
    """Of a row's key: 0 where it is in JSON, `BASE` of base rows.

    Raises `msgspec.DecodeError` or ValueError where it is none.
    """
    if data[:1] == b"[":
        return 0
    if len(data) > 1 and 0x94 <= data[0] <= 0x9F and (data[1] < 0x80 or data[1] == 0xFF):
        return BASE if data[1] == 0xFF else data[1]
    generation, *_ = _unpack_key(data)
    return int(generation)


def of_others(keys: Iterable[bytes], generation: int) -> list[bytes]:
    """Those of other generations, base rows among them. Raises as `generation_of`."""
    # A worker that starts asks this of a million rows, and nearly all have one of these beginnings.
    usual = {bytes((head, generation)) for head in range(0x94, 0xA0)} if generation < 0x80 else set()
    return [key for key in keys if key[:2] not in usual and generation_of(key) != generation]


def decode_key(data: bytes) -> RowKey:
    """Raises `msgspec.DecodeError` or ValueError where it is no key of a row."""
    if data[:1] == b"[":
        resolution, *rest = _key_in_json(data)
        return cast(RowKey, (TWICE if resolution == "1m" else resolution, *rest))
    try:
        generation, rollup, resolution, pane, *dimensions = _unpack_key(data)
        if generation == BASE:
            return cast(RowKey, ("base", 0, _ROLLUP_NAMES[cast(int, rollup)], pane, *dimensions))
        return cast(
            RowKey,
            (_RESOLUTION_NAMES[cast(int, resolution)], pane, _ROLLUP_NAMES[cast(int, rollup)], *dimensions),
        )
    except KeyError as error:
        raise ValueError(f"no rollup or resolution has the id {error}") from error


def whole(rows: Mapping[RowKey, Columns], zone: tzinfo) -> dict[RowKey, Columns]:
    """The rows, where coarser ones hold what rows of minutes hold: every pane is the sum of its events."""
    found = dict(rows)
    for (resolution, minute, rollup, *dimensions), columns in rows.items():
        if resolution == "1m":
            for coarser in COARSER[rollup]:
                key: RowKey = coarser, pane_start(coarser, minute, zone), rollup, *dimensions
                found[key] = added(found.get(key, {}), columns)
    return found


def added(columns: Columns, more: Columns) -> Columns:
    """The columns with more in them; one that is 0 then is not held."""
    sums = columns | {column: columns.get(column, 0) + n for column, n in more.items()}
    return {column: n for column, n in sums.items() if n} if 0 in sums.values() else sums


def encode_columns(columns: Columns) -> bytes:
    return _pack(dict(sorted((COLUMNS[name], n) for name, n in columns.items())))


def decode_columns(data: bytes) -> Columns:
    """Raises `msgspec.DecodeError` or ValueError where they are no columns."""
    if data[:1] == b"{":
        return _columns_in_json(data)
    try:
        return {_COLUMN_NAMES[id_]: n for id_, n in _unpack_columns(data).items()}
    except KeyError as error:
        raise ValueError(f"no column has the id {error}") from error
