"""The guard between Faust and the fold; its consumer and transactions only remember what was asked."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP
from msgspec.json import encode
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from callfunnel.agents.engine import ingest
from callfunnel.agents.engine.deadletter import CONNECTOR, OFFSET
from callfunnel.agents.engine.ingest import Ingest
from callfunnel.agents.engine.metrics import EngineMetrics
from callfunnel.agents.engine.poison import Refusals
from callfunnel.agents.engine.rerouting import LAPS, REROUTED
from callfunnel.agents.engine.source import OtherTopic
from callfunnel.agents.errors import Mended, Stalled, TablesWrong, TopicsWrong, WriteFailed
from callfunnel.agents.kafka.batches import LeftOut, Lump
from callfunnel.agents.kafka.hanging import Tail
from callfunnel.agents.kafka.microbatch import MOST_BYTES, MicroBatch
from callfunnel.agents.remedies import REMEDIES
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.schemas.events import Dial
from callfunnel.streams.engine import Partition
from callfunnel.streams.fold import Fold
from callfunnel.streams.log import entry_of, pack
from callfunnel.streams.panes import resolutions
from callfunnel.streams.partitioning import home
from callfunnel.streams.poison import Tolerance
from callfunnel.streams.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    Witness,
    decode_position,
    encode_position,
)

T = 1_750_000_020_000
SOURCE = TP("call-events", 0)
FUNNEL, LEADS, DEAD = "app-funnel-changelog", "app-leads-changelog", "call-events.dlq"
FOLD = Fold(
    hangup_ms=15_000,
    late_ms=600_000,
    lead_events=100,
    timezone="UTC",
    partitioner="murmur2",
    resolutions=resolutions(),
)
PARTITIONS = 8
HERE, THERE = (
    [lead for lead in (f"l{n}" for n in range(1_000)) if home(lead.encode(), PARTITIONS, "murmur2") == number]
    for number in (0, 4)
)
"""Leads that are at home on partition 0, and on partition 4."""
MARK = REROUTED, b"app murmur2 8"


class Consumer:
    """Where the source begins and ends, and its changelogs; where it was asked to go on."""

    def __init__(self):
        self.begins, self.ends = 0, 1_000
        self.open_since = None
        """Where a publisher's transaction begins that has not ended."""
        self.damaged = False
        self.changelogs_end = 0
        self.partitions = PARTITIONS
        """Of the source, as it has heard."""
        self.sought = []
        self.dropped = []
        self.paused = set()

    async def earliest_offsets(self, *partitions):
        return {tp: self.begins if tp.topic == SOURCE.topic else 0 for tp in partitions}

    async def highwaters(self, *partitions):
        return {tp: self.ends if tp.topic == SOURCE.topic else self.changelogs_end for tp in partitions}

    def topic_partitions(self, topic):
        return self.partitions

    def stable_end(self, tp):
        return self.ends if self.open_since is None else self.open_since

    def is_damaged(self, tp):
        return self.damaged

    async def seek(self, tp, offset):
        self.sought.append((tp, offset))

    def pause_partitions(self, partitions):
        self.paused |= partitions

    def resume_partitions(self, partitions):
        self.paused -= partitions

    def drop(self, event):
        self.dropped.append(event.value)


class Transactions:
    """The transactions written, until it is told to fail."""

    def __init__(self):
        self.written = []
        self.owned = None
        self.failure = None
        self.gate = None
        """Writes wait for it."""
        self.ends = {}
        self.hangs = {}
        self.ended = []
        self.source_has = PARTITIONS

    async def partitions(self, partition, topic):
        assert topic == SOURCE.topic
        return self.source_has

    async def own(self, partitions):
        self.owned = partitions

    async def hanging(self, partitions, headers=()):
        return {at: tail for at, tail in self.hangs.items() if at in partitions}

    async def end_nothing(self, partition, covered, *, commit):
        if self.failure:
            raise self.failure
        self.ended.append((partition, tuple(topic for topic, _ in covered), commit))
        self.hangs = {at: tail for at, tail in self.hangs.items() if at not in covered}

    async def write(self, partition, records):
        if self.gate:
            await self.gate.wait()
        if self.failure:
            raise self.failure
        records = {at: list(its_records) for at, its_records in records.items()}
        self.written.append((partition, records))
        ends = {at: sum(len(batch.get(at, ())) for _, batch in self.written) for at in records}
        self.ends |= {at: ends[at] for at in ends.keys() & self.ends.keys()}
        return {at: range(ends[at] - len(rows), ends[at]) for at, rows in records.items()}

    async def close(self):
        self.owned = set()


class Topic:
    """The source as its broker knows it: its id, and a record of it by partition."""

    def __init__(self):
        self.topic = SOURCE.topic
        self.id = "the first"
        self.held = {}

    async def topic_id(self, partition):
        return self.id

    async def records(self, offsets):
        return {number: self.held.get(number) for number in offsets}

    async def close(self): ...


class Table:
    """Rows as recovery left them."""

    def __init__(self, name):
        self.changelog_topic_name = name
        self.rows = self
        self.held = {}
        self.restored = range(0)
        self.partitions = PARTITIONS

    def copy(self, tp):
        return self.restored

    def wrote(self, partition, offset):
        self.restored = range(offset + 1)

    def row(self, partition, key):
        return self.held.get(partition, {}).get(key)

    def take(self, partition):
        return self.held.pop(partition, {})

    def forget(self, partition):
        self.held.pop(partition, None)
        self.restored = range(0)


class Worker:
    """An ingest and everything around it."""

    def __init__(self, stops=False):
        self.consumer, self.transactions, self.topic = Consumer(), Transactions(), Topic()
        self.funnel, self.leads = Table(FUNNEL), Table(LEADS)
        self.app = SimpleNamespace(
            consumer=self.consumer,
            consumer_generation_id=1,
            answers=SimpleNamespace(end=lambda tp: self.consumer.ends),
            funnel_table=self.funnel,
            leads_table=self.leads,
        )
        self.registry = CollectorRegistry()
        self.failures = []
        self.acked = []
        self.resumed = {}
        """By partition: up to where an operator lets it go on; an error, where Kafka does not say."""
        decoder, metrics = Decoder(Limits()), EngineMetrics(self.registry)
        tolerance = Tolerance(window=10, max_share=0.5)
        self.ingest = Ingest(
            self.app,
            app_id="app",
            source=self.topic,
            dead_letters=DEAD,
            transactions=self.transactions,
            new_partition=lambda number: Partition(number, PARTITIONS, FOLD, decoder, tolerance=tolerance),
            partitioner=FOLD.partitioner,
            batch_events=10_000,
            refusals=Refusals(metrics, SOURCE.topic, DEAD, tolerance.max_share),
            resumed=self._resumed if stops else None,
            metrics=metrics,
            fail=self.failures.append,
        )

    async def _resumed(self, partition):
        until = self.resumed.get(partition)
        if isinstance(until, Exception):
            raise until
        return until

    async def take_over(self, *partitions):
        await self.ingest.fence(partitions or {SOURCE})
        positions = await self.ingest.take_over(partitions or {SOURCE}, generation=1)
        self.ingest.ready(partitions or {SOURCE})
        return positions

    async def take(self, batch):
        """Give it a batch and let it work."""
        await self.ingest.take(SimpleNamespace(value=batch, ack=lambda: self.acked.append(batch)))
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def state(self):
        return self.ingest.lanes[0].state

    def gauge(self, name, **labels):
        return self.registry.get_sample_value(f"callfunnel_worker_{name}", labels)

    def count(self, name, **labels):
        return self.registry.get_sample_value(f"callfunnel_worker_{name}_total", labels) or 0


def batch(start, end, *, generation=1, values=None, headers=None, offsets=None, partition=0, timestamps=None):
    """Records from `start` up to `end`: a dial of a lead at home each, unless `values` says otherwise."""
    made = MicroBatch(SOURCE.topic, partition, start, end, generation)
    made.offsets = list(range(start, end)) if offsets is None else offsets
    made.values = [dial(HERE[n % len(HERE)]) for n in made.offsets] if values is None else values
    made.timestamps = timestamps or [T] * len(made)
    made.keys = [None] * len(made)
    made.headers = headers or [()] * len(made)
    return made


def dial(lead_id):
    return encode(Dial(event_id=f"of {lead_id}", lead_id=lead_id, occurred_at=T))


def poison(start, end):
    return batch(start, end, values=[b"{"] * (end - start))


def dials(worker):
    rows = worker.state.tables.rows()
    return rows.get(("all", 0, "campaign+source", "none", "none"), {}).get("events_dialed", 0)


def with_worker(test):
    """Run a test on a worker that took partition 0 over, empty, at offset 0."""

    def run():
        async def main():
            worker = Worker()
            await worker.take_over()
            await test(worker)
            await worker.ingest.close()

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


# The guard


@with_worker
async def test_batches_that_follow_each_other_are_applied_and_acknowledged(worker):
    first, second = batch(0, 3), batch(3, 5)
    await worker.take(first)
    await worker.take(second)
    assert worker.acked == [first, second]
    assert (worker.state.offset, dials(worker)) == (5, 5)
    assert worker.count("events_consumed", topic="call-events", partition="0") == 5


@with_worker
async def test_a_batch_that_was_applied_is_acknowledged_and_not_counted_again(worker):
    await worker.take(batch(0, 3))
    again = batch(0, 3)
    await worker.take(again)
    assert worker.acked[-1] is again
    assert (worker.state.offset, dials(worker), len(worker.transactions.written)) == (3, 3, 1)
    assert worker.count("events_replayed") == 3


def test_batches_of_two_generations_are_never_one():
    """Between them, the partition may have been another's."""
    assert batch(0, 3).goes_on(batch(3, 5))
    assert not batch(0, 3).goes_on(batch(3, 5, generation=2))


@with_worker
async def test_a_batch_that_comes_again_does_not_set_back_how_far_the_tables_are_known_to_go(worker):
    worker.consumer.ends = 10
    await worker.take(batch(0, 3))
    await worker.take(batch(3, 8))
    await worker.take(batch(0, 3))
    assert worker.ingest.lags() == {SOURCE: 2}


@with_worker
async def test_events_that_come_late_are_counted(worker):
    await worker.take(batch(0, 3, timestamps=[T, T + 600_000, T + 600_001]))
    assert worker.count("events_late") == 1


@with_worker
async def test_of_each_batch_it_is_told_how_long_it_took_from_its_newest_event_to_the_tables(worker):
    now_ms = int(time.time() * 1000)
    values = [
        encode(Dial(event_id=f"{ms}", lead_id=HERE[0], occurred_at=now_ms - ms))
        for ms in (90_000, 7_000, 9_000)
    ]
    await worker.take(batch(0, 3, values=values, timestamps=[now_ms] * 3))
    assert 7 <= worker.registry.get_sample_value("callfunnel_worker_event_delay_seconds_sum") < 9
    await worker.take(poison(3, 5))
    assert worker.registry.get_sample_value("callfunnel_worker_event_delay_seconds_count") == 1


@with_worker
async def test_of_a_batch_that_overlaps_only_what_is_new_is_applied(worker):
    await worker.take(batch(0, 3))
    await worker.take(batch(1, 5))
    assert (worker.state.offset, dials(worker)) == (5, 5)
    assert worker.state.written.duplicates == 0
    assert worker.count("events_replayed") == 2


@with_worker
async def test_a_batch_behind_a_hole_is_neither_applied_nor_acknowledged_but_fetched_again(worker):
    await worker.take(batch(0, 3))
    await worker.take(batch(5, 8))
    assert (worker.state.offset, dials(worker), len(worker.acked)) == (3, 3, 1)
    assert worker.consumer.sought == [(SOURCE, 3)]
    await worker.take(batch(3, 8))
    assert (worker.state.offset, dials(worker), len(worker.acked)) == (8, 8, 2)
    assert worker.count("source_gap_events", partition="0") == 0


@with_worker
async def test_what_retention_took_is_counted_exactly_and_passed_over(worker):
    await worker.take(batch(0, 3))
    worker.consumer.begins = 10
    await worker.take(batch(10, 12))
    assert (worker.state.offset, dials(worker), len(worker.acked)) == (12, 5, 2)
    assert worker.count("source_gap_events", partition="0") == 7
    assert worker.consumer.sought == []
    assert worker.state.written.lost == 7
    assert abs(worker.state.written.lost_at_ms / 1000 - time.time()) < 60


@with_worker
async def test_a_batch_beyond_what_retention_took_is_fetched_again(worker):
    await worker.take(batch(0, 3))
    worker.consumer.begins = 10
    await worker.take(batch(20, 22))
    assert (worker.state.offset, len(worker.acked)) == (10, 1)
    assert worker.consumer.sought == [(SOURCE, 10)]
    assert worker.count("source_gap_events", partition="0") == 7


@with_worker
async def test_a_hole_that_never_closes_ends_the_process(worker):
    for _ in range(21):
        await worker.take(batch(5, 8))
    (failure,) = worker.failures
    assert isinstance(failure, TablesWrong)
    assert "never delivers 0" in str(failure)
    assert worker.acked == []


@with_worker
async def test_a_batch_of_an_older_generation_is_dropped(worker):
    await worker.take(batch(0, 3))
    worker.app.consumer_generation_id = 2
    await worker.take(batch(3, 5, generation=1))
    assert (worker.state.offset, dials(worker), len(worker.acked)) == (3, 3, 1)
    await worker.take(batch(3, 5, generation=2))
    assert (worker.state.offset, len(worker.acked)) == (5, 2)


@with_worker
async def test_a_batch_of_a_partition_that_is_anothers_is_dropped(worker):
    await worker.take_over(TP(SOURCE.topic, 1))
    await worker.take(batch(0, 3))
    assert worker.acked == []
    assert worker.transactions.owned == {1}
    assert list(worker.ingest.lanes) == [1]


@with_worker
async def test_of_a_batch_without_records_the_end_is_written(worker):
    """Else a view would take the marks of transactions at the end of the source for records that wait."""
    await worker.take(batch(0, 4, offsets=[]))
    ((_, records),) = worker.transactions.written
    position = encode_position(worker.state.written)
    assert records == {
        (FUNNEL, 0): [((POSITION_KEY, position), [], None)],
        (LEADS, 0): [((LEADS_POSITION_KEY, position), [], None)],
    }
    assert (worker.state.written.offset, worker.state.offset, len(worker.acked)) == (4, 4, 1)
    await worker.take(batch(4, 5))
    assert dials(worker) == 1


@with_worker
async def test_compacted_records_and_markers_are_no_holes(worker):
    await worker.take(batch(0, 6, offsets=[0, 4]))
    await worker.take(batch(6, 9, offsets=[7]))
    assert (worker.state.offset, dials(worker), len(worker.acked)) == (9, 3, 2)
    assert worker.consumer.sought == []


@with_worker
async def test_a_failed_write_ends_the_process_and_acknowledges_nothing(worker):
    worker.transactions.failure = WriteFailed("the broker is gone")
    await worker.take(batch(0, 3))
    assert worker.failures == [worker.transactions.failure]
    assert worker.acked == []


@with_worker
async def test_poison_is_dead_lettered_at_any_rate_and_the_good_records_behind_it_count(worker):
    for start in range(0, 4_000, 400):
        await worker.take(poison(start, start + 400))
    await worker.take(batch(4_000, 4_010))
    letters = [one for _, records in worker.transactions.written for one in records.get((DEAD, 0), ())]
    assert len(letters) == worker.state.written.rejected == 4_000
    assert (dials(worker), worker.state.offset, worker.failures) == (10, 4_010, [])
    assert worker.ingest.why_stopped() is None


@with_worker
async def test_a_partition_is_named_while_it_is_poisoned(worker):
    labels = {"topic": SOURCE.topic, "partition": "0"}
    seen = [(0.0, 0.0)]
    for one in (poison(0, 5), poison(5, 6), batch(6, 9), batch(9, 14)):
        await worker.take(one)
        seen.append(tuple(worker.gauge(name, **labels) for name in ("rejected_share", "poisoned")))
    assert [poisoned for _, poisoned in seen] == [0, 0, 1, 1, 0]
    assert [round(share, 3) for share, _ in seen] == [0, 0.5, 0.55, 0.385, 0.193]


# What poison stops, where it is told to


OTHER = TP(SOURCE.topic, 1)


@pytest.fixture
def stopping(monkeypatch):
    """Runs a test on a worker that stops poisoned partitions, and took two of them over."""
    monkeypatch.setattr(ingest, "LOOK_SECONDS", 0)

    def run(test):
        async def main():
            worker = Worker(stops=True)
            await worker.take_over(SOURCE, OTHER)
            await test(worker)
            await worker.ingest.close()

        asyncio.run(main())

    return run


def test_a_stopped_partition_has_committed_what_was_judged_and_takes_no_more(stopping):
    async def test(worker):
        await worker.take(batch(0, 4))
        await worker.take(poison(4, 12))
        late = batch(12, 20)
        await worker.take(late)
        assert (worker.state.offset, dials(worker)) == (12, 4)
        assert len(worker.transactions.written[-1][1][DEAD, 0]) == 8
        assert len(worker.acked) == 2
        assert worker.consumer.dropped == [late]
        assert worker.consumer.paused == worker.ingest.stopped() == {SOURCE}
        assert worker.ingest.why_stopped() == (
            "call-events/0 is stopped at offset 12 (CALLFUNNEL_DLQ_STOP): 80% of its newest records were "
            "rejected; `callfunnel source resume --partition 0` lets it go on (remedy resume)"
        )

    stopping(test)


def test_batches_that_wait_as_it_stops_are_given_back_and_hold_nobody_up(stopping):
    async def test(worker):
        worker.transactions.gate = asyncio.Event()
        waiting = [batch(start, start + 5_000) for start in (12, 5_012, 10_012)]
        first = asyncio.create_task(worker.take(poison(0, 12)))
        await asyncio.sleep(0)
        takes = [asyncio.create_task(worker.take(one)) for one in waiting]
        for _ in range(20):
            await asyncio.sleep(0)
        worker.transactions.gate.set()
        await asyncio.gather(first, *takes)
        assert worker.consumer.dropped == waiting
        await worker.take(batch(0, 3, partition=1))
        assert worker.ingest.lanes[1].state.offset == 3

    stopping(test)


def test_the_others_go_on_and_the_watchdog_waits(stopping):
    async def test(worker):
        await worker.take(poison(0, 12))
        await worker.take(batch(0, 3, partition=1))
        assert worker.ingest.lanes[1].state.offset == 3
        now = worker.ingest.lanes[1].progress_at
        worker.consumer.ends = 12
        assert worker.ingest.stalled(now + 1_000, 60) == "call-events/1 is 9 records behind and does not move"
        assert worker.ingest.not_ready() is None

    stopping(test)


def test_it_goes_on_when_an_operator_says_so_and_stays_accepted_until_it_is_clean(stopping):
    async def test(worker):
        await worker.take(poison(0, 12))
        worker.resumed[0] = 11
        await asyncio.sleep(0.01)
        assert worker.ingest.stopped() == {SOURCE}  # that was said of an earlier stop
        worker.resumed[0] = 12
        await asyncio.sleep(0.01)
        assert (worker.ingest.stopped(), worker.consumer.paused) == (set(), set())
        assert worker.consumer.sought == [(SOURCE, 12)]
        await worker.take(poison(12, 30))
        assert worker.state.written.poison == "accepted"
        await worker.take(batch(30, 50))
        assert (worker.state.written.poison, dials(worker)) == ("none", 20)
        await worker.take(poison(50, 70))
        assert (worker.ingest.stopped(), worker.state.offset) == ({SOURCE}, 70)

    stopping(test)


def test_who_lets_it_go_on_is_told_when_the_source_was_cut_off_meanwhile(stopping):
    async def test(worker):
        await worker.take(poison(0, 12))
        worker.consumer.ends = worker.resumed[0] = 5
        await asyncio.sleep(0.01)
        (failure,) = worker.failures
        assert isinstance(failure, TablesWrong)
        assert "go up to offset 12, but the topic ends at 5" in str(failure)

    stopping(test)


def test_a_broker_that_does_not_say_whether_it_may_go_on_is_asked_again_and_told_once(stopping, caplog):
    async def test(worker):
        worker.resumed[0] = KafkaConnectionError("nobody there")
        await worker.take(poison(0, 12))
        await asyncio.sleep(0.01)
        (told,) = (one for one in caplog.messages if "whether it may go on is not known" in one)
        assert told.endswith("the right to read the consumer group app-resume")
        worker.resumed[0] = 12
        await asyncio.sleep(0.01)
        assert (worker.ingest.stopped(), worker.failures) == (set(), [])

    stopping(test)


def test_it_does_not_flow_amid_a_rebalance(stopping):
    async def test(worker):
        await worker.take(poison(0, 12))
        await worker.ingest.fence({SOURCE, OTHER})
        worker.resumed[0] = 12
        await asyncio.sleep(0.01)
        assert worker.consumer.paused == worker.ingest.stopped() == {SOURCE}
        await worker.ingest.take_over({SOURCE, OTHER}, generation=1)
        worker.ingest.ready({SOURCE, OTHER})
        await asyncio.sleep(0.01)
        assert worker.consumer.paused == worker.ingest.stopped() == set()

    stopping(test)


@pytest.mark.parametrize(
    ("poison", "stops", "is_stopped"),
    [("found", True, True), ("accepted", True, False), ("none", True, False), ("found", False, False)],
)
def test_who_takes_a_partition_over_stops_it_by_its_position_alone(poison, stops, is_stopped):
    async def main():
        worker = Worker(stops=stops)
        restored(worker, 40, rejected_share=0.1 if poison == "none" else 0.9, poison=poison)
        await worker.take_over()
        assert (worker.ingest.stopped() == {SOURCE}) is is_stopped  # when recovery lets the others flow
        await worker.take(batch(40, 45))
        assert (worker.ingest.stopped() == {SOURCE}) is is_stopped
        assert worker.state.offset == (40 if is_stopped else 45)
        await worker.ingest.close()

    asyncio.run(main())


# What is written


@with_worker
async def test_the_tables_know_how_far_their_changelogs_were_written(worker):
    await worker.take(batch(0, 3))
    records = worker.transactions.written[0][1]
    assert worker.funnel.restored == range(len(records[FUNNEL, 0]))
    assert worker.leads.restored == range(len(records[LEADS, 0])) == range(4)


@with_worker
async def test_a_batch_is_one_transaction_of_rows_leads_and_dead_letters(worker):
    values = batch(0, 1).values
    await worker.take(batch(0, 2, values=[*values, b"{"]))
    ((partition, records),) = worker.transactions.written
    assert partition == 0
    assert records.keys() == {(FUNNEL, 0), (LEADS, 0), (DEAD, 0)}
    assert records[FUNNEL, 0][-1] == ((POSITION_KEY, encode_position(worker.state.written)), [], None)
    assert [key for (key, _), *_ in records[LEADS, 0]] == [HERE[0].encode(), b"\0position"]
    (((key, value), headers, _),) = records[DEAD, 0]
    assert (key, value) == (None, b"{")
    assert dict(headers)["callfunnel.reason"] == b"not_json"
    assert worker.count("events_rejected", reason="not_json") == 1


@with_worker
async def test_an_event_of_another_partition_is_sent_home_as_it_came_and_marked(worker):
    value = dial(THERE[0])
    await worker.take(batch(0, 1, values=[value], headers=[[("trace", b"t")]]))
    ((_, records),) = worker.transactions.written
    assert records[SOURCE.topic, 4] == [((None, value), [("trace", b"t"), MARK], T)]
    assert dials(worker) == 0
    assert worker.count("events_rerouted") == 1


@pytest.mark.parametrize("mark", [(REROUTED, b"1"), (REROUTED, None), (REROUTED, b"another crc32 9"), MARK])
def test_no_mark_makes_an_event_count_or_keeps_it_from_being_sent_home(mark):
    @with_worker
    async def test(worker):
        here, there = dial(HERE[0]), dial(THERE[0])
        await worker.take(batch(0, 3, values=[there, here, here], headers=[[mark], [mark], ()]))
        ((_, records),) = worker.transactions.written
        assert records[SOURCE.topic, 4] == [((None, there), [mark, MARK], T)]
        assert (dials(worker), worker.state.written.duplicates) == (1, 1)

    test()


@with_worker
async def test_what_is_moved_back_again_and_again_is_a_dead_letter_at_last(worker):
    there, others = dial(THERE[0]), [(REROUTED, b"other crc32 8")] * 9
    headers = [[*others, *[MARK] * n] for n in (LAPS - 1, LAPS)]
    await worker.take(batch(0, 2, values=[there, there], headers=headers))
    ((_, records),) = worker.transactions.written
    assert len(records[SOURCE.topic, 4]) == 1
    ((_, found, _),) = records[DEAD, 0]
    assert dict(found)["callfunnel.reason"] == b"misrouted"
    assert worker.count("events_rejected", reason="misrouted") == 1


@with_worker
async def test_however_much_is_moved_back_ends_no_process(worker):
    values, headers = [dial(lead) for lead in THERE[:20]], [[MARK] * LAPS] * 20
    await worker.take(batch(0, 20, values=values, headers=headers))
    assert (worker.failures, worker.state.written.rejected) == ([], 20)


@pytest.mark.parametrize("who", ["the consumer", "the producer"])
@pytest.mark.parametrize("found", [0, PARTITIONS + 2])
def test_who_hears_of_another_number_of_partitions_sends_nothing_home(who, found):
    @with_worker
    async def test(worker):
        await worker.take(batch(0, 1, values=[dial(THERE[0])]))
        if who == "the consumer":
            worker.consumer.partitions = found
        else:
            worker.transactions.source_has = found
        await worker.take(batch(1, 2, values=[dial(THERE[1])]))
        (failure,) = worker.failures
        assert isinstance(failure, TopicsWrong)
        assert f"had 8 partitions when this worker started, and has {found} now" in str(failure)
        assert (len(worker.transactions.written), len(worker.acked)) == (1, 1)

    test()


@with_worker
async def test_who_hears_of_another_number_of_partitions_folds_nothing_at_all(worker):
    worker.consumer.partitions = PARTITIONS + 1
    await worker.take(batch(0, 1))
    assert isinstance(worker.failures[0], TopicsWrong)
    assert (dials(worker), worker.transactions.written, worker.acked) == (0, [], [])


@with_worker
async def test_an_event_with_too_many_headers_is_sent_home_without_them_and_with_its_marks(worker):
    value = dial(THERE[0])
    headers = [("trace", b"t"), ("large", b"x" * 2_000_000), (REROUTED, b"other crc32 8")]
    await worker.take(batch(0, 1, values=[value], headers=[headers]))
    ((_, records),) = worker.transactions.written
    home_of = {at: sent for at, sent in records.items() if at[0] == SOURCE.topic}
    ((((_, sent), its, _),),) = home_of.values()
    assert sent == value
    assert [name for name, _ in its] == [REROUTED, "trace", "callfunnel.left_out.headers", REROUTED]


def lump(first, last, records, reason="unreadable"):
    return Lump(first, last, records, reason, "it ends before they do", T, 4, b"\x82SNA")


@with_worker
async def test_what_nobody_can_read_counts_as_so_many_refused_records(worker):
    some = batch(0, 3, values=[b"{", *batch(1, 3).values])
    some.end, some.lumps = 50, [lump(3, 49, 40)]
    alone = batch(50, 60, offsets=[])
    alone.lumps = [lump(50, 59, 10, "too_large")]
    for one in (some, alone):
        await worker.take(one)
    assert worker.failures == []
    assert worker.acked == [some, alone]
    at = worker.state.written
    assert (at.offset, at.applied, at.rejected) == (60, 2, 1 + 40 + 10)
    letters = [
        dict(headers) for _, records in worker.transactions.written for _, headers, _ in records[DEAD, 0]
    ]
    assert [one[OFFSET] for one in letters] == [b"0", b"3", b"50"]
    assert [one.get("callfunnel.records") for one in letters] == [None, b"40", b"10"]
    assert worker.count("events_consumed", topic=SOURCE.topic, partition="0") == 3 + 40 + 10
    assert worker.count("events_rejected", reason="unreadable") == 40
    assert worker.count("events_rejected", reason="too_large") == 10
    await worker.take(alone)
    assert worker.count("events_replayed") == 10
    assert len(worker.transactions.written) == 2


@with_worker
async def test_a_bomb_is_in_no_transaction_with_what_is_none(worker):
    before, bomb, behind = batch(0, 2), batch(2, 4), batch(4, 6)
    bomb.in_bomb = True
    assert not before.goes_on(bomb)
    assert not bomb.goes_on(behind)
    bomb.lumps = [lump(2, 2, 1), lump(3, 3, 1)]
    bomb.left_out = {1: LeftOut(value=9)}
    rest = bomb.since(3)
    assert (rest.in_bomb, rest.lumps, rest.left_out) == (True, [lump(3, 3, 1)], {0: LeftOut(value=9)})
    behind.in_bomb = True
    assert bomb.goes_on(behind)
    whole = behind.joined([bomb])
    assert (whole.in_bomb, whole.lumps, whole.left_out) == (True, bomb.lumps, {3: LeftOut(value=9)})


# Taking over


def restored(worker, position, partitions=PARTITIONS, **more):
    """Let the tables say that everything before it is in them; a number: as the last version wrote it."""
    if isinstance(position, int):
        position = Position(offset=position, watermark_ms=T, fold=FOLD.id, partitions=partitions, **more)
    data = encode_position(position)
    worker.funnel.held = {0: {POSITION_KEY: data}}
    worker.leads.held = {0: {b"\0position": data}}
    worker.funnel.restored = worker.leads.restored = range(9)


def taken_over(offset, begins, ends, changelogs_end=0):
    async def main():
        worker = Worker()
        worker.consumer.begins, worker.consumer.ends = begins, ends
        worker.consumer.changelogs_end = changelogs_end
        if offset is not None:
            restored(worker, offset)
        try:
            return worker, await worker.take_over()
        finally:
            await worker.ingest.close()

    return asyncio.run(main())


def test_a_new_partition_is_read_from_where_the_topic_begins():
    _, positions = taken_over(None, begins=7, ends=9)
    assert positions == {SOURCE: 7}


def test_the_tables_say_where_to_go_on():
    worker, positions = taken_over(40, begins=7, ends=40)
    assert positions == {SOURCE: 40}
    assert worker.count("source_gap_events", partition="0") == 0


def test_what_retention_took_while_nobody_worked_is_counted_exactly():
    worker, positions = taken_over(40, begins=45, ends=90)
    assert positions == {SOURCE: 45}
    assert worker.count("source_gap_events", partition="0") == 5


def test_what_retention_took_is_in_the_tables_even_if_no_event_follows():
    async def main():
        worker = Worker()
        worker.consumer.begins, worker.consumer.ends = 45, 45
        restored(worker, 40)
        await worker.take_over()
        for _ in range(20):
            await asyncio.sleep(0)
        await worker.ingest.close()
        return worker

    worker = asyncio.run(main())
    ((_, records),) = worker.transactions.written
    ((key, value), _, _) = records[FUNNEL, 0][-1]
    position = decode_position(value)
    assert (key, position.offset, position.lost) == (POSITION_KEY, 45, 5)
    assert records[LEADS, 0] == [((LEADS_POSITION_KEY, value), [], None)]


def test_tables_ahead_of_the_topic_are_refused():
    with pytest.raises(TablesWrong, match="go up to offset 41, but the topic ends at 40"):
        taken_over(41, begins=0, ends=40)


# Which topic it is


MADE_FROM = Position(
    offset=40,
    watermark_ms=T,
    fold=FOLD.id,
    applied=7,
    topic=SOURCE.topic,
    topic_id="the first",
    witness=Witness.of(38, T, b"l", b"{}"),
    timezone="UTC",
    days_kept=400,
    settings=FOLD,
)


def on_a_topic(position, topic_id="the first", record=MADE_FROM.witness):
    """Take tables that end at `position` over; what came of it, once the worker had its turn."""

    async def main():
        worker = Worker()
        restored(worker, position)
        worker.topic.id, worker.topic.held = topic_id, {0: record}
        try:
            positions = await worker.take_over()
            for _ in range(20):
                await asyncio.sleep(0)
            return worker, positions
        finally:
            await worker.ingest.close()

    return asyncio.run(main())


def test_tables_go_on_with_the_topic_they_were_made_from_and_write_nothing_about_it():
    worker, positions = on_a_topic(MADE_FROM)
    assert positions == {SOURCE: 40}
    assert worker.transactions.written == []


@pytest.mark.parametrize(
    ("position", "topic_id", "record", "told"),
    [
        (MADE_FROM, "the second", MADE_FROM.witness, "has the id the second now"),
        (replace(MADE_FROM, witness=None), "the second", None, "has the id the second now"),
        (replace(MADE_FROM, topic="calls"), "the first", MADE_FROM.witness, "another topic, calls"),
        (MADE_FROM, "the first", Witness.of(38, T, b"l", b"{ }"), "the record at offset 38 is not the one"),
        (MADE_FROM, "", None, "the record at offset 38 is not the one"),
    ],
)
def test_nothing_is_read_of_a_topic_that_the_tables_were_not_made_from(position, topic_id, record, told):
    with pytest.raises(OtherTopic, match=told):
        on_a_topic(position, topic_id, record)


def test_where_a_broker_gives_no_ids_reading_goes_on_behind_the_witness():
    assert on_a_topic(MADE_FROM, "")[1] == {SOURCE: 39}


@pytest.mark.parametrize(
    ("position", "topic_id"),
    [
        (Position(offset=40, watermark_ms=T, fold=FOLD.id, applied=7), "the first"),
        (replace(MADE_FROM, topic_id=""), "the first"),
        (MADE_FROM, ""),
    ],
    ids=["of today", "an id since now", "no id since now"],
)
def test_what_is_known_of_the_topic_is_kept_at_once_and_told(position, topic_id, caplog):
    worker, positions = on_a_topic(position, topic_id)
    expected = replace(
        MADE_FROM,
        topic_id=topic_id,
        witness=position.witness,
        offset=positions[SOURCE],
        partitions=PARTITIONS,
        settings=FOLD,
        horizon_ms=1_715_385_600_000,
    )
    ((number, records),) = worker.transactions.written
    data = encode_position(expected)
    assert number == 0
    assert records == {
        (FUNNEL, 0): [((POSITION_KEY, data), [], None)],
        (LEADS, 0): [((LEADS_POSITION_KEY, data), [], None)],
    }
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "partitions [0] are taken for those that the tables were made from" in told
    assert (topic_id or "the broker gives none") in told


@with_worker
async def test_of_a_topic_that_was_made_anew_meanwhile_nothing_is_written(worker):
    await worker.take(batch(0, 3))
    worker.topic.id = "the second"
    await worker.take(batch(3, 5))
    (failure,) = worker.failures
    assert isinstance(failure, OtherTopic)
    assert "took in its records up to offset 3, and has the id the second now" in str(failure)
    assert (len(worker.transactions.written), len(worker.acked), dials(worker)) == (1, 1, 3)


@with_worker
async def test_a_broker_that_says_no_id_for_once_contradicts_nothing(worker):
    worker.topic.id = ""
    await worker.take(batch(0, 3))
    assert (worker.failures, dials(worker)) == ([], 3)


def test_a_broker_that_gives_no_ids_is_not_asked_for_them_again():
    async def main():
        worker = Worker()
        worker.topic.id = ""
        await worker.take_over()
        worker.topic.topic_id = None
        await worker.take(batch(0, 3))
        assert (worker.failures, dials(worker)) == ([], 3)
        await worker.ingest.close()

    asyncio.run(main())


def test_tables_restored_to_the_end_of_their_changelogs_are_taken_over():
    assert taken_over(40, begins=0, ends=40, changelogs_end=9)[1] == {SOURCE: 40}


@pytest.mark.parametrize("offset", [None, 40])
def test_tables_restored_halfway_are_refused(offset):
    with pytest.raises(Stalled, match="app-funnel-changelog/0 holds offsets 0 to 9, but 0 to"):
        taken_over(offset, begins=0, ends=40, changelogs_end=10)


def test_rows_of_another_fold_are_derived_before_anything_else_and_that_is_no_stall():
    async def main():
        worker = Worker()
        other = replace(FOLD, hangup_ms=1_000)
        of_it = {"fold": other.id, "settings": other, "partitions": PARTITIONS}
        restored(worker, Position(offset=40, watermark_ms=T, **of_it))
        worker.leads.held[0][HERE[0].encode()] = pack(
            [entry_of(Dial(event_id="d", lead_id="l", occurred_at=T))]
        )
        await worker.take_over()
        worker.consumer.ends = 99
        lane = worker.ingest.lanes[0]
        assert worker.state.is_of_another_fold
        assert worker.ingest.deriving == 1
        assert worker.ingest.stalled(lane.progress_at + 1_000, 60) is None
        while worker.state.is_of_another_fold:  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.01)
        assert dials(worker) == 1
        positions = [
            decode_position(dict(record[0] for record in records[FUNNEL, 0])[POSITION_KEY])
            for _, records in worker.transactions.written
        ]
        assert [(one.fold, one.generation) for one in positions[:2]] == [(other.id, 0), (FOLD.id, 1)]
        assert worker.ingest.stalled(lane.progress_at + 1_000, 60)
        await worker.ingest.close()

    asyncio.run(main())


def test_tables_without_logs_are_refused_and_it_is_said_how_far_the_source_reaches_back():
    with pytest.raises(TablesWrong) as refused:
        on_a_topic(Position(offset=40, watermark_ms=T, fold="of version 2", partitions=PARTITIONS))
    told = str(refused.value)
    assert "kept no logs of leads" in told
    assert "The source still holds what was published since 2025-06-15T15:07:00.000Z" in told
    assert "a view with CALLFUNNEL_APP_ID=app shows them. To build the tables anew, give" in told


def test_a_take_over_that_fails_ends_the_process():
    async def main():
        worker = Worker()
        worker.funnel.held = {0: {b'["all",0,"location","Ulm"]': b'{"events_dialed":1}'}}
        with pytest.raises(TablesWrong, match="no position"):
            await worker.take_over()
        assert [str(failure) for failure in worker.failures] == [
            "the changelogs of partition 0 hold rows but no position: not ours. To build the tables anew, "
            f"{REMEDIES['count-anew']}."
        ]

    asyncio.run(main())


@with_worker
async def test_a_partition_that_stays_keeps_its_state(worker):
    await worker.take(batch(0, 3))
    state = worker.state
    assert await worker.take_over() == {SOURCE: 3}
    assert worker.state is state


@with_worker
async def test_the_rows_of_a_partition_go_when_its_source_does(worker):
    """Faust may leave the changelog assigned: then it is read again before the partition is taken over."""
    for table in (worker.funnel, worker.leads):
        table.restored = range(10)
    await worker.ingest.fence(set())
    assert worker.ingest.lanes == {}
    assert [table.restored for table in (worker.funnel, worker.leads)] == [range(0), range(0)]


@with_worker
async def test_a_source_of_another_size_than_at_the_start_ends_the_process(worker):
    for found in (0, PARTITIONS + 1):
        worker.consumer.partitions = found
        with pytest.raises(TopicsWrong, match=f"had 8 partitions .* and has {found} now"):
            await worker.ingest.fence({SOURCE})
    assert [type(failure) for failure in worker.failures] == [TopicsWrong, TopicsWrong]


# What it tells


@with_worker
async def test_a_worker_is_ready_from_the_end_of_recovery_to_the_next_rebalance(worker):
    assert worker.ingest.not_ready() is None
    await worker.ingest.fence({SOURCE})
    assert worker.ingest.not_ready() == "the worker is joining its group or restoring its tables"


@with_worker
async def test_the_lag_is_what_the_tables_do_not_hold_yet(worker):
    await worker.take(batch(0, 3))
    worker.consumer.ends = 10
    assert worker.ingest.lags() == {SOURCE: 7}


@with_worker
async def test_what_is_folded_and_not_written_yet_still_counts_as_lag(worker):
    written = asyncio.Event()
    write = worker.transactions.write

    async def slow(*records):
        await written.wait()
        return await write(*records)

    worker.transactions.write = slow
    worker.consumer.ends = 3
    await worker.take(batch(0, 3))
    assert (worker.state.offset, worker.ingest.lags()) == (3, {SOURCE: 3})
    written.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert worker.ingest.lags() == {SOURCE: 0}


@with_worker
async def test_a_lag_that_nobody_knows_is_not_told(worker):
    worker.consumer.ends = None  # no broker has said
    assert worker.ingest.lags() == {}
    worker.consumer.ends = 10
    await worker.ingest.fence({SOURCE})  # until the next take-over, the partition may be another's
    assert worker.ingest.lags() == {}


@with_worker
async def test_what_is_counted_of_a_partition_begins_at_0_when_it_is_taken_over(worker):
    its = {"partition": "0"}
    assert worker.registry.get_sample_value("callfunnel_worker_source_gap_events_total", its) == 0
    its["topic"] = "call-events"
    assert worker.registry.get_sample_value("callfunnel_worker_events_consumed_total", its) == 0


@with_worker
async def test_a_worker_that_joins_its_group_has_no_partitions(worker):
    active = ("callfunnel_worker_partitions", {"state": "active"})
    assert worker.registry.get_sample_value(*active) == 1
    await worker.ingest.fence({SOURCE})
    assert worker.registry.get_sample_value(*active) == 0


@with_worker
async def test_only_work_without_progress_is_a_stall(worker):
    now = worker.ingest.lanes[0].progress_at
    worker.consumer.ends = 0
    assert worker.ingest.stalled(now + 100, seconds=60) is None
    worker.consumer.ends = 5
    assert worker.ingest.stalled(now + 160, seconds=60) is None
    assert (
        worker.ingest.stalled(now + 161, seconds=60) == "call-events/0 is 5 records behind and does not move"
    )
    worker.consumer.open_since = 0
    assert worker.ingest.stalled(now + 161, seconds=60) is None
    assert worker.ingest.lags() == {SOURCE: 5}
    worker.consumer.open_since = None
    await worker.ingest.fence({SOURCE})
    assert worker.ingest.stalled(now + 999, seconds=60) is None


@with_worker
async def test_what_is_damaged_on_the_broker_is_no_stall_of_the_worker(worker):
    now = worker.ingest.lanes[0].progress_at
    worker.consumer.damaged = True
    assert worker.ingest.stalled(now + 100, seconds=60) is None
    worker.consumer.damaged = False
    assert worker.ingest.stalled(now + 150, seconds=60) is None
    assert worker.ingest.stalled(now + 161, seconds=60)


@with_worker
async def test_a_large_record_that_is_being_skipped_is_progress(worker):
    lane = worker.ingest.lanes[0]
    lane.progress_at -= 100
    assert worker.ingest.stalled(lane.progress_at + 100, seconds=60)
    worker.ingest.reads_on(0)
    worker.ingest.reads_on(7)  # another's by now
    assert worker.ingest.stalled(lane.progress_at + 50, seconds=60) is None


@with_worker
async def test_rows_and_leads_are_told_for_all_partitions(worker):
    await worker.take(batch(0, 3))
    assert worker.ingest.rows() == (worker.state.tables.sizes()[0], 3)


# What gathers while a transaction is under way


async def given(worker, *batches):
    """Give it batches at once, so that all but the first wait for it."""
    for one in batches:
        await worker.ingest.take(SimpleNamespace(value=one, ack=lambda one=one: worker.acked.append(one)))
    for _ in range(20):
        await asyncio.sleep(0)


@with_worker
async def test_fetches_that_wait_become_one_transaction(worker):
    batches = [batch(0, 2), batch(2, 3), batch(3, 7)]
    await given(worker, *batches)
    assert (len(worker.transactions.written), worker.acked) == (1, batches)
    assert (worker.state.offset, dials(worker)) == (7, 7)


@with_worker
async def test_a_transaction_takes_no_more_than_it_may(worker):
    lane = worker.ingest.lanes[0]
    lane._most_records = 3
    await given(worker, batch(0, 2), batch(2, 3))
    await given(worker, batch(3, 5), batch(5, 9))
    assert len(worker.transactions.written) == 3  # [0, 3), [3, 5), [5, 9)
    assert dials(worker) == 9


@with_worker
async def test_large_records_make_smaller_transactions(worker):
    batches = [batch(0, 2), batch(2, 3), batch(3, 4)]
    for one in batches:
        one.size = MOST_BYTES // 2
    await given(worker, *batches)
    assert len(worker.transactions.written) == 2  # [0, 3), [3, 4)


@with_worker
async def test_what_does_not_go_on_where_the_last_one_ended_waits_for_its_turn(worker):
    await given(worker, batch(0, 2), batch(3, 4), batch(2, 4))
    assert dials(worker) == 4
    assert len(worker.transactions.written) == 2


@with_worker
async def test_what_waits_for_a_partition_that_is_lost_is_given_back(worker):
    lane = worker.ingest.lanes[0]
    lane.task.cancel()
    await given(worker, batch(0, 2), batch(2, 3))
    await worker.ingest.fence(())
    assert [one.start for one in worker.consumer.dropped] == [0, 2]


# What Kafka left undecided


def test_what_hangs_is_decided_before_anything_is_counted():
    async def main():
        worker = Worker()
        worker.transactions.hangs = {(FUNNEL, 0): Tail(b"half of it", b"")}
        with pytest.raises(Mended):
            await worker.take_over()
        assert not worker.ingest.lanes
        assert set(worker.transactions.ended) == {(0, (DEAD, FUNNEL, LEADS), False)}

    asyncio.run(main())


def test_what_the_changelogs_do_not_tell_is_left_to_a_person():
    def position(offset):
        return encode_position(Position(offset=offset, watermark_ms=T, fold=FOLD.id))

    async def main():
        worker = Worker()
        worker.funnel.held = {0: {POSITION_KEY: position(40)}}
        worker.leads.held = {0: {LEADS_POSITION_KEY: position(30)}}
        worker.transactions.hangs = {(LEADS, 0): Tail(b"half of it", b"")}
        with pytest.raises(TablesWrong, match="do not belong together"):
            await worker.take_over()
        assert worker.transactions.ended == [(0, (DEAD,), False)]

    asyncio.run(main())


def test_what_was_restored_in_part_has_no_say():
    async def main():
        worker = Worker()
        worker.consumer.changelogs_end = 10
        worker.transactions.hangs = {
            (FUNNEL, 0): Tail(b"half of it", b""),
            (DEAD, 0): Tail(headers=(((OFFSET, b"7"), (CONNECTOR, b"app")),)),
        }
        with pytest.raises(Stalled):
            await worker.take_over()
        assert worker.transactions.ended == []
        worker.transactions.hangs = {}
        with pytest.raises(Stalled):
            await worker.take_over()
        assert worker.transactions.ended == [(0, (DEAD,), False)]

    asyncio.run(main())
