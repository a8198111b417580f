"""What is written of a record elsewhere: dead letters, with the reason in the headers; events sent home.

The law: a copy is the record's own bytes, as many of its parts as there is room for. What is left out is
named, with its size.
"""

from collections.abc import Iterable, Iterator
from heapq import merge
from operator import itemgetter

from callfunnel.agents.engine.rerouting import REROUTED
from callfunnel.agents.kafka.batches import HEADER_BYTES, HELD_BYTES, MOST_HEADERS, Headers, LeftOut, Lump
from callfunnel.agents.kafka.microbatch import MicroBatch
from callfunnel.agents.kafka.producer import Record
from callfunnel.schemas.codec import Limits, Rejected, too_large
from callfunnel.schemas.topics import SOURCE_MESSAGE

BOMB_BYTES = 1_024
"""Of a dead letter's record, where it came in a batch that unpacks to far more than it has bytes."""

SENT_HOME_BYTES = SOURCE_MESSAGE // 2

OFFSET, CONNECTOR = "__connect.errors.offset", "__connect.errors.connector.name"
"""The headers that say which record of the source a dead letter is about, and which app says so."""


def dead_letters(
    batch: MicroBatch, rejected: Iterable[tuple[int, Rejected]], received_ms: int, app_id: str
) -> Iterator[Record]:
    """What goes to the dead-letter topic, in the order of the source; headers of Connect and of our own.

    A lump, which cannot be read as records, is one dead letter that says for how many records it stands.
    """
    room = BOMB_BYTES if batch.in_bomb else HELD_BYTES
    topic, partition = batch.topic.encode(), b"%d" % batch.partition
    records = ((batch.offsets[index], *_of_record(batch, index, why)) for index, why in rejected)
    lumps = ((lump.first, *_of_lump(lump)) for lump in batch.lumps)
    for offset, reason, detail, parts, more in merge(records, lumps, key=itemgetter(0)):
        parts.fit(room)
        headers = [
            *parts.headers,
            ("__connect.errors.topic", topic),
            ("__connect.errors.partition", partition),
            (OFFSET, b"%d" % offset),
            (CONNECTOR, app_id.encode()),
            ("__connect.errors.exception.class.name", reason.encode()),
            ("__connect.errors.exception.message", detail.encode()),
            ("callfunnel.reason", reason.encode()),
            ("callfunnel.detail", detail.encode()),
            ("callfunnel.received_at", b"%d" % received_ms),
            *more,
            *parts.sizes(),
        ]
        nothing = parts.key is None and parts.value is None  # such a record cannot be written
        yield (parts.key, b"" if nothing else parts.value), headers, None


def _of_record(
    batch: MicroBatch, index: int, why: Rejected
) -> "tuple[str, str, _Parts, list[tuple[str, bytes]]]":
    parts = _Parts.of(batch, index)
    if why.reason == "too_large" and parts.left_out.value is not None:
        why = too_large(parts.left_out.value, Limits())
    return why.reason, why.detail, parts, []


def _of_lump(lump: Lump) -> "tuple[str, str, _Parts, list[tuple[str, bytes]]]":
    size = lump.size if lump.value is None else None
    more = [("callfunnel.records", b"%d" % lump.records), ("callfunnel.last_offset", b"%d" % lump.last)]
    return lump.reason, lump.detail, _Parts(None, lump.value or b"", (), LeftOut(value=size)), more


def sent_home(batch: MicroBatch, index: int) -> Record:
    """The copy of a good event for its lead's home partition; headers that are too large stay behind."""
    parts = _Parts.of(batch, index)
    parts.key, parts.value = batch.keys[index], batch.values[index]
    parts.left_out = LeftOut(headers=parts.left_out.headers)
    parts.headers = sorted(parts.headers, key=lambda header: header[0] != REROUTED)  # they end the moving
    parts.fit(SENT_HOME_BYTES)
    return (parts.key, parts.value), [*parts.headers, *parts.sizes()], batch.timestamps[index]


class _Parts:
    """What a copy holds of a record, and what it does not."""

    def __init__(self, key: bytes | None, value: bytes | None, headers: Headers, left_out: LeftOut) -> None:
        self.key = key
        self.value = value
        self.headers = headers
        self.left_out = left_out

    @classmethod
    def of(cls, batch: MicroBatch, index: int) -> "_Parts":
        left_out = batch.left_out.get(index, LeftOut())
        return cls(
            None if left_out.key is not None else batch.keys[index],
            b"" if left_out.value is not None else batch.values[index],
            batch.headers[index],
            left_out,
        )

    def fit(self, room: int) -> None:
        """Leave out what there is no room for: first the key has its place, then the value, then headers."""
        key, value, headers = self.left_out.key, self.left_out.value, self.left_out.headers
        if len(self.key or b"") > room:
            self.key, key = None, len(self.key or b"")
        room -= len(self.key or b"")
        if len(self.value or b"") > room:
            self.value, value = b"", len(self.value or b"")
        room -= len(self.value or b"")
        for n, (name, content) in enumerate(self.headers):
            room -= HEADER_BYTES + len(name) + len(content or b"")
            if n == MOST_HEADERS or room < 0:
                headers = (headers or 0) + sum(map(_wire_bytes, self.headers[n:]))
                self.headers = self.headers[:n]
                break
        self.left_out = LeftOut(key, value, headers)

    def sizes(self) -> list[tuple[str, bytes]]:
        """The headers that say what was left out, in bytes."""
        sizes = (
            ("key", self.left_out.key),
            ("value", self.left_out.value),
            ("headers", self.left_out.headers),
        )
        return [(f"callfunnel.left_out.{name}", b"%d" % size) for name, size in sizes if size is not None]


def _wire_bytes(header: tuple[str, bytes | None]) -> int:
    """What a header takes in a record batch: name and content, each behind its length."""
    name, content = header[0].encode(), header[1] or b""
    return sum(len(part) + max(1, -(-(2 * len(part)).bit_length() // 7)) for part in (name, content))


def source_offset(headers: Headers, app_id: str) -> int | None:
    """Which record of the source a dead letter of this app is about; None for what others wrote.

    What the publisher wrote comes before what we write, and the last of a name counts.
    """
    its = dict(headers)
    offset = its.get(OFFSET) or b""
    return int(offset) if its.get(CONNECTOR) == app_id.encode() and offset.isdigit() else None
