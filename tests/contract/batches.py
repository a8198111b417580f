"""Record batches as a broker keeps them, built by hand: with holes, markers and aborted transactions."""

import gzip
import struct
import zlib
from types import SimpleNamespace

import cramjam
import lz4.frame
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from zstandard import ZstdCompressionParameters, ZstdCompressor

from callfunnel.agents.kafka import read_committed
from callfunnel.agents.kafka.batches import Batches

TP = TopicPartition("call-events", 3)
_CRC, _ATTRIBUTES, _LAST_OFFSET, _COUNT = 17, 21, 23, 57
_CONTROL = 0x20


def batch(offsets, *, end=None, producer=-1, marker=None, compression=0, records=None):
    """One record batch. The record at offset n says `value n`; from the last to `end` all is compacted away.

    With a `producer` it is part of that producer's transaction; a `marker`, "commit" or "abort", ends it. It
    claims to hold as many `records` as it does, or another number.
    """
    first = offsets[0]
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=compression,
        is_transactional=producer >= 0,
        producer_id=producer,
        producer_epoch=0,
        base_sequence=0,
        batch_size=1 << 20,
    )
    for n in offsets:
        if marker is None:
            key, value, headers = b"key %d" % n, b"value %d" % n, [("at", b"%d" % n)]
        else:
            key, value, headers = struct.pack(">HH", 0, marker == "commit"), b"\0" * 6, []
        builder.append(n - first, 1_000 + n, key, value, headers)
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, first)
    if records is not None:
        struct.pack_into(">i", data, _COUNT, records)
    if end is not None:
        struct.pack_into(">i", data, _LAST_OFFSET, end - 1 - first)
    if marker is not None:
        (attributes,) = struct.unpack_from(">h", data, _ATTRIBUTES)
        struct.pack_into(">h", data, _ATTRIBUTES, attributes | _CONTROL)
    struct.pack_into(">I", data, _CRC, calc_crc32c(bytes(data[_ATTRIBUTES:])))
    return bytes(data)


def varint(number):
    """As Kafka writes the numbers of a record."""
    number, written = (number << 1) ^ (number >> 63), bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*written, number))


def part(content):
    """A key, a value, a header's name or content: its length and itself; None: there is none."""
    return varint(-1) if content is None else varint(len(content)) + content


def record(delta, key, value, headers=(), *, timestamp=0, length=None, behind=b""):
    """The bytes of one record. Names of headers are bytes. It claims its own `length` or another."""
    body = b"".join(
        (
            b"\0", varint(timestamp), varint(delta), part(key), part(value), varint(len(headers)),
            *(part(one) for header in headers for one in header), behind,
        )
    )  # fmt: skip
    return varint(len(body) if length is None else length) + body


def xerial(data, size=32_768):
    """Snappy in blocks, as Java's clients write it."""
    blocks = (bytes(cramjam.snappy.compress_raw(data[at : at + size])) for at in range(0, len(data), size))
    framed = (struct.pack(">i", len(block)) + block for block in blocks)
    return b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1) + b"".join(framed)


def zstd(data, window_log=None):
    """As Java's clients and librdkafka write it: without the size in front."""
    parameters = ZstdCompressionParameters.from_level(3, window_log=window_log or 0)
    stream = ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(data) + stream.flush()


PACK = {
    "none": (0, bytes),
    "gzip": (1, gzip.compress),
    "snappy": (2, lambda data: bytes(cramjam.snappy.compress_raw(data))),
    "xerial": (2, xerial),
    "lz4": (3, lambda data: lz4.frame.compress(data, block_linked=False)),  # Java takes no others
    "zstd": (4, zstd),
}
"""By name: the number of a codec, and what packs with it."""


def assembled(packed, count, *, first=0, last=None, codec=0, log_append_time=False, at_ms=1_000):
    """A batch of any bytes, which says that they are `count` records, from the offset `first` on."""
    attributes = codec | 0x08 * log_append_time
    last = count - 1 if last is None else last - first
    tail = struct.pack(">hiqqqhii", attributes, last, at_ms, at_ms + 7, -1, -1, -1, count) + packed
    head = struct.pack(">qiibI", first, len(tail) + 9, 0, 2, calc_crc32c(tail))
    return head + tail


def packed(records, compression="none", **how):
    """A batch of these records, in bytes."""
    codec, pack = PACK[compression]
    return assembled(pack(b"".join(records)), len(records), codec=codec, **how)


def message(offset, key, value, *, magic=1, attributes=0, timestamp=1_000, size=None):
    """A message of an old format."""
    body = struct.pack(">bb", magic, attributes) + (struct.pack(">q", timestamp) if magic else b"")
    for one in (key, value):
        body += struct.pack(">i", -1) if one is None else struct.pack(">i", len(one)) + one
    return struct.pack(">qiI", offset, len(body) + 4 if size is None else size, zlib.crc32(body)) + body


class State:
    """aiokafka's record of how far a partition was consumed."""

    paused = False

    def __init__(self, position):
        self.position = position

    def consumed_to(self, position):
        self.position = position


def fetched(
    partition_records, batches, *, at, aborted=(), isolation=1, check_crcs=True, reader=None
) -> tuple[FetchResult, State]:
    """An answer of the broker as aiokafka holds it, fetched from offset `at`."""
    records = partition_records(
        TP, Batches(b"".join(batches)), list(aborted), at, None, None, check_crcs, isolation
    )
    if isinstance(records, read_committed.Repaired):
        assert (reader or read_committed.Reader()).follow(TP, records) is None
    state = State(at)
    assignment = SimpleNamespace(active=True, state_value=lambda tp: state)
    return FetchResult(TP, assignment=assignment, partition_records=records, backoff=0), state
