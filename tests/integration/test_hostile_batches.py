"""Batches that no client would write: what is good in them is counted, what is not is a dead letter."""

import orjson
import pytest

from contract.batches import PACK, assembled, packed, record
from faults import corpus
from faults.verify import Reader
from integration import raw
from integration.workers import PARTITIONS, home

AT_MS = 1_210_000_000_000
BOMB_BYTES = 96 << 20
"""Small ones: `make faults-ci PLAN=input` has large ones, and measures what they take."""


def leads():
    """One that belongs to partition 0, and one that does not."""
    names = [f"lead-{n}" for n in range(100)]
    return next(n for n in names if home(n) == 0), next(n for n in names if home(n) == 1)


@pytest.fixture
def published(workers):
    """Send a batch to partition 0; then the reader of what became of it all."""
    settings, ends = workers.settings, dict.fromkeys(range(PARTITIONS), 0)

    def send(batch):
        offset = raw.send(settings.broker, settings.source_topic, 0, batch)
        ends[0] = offset + max(1, int.from_bytes(batch[23:27], "big") + 1)
        return offset

    def left(rerouted=0):
        reader = Reader(settings)
        partitions = {0: ends[0]} | ({1: rerouted} if rerouted else {})
        assert reader.wait(partitions, 120, lambda: None), workers.logs()
        reader.close()
        return reader.left

    send.left = left
    return send


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_large_and_odd_records_keep_nothing_back(workers, published, codec):
    expected, applied, refused, away = {}, 0, 0, 0
    for each in corpus.batches(AT_MS, *leads(), [codec], BOMB_BYTES):
        offset = published(each.batch)
        applied += each.reasons.count(None)
        refused += each.records - each.reasons.count(None)
        away += "away" in each.name
        expected |= {(0, offset + n, why): 1 for n, why in enumerate(each.reasons) if why is not None}
    worker = workers.start(dlq_max_share=1.0)
    left = published.left(rerouted=away)
    assert left.dead == expected
    assert (left.total("applied"), left.total("rejected"), left.total("rerouted")) == (applied, refused, away)
    assert away > 0
    assert worker.process.poll() is None


def events(lead, names):
    return [
        record(n, lead.encode(), orjson.dumps(corpus.good("dial", name, AT_MS) | {"lead_id": lead}))
        for n, name in enumerate(names)
    ]


def test_what_nobody_can_read_is_one_dead_letter_and_is_counted(broker, workers, published):
    lead, _ = leads()
    number, pack = PACK["lz4"]
    whole = pack(b"".join(events(lead, map(str, range(100)))))
    damaged = assembled(whole[: len(whole) // 2], 100, codec=number)
    declared = assembled(b"\xff\xff\xff\xff\x0f", 7, codec=2)
    if broker.kind == "kafka":
        for batch in (damaged, declared):
            with pytest.raises(ValueError, match="refuses"):
                published(batch)
        pytest.skip("Apache Kafka looks into what it takes")
    published(packed(events(lead, "abc"), "zstd"))
    first, second = published(damaged), published(declared)
    published(packed(events(lead, "z"), "gzip"))
    workers.start()
    left = published.left()
    assert (left.total("applied"), left.total("rejected")) == (3 + 1, 100 + 7)
    assert left.dead == {(0, first, "unreadable"): 1, (0, second, "too_large"): 1}
