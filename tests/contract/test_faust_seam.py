"""The private parts of Faust and aiokafka that the worker stands on, as they were when it was built on them.

When a test of the first half fails, a library changed. Compare what the message names with our side, run the
integration tests, and only then put the new fingerprint here.
"""

import asyncio
import gc
import hashlib
import inspect
import struct
import weakref
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher, subscription_state
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from faust.stores import base as stores
from faust.tables import base as tables
from faust.tables import manager, recovery
from faust.transport import consumer as faust_consumer
from faust.transport.drivers import aiokafka as driver

from agents import ledger, microbatch, read_committed, transport
from agents.answers import Answers
from agents.errors import TopicsWrong
from agents.microbatch import drain, fetch
from agents.recovery import Recovery, TableManager
from agents.tables import ChangelogTable, RestoredRows
from contract.batches import TP, batch, fetched

REPAIRED = read_committed.Repaired
ANOTHER = TopicPartition(TP.topic, TP.partition + 1)
PARTITION_RECORDS = {cls.__name__: cls for cls in (REPAIRED, REPAIRED.__mro__[1])}

LEANT_ON = {
    # agents/transport.py
    fetcher.FetchResult: "d7db13f06de8",
    fetcher.Fetcher.fetched_records: "be4348896b9b",
    fetcher.Fetcher._create_fetch_waiter: "61d840568746",
    fetcher.Fetcher._notify: "d3a30d94f34f",
    subscription_state.SubscriptionState.fetch_context: "ff2a654dca23",
    subscription_state.SubscriptionState.wait_for_assignment: "7f09ce46a80d",
    driver.AIOKafkaConsumerThread._create_worker_consumer: "c2701bfc3e6f",
    driver.AIOKafkaConsumerThread._fetch_records: "39a2c6c79fc1",
    driver.AIOKafkaConsumerThread.getmany: "26fc5fc9f3b6",
    driver.Consumer._new_consumer_thread: "0870ec53dea7",
    driver.Consumer._to_message: "7c24f6511b2f",
    faust_consumer.Consumer._add_gap: "4df2573ded7c",
    faust_consumer.Consumer._new_offset: "1d2c7ea89a7a",
    faust_consumer.Consumer.getmany: "4b168d84882a",
    faust_consumer.Consumer._wait_next_records: "6218e1969a63",
    faust_consumer.Consumer.pause_partitions: "27a1c94bdacd",
    faust_consumer.Consumer.stop_flow: "cf7e875a2b0d",
    faust_consumer.Consumer.ack: "5fcf41cf4515",
    # agents/microbatch.py and agents/read_committed.py
    PARTITION_RECORDS["PartitionRecords"]: "94aa0da0dbec",
    read_committed._fetch: "59bf948fff47",
    # agents/recovery.py
    recovery.Recovery.on_recovery_completed: "6ef567acf072",
    recovery.Recovery.on_rebalance: "aa4d997a1795",
    recovery.Recovery._restart_recovery.fun: "6bd8a8558a2d",
    recovery.Recovery._set_recovery_ended: "84badf3f2cfe",
    recovery.Recovery._wait: "ec7429b70176",
    recovery.Recovery._is_changelog_tp: "453e8762c530",
    recovery.Recovery.active_remaining: "0dcc38568ad5",
    manager.TableManager.recovery.fget: "f0bf5de78b4c",
    manager.TableManager.on_rebalance: "2d2c23a07bf5",
    # agents/ledger.py
    BatchBuilder: "8050802ca751",
    MessageAccumulator.create_builder: "13dcd0ebf6b9",
    TransactionManager.maybe_add_partition_to_txn: "e0a118be379a",
    TransactionManager.partitions_to_add: "a591d8c59649",
    TransactionManager.partition_added: "fa545b6995db",
    TransactionManager.increment_sequence_number: "0fce01d42f0f",
    TransactionManager.error_transaction: "5c72d40ab25e",
    TransactionManager.fatal_error: "8e9fd08dc500",
    TransactionManager.wait_for_transaction_end: "67dc578aafc3",
    # agents/tables.py
    recovery.Recovery._slurp_changelogs.fun: "7825c7e50f76",
    recovery.Recovery.flush_buffers: "6fa9c17f1071",
    stores.Store: "1ae56041fe0e",
    tables.Collection._new_store: "914a2bda605d",
    tables.Collection._new_store_by_url: "343a8125107d",
    tables.Collection.apply_changelog_batch: "b980a78d3ae9",
    tables.Collection.on_rebalance: "0812ad692171",
    tables.Collection.on_recovery_completed: "b1526fb39ea0",
    tables.Collection.reset_state: "68190a499a6f",
}


def name_of(part):
    return f"{part.__module__}.{part.__qualname__}"


def fingerprint(part):
    return hashlib.sha256(inspect.getsource(part).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("library", "pinned"), [("faust-streaming", "0.15.3"), ("aiokafka", "0.14.0")], ids=lambda x: x
)
def test_the_libraries_are_the_pinned_ones(library, pinned):
    assert version(library) == pinned


@pytest.mark.parametrize("part", LEANT_ON, ids=name_of)
def test_what_we_lean_on_reads_as_it_did(part):
    found = fingerprint(part)
    assert found == LEANT_ON[part], (
        f"{name_of(part)} changed. Compare it with transport, microbatch, recovery, ledger, tables and "
        f"read_committed in agents, run the integration tests, then note its new fingerprint: {found!r}"
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (transport._ConsumerThread, driver.AIOKafkaConsumerThread, "_create_worker_consumer"),
        (transport._ConsumerThread, driver.AIOKafkaConsumerThread, "_fetch_records"),
        (transport.Consumer, driver.Consumer, "_new_consumer_thread"),
        (transport.Consumer, driver.Consumer, "_to_message"),
        (transport.Consumer, driver.Consumer, "_add_gap"),
        (transport.Consumer, driver.Consumer, "_new_offset"),
        (Recovery, recovery.Recovery, "on_rebalance"),
        (Recovery, recovery.Recovery, "on_recovery_completed"),
        (TableManager, manager.TableManager, "on_rebalance"),
        (RestoredRows, stores.Store, "apply_changelog_batch"),
        (RestoredRows, stores.Store, "persisted_offset"),
        (RestoredRows, stores.Store, "set_persisted_offset"),
        (RestoredRows, stores.Store, "on_rebalance"),
        (RestoredRows, stores.Store, "on_recovery_completed"),
        (RestoredRows, stores.Store, "reset_state"),
        (ChangelogTable, tables.Collection, "_new_store"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_override_takes_as_many_arguments_as_what_it_overrides(ours, theirs, name):
    mine, overridden = (list(inspect.signature(getattr(cls, name)).parameters) for cls in (ours, theirs))
    assert len(mine) == len(overridden)


# What `drain` takes out of an answer of the broker.


@pytest.fixture(params=["PartitionRecords", "Repaired"])
def answer(request):
    def make(*batches, **how):
        return fetched(PARTITION_RECORDS[request.param], batches, **how)

    return make


def drained(result, limit=1_000):
    return drain(result, limit, generation=7)


def test_a_drained_batch_holds_every_part_of_its_records(answer):
    result, state = answer(batch([5, 6]), at=5)
    taken = drained(result)
    assert (taken.topic, taken.partition, taken.generation) == (TP.topic, TP.partition, 7)
    assert (taken.start, taken.end) == (5, 7)
    assert taken.offsets == [5, 6]
    assert taken.timestamps == [1_005, 1_006]
    assert taken.keys == [b"key 5", b"key 6"]
    assert taken.values == [b"value 5", b"value 6"]
    assert taken.headers == [[("at", b"5")], [("at", b"6")]]
    assert state.position == 7
    assert not result.has_more()


@pytest.mark.parametrize("compression", [1, 2, 3, 4], ids=["gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches_are_read(answer, compression):
    result, _ = answer(batch(range(50), compression=compression), at=0)
    assert drained(result).offsets == list(range(50))


def test_positions_close_over_compacted_records(answer):
    result, state = answer(batch([5, 8], end=12), batch([14, 15]), at=5)
    taken = drained(result)
    assert taken.offsets == [5, 8, 14, 15]
    assert (taken.start, taken.end) == (5, 16)
    assert state.position == 16


def test_an_answer_of_which_all_is_compacted_away_still_moves_on(answer):
    result, state = answer(batch([5], end=9, producer=1, marker="commit"), at=5)
    taken = drained(result)
    assert len(taken) == 0
    assert (taken.start, taken.end) == (5, 9)
    assert state.position == 9


def test_transaction_markers_are_no_records(answer):
    result, _ = answer(batch([0, 1], producer=1), batch([2], producer=1, marker="commit"), batch([3]), at=0)
    taken = drained(result)
    assert taken.offsets == [0, 1, 3]
    assert taken.end == 4


ABORTED_AND_COMMITTED = (
    batch([0, 1], producer=1),
    batch([2], producer=2),
    batch([3], producer=1, marker="abort"),
    batch([4], producer=1),
    batch([5], producer=1, marker="commit"),
    batch([6], producer=2, marker="commit"),
)


def test_an_aborted_transaction_is_never_seen_and_the_next_of_its_producer_is(answer):
    result, state = answer(*ABORTED_AND_COMMITTED, at=0, aborted=[(1, 0)], isolation=READ_COMMITTED)
    taken = drained(result)
    assert taken.values == [b"value 2", b"value 4"]
    assert (taken.start, taken.end, state.position) == (0, 7, 7)


def test_whoever_reads_uncommitted_sees_aborted_records(answer):
    result, _ = answer(*ABORTED_AND_COMMITTED, at=0, aborted=[(1, 0)], isolation=READ_UNCOMMITTED)
    assert drained(result).offsets == [0, 1, 2, 4]


def test_a_transaction_aborted_before_the_answer_hides_nothing_committed_in_it():
    batches = ABORTED_AND_COMMITTED[3:]
    how = {"at": 4, "aborted": [(1, 0)], "isolation": READ_COMMITTED}
    assert drained(fetched(REPAIRED, batches, **how)[0]).offsets == [4]


# While another transaction is open, committed records come in an answer without their marker.
WITHOUT_ITS_MARKER = ABORTED_AND_COMMITTED[3:4]


def test_what_a_reader_has_seen_the_end_of_hides_nothing_that_comes_later():
    how = {"aborted": [(1, 0)], "isolation": READ_COMMITTED, "reader": read_committed.Reader()}
    drained(fetched(REPAIRED, ABORTED_AND_COMMITTED[:3], at=0, **how)[0])
    assert drained(fetched(REPAIRED, WITHOUT_ITS_MARKER, at=4, **how)[0]).offsets == [4]


def test_of_a_long_transaction_that_was_aborted_every_part_is_left_out():
    how = {"aborted": [(1, 0)], "isolation": READ_COMMITTED, "reader": read_committed.Reader()}
    drained(fetched(REPAIRED, [batch([0, 1], producer=1)], at=0, **how)[0])
    assert drained(fetched(REPAIRED, [batch([2, 3], producer=1)], at=2, **how)[0]).offsets == []


def test_a_reader_that_goes_back_sees_the_same_again():
    aborted_later = batch([7], producer=1), batch([8], producer=1, marker="abort")
    how = {"isolation": READ_COMMITTED, "reader": read_committed.Reader()}
    answer = {"aborted": [(1, 0), (1, 7)], **how}
    drained(fetched(REPAIRED, (*ABORTED_AND_COMMITTED, *aborted_later), at=0, **answer)[0])
    assert drained(fetched(REPAIRED, WITHOUT_ITS_MARKER, at=4, **answer)[0]).offsets == [4]


def test_what_one_reader_has_read_is_nothing_to_another():
    how = {"aborted": [(1, 0)], "isolation": READ_COMMITTED}
    drained(fetched(REPAIRED, ABORTED_AND_COMMITTED, at=0, reader=read_committed.Reader(), **how)[0])
    assert drained(fetched(REPAIRED, [batch([0, 1], producer=1)], at=0, **how)[0]).offsets == []


def test_a_reader_that_cannot_know_whether_records_were_aborted_goes_back_as_far_as_it_gets():
    reader = read_committed.Reader()

    def follow(batches, at):
        records = MemoryRecords(b"".join(batches))
        return reader.follow(TP, REPAIRED(TP, records, [(1, 0)], at, None, None, True, READ_COMMITTED))

    assert follow([batch([6], producer=3)], at=6) is None, "no record is concerned"
    assert follow(WITHOUT_ITS_MARKER, at=4) == 0
    assert follow(ABORTED_AND_COMMITTED[:3], at=0) is None
    assert follow(WITHOUT_ITS_MARKER, at=4) is None
    assert follow([batch([9], producer=3)], at=9) is None, "a leap: others had the partition"
    assert follow([batch([12], producer=1)], at=12) == 0
    assert follow([batch([12], producer=1)], at=12) is None, "what was there is deleted by now"


@pytest.mark.parametrize("kind", ["compacted away", "damaged"])
def test_a_control_batch_without_a_marker_in_it_is_none(kind):
    empty = bytearray(batch([3], producer=1, marker="abort"))
    del empty[61:]
    struct.pack_into(">i", empty, 8, len(empty) - 12)
    struct.pack_into(">i", empty, 57, 0 if kind == "compacted away" else 1)
    struct.pack_into(">I", empty, 17, calc_crc32c(bytes(empty[21:])))
    batches = [batch([0, 1], producer=1), bytes(empty), batch([4], producer=2)]
    assert drained(fetched(REPAIRED, batches, at=0, isolation=READ_COMMITTED)[0]).offsets == [0, 1, 4]


def test_what_lies_before_the_position_is_skipped(answer):
    result, _ = answer(batch([5, 6, 7, 8]), at=7)
    taken = drained(result)
    assert taken.offsets == [7, 8]
    assert taken.values == [b"value 7", b"value 8"]
    assert (taken.start, taken.end) == (7, 9)


def test_the_limit_ends_at_a_whole_record_batch_and_the_next_drain_goes_on(answer):
    result, state = answer(batch([0, 1, 2]), batch([3, 4, 5]), batch([6]), at=0)
    first = drained(result, limit=4)
    assert first.offsets == [0, 1, 2, 3, 4, 5]
    assert state.position == 6
    assert result.has_more()
    second = drained(result, limit=4)
    assert (second.start, second.end, second.offsets) == (first.end, 7, [6])
    assert not result.has_more()
    assert drained(result) is None


def test_what_was_drained_does_not_wait_for_the_collector(answer):
    result, _ = answer(batch([5, 6]), at=5)
    held = weakref.ref(result._partition_records)
    gc.disable()
    try:
        drained(result)
        assert held() is None
    finally:
        gc.enable()


def test_large_records_end_a_drain_as_many_do(answer, monkeypatch):
    result, _ = answer(batch([5, 6]), batch([7]), batch([8, 9]), at=5)
    monkeypatch.setattr(microbatch, "MOST_BYTES", len(b"value 5" + b"value 6" + b"value 7"))
    first, second = drained(result), drained(result)
    assert (first.offsets, first.size, first.since(7).size) == ([5, 6, 7], 21, 7)
    assert (second.offsets, first.joined([second]).size) == ([8, 9], 35)


def test_aborts_are_remembered_from_one_drain_to_the_next(answer):
    result, _ = answer(*ABORTED_AND_COMMITTED, at=0, aborted=[(1, 0)], isolation=READ_COMMITTED)
    values = []
    while result.has_more():
        values += drained(result, limit=1).values
    assert values == [b"value 2", b"value 4"]


def test_a_damaged_batch_is_refused(answer):
    damaged = bytearray(batch([5, 6]))
    damaged[-1] ^= 0xFF
    result, _ = answer(bytes(damaged), at=5)
    with pytest.raises(TopicsWrong, match=r"from offset 5 to 6 cannot be read .* before offset 7 "):
        drained(result)


def test_a_batch_with_half_a_record_is_refused_by_its_offsets(answer):
    result, _ = answer(batch([2]), batch([5, 6], records=3), at=0)
    with pytest.raises(TopicsWrong, match="from offset 5 to 6 cannot be read"):
        drained(result)


def test_what_precedes_a_damaged_batch_is_not_lost(answer):
    damaged = bytearray(batch([2, 3]))
    damaged[-1] ^= 0xFF
    result, state = answer(batch([0, 1]), bytes(damaged), at=0)
    with pytest.raises(TopicsWrong):
        drained(result)
    assert state.position == 0
    assert not result.has_more()  # so it is fetched again, from the position


def test_a_paused_partition_gives_nothing(answer):
    result, state = answer(batch([5]), at=5)
    state.paused = True
    assert drained(result) is None


def test_an_answer_to_a_question_before_a_seek_gives_nothing(answer):
    result, state = answer(batch([5]), at=5)
    state.position = 3
    assert drained(result) is None


# What a fetch takes: Faust drops what it will not pass on, and the position would be behind it.


def taken(result, active, *, flow_active=True):
    thread = SimpleNamespace(
        app=SimpleNamespace(consumer_generation_id=7), consumer=SimpleNamespace(flow_active=flow_active)
    )
    waiting = SimpleNamespace(_records={TP: result}, _notify=lambda future: None, _wait_consume_future=None)
    waiting._subscriptions = SimpleNamespace(is_assigned=lambda tp: True)
    return transport._ConsumerThread._drain(thread, waiting, active, 1_000)


def test_a_fetch_takes_what_is_active(answer):
    result, state = answer(batch([5, 6]), at=5)
    assert taken(result, {TP})[TP].offsets == [5, 6]
    assert state.position == 7


@pytest.mark.parametrize(
    ("active", "flow_active"),
    [(set(), True), ({TopicPartition("call-events", 4)}, True), ({TP}, False)],
    ids=["all are paused", "it is paused", "the flow is stopped"],
)
def test_a_fetch_leaves_what_a_rebalance_has_paused_amid_it(answer, active, flow_active):
    result, state = answer(batch([5, 6]), at=5)
    assert taken(result, active, flow_active=flow_active) == {}
    assert state.position == 5
    assert drained(result).offsets == [5, 6]


def test_nothing_flows_from_the_moment_a_rebalance_is_told(monkeypatch):
    """A recovery that it overtakes may have resumed the flow, and what that brings would be cleared away."""
    consumer = SimpleNamespace(flow_active=True)
    consumer.stop_flow = lambda: setattr(consumer, "flow_active", False)
    flowing = []

    async def restart(self, *of_the_rebalance):
        flowing.append(self.app.consumer.flow_active)

    monkeypatch.setattr(recovery.Recovery, "on_rebalance", restart)
    ours = Recovery.__new__(Recovery)
    ours.app = SimpleNamespace(consumer=consumer)
    asyncio.run(ours.on_rebalance({TP}, set(), {TP}, 7))
    assert flowing == [False]


# What aiokafka gets wrong, or says by an assertion.


def test_a_partition_that_was_revoked_this_moment_has_no_end():
    async def main():
        thread = SimpleNamespace(_ensure_consumer=AIOKafkaConsumer)
        assert transport._ConsumerThread.highwater(thread, TP) is None
        assert transport._ConsumerThread.stable_end(thread, TP) is None

    asyncio.run(main())


def test_an_answered_fetch_is_heard_and_an_unanswered_one_is_not():
    """Among several leaders: the request for all ends waits for the slowest of them."""

    class Thread:
        turns = 3
        app = SimpleNamespace(answers=Answers(15), source_topic=TP.topic)
        _of_source = transport._ConsumerThread._of_source

        def _ensure_consumer(self):
            return self

        @property
        def should_stop(self):
            self.turns -= 1
            return self.turns < 0

        async def sleep(self, _):
            self.polled = {TP: self.turns, ANOTHER: 5}

        def assignment(self):
            return {TP, ANOTHER, TopicPartition("changelog", 0)}

        def last_poll_timestamp(self, tp):
            return self.polled[tp]

        def highwater(self, tp):
            return 10 + self.polled[tp]

    heard = []
    thread = Thread()
    hear = thread.app.answers.hear
    thread.app.answers.hear = lambda ends: (heard.append(ends), hear(ends))
    asyncio.run(transport._ConsumerThread._look.fun(thread))
    assert heard == [{TP: 12, ANOTHER: 15}, {TP: 11}, {TP: 10}]
    assert (thread.app.answers.end(TP), thread.app.answers.end(ANOTHER)) == (10, 15)


def test_sequence_numbers_begin_again_as_the_broker_wants_it():
    async def main():
        manager = ledger.client.TransactionManager("app-0", 1_000)
        manager.increment_sequence_number(TP, 2**31 - 3)
        manager.increment_sequence_number(TP, 10)
        assert manager.sequence_number(TP) == 7

    asyncio.run(main())


def test_who_fetches_hears_that_the_client_has_ceased_to():
    async def main():
        consumer = AIOKafkaConsumer()
        ended = asyncio.get_running_loop().create_future()
        ended.set_exception(TypeError("a bug"))
        consumer._fetcher = SimpleNamespace(
            _closed=False, _subscriptions=consumer._subscription, _fetch_task=ended
        )
        with pytest.raises(TypeError, match="a bug"):
            await fetch(consumer, 1, 0.1)

    asyncio.run(main())
