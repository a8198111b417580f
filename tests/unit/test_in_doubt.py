"""What is decided, by what hangs and what the changelogs hold; the transactions remember what it ended."""

import asyncio

import pytest

from callfunnel.agents.engine.deadletter import CONNECTOR, OFFSET
from callfunnel.agents.engine.in_doubt import TIMES, InDoubt
from callfunnel.agents.engine.rerouting import REROUTED
from callfunnel.agents.errors import Failure, Mended, TablesWrong, TakenOver
from callfunnel.agents.kafka.hanging import Tail
from callfunnel.streams.rows import LEADS_POSITION_KEY, POSITION_KEY, Position, encode_position

SOURCE, DEAD, FUNNEL, LEADS = "call-events", "call-events.dlq", "app-funnel-changelog", "app-leads-changelog"
OWNED = (DEAD,), False
"""An empty abort over the dead letters, which tells who is the owner."""


class Transactions:
    def __init__(self, hangs, last_letter, in_vain, failure):
        self.hangs, self.last_letter, self.in_vain, self.failure = hangs, last_letter, in_vain, failure
        self.ended, self.looked = [], []

    async def hanging(self, partitions, headers=()):
        return {at: tail for at, tail in self.hangs.items() if at in partitions}

    async def last(self, partition, find):
        self.looked.append(partition)
        return self.last_letter

    async def end_nothing(self, partition, covered, *, commit):
        if self.failure:
            raise self.failure
        self.ended.append((tuple(topic for topic, _ in covered), commit))
        if self.hangs.keys() & set(covered) and self.in_vain:
            self.in_vain -= 1
        else:
            self.hangs = {at: tail for at, tail in self.hangs.items() if at not in covered}


def position(offset):
    return encode_position(Position(offset=offset, watermark_ms=0, fold="fold")) if offset else None


def funnel(offset):
    return Tail(POSITION_KEY, position(offset))


def leads(offset):
    return Tail(LEADS_POSITION_KEY, position(offset))


HALF = Tail(b"half of it", b"")


def letters(*offsets, app=b"app"):
    return Tail(b"key", b"{", tuple(((OFFSET, b"1"), (OFFSET, b"%d" % n), (CONNECTOR, app)) for n in offsets))


ANOTHERS_FIRST = Tail(b"key", b"{", letters(50, app=b"another").headers + letters(7, 40).headers)


def decided(counted, hangs, *, last_letter=None, in_vain=0, failure=None):
    """What it ends with and which empty transactions there were, in order, each once.

    `counted` are the positions in funnel and leads changelog (0: none).
    """
    transactions = Transactions(hangs, last_letter, in_vain, failure)
    keys = (FUNNEL, POSITION_KEY), (LEADS, LEADS_POSITION_KEY)

    async def main():
        undecided = InDoubt(transactions, "app", SOURCE, DEAD, [0])
        await undecided.look([(SOURCE, number) for number in range(8)], [(FUNNEL, 0), (LEADS, 0)])
        undecided.judge(
            0, {(topic, 0): (key, position(at)) for (topic, key), at in zip(keys, counted, strict=True)}
        )
        await undecided.decide()
        undecided.tell()

    try:
        asyncio.run(main())
        result = None
    except Failure as failure:
        result = failure
    return result, list(dict.fromkeys(transactions.ended)), transactions


@pytest.mark.parametrize(
    ("counted", "hangs"),
    [
        ((40, 30), {(LEADS, 0): leads(40)}),
        ((30, 40), {(FUNNEL, 0): funnel(40)}),
        ((0, 40), {(FUNNEL, 0): funnel(40)}),
    ],
)
def test_what_the_other_changelog_has_was_committed(counted, hangs):
    failure, ended, _ = decided(counted, hangs)
    assert isinstance(failure, Mended)
    assert "partition 0 (committed)" in str(failure)
    assert ended == [OWNED, ((FUNNEL, LEADS), True)]


@pytest.mark.parametrize(
    ("at", "hangs"),
    [
        (40, {(LEADS, 0): leads(50)}),
        (40, {(FUNNEL, 0): HALF}),
        (40, {(FUNNEL, 0): funnel(50), (LEADS, 0): leads(50)}),
        (0, {(LEADS, 0): leads(50)}),
    ],
)
def test_what_no_changelog_has_is_done_again(at, hangs):
    failure, ended, _ = decided((at, at), hangs)
    assert isinstance(failure, Mended)
    assert "partition 0 (aborted)" in str(failure)
    assert ended == [((DEAD, FUNNEL, LEADS), False)]


@pytest.mark.parametrize(
    "hangs",
    [
        {(LEADS, 0): leads(50)},
        {(LEADS, 0): HALF},
        {(FUNNEL, 0): funnel(40)},
        {(FUNNEL, 0): funnel(50), (LEADS, 0): leads(50)},
    ],
)
def test_what_the_changelogs_do_not_tell_is_left_alone(hangs):
    assert decided((40, 30), hangs)[:2] == (None, [OWNED])


@pytest.mark.parametrize("later", [funnel(50), HALF])
def test_of_two_transactions_that_hang_in_a_row_the_first_is_committed_and_the_second_done_again(later):
    failure, ended, _ = decided((40, 30), {(FUNNEL, 0): later, (LEADS, 0): leads(40)})
    assert isinstance(failure, Mended)
    assert set(ended) == {((LEADS,), True), ((DEAD, FUNNEL), False)}


@pytest.mark.parametrize(
    ("last_letter", "hangs", "is_committed"),
    [
        (40, {(FUNNEL, 0): funnel(50), (LEADS, 0): leads(50)}, True),
        (49, {(FUNNEL, 0): funnel(50), (LEADS, 0): leads(50)}, True),
        (39, {(FUNNEL, 0): funnel(50), (LEADS, 0): leads(50)}, False),
        (50, {(FUNNEL, 0): funnel(50), (LEADS, 0): leads(50)}, False),
        (None, {(FUNNEL, 0): funnel(50), (LEADS, 0): leads(50)}, False),
        (45, {(FUNNEL, 0): HALF, (LEADS, 0): leads(50)}, False),
        (45, {(FUNNEL, 0): funnel(50), (LEADS, 0): HALF}, False),
        (45, {(FUNNEL, 0): funnel(50), (LEADS, 0): leads(60)}, False),
    ],
)
def test_of_both_changelogs_a_dead_letter_tells(last_letter, hangs, is_committed):
    failure, ended, transactions = decided((40, 40), hangs, last_letter=last_letter)
    assert f"partition 0 ({'committed' if is_committed else 'aborted'})" in str(failure)
    assert ((FUNNEL, LEADS), True) in ended or not is_committed
    assert transactions.looked == [(DEAD, 0)]


@pytest.mark.parametrize(
    ("counted", "hangs", "commit"),
    [
        ((40, 40), letters(38, 39), True),
        ((40, 40), letters(40, 41), False),
        ((40, 40), letters(39, 40), True),
        ((40, 40), ANOTHERS_FIRST, False),
        ((40, 40), letters(50, app=b"another"), True),
        ((40, 40), Tail(), True),
        ((0, 0), letters(0), False),
        ((40, 30), letters(35), True),
    ],
)
def test_dead_letters_of_what_was_counted_are_committed_and_what_is_read_again_aborted(
    counted, hangs, commit
):
    assert decided(counted, {(DEAD, 0): hangs})[:2] == (None, [((DEAD,), commit)])


def test_dead_letters_go_the_way_of_their_transaction():
    aborted = {(LEADS, 0): leads(50), (DEAD, 0): letters(45)}
    assert decided((40, 40), aborted)[1] == [((DEAD, FUNNEL, LEADS), False)]
    committed = {(LEADS, 0): leads(50), (DEAD, 0): letters(45)}
    assert decided((50, 40), committed)[1] == [((DEAD, FUNNEL, LEADS), True)]


def test_what_nobody_can_decide_any_more_is_left_to_a_person():
    failure, _, transactions = decided((40, 40), {(FUNNEL, 0): HALF}, in_vain=1_000)
    assert isinstance(failure, TablesWrong)
    assert "has to be aborted, and 3 times it was in vain" in str(failure)
    assert transactions.ended[-1] == ((DEAD, FUNNEL, LEADS), False)


def test_dead_letters_that_nobody_can_decide_keep_nobody_from_counting(caplog):
    failure, ended, _ = decided((40, 40), {(DEAD, 0): letters(45)}, in_vain=1_000)
    assert (failure, ended) == (None, [((DEAD,), False)])
    assert caplog.messages == [f"{DEAD}/0: nobody reads past what Kafka left undecided: not aborted"]


def test_of_what_was_decided_is_told_and_of_what_others_write_is_not(caplog):
    decided((40, 40), {(DEAD, 0): letters(39)})
    assert caplog.messages == [f"{DEAD}/0: Kafka had left dead letters undecided: committed"]
    caplog.clear()
    others = {(DEAD, 0): letters(39, app=b"another")}
    for hangs, ends in (({}, OWNED), (others, ((DEAD,), True))):
        assert decided((40, 40), hangs, in_vain=1_000)[2].ended == [ends]
    assert caplog.messages == []


def test_who_takes_nothing_over_asks_for_nothing():
    async def main():
        undecided = InDoubt(None, "app", SOURCE, DEAD, [])
        await undecided.look([(SOURCE, 0)], [])
        await undecided.decide()
        undecided.tell()

    asyncio.run(main())


@pytest.mark.parametrize("in_vain", range(2 * TIMES))
def test_where_the_deciding_marker_is_left_out_too_it_is_decided_again(in_vain):
    failure, _, transactions = decided((40, 40), {(FUNNEL, 0): HALF, (DEAD, 0): letters(45)}, in_vain=in_vain)
    assert isinstance(failure, Mended)
    assert not transactions.hangs


def test_rerouted_events_that_hang_are_committed_and_what_others_write_is_left_alone():
    ours, anothers = (Tail(b"lead", b"{}", (names,)) for names in (((REROUTED, b"1"),), ()))
    hangs = {(SOURCE, 3): ours, (SOURCE, 4): anothers, (DEAD, 0): letters(45)}
    failure, ended, _ = decided((40, 40), hangs)
    assert (failure, ended) == (None, [((DEAD,), False), ((SOURCE,), True)])
    del hangs[DEAD, 0]
    assert decided((40, 40), hangs, in_vain=1_000)[:2] == (None, [OWNED, ((SOURCE,), True)])


def test_of_several_partitions_each_is_ended_whatever_becomes_of_the_others():
    class OneFails(Transactions):
        async def end_nothing(self, partition, covered, *, commit):
            if partition == 0:
                raise TakenOver("partition 0")
            await asyncio.sleep(0.01)
            await super().end_nothing(partition, covered, commit=commit)

    transactions = OneFails({}, None, 0, None)

    async def main():
        undecided = InDoubt(transactions, "app", SOURCE, DEAD, [0, 1])
        await undecided.look([], [])
        with pytest.raises(TakenOver):
            await undecided.decide()
        assert transactions.ended == [OWNED]

    asyncio.run(main())


def test_a_former_owner_decides_nothing():
    hangs = {(FUNNEL, 0): HALF}
    failure, ended, _ = decided((40, 40), hangs, failure=TakenOver("another worker"))
    assert isinstance(failure, TakenOver)
    assert not ended
