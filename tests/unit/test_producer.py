"""Record batches as a worker sends them: compressed or not, the same records come back."""

import random
from typing import get_args

import pytest

from callfunnel.agents.config import Compression
from callfunnel.agents.kafka.batches import Batches
from callfunnel.agents.kafka.producer import BATCH_BYTES, Batch, Compressor, Producer, batches

CODECS = get_args(Compression)
ROWS = [((b"row %d" % n, None if n % 7 == 0 else b"value " * 20), [("n", b"%d" % n)], n) for n in range(500)]
NOT_SMALLER = [((random.Random(7).randbytes(9), random.Random(8).randbytes(9)), [], 1)]


def built(rows, codec):
    batch = Batch(Compressor(codec))
    assert batch.fill(iter(rows), 0) is None
    batch._set_producer_state(7, 3, 11)
    return bytes(batch._build())


def read(data):
    (batch,) = Batches(data).ahead
    assert (batch.producer_id, batch.is_transactional) == (7, True)
    assert batch.validate_crc()
    return [((one.key, one.value), list(one.headers), one.timestamp) for one in batch]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [ROWS, ROWS[:5], NOT_SMALLER], ids=["many", "few", "random"])
def test_what_is_compressed_comes_back_and_is_never_larger(rows, codec):
    data, plain = built(rows, codec), built(rows, "none")
    assert read(data) == rows
    assert len(data) <= len(plain)
    if codec == "none" or rows is NOT_SMALLER:
        assert data == plain
    else:
        assert len(data) < len(plain)


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_that_is_sent_again_is_the_same(codec):
    batch = Batch(Compressor(codec))
    batch.fill(iter(ROWS), 0)
    assert batch._build() is batch._build()
    assert batch.size() == len(batch._build())
    assert batch.record_count() == len(ROWS)


def test_one_compressor_serves_all_batches():
    compressor = Compressor("zstd")
    rows = [((b"%d" % n, b"value " * 10_000), [], 1) for n in range(40)]
    producer = object.__new__(Producer)
    data = []
    for batch in batches(producer, rows, 0, compressor):
        batch._set_producer_state(7, 0, 0)
        data.append(bytes(batch._build()))
    assert len(data) > 1
    assert max(map(len, data)) < BATCH_BYTES / 10
    assert [row for one in data for row in read(one)] == rows
