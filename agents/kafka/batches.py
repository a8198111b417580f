"""Record batches as a broker sends them, read within bounds: in place of aiokafka's `MemoryRecords`.

aiokafka's parser, in C, is fast and takes all there is of a batch at once. Here it is given portions of a few
megabytes, and of those that it refuses, and of large records, each record is read by itself: only what it can
be judged by is held, and what is skipped never is.

The law: which way a record was read shows in nothing that is said of it.
"""

import zlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from itertools import chain
from struct import Struct, pack_into, unpack_from
from typing import Any, NamedTuple

import msgspec
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch

from callfunnel.agents.kafka.unpack import ERRORS, PIECE_BYTES, TooLarge, Unreadable, unpack, whole
from callfunnel.schemas.codec import UNREADABLE, Limits
from callfunnel.schemas.topics import LARGEST_MESSAGE

Headers = Sequence[tuple[str, bytes | None]]

PORTION_BYTES = 2 << 20
"""Of a batch, unpacked, that the parser in C takes whole: where it is all headers, it grows by 36 times."""

PORTION_RECORDS = 50_000

RECORD_BYTES = 1 << 20
"""A larger record is read by itself."""

HELD_BYTES = LARGEST_MESSAGE - (1 << 20)
"""Of key, value and headers of one record: what there is room for in its dead letter."""

JUDGED_BYTES = Limits().max_bytes + 1
"""Of a key or a value that is not held: its first bytes, by which it is as wrong as by all of them."""

BOMB_BYTES = 32 << 20
"""What a batch may unpack to. Its records behind that are judged like all, and repeated nowhere."""

_V2 = Struct(">qiibIhiqqqhii")
_MESSAGE_HEAD, _MESSAGE, _TIMESTAMP, _LENGTH = Struct(">qi"), Struct(">Ibb"), Struct(">q"), Struct(">i")
_CODEC, _LOG_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_ATTRIBUTES_AT, _COUNT_AT = 21, 57
HEADER_BYTES = 64
"""What a header takes as objects, its text aside."""

MOST_HEADERS = 1_000
"""Of a large record, and in a copy: a record of a megabyte may have half a million."""


class LeftOut(msgspec.Struct, frozen=True):
    """The parts of a record that were not held, by their bytes; None: it is there."""

    key: int | None = None
    value: int | None = None
    headers: int | None = None


class Record(msgspec.Struct, frozen=True):
    """A record that was read by itself. Of a key or a value that is left out, the first bytes are there."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    left_out: LeftOut | None = None
    timestamp_type = 0
    checksum = None


class Lump(msgspec.Struct, frozen=True):
    """A part of a batch that cannot be read as records, whose batch says that there are so many."""

    first: int
    last: int
    records: int
    reason: str
    detail: str
    timestamp: int
    size: int
    value: bytes | None
    """The bytes that cannot be read: of one record, or the whole batch as the broker sent it."""


class Portion(NamedTuple):
    """What was read in one go: records, or a lump, or nothing yet of a large record."""

    records: Sequence[Any] = ()
    """Of aiokafka, or one `Record`."""
    lump: Lump | None = None
    size: int = 0
    """Bytes that are held, roughly."""
    work: int = 0
    """Bytes that were unpacked."""
    in_bomb: bool = False

    @classmethod
    def of(cls, record: Record) -> "Portion":
        headers = sum(len(name) + len(content or b"") + HEADER_BYTES for name, content in record.headers)
        return cls([record], None, len(record.key or b"") + len(record.value or b"") + headers)

    def since(self, position: int, work: int) -> "Portion":
        """The same without what comes before the position."""
        records = [record for record in self.records if record.offset >= position]
        lump = self.lump if self.lump is not None and self.lump.last >= position else None
        return self._replace(records=records, lump=lump, work=work)


class Damaged(Exception):
    """A batch is not as it was when a broker took it: whoever sent it is not to blame."""

    def __init__(self, batch: "RecordBatch") -> None:
        self.first = batch.base_offset
        self.end = batch.next_offset
        self.records = batch.count
        super().__init__(
            f"the {self.records} records from offset {self.first} to {self.end - 1} are damaged (their "
            "checksum is wrong): a disk or a broker has changed them since they were written. If another "
            "copy of the partition is whole, let it lead: stop the broker that leads now."
        )


class Batches:
    """The record batches of an answer, in the place of aiokafka's `MemoryRecords`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ahead = deque(_split(data))

    def size_in_bytes(self) -> int:
        return len(self.data)

    def has_next(self) -> bool:
        return bool(self.ahead)

    def next_batch(self) -> "RecordBatch":
        return self.ahead.popleft()


def _split(data: bytes) -> "Iterator[RecordBatch]":
    view, at = memoryview(data), 0
    while len(data) - at >= 12:
        (length,) = unpack_from(">i", data, at + 8)
        end = at + 12 + length
        if end > len(data):
            return  # cut off: the broker sends it again
        if length < 14:
            yield RecordBatch(view[at:], at, is_whole=False)
            return
        yield RecordBatch(view[at:end], at)
        at = end


class RecordBatch:
    """One batch: its header, and its records as they are asked for."""

    def __init__(self, data: memoryview, at: int = 0, is_whole: bool | None = None) -> None:
        self.data = data
        self.span = at, at + len(data)
        """Where it lies in the answer."""
        self.is_left_out: bool | None = None
        """Whether nothing is read of it: it was aborted, or is a marker. None: nobody has looked."""
        self.producer_id: int | None = None
        self.is_transactional = self.is_control_batch = False
        self.portions: Iterator[Portion] | None = None
        """What is left of it, once it was begun."""
        self._records: Iterator[Any] | None = None
        self._is_whole = is_whole
        self._as_it_is: DefaultRecordBatch | None = None
        """For the parser in C, where its checksum was looked at."""
        self.magic = data[16] if len(data) > 16 else -1
        if self.magic == 2 and len(data) >= _V2.size:
            (
                self.base_offset, _, _, _, _, self._attributes, last, self._first_timestamp,
                self._max_timestamp, self.producer_id, _, _, self.count,
            ) = _V2.unpack_from(data)  # fmt: skip
            self.next_offset = self.base_offset + max(last, 0) + 1
            self.is_transactional = bool(self._attributes & _TRANSACTIONAL)
            self.is_control_batch = bool(self._attributes & _CONTROL)
            return
        self.base_offset = unpack_from(">q", data)[0]
        self.next_offset, self.count = self.base_offset + 1, 1
        self._attributes = data[17] if len(data) > 17 else 0
        if self.magic == 1 and len(data) >= 26:
            (self._max_timestamp,) = unpack_from(">q", data, 18)
        else:
            self._max_timestamp = -1

    def validate_crc(self) -> bool:
        """Whether it is as it was written."""
        if self._is_whole is None:
            self._is_whole = self._checksum_is_right()
        return self._is_whole

    def _checksum_is_right(self) -> bool:
        if self.magic == 2 and len(self.data) >= _V2.size:
            self._as_it_is = DefaultRecordBatch(self.data)
            return bool(self._as_it_is.validate_crc())
        if self.magic in (0, 1) and len(self.data) >= 26 + 8 * self.magic:
            return bool(unpack_from(">I", self.data, 12)[0] == zlib.crc32(self.data[16:]))
        return False

    def begin(self, position: int) -> None:
        """From now on, `portions` gives the records from `position` on."""
        self.portions = self._read_from(position)

    def _read_from(self, position: int) -> Iterator[Portion]:
        return self._read(position) if self.magic == 2 else self._read_old(position)

    def put_back(self, portion: Portion) -> None:
        self.portions = chain([portion], self.portions or ())

    def __iter__(self) -> "RecordBatch":
        return self

    def __next__(self) -> Any:
        """For aiokafka itself: the next record. Raises CorruptRecordException where one is not whole."""
        if self._records is None:
            self._records = _whole_records(self._read_from(-1), self.base_offset)
        return next(self._records)

    # format 2

    def _read(self, position: int) -> Iterator[Portion]:
        codec, records, size = self._attributes & _CODEC, None, len(self.data)
        if self.count <= PORTION_RECORDS:
            if not codec and size <= PORTION_BYTES:
                records = self._parsed(self._as_it_is or DefaultRecordBatch(self.data))
            elif codec and (unpacked := whole(codec, self.data[_V2.size :], PORTION_BYTES)) is not None:
                size = len(unpacked)
                records = self._parsed(DefaultRecordBatch(self._unpacked(unpacked, self.count)))
        if records is None:
            packed = self.data[_V2.size :]
            return self._read_stream(
                _Stream(unpack(codec, packed) if codec else _pieces_of(packed)), position
            )
        if records and records[0].offset < position:
            records = [record for record in records if record.offset >= position]
        return iter((Portion(records, None, size, size),))

    def _unpacked(self, data: bytes, count: int) -> bytes:
        """A batch that is not compressed, of `count` records in `data`."""
        header = bytearray(self.data[: _V2.size])
        header[_ATTRIBUTES_AT + 1] &= ~_CODEC
        pack_into(">i", header, _COUNT_AT, count)
        return b"".join((header, data))

    @staticmethod
    def _parsed(batch: DefaultRecordBatch) -> list[Any] | None:
        """What the parser in C makes of it; None where it refuses it, whatever it says."""
        try:
            return list(batch)
        except Exception:
            return None

    def _read_stream(self, stream: "_Stream", position: int) -> Iterator[Portion]:
        worked = 0
        for portion in self._portions(stream):
            worked, work = stream.received, stream.received - worked
            yield portion.since(position, work)

    def _portions(self, stream: "_Stream") -> Iterator[Portion]:
        left, offset = self.count, self.base_offset
        why = ""
        try:
            while left > 0:
                in_bomb = stream.position > BOMB_BYTES
                count, size = stream.whole_records(min(left, PORTION_RECORDS))
                if count:
                    data = stream.take(size)
                    records = self._parsed(DefaultRecordBatch(self._unpacked(data, count)))
                    if records is None:
                        yield from self._each(data, count, offset)
                        offset += count
                    else:
                        yield Portion(records, None, size, in_bomb=in_bomb)
                        offset = records[-1].offset + 1
                    left -= count
                elif length := stream.large_record():
                    room = JUDGED_BYTES if in_bomb else HELD_BYTES
                    for portion in self._read_one(stream, length, offset, room):
                        yield portion._replace(in_bomb=in_bomb)
                    offset += 1
                    left -= 1
            if stream.more_than(0):
                why = "there are bytes behind the last record"
        except EOFError:
            why = "it ends before they do"
        except Unreadable as error:
            why = str(error)
        if why or stream.failure:
            first = min(offset, self.next_offset - 1)
            yield Portion(lump=self._rest(first, self.next_offset - 1, max(left, 0), stream.failure or why))

    def _each(self, data: bytes, count: int, offset: int) -> Iterator[Portion]:
        """The records of a portion that the parser in C refuses, one by one."""
        stream = _Stream(iter([data]))
        for n in range(count):
            yield from self._read_one(stream, stream.number(), offset + n, HELD_BYTES)

    def _read_one(self, stream: "_Stream", length: int, expected: int, room: int) -> Iterator[Portion]:
        fields = self._fields(stream, stream.position + length, room)
        return self._record_or_lump(stream, length, expected, fields)

    def _record_or_lump(
        self, stream: "_Stream", length: int, offset: int, fields: Generator[Portion, None, Record]
    ) -> Iterator[Portion]:
        """Yields portions without a record until there is the one with it, or with a lump instead."""
        start = stream.position
        value = stream.ahead(length)
        try:
            record = yield from fields
        except Unreadable as error:
            stream.end = None
            yield from stream.skip(start + length - stream.position)
            yield Portion(lump=self._lump(offset, offset, 1, error, length, value))
        else:
            yield Portion.of(record)

    def _fields(self, stream: "_Stream", end: int, room: int) -> Generator[Portion, None, Record]:
        stream.end = end
        stream.number()  # attributes: none is in use
        timestamp = self._first_timestamp + stream.number()
        if self._attributes & _LOG_APPEND_TIME:
            timestamp = self._max_timestamp
        offset = self.base_offset + stream.number()
        if not self.base_offset <= offset < self.next_offset:
            raise Unreadable("its offset is outside of its batch")
        key, key_size = yield from stream.part(stream.number(), room)
        room -= 0 if key_size else len(key or b"")
        value, value_size = yield from stream.part(stream.number(), room)
        room -= 0 if value_size else len(value or b"")
        headers: list[tuple[str, bytes | None]] = []
        left_out = None
        count = stream.number()
        if count < 0:
            raise Unreadable("the number of its headers is negative")
        for n in range(count):
            start, room = stream.position, room - HEADER_BYTES
            name, name_size = yield from stream.part(stream.number(), room)
            if name is None:
                raise Unreadable("a header has no name")
            content, content_size = yield from stream.part(stream.number(), room - len(name))
            if n == MOST_HEADERS or room < 0 or name_size is not None or content_size is not None:
                left_out = end - start
                yield from stream.skip(end - stream.position)
                break
            headers.append((name.decode(errors="backslashreplace"), content))
            room -= len(name) + len(content or b"")
        if stream.position != end:
            raise Unreadable(f"it has {end - stream.position} bytes more than its parts")
        stream.end = None
        return Record(offset, timestamp, key, value, headers, _left_out(key_size, value_size, left_out))

    # formats 0 and 1: messages, of which one may hold others

    def _read_old(self, position: int) -> Iterator[Portion]:
        codec = self._attributes & _CODEC
        if not codec:
            yield from self._messages(_Stream(iter([bytes(self.data)])), position, 0)
            return
        packed = self._wrapped()
        stream = _Stream(unpack(codec, packed))
        last = None
        try:
            while stream.more_than(0):
                last, size = stream.message()
                for nothing in stream.skip(size):
                    yield nothing._replace(work=PIECE_BYTES)
        except EOFError:
            last = None
        except Unreadable as error:
            stream.failure = error
        if stream.failure or last is None:
            first = min(position, self.base_offset)
            why = stream.failure or "it ends before they do"
            yield Portion(lump=self._rest(first, self.base_offset, self.next_offset - first, why))
            return
        base = self.base_offset - last if self.magic == 1 else 0
        yield from self._messages(_Stream(unpack(codec, packed)), position, base)

    def _wrapped(self) -> memoryview:
        at = 18 + 8 * self.magic
        (key,) = unpack_from(">i", self.data, at)
        at += 8 + max(key, 0)
        return self.data[at:]

    def _messages(self, stream: "_Stream", position: int, base: int) -> Iterator[Portion]:
        worked = 0
        while stream.more_than(0):
            in_bomb = stream.position > BOMB_BYTES
            offset, size = stream.message()
            room = JUDGED_BYTES if in_bomb else HELD_BYTES
            for portion in self._message(stream, size, offset + base, room):
                worked, work = stream.received, stream.received - worked
                yield portion._replace(in_bomb=in_bomb).since(position, work)

    def _message(self, stream: "_Stream", size: int, offset: int, room: int) -> Iterator[Portion]:
        fields = self._message_fields(stream, stream.position + size, offset, room)
        return self._record_or_lump(stream, size, offset, fields)

    def _message_fields(
        self, stream: "_Stream", end: int, offset: int, room: int
    ) -> Generator[Portion, None, Record]:
        stream.end = end
        _, magic, attributes = stream.unpacked(_MESSAGE)
        if magic not in (0, 1) or (attributes & _CODEC and self._attributes & _CODEC):
            raise Unreadable("it is a message in a message in a message")
        timestamp = stream.unpacked(_TIMESTAMP)[0] if magic else -1
        if self._attributes & _LOG_APPEND_TIME:
            timestamp = self._max_timestamp
        key, key_size = yield from stream.part(stream.unpacked(_LENGTH)[0], room)
        room -= 0 if key_size else len(key or b"")
        value, value_size = yield from stream.part(stream.unpacked(_LENGTH)[0], room)
        if stream.position != end:
            raise Unreadable(f"it has {end - stream.position} bytes more than its parts")
        stream.end = None
        return Record(offset, timestamp, key, value, (), _left_out(key_size, value_size, None))

    # what cannot be read

    def _rest(self, first: int, last: int, records: int, why: object) -> Lump:
        """Of the batch, what comes behind its last record that can be read."""
        what = "the batch" if records == self.count else f"what is left of the batch, {records} records,"
        detail = f"{what} cannot be read: {why}"
        reason = "too_large" if isinstance(why, TooLarge) else UNREADABLE
        data = bytes(self.data)
        return Lump(first, last, records, reason, detail, self._max_timestamp, len(data), data)

    def _lump(
        self, first: int, last: int, records: int, why: Unreadable, size: int, value: bytes | None
    ) -> Lump:
        detail = f"the record cannot be read: {why}"
        return Lump(first, last, records, UNREADABLE, detail, self._max_timestamp, size, value)


def _left_out(key: int | None, value: int | None, headers: int | None) -> LeftOut | None:
    return None if key is value is headers is None else LeftOut(key, value, headers)


def _pieces_of(data: memoryview) -> Iterator[bytes]:
    return (bytes(data[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES))


def _whole_records(portions: Iterator[Portion], base_offset: int) -> Iterator[Any]:
    """Of a batch, which it does not refer to: of a transaction marker one record is read, and a cycle would
    keep it, with the whole answer that it came in, until the collector runs."""
    for portion in portions:
        if portion.lump is not None or any(getattr(one, "left_out", None) for one in portion.records):
            raise CorruptRecordException(f"offset {base_offset}: not all of it can be read")
        yield from portion.records


class _Stream:
    """Bytes that come in pieces. What asks for more than there are raises EOFError."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.buffer = b""
        self.at = 0
        self.received = 0
        self.end: int | None = None
        """The position where the record ends that is being read."""
        self.failure: Unreadable | None = None
        """Why there are no more."""

    @property
    def position(self) -> int:
        return self.received - len(self.buffer) + self.at

    def more(self) -> bool:
        pieces = [self.buffer[self.at :]] if self.at < len(self.buffer) else []
        size = 0
        try:
            while size < PIECE_BYTES and (piece := next(self._pieces, None)) is not None:
                pieces.append(piece)
                size += len(piece)
        except ERRORS as error:
            self.failure = error if isinstance(error, Unreadable) else Unreadable(str(error))
        self.buffer, self.at = b"".join(pieces), 0
        self.received += size
        return size > 0

    def more_than(self, size: int) -> bool:
        while len(self.buffer) - self.at <= size:
            if not self.more():
                return False
        return True

    def take(self, size: int) -> bytes:
        if size and not self.more_than(size - 1):
            raise EOFError
        taken = self.buffer[self.at : self.at + size]
        self.at += size
        return taken

    def ahead(self, size: int) -> bytes | None:
        """So many bytes that come next, if they are in the buffer."""
        ahead = self.buffer[self.at : self.at + size]
        return ahead if len(ahead) == size else None

    def skip(self, size: int) -> Iterator[Portion]:
        """Yields an empty portion with each piece that it takes."""
        while size > len(self.buffer) - self.at:
            size -= len(self.buffer) - self.at
            self.at = len(self.buffer)
            if not self.more():
                raise EOFError
            yield Portion()
        self.at += size

    def unpacked(self, form: Struct) -> tuple[Any, ...]:
        self._within(form.size)
        return form.unpack(self.take(form.size))

    def message(self) -> tuple[int, int]:
        """The offset of a message of an old format, and its size."""
        offset, size = self.unpacked(_MESSAGE_HEAD)
        if size < _MESSAGE.size + 2 * _LENGTH.size:
            raise Unreadable(f"a message has {size} bytes")
        return offset, size

    def number(self) -> int:
        """The next varint."""
        while True:
            try:
                number, at = _varint(self.buffer, self.at)
            except IndexError:
                self._within(len(self.buffer) - self.at + 1)
                if not self.more():
                    raise EOFError from None
            else:
                self._within(at - self.at)
                self.at = at
                return number

    def part(self, size: int, room: int) -> Generator[Portion, None, tuple[bytes | None, int | None]]:
        """So many bytes, None for a negative number, and their number if they are more than `room`.

        Of those, only the first are given.
        """
        if size < 0:
            return None, None
        self._within(size)
        if size <= room:
            return self.take(size), None
        first = self.take(min(size, JUDGED_BYTES))
        yield from self.skip(size - len(first))
        return first, size

    def _within(self, size: int) -> None:
        if self.end is not None and self.position + size > self.end:
            raise Unreadable("a part of it is longer than the whole")

    def whole_records(self, most: int) -> tuple[int, int]:
        """How many whole records there are ahead in the buffer, and their bytes."""
        buffer, at, count = self.buffer, self.at, 0
        try:
            while count < most:
                length, body = _varint(buffer, at)
                if not 0 <= length <= RECORD_BYTES or body + length > len(buffer):
                    break
                at = body + length
                count += 1
        except (IndexError, Unreadable):
            pass
        return count, at - self.at

    def large_record(self) -> int | None:
        """The length of a large record, whose bytes come next; None when there is more to look at first."""
        start, length = self.position, self.number()
        if length > RECORD_BYTES:
            return length
        if length < 0:
            raise Unreadable(f"a record has a length of {length}")
        whole = self.position - start + length
        self.at -= self.position - start
        if not self.more_than(whole - 1):
            raise EOFError
        return None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place and the place behind it. Raises IndexError where the bytes end before it."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
        if shift > 63:
            raise Unreadable("a number does not end")


fetcher.MemoryRecords = Batches
"""Every aiokafka consumer of this process, from the import of this module on, reads within bounds."""
