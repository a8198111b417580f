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
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, conn
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer import fetcher, group_coordinator, subscription_state
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.producer.sender import Sender
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.api import Request, RequestStruct
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from faust.app import base as app
from faust.sensors import monitor
from faust.stores import base as stores
from faust.tables import base as tables
from faust.tables import manager, recovery
from faust.transport import consumer as faust_consumer
from faust.transport.drivers import aiokafka as driver

from callfunnel.agents.errors import TopicsWrong
from callfunnel.agents.kafka import microbatch, read_committed, transport
from callfunnel.agents.kafka import producer as transactional
from callfunnel.agents.kafka.answers import Answers
from callfunnel.agents.kafka.app import App
from callfunnel.agents.kafka.batches import Batches, Damaged
from callfunnel.agents.kafka.microbatch import drain, drain_all, fetch
from callfunnel.agents.kafka.recovery import Recovery, TableManager
from callfunnel.agents.kafka.tables import ChangelogTable, RestoredRows
from callfunnel.agents.kafka.topic_ids import Answer, Ask
from callfunnel.schemas.topics import shown_id
from callfunnel.streams.by_definition import DefinedTables
from contract.batches import TP, batch, fetched, packed, record

REPAIRED = read_committed.Repaired
ANOTHER = TopicPartition(TP.topic, TP.partition + 1)
PARTITION_RECORDS = {cls.__name__: cls for cls in (REPAIRED, REPAIRED.__mro__[1])}

LEANT_ON = {
    # agents/kafka/transport.py
    group_coordinator.GroupCoordinator._do_commit_offsets: "c3a3ea5613f3",
    group_coordinator.GroupCoordinator._do_heartbeat: "dc1d6632aaa6",
    group_coordinator.GroupCoordinator._do_rejoin_group: "3cb016c98a08",
    group_coordinator.GroupCoordinator._on_join_complete: "0b0b3d204b40",
    group_coordinator.GroupCoordinator.reset_generation: "537aa37c531b",
    group_coordinator.GroupCoordinator.close: "f30d83108945",
    fetcher.FetchResult: "d7db13f06de8",
    fetcher.Fetcher.fetched_records: "be4348896b9b",
    fetcher.Fetcher._create_fetch_waiter: "61d840568746",
    fetcher.Fetcher._notify: "d3a30d94f34f",
    subscription_state.SubscriptionState.fetch_context: "ff2a654dca23",
    subscription_state.SubscriptionState.wait_for_assignment: "7f09ce46a80d",
    driver.AIOKafkaConsumerThread._create_worker_consumer: "c2701bfc3e6f",
    driver.AIOKafkaConsumerThread._fetch_records: "39a2c6c79fc1",
    driver.AIOKafkaConsumerThread.getmany: "26fc5fc9f3b6",
    driver.AIOKafkaConsumerThread.topic_partitions: "8e5084fa9734",
    monitor.Monitor._sampler.fun: "e963a929bb77",
    driver.Consumer._new_consumer_thread: "0870ec53dea7",
    driver.Consumer._to_message: "7c24f6511b2f",
    faust_consumer.Consumer._add_gap: "4df2573ded7c",
    faust_consumer.Consumer.verify_all_partitions_active: "4e0e46f5c297",
    faust_consumer.Consumer._new_offset: "1d2c7ea89a7a",
    faust_consumer.Consumer.getmany: "4b168d84882a",
    faust_consumer.Consumer._wait_next_records: "6218e1969a63",
    faust_consumer.Consumer.pause_partitions: "27a1c94bdacd",
    faust_consumer.Consumer.stop_flow: "cf7e875a2b0d",
    faust_consumer.Consumer.ack: "5fcf41cf4515",
    # agents/kafka/batches.py, agents/kafka/microbatch.py and agents/kafka/read_committed.py
    PARTITION_RECORDS["PartitionRecords"]: "94aa0da0dbec",
    read_committed._fetch: "59bf948fff47",
    # agents/kafka/recovery.py
    recovery.Recovery.on_recovery_completed: "6ef567acf072",
    recovery.Recovery.on_rebalance: "aa4d997a1795",
    recovery.Recovery._restart_recovery.fun: "6bd8a8558a2d",
    recovery.Recovery._set_recovery_ended: "84badf3f2cfe",
    recovery.Recovery._wait: "ec7429b70176",
    recovery.Recovery._is_changelog_tp: "453e8762c530",
    recovery.Recovery.active_remaining: "0dcc38568ad5",
    manager.TableManager.recovery.fget: "f0bf5de78b4c",
    manager.TableManager.on_rebalance: "2d2c23a07bf5",
    # agents/engine/transactions.py and agents/kafka/transport.py
    ClusterMetadata.partitions_for_topic: "5a3e84a15bc0",
    AIOKafkaClient._metadata_update: "06dc51ed3e0d",
    AIOKafkaClient.__init__: "edf3d0229560",
    AIOKafkaClient.bootstrap: "198943b004e5",
    AIOKafkaClient.close: "02119d4d618a",
    AIOKafkaProducer.__init__: "fd6f2966fb3d",
    AIOKafkaProducer.start: "bae900a5e83a",
    AIOKafkaProducer.stop: "43ef97147111",
    Sender.__init__: "dae60514401a",
    BatchBuilder: "8050802ca751",
    MessageAccumulator.create_builder: "13dcd0ebf6b9",
    TransactionManager.maybe_add_partition_to_txn: "e0a118be379a",
    TransactionManager.partitions_to_add: "a591d8c59649",
    TransactionManager.partition_added: "fa545b6995db",
    TransactionManager.increment_sequence_number: "0fce01d42f0f",
    TransactionManager.error_transaction: "5c72d40ab25e",
    TransactionManager.fatal_error: "8e9fd08dc500",
    TransactionManager.wait_for_transaction_end: "67dc578aafc3",
    # agents/kafka/app.py
    app.App._on_partitions_assigned: "de932b7927db",
    app.App._on_partitions_revoked: "d5c895bbe57d",
    app.App._on_rebalance_when_stopped: "1b172d9af8ff",
    app.App._stop_consumer: "55854a5de12c",
    # agents/kafka/diagnosis.py
    conn.create_conn: "673276cbddb4",
    conn.AIOKafkaConnection._do_sasl_handshake: "d4f7b5acbbec",
    # agents/engine/source.py and agents/kafka/topic_ids.py
    AIOKafkaClient.send: "246b277687d7",
    conn.AIOKafkaConnection.send: "5909ea32f4ef",
    Request.prepare: "3a65d9fdefe3",
    RequestStruct: "0c94b7d19018",
    # agents/kafka/tables.py
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
        f"{name_of(part)} changed. Compare it with what uses it in agents/kafka, run the integration tests, "
        "then note its new "
        f"fingerprint: {found!r}"
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (transport._ConsumerThread, driver.AIOKafkaConsumerThread, "_create_worker_consumer"),
        (transport._ConsumerThread, driver.AIOKafkaConsumerThread, "_fetch_records"),
        (transport._ConsumerThread, driver.AIOKafkaConsumerThread, "topic_partitions"),
        (transport.Consumer, driver.Consumer, "_new_consumer_thread"),
        (transport.Consumer, driver.Consumer, "_to_message"),
        (transport.Consumer, driver.Consumer, "_add_gap"),
        (transport.Consumer, driver.Consumer, "verify_all_partitions_active"),
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


def test_every_consumer_reads_the_batches_that_are_bounded():
    assert fetcher.MemoryRecords is Batches
    theirs = {name for name in dir(MemoryRecords) if not name.startswith("_")}
    assert theirs == {name for name in dir(Batches) if not name.startswith("_")}
    read = {
        "base_offset",
        "next_offset",
        "producer_id",
        "is_control_batch",
        "is_transactional",
        "validate_crc",
    }
    ours = Batches(batch([5, 6], producer=7)).next_batch()
    its = MemoryRecords(batch([5, 6], producer=7)).next_batch()
    assert {name: getattr(ours, name) for name in read - {"validate_crc"}} == {
        name: getattr(its, name) for name in read - {"validate_crc"}
    }
    assert ours.validate_crc()
    assert its.validate_crc()


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
        records = Batches(b"".join(batches))
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
    batches = batch([5, 6]), batch([7]), batch([8, 9])
    result, _ = answer(*batches, at=5)
    size = sum(map(len, batches[:2]))
    monkeypatch.setattr(microbatch, "MOST_BYTES", size)
    first, second = drained(result), drained(result)
    assert (first.offsets, first.size) == ([5, 6, 7], size)
    assert first.since(7).size < size
    assert second.offsets == [8, 9]
    assert first.joined([second]).size == size + second.size


def test_aborts_are_remembered_from_one_drain_to_the_next(answer):
    result, _ = answer(*ABORTED_AND_COMMITTED, at=0, aborted=[(1, 0)], isolation=READ_COMMITTED)
    values = []
    while result.has_more():
        values += drained(result, limit=1).values
    assert values == [b"value 2", b"value 4"]


def test_a_damaged_batch_is_refused(answer):
    damaged = bytearray(batch([5, 6]))
    damaged[-1] ^= 0xFF
    result, state = answer(bytes(damaged), at=5)
    for _ in range(2):
        with pytest.raises(Damaged, match="the 2 records from offset 5 to 6 are damaged"):
            drained(result)
    assert state.position == 5


def test_what_precedes_a_damaged_batch_is_taken(answer):
    damaged = bytearray(batch([2, 3]))
    damaged[-1] ^= 0xFF
    result, state = answer(batch([0, 1]), bytes(damaged), at=0)
    assert drained(result).offsets == [0, 1]
    assert state.position == 2
    with pytest.raises(Damaged):
        drained(result)


@pytest.mark.parametrize("length", [-1, 0, 13, 20, 60])
def test_a_batch_of_an_impossible_length_is_damaged(answer, length):
    damaged = bytearray(batch([2, 3]))
    struct.pack_into(">i", damaged, 8, length)
    result, _ = answer(batch([0, 1]), bytes(damaged), at=0)
    assert drained(result).offsets == [0, 1]
    with pytest.raises(Damaged):
        drained(result)


def test_a_damaged_answer_is_kept_for_a_while_and_then_asked_for_again(answer, monkeypatch):
    damaged = bytearray(batch([5, 6]))
    damaged[-1] ^= 0xFF
    result, state = answer(bytes(damaged), at=5)
    told = []
    fetching = SimpleNamespace(_records={TP: result}, _notify=lambda future: None, _wait_consume_future=None)
    for held in (True, True, False):
        monkeypatch.setattr(microbatch, "FETCH_AGAIN_SECONDS", 1_000 if held else -1)
        assert drain_all(fetching, {TP}, 1_000, 7, lambda tp, damaged: told.append((tp, damaged.first))) == {}
        assert bool(fetching._records) is held
    assert told == [(TP, 5)] * 3
    assert state.position == 5


def test_a_paused_partition_gives_nothing(answer):
    result, state = answer(batch([5]), at=5)
    state.paused = True
    assert drained(result) is None


def test_an_answer_to_a_question_before_a_seek_gives_nothing(answer):
    result, state = answer(batch([5]), at=5)
    state.position = 3
    assert drained(result) is None


# What a fetch takes: Faust drops what it will not pass on, and the position would be behind it.


def fetching(*, flow_active=True, changelogs=()):
    """The thread that fetches, as far as it drains."""
    thread = transport._ConsumerThread.__new__(transport._ConsumerThread)
    thread.read_on = []
    thread.app = SimpleNamespace(
        consumer_generation_id=7,
        tables=SimpleNamespace(changelog_topics=set(changelogs)),
        funnel_table=SimpleNamespace(tables_type=DefinedTables),
        ingest=SimpleNamespace(reads_on=thread.read_on.append),
    )
    thread.consumer = SimpleNamespace(flow_active=flow_active)
    thread._held, thread.damaged = weakref.WeakSet(), {}
    return thread


def waiting(**results):
    """What has arrived of partition 3 of each topic."""
    answers = {TopicPartition(topic.replace("_", "-"), 3): result for topic, result in results.items()}
    fetcher = SimpleNamespace(_records=answers, _notify=lambda future: None, _wait_consume_future=None)
    fetcher._subscriptions = SimpleNamespace(is_assigned=lambda tp: True)
    return fetcher


def taken(result, active, *, flow_active=True):
    thread = fetching(flow_active=flow_active)
    return thread._drain(waiting(call_events=result), active, 1_000)


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


def test_while_much_is_on_its_way_the_source_stays_packed_and_changelogs_are_read(answer, monkeypatch):
    monkeypatch.setattr(transport, "MOST_HELD_BYTES", 10)
    thread = fetching(changelogs=["changelog"])
    both = {TP, TopicPartition("changelog", 3)}
    first = thread._drain(waiting(call_events=answer(batch([5, 6]), at=5)[0]), both, 1_000)
    more = waiting(call_events=answer(batch([7]), at=7)[0], changelog=answer(batch([1]), at=1)[0])
    assert [tp.topic for tp in thread._drain(more, both, 1_000)] == ["changelog"]
    assert first[TP].offsets == [5, 6]
    del first
    assert thread._drain(more, both, 1_000)[TP].offsets == [7]


def test_damaged_records_hold_back_their_own_partition_and_are_told_once(answer, caplog):
    damaged = bytearray(batch([5, 6]))
    damaged[-1] ^= 0xFF
    thread = fetching()
    for _ in range(3):
        other = TopicPartition("other", 3)
        arrived = waiting(call_events=answer(bytes(damaged), at=5)[0], other=answer(batch([1]), at=1)[0])
        assert list(thread._drain(arrived, {TP, other}, 1_000)) == [other]
    assert thread.damaged.keys() == {TP}
    (told,) = caplog.messages
    assert "call-events/3 stands still: the 2 records from offset 5 to 6 are damaged" in told
    assert "give these 2 records up: " in told
    assert "(remedy give-up). That offset is 7; those before offset 5 are counted already" in told
    thread._drain(waiting(call_events=answer(batch([5, 6]), at=5)[0]), {TP}, 1_000)
    assert thread.damaged == {}


def test_damaged_rows_of_a_changelog_end_the_worker(answer):
    damaged = bytearray(batch([5, 6]))
    damaged[-1] ^= 0xFF
    arrived = waiting(call_events=answer(bytes(damaged), at=5)[0])
    with pytest.raises(TopicsWrong, match=r"call-events/3: the 2 records .*remedy rebuild"):
        fetching(changelogs=[TP.topic])._drain(arrived, {TP}, 1_000)


def test_a_large_record_that_is_amid_being_skipped_is_told(answer):
    thread = fetching()
    bomb = packed([record(0, b"k", bytes(3 * microbatch.MOST_BYTES))], "zstd")
    arrived = waiting(call_events=answer(bomb, at=0)[0])
    assert thread._drain(arrived, {TP}, 1_000)[TP].end == 0
    assert thread.read_on == [3]


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


def test_what_recovery_had_in_hand_is_in_the_copies_before_the_next_recovery_begins(monkeypatch):
    """Otherwise those rows are applied later, in the middle of the next copy of the changelog."""
    done = []

    async def fence(assigned):
        done.append("fenced")

    async def restart(self, *of_the_rebalance):
        done.append("begun")

    monkeypatch.setattr(manager.TableManager, "on_rebalance", restart)
    tables = TableManager.__new__(TableManager)
    tables.app = SimpleNamespace(ingest=SimpleNamespace(fence=fence))
    tables._recovery = SimpleNamespace(flush_buffers=lambda: done.append("flushed"))
    asyncio.run(tables.on_rebalance({TP}, set(), {TP}, 7))
    assert done == ["fenced", "flushed", "begun"]


def test_the_offset_that_the_group_commits_is_that_of_the_next_record():
    """So that lag dashboards of Kafka show 0 where nothing waits."""
    consumer = object.__new__(transport.Consumer)
    consumer._acked, consumer._acked_index = {TP: [4, 9, 6]}, {TP: {4, 9, 6}}
    assert consumer._new_offset(TP) == 10
    assert consumer._new_offset(TP) is None


# What aiokafka gets wrong, or says by an assertion.


def test_a_partition_that_was_revoked_this_moment_has_no_end():
    async def main():
        thread = SimpleNamespace(_ensure_consumer=AIOKafkaConsumer)
        assert transport._ConsumerThread.highwater(thread, TP) is None
        assert transport._ConsumerThread.stable_end(thread, TP) is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("heard", "of_the_leader", "told"),
    [
        ({"t": {0: 0, 1: 0}}, {}, 2),
        ({"t": {0: 0, 1: 0}}, {"t": 1}, 2),
        ({}, {"t": 0}, 0),
        ({}, {}, None),
    ],
    ids=("a member", "a former leader", "a leader of a deleted topic", "nobody yet"),
)
def test_every_member_of_the_group_knows_how_many_partitions_a_topic_has(heard, of_the_leader, told):
    cluster = ClusterMetadata()
    cluster._partitions = heard
    thread = transport._ConsumerThread.__new__(transport._ConsumerThread)
    thread._consumer = SimpleNamespace(
        _client=SimpleNamespace(cluster=cluster),
        _coordinator=SimpleNamespace(_metadata_snapshot=of_the_leader),
    )
    assert thread.topic_partitions("t") == told
    thread._consumer = None
    assert thread.topic_partitions("t") is None


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
        manager = transactional.client.TransactionManager("app-0", 1_000)
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


def test_a_rebalance_while_the_worker_stops_leaves_its_consumer_alone():
    class Stopping(App):
        should_stop = True

        @property
        def consumer(self):
            raise AssertionError("it is stopped by its own thread, after its last commit")

    async def main():
        stopping = object.__new__(Stopping)
        await stopping._on_partitions_revoked({TP})
        await stopping._on_partitions_assigned({TP})

    asyncio.run(main())


# The id of a topic


def test_the_id_of_a_topic_is_asked_for_as_the_protocol_says():
    """Metadata, version 11: one topic by its name, none created, no rights asked for."""
    request = Ask("calls").prepare({3: (0, 13)})
    header = request.build_request_header(correlation_id=7, client_id="c").encode()
    assert header == b"\0\x03\0\x0b\0\0\0\x07\0\x01c\0"
    assert request.encode() == b"\x02" + bytes(16) + b"\x06calls\0" + b"\0\0" + b"\0"


@pytest.mark.parametrize("versions", [(0, 9), (0, 10), (12, 13)])
def test_a_broker_that_knows_no_ids_is_not_asked(versions):
    with pytest.raises(NotImplementedError):
        Ask("calls").prepare({3: versions})


def test_the_id_is_read_behind_the_brokers_and_what_follows_is_left():
    def broker(number, rack):
        return struct.pack(">i", number) + b"\x02h" + struct.pack(">i", 9092) + rack + b"\0"

    topic_id = bytes(range(16))
    answer = (
        b"\0\0\0\0" + b"\x03" + broker(1, b"\0") + broker(2, b"\x03r1") + b"\x02k" + b"\0\0\0\x01"
        + b"\x02" + b"\0\0" + b"\x06calls" + topic_id + b"\0" + b"partitions and more"
    )  # fmt: skip
    told = Answer.decode(answer)
    assert (told.error_code, told.name, shown_id(told.topic_id)) == (0, "calls", "AAECAwQFBgcICQoLDA0ODw")
    assert shown_id(bytes(16)) == ""
