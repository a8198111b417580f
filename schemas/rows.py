"""The records of the changelogs, as bytes and back: what a worker leaves behind and every reader may rely on.

Funnel changelog: key `["1h",1717171200,"campaign+source","spring","web"]`, value `{"events_dialed":7,…}`
(columns that are not 0). Leads changelog: key = lead id, value = the packed facts. Both hold one position
record per partition, written in the same transaction as the rows it covers.
"""

from collections.abc import Callable
from typing import Literal, Self, cast
from zlib import crc32

import msgspec

RowKey = tuple[str, int, str, *tuple[str, ...]]
"""(resolution, pane start in Unix seconds, rollup, dimension values …)"""

Columns = dict[str, int]

Poison = Literal["none", "found", "accepted"]
"""Whether a partition is poisoned; "accepted" by an operator, who wants it to go on where poison stops it."""

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


_encode = msgspec.json.Encoder().encode
_decode_key = msgspec.json.Decoder(list[str | int]).decode

# Bound, not wrapped: a worker calls it several times for each event.
encode_columns: Callable[[Columns], bytes] = _encode
decode_columns: Callable[[bytes], Columns] = msgspec.json.Decoder(Columns).decode
encode_position: Callable[[Position], bytes] = _encode
decode_position: Callable[[bytes], Position] = msgspec.json.Decoder(Position).decode


def encode_key(key: RowKey) -> bytes:
    resolution, pane, *group = key
    return key_head(resolution, pane) + key_tail(*group)


def key_head(resolution: str, pane: int) -> bytes:
    """The half of a key that the rows of a pane share."""
    return b'["%b",%d,' % (resolution.encode(), pane)


def key_tail(*group: str) -> bytes:
    """The half of a key that the rows of a group share: rollup and dimension values."""
    return _encode(group)[1:]


def split_key(key: bytes) -> tuple[str, int, bytes]:
    """Resolution, pane and tail of a row's key."""
    resolution, pane, tail = key.split(b",", 2)
    return resolution[2:-1].decode(), int(pane), tail


def decode_key(data: bytes) -> RowKey:
    """Raises `msgspec.DecodeError`; what is no key of a row may still be one by its JSON types."""
    return cast(RowKey, tuple(_decode_key(data)))
