"""Record batches as a broker keeps them, built by hand: with holes, markers and aborted transactions."""

import struct
from types import SimpleNamespace

from aiokafka.consumer.fetcher import FetchResult
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from agents import read_committed

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
        TP, MemoryRecords(b"".join(batches)), list(aborted), at, None, None, check_crcs, isolation
    )
    if isinstance(records, read_committed.Repaired):
        assert (reader or read_committed.Reader()).follow(TP, records) is None
    state = State(at)
    assignment = SimpleNamespace(active=True, state_value=lambda tp: state)
    return FetchResult(TP, assignment=assignment, partition_records=records, backoff=0), state
