"""A write that must not be committed is not, and its failure says why."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import IllegalOperation, ProducerFenced, TopicAuthorizationFailedError
from aiokafka.producer.transaction_manager import TransactionManager

from callfunnel.agents.engine import transactions
from callfunnel.agents.errors import TablesWrong, TakenOver, WriteFailed

ROWS = "app-funnel-changelog"
RECORDS = {(ROWS, 0): [((b"key", b"value"), [], None)]}


class Batch(list):
    def fill(self, records, now_ms):
        self += records

    def record_count(self):
        return len(self)


class Producer:
    """Appends at `offset` and acknowledges, unless there is a `failure`; None: it never answers."""

    def __init__(self, client, **options):
        self.offset = 0
        self.failure = False
        self.committed = 0
        self.compressors = []

    async def start(self):
        """It is there."""

    async def begin_transaction(self):
        """One at a time."""

    async def add_partitions(self, partitions):
        """They are in it."""

    def create_batch(self, compressor):
        self.compressors.append(compressor)
        return Batch()

    async def send_batch(self, batch, topic, partition):
        if self.failure:
            raise self.failure
        acknowledgement = asyncio.get_running_loop().create_future()
        if self.failure is not None:
            acknowledgement.set_result(SimpleNamespace(topic=topic, partition=partition, offset=self.offset))
            self.offset += len(batch)
        return acknowledgement

    async def commit_transaction(self):
        self.committed += 1


def write(monkeypatch, ends, times=1, offset=0, failure=False, between=lambda producer: None):
    """Write a few times, doing something after each; what the last gave, how many were committed."""
    monkeypatch.setattr(transactions, "Producer", Producer)

    async def main():
        one = transactions.Transactions("app", {}, transaction_timeout_seconds=0.05)
        await one.own([0])
        producer = one._producers[0]
        producer.offset, producer.failure = offset, failure
        one.ends.update(ends)
        result = None
        try:
            for _ in range(times):
                result = await one.write(0, RECORDS)
                between(producer)
        except Exception as error:
            result = error
        return result, producer.committed

    return asyncio.run(main())


def test_rows_that_continue_their_changelog_are_committed(monkeypatch):
    assert write(monkeypatch, {(ROWS, 0): 10}, times=3, offset=12) == ({(ROWS, 0): range(14, 15)}, 3)


def test_the_changelogs_alone_are_compressed(monkeypatch):
    monkeypatch.setattr(transactions, "Producer", Producer)
    row = [((b"key", b"value"), [], None)]

    async def main():
        one = transactions.Transactions("app", {}, 0.05, "zstd")
        await one.own([0])
        for topic in ("app-funnel-changelog", "app-leads-changelog", "call-events", "call-events.dlq"):
            await one.write(0, {(topic, 0): row})
        return one._producers[0].compressors

    rows, leads, events, letters = asyncio.run(main())
    assert rows is leads
    assert rows is not transactions.UNCOMPRESSED
    assert events is letters is transactions.UNCOMPRESSED


def test_rows_that_would_go_into_a_changelog_made_anew_are_not_committed(monkeypatch):
    failure, committed = write(monkeypatch, {(ROWS, 0): 10}, offset=0)
    assert isinstance(failure, TablesWrong)
    assert f"{ROWS}/0 held rows up to offset 9, but goes on at 0: it was created anew" in str(failure)
    assert committed == 0


def test_rows_may_not_go_back_behind_those_of_the_transaction_before(monkeypatch):
    def emptied(producer):
        producer.offset = 12

    failure, committed = write(monkeypatch, {(ROWS, 0): 10}, times=2, offset=12, between=emptied)
    assert isinstance(failure, TablesWrong)
    assert f"{ROWS}/0 held rows up to offset 12, but goes on at 12" in str(failure)
    assert committed == 1


@pytest.mark.parametrize(
    ("failure", "raised", "said"),
    [
        (
            None,
            WriteFailed,
            f"Partition 0 ({ROWS}) could not be written: the brokers did not answer within 0.05 s",
        ),
        (IllegalOperation("not in transaction"), WriteFailed, f"Partition 0 ({ROWS}) could not be written"),
        (ProducerFenced(), TakenOver, "another worker has taken over partition 0"),
    ],
)
def test_a_write_that_fails_says_whose_turn_it_is(monkeypatch, failure, raised, said):
    error, committed = write(monkeypatch, {}, failure=failure)
    assert isinstance(error, raised)
    assert said in str(error)
    assert committed == 0


def added(happens):
    """What `add_partitions` raises or returns when this happens to the transaction meanwhile."""

    async def main():
        manager = TransactionManager("app-0", 1_000)
        manager.set_pid_and_epoch(1, 0)
        producer = transactions.Producer.__new__(transactions.Producer)
        producer._txn_manager, producer._closed = manager, True
        manager.begin_transaction()
        adding = asyncio.create_task(producer.add_partitions([("funnel", 0), ("leads", 0)]))
        await asyncio.sleep(0.01)
        assert manager.partitions_to_add() == {("funnel", 0), ("leads", 0)}
        assert not adding.done()
        happens(manager)
        return await asyncio.wait_for(adding, 1)

    return asyncio.run(main())


def test_partitions_are_added_when_the_broker_has_taken_each():
    def taken(manager):
        for topic in ("funnel", "leads"):
            manager.partition_added(TopicPartition(topic, 0))

    assert added(taken) is None


@pytest.mark.parametrize("how", ["error_transaction", "fatal_error"])
def test_where_one_is_refused_nothing_may_be_sent_to_the_others(how):
    with pytest.raises(TopicAuthorizationFailedError):
        added(lambda manager: getattr(manager, how)(TopicAuthorizationFailedError("funnel")))
