"""Whether tables go on with a topic: by its id, by the last record they took in, by its offsets."""

import asyncio

import pytest
from msgspec.structs import replace

from callfunnel.agents.engine.adopt import Adopted, adopt
from callfunnel.agents.engine.source import GONE, Found, OtherTopic, resume_at
from callfunnel.agents.errors import Mended, TablesWrong, TakenOver
from callfunnel.agents.kafka.hanging import Tail
from callfunnel.streams.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    Witness,
    decode_position,
    encode_position,
)

WITNESS = Witness.of(39, 1_000, b"lead", b"{}")
OTHER = Witness.of(39, 1_000, b"lead", b"{ }")
POSITION = Position(
    offset=42, watermark_ms=1, fold="f", applied=30, topic="calls", topic_id="first", witness=WITNESS
)
OF_TODAY = Position(offset=42, watermark_ms=1, fold="f", applied=30)
"""As the last version wrote it."""
NAMED = replace(POSITION, witness=None)
"""Taken for that of a topic, and without a record since."""
NO_ID = replace(POSITION, topic_id="")


def found(topic_id="first", offsets=range(100), topic="calls"):
    return Found(topic, topic_id, offsets)


@pytest.mark.parametrize(
    ("position", "there", "record", "at"),
    [
        pytest.param(POSITION, found(), WITNESS, 42, id="the same id and record"),
        pytest.param(POSITION, found(offsets=range(42)), WITNESS, 42, id="nothing new"),
        pytest.param(
            POSITION, found(offsets=range(40, 100)), None, 42, id="the record is gone, the id is not"
        ),
        pytest.param(
            POSITION, found(offsets=range(90, 100)), None, 42, id="records are gone that nobody read"
        ),
        pytest.param(POSITION, found(), GONE, 42, id="the record goes while it is asked for"),
        pytest.param(POSITION, found(""), WITNESS, 40, id="a broker without ids, the same record"),
        pytest.param(NO_ID, found(""), WITNESS, 40, id="never any ids, the same record"),
        pytest.param(NO_ID, found("first"), WITNESS, 40, id="ids since now, the same record"),
        pytest.param(NO_ID, found("", range(40)), WITNESS, 40, id="a copy without the markers at its end"),
        pytest.param(OF_TODAY, found(), None, 42, id="of today, in the range of offsets"),
        pytest.param(OF_TODAY, found("", range(42)), None, 42, id="of today, at the end"),
        pytest.param(OF_TODAY, found(offsets=range(90, 100)), None, 42, id="of today, behind retention"),
        pytest.param(NAMED, found(), None, 42, id="no record since, the same id"),
    ],
)
def test_tables_go_on_where_they_ended(position, there, record, at):
    assert resume_at(3, position, there, record) == at


@pytest.mark.parametrize(
    ("position", "there", "record", "told"),
    [
        (
            POSITION,
            found("second"),
            WITNESS,
            "It had the id first when they took .* offset 42, and has the id second",
        ),
        (POSITION, found("second"), OTHER, "deleted and made anew, or this is another cluster"),
        (POSITION, found("second", range(90, 100)), None, "another topic of this name"),
        (NAMED, found("second"), None, "another topic of this name"),
        (
            POSITION,
            found(topic="mirror"),
            WITNESS,
            "another topic, calls; CALLFUNNEL_SOURCE_TOPIC names mirror",
        ),
        (NAMED, found("", topic="mirror"), None, "another topic, calls"),
    ],
)
def test_another_topic_is_refused_with_both_ways_on(position, there, record, told):
    with pytest.raises(OtherTopic, match=told) as refused:
        resume_at(3, position, there, record)
    assert refused.value.exit_code == 78
    assert str(refused.value).startswith(f"{there.topic}/3: ")
    for command in ("`callfunnel source adopt`", "CALLFUNNEL_APP_ID", "`callfunnel topics create`"):
        assert command in refused.value.remedy


@pytest.mark.parametrize(
    ("position", "there", "record", "told"),
    [
        (POSITION, found(), OTHER, "the record at offset 39 is not the one that the tables took in"),
        (POSITION, found(), None, "unclean leader election"),
        (POSITION, found(offsets=range(41)), WITNESS, "go up to offset 42, but the topic ends at 41"),
        (NO_ID, found(""), OTHER, "or it is another one"),
        (NO_ID, found("", range(40)), OTHER, "the topic ends at 40"),
        (NO_ID, found("", range(40, 100)), None, "its broker gives topics no id, .* at offset 39, is gone"),
        (POSITION, found("", range(40, 100)), None, "nothing shows that"),
        (NO_ID, found(""), GONE, "is gone by retention"),
        (OF_TODAY, found(offsets=range(41)), None, "truncated or created anew"),
    ],
)
def test_other_records_are_refused_and_nothing_but_a_new_count_helps(position, there, record, told):
    with pytest.raises(OtherTopic, match=told) as refused:
        resume_at(3, position, there, record)
    assert "CALLFUNNEL_APP_ID" in refused.value.remedy
    assert "adopt" not in str(refused.value)


# Adopting a topic


class World:
    """A source of two partitions, two changelogs, and what an adoption writes to them."""

    def __init__(self, *positions, topic_id="second", offsets=range(100), records=(WITNESS, WITNESS)):
        self.rows = {
            topic: {n: None if p is None else encode_position(p) for n, p in enumerate(positions)}
            for topic in ("app-funnel-changelog", "app-leads-changelog")
        }
        self.topic = "calls"
        self.there = {n: found(topic_id, offsets) for n in range(len(positions))}
        self.held = dict(enumerate(records))
        self.owned = []
        self.written = []
        self.hangs = {}
        self.taken_back = None
        self.told = []

    # the transactions

    async def own(self, partitions):
        self.owned = list(partitions)

    async def hanging(self, partitions):
        return {at: tail for at, tail in self.hangs.items() if at in partitions}

    async def write(self, partition, records):
        if partition == self.taken_back:
            raise TakenOver("another worker")
        self.written.append((partition, records))

    # the source

    async def found(self, numbers):
        return {n: self.there[n] for n in numbers}

    async def records(self, offsets):
        return {n: self.held[n] for n in offsets}

    def adopt(self, monkeypatch, **options):
        async def last_positions(client, topic, key, partitions):
            assert key == {"funnel": POSITION_KEY, "leads": LEADS_POSITION_KEY}[topic.split("-")[1]]
            return self.rows[topic]

        monkeypatch.setattr("callfunnel.agents.engine.adopt.last_positions", last_positions)
        asyncio.run(adopt(self, self, {}, "app", len(self.there), tell=self.told.append, **options))


def test_the_same_records_in_another_topic_are_gone_on_with_behind_the_last_one(monkeypatch):
    world = World(POSITION, None)
    world.adopt(monkeypatch)
    new = replace(POSITION, topic_id="second", offset=40)
    assert world.owned == [0, 1]
    ((number, records),) = world.written
    assert number == 0
    assert {at: [decode_position(v) for (_, v), _, _ in each] for at, each in records.items()} == {
        ("app-funnel-changelog", 0): [new],
        ("app-leads-changelog", 0): [new],
    }
    assert [key for each in records.values() for (key, _), _, _ in each] == [POSITION_KEY, LEADS_POSITION_KEY]
    assert world.told == [Adopted(0, POSITION, new), Adopted(1, None, None)]


@pytest.mark.parametrize(
    "records", [(WITNESS, OTHER), (None, WITNESS), (OTHER, OTHER)], ids=["one", "missing", "both"]
)
def test_one_partition_with_another_record_stops_all_of_it(monkeypatch, records):
    world = World(POSITION, POSITION, records=records)
    with pytest.raises(TablesWrong, match=r"(?s)Nothing was changed.*is another one") as refused:
        world.adopt(monkeypatch)
    assert str(refused.value).count("is another one") == sum(record != WITNESS for record in records)
    assert (world.written, world.told) == ([], [])


def test_a_record_that_is_not_there_is_told_with_what_is(monkeypatch):
    with pytest.raises(TablesWrong, match=r"calls/0: .* \(offset 39\) is not there: offsets 50 to 99 are"):
        World(POSITION, offsets=range(50, 100)).adopt(monkeypatch)


def test_without_a_record_nothing_can_be_compared(monkeypatch):
    with pytest.raises(TablesWrong, match="another topic of this name"):
        World(NAMED).adopt(monkeypatch)
    world = World(OF_TODAY)
    world.adopt(monkeypatch)  # as a worker would
    assert world.told[0].new == replace(OF_TODAY, topic="calls", topic_id="second")


def test_what_is_adopted_already_is_left_alone(monkeypatch):
    world = World(replace(POSITION, topic_id="second"), POSITION)
    world.adopt(monkeypatch)
    assert [number for number, _ in world.written] == [1]
    assert world.told[0].new is None


def test_a_dry_run_takes_no_partition_and_writes_nothing(monkeypatch):
    world = World(POSITION)
    world.adopt(monkeypatch, only_compare=True)
    assert (world.owned, world.written) == ([], [])
    assert world.told[0].new.topic_id == "second"


def test_a_worker_that_takes_a_partition_back_ends_it(monkeypatch):
    world = World(POSITION, POSITION)
    world.taken_back = 1
    with pytest.raises(TakenOver, match="a worker took partition 1 over meanwhile: stop all workers"):
        world.adopt(monkeypatch)
    assert [number for number, _ in world.written] == [0]


def test_what_kafka_left_undecided_is_decided_by_a_worker_first(monkeypatch):
    world = World(POSITION)
    world.hangs = {("app-leads-changelog", 0): Tail()}
    with pytest.raises(Mended, match=r"undecided in app-leads-changelog/0\. Start one worker"):
        world.adopt(monkeypatch)
    assert world.written == []


def test_changelogs_that_contradict_each_other_are_left_to_a_worker(monkeypatch):
    world = World(POSITION)
    world.rows["app-leads-changelog"][0] = encode_position(OF_TODAY)
    with pytest.raises(TablesWrong, match="do not belong together"):
        world.adopt(monkeypatch)
    assert world.written == []
