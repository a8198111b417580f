from aiokafka import TopicPartition

from callfunnel.agents.kafka.answers import Answers

A, B, C = (TopicPartition("call-events", number) for number in range(3))


class Heard:
    """Answers with a patience of 15 s, by a clock that is set by hand."""

    def __init__(self):
        self.now = 100.0
        self.answers = Answers(15, clock=lambda: self.now)


def test_an_end_is_known_for_as_long_as_the_patience_lasts():
    heard = Heard()
    heard.answers.watch([A, B])
    assert heard.answers.end(A) is None
    heard.answers.hear({A: 7})
    heard.now += 15
    assert (heard.answers.end(A), heard.answers.end(B)) == (7, None)
    heard.now += 0.1
    assert heard.answers.end(A) is None
    heard.answers.hear({A: 9})
    assert heard.answers.end(A) == 9


def test_a_partition_that_is_not_watched_has_no_end():
    heard = Heard()
    heard.answers.watch([A])
    heard.answers.hear({A: 7, B: 8})
    assert heard.answers.end(B) is None
    heard.answers.watch([B])
    heard.answers.watch([A, B])
    assert heard.answers.end(A) is None


def test_no_broker_has_answered_is_told_whoever_is_watched():
    heard = Heard()
    assert heard.answers.silence() is None
    heard.now += 15.1
    assert heard.answers.silence() == "no broker has answered for 15 s"
    heard.answers.hear({})
    assert heard.answers.silence() is None
    heard.answers.watch([A])
    heard.answers.hear({A: 1})
    heard.now += 40
    assert heard.answers.silence() == "no broker has answered for 40 s"


def test_a_leader_that_is_silent_while_others_answer_is_named():
    heard = Heard()
    heard.answers.watch([A, B, C])
    heard.answers.hear({A: 1, B: 1, C: 1})
    heard.now += 10
    heard.answers.hear({B: 1})
    heard.now += 10
    assert (heard.answers.end(A), heard.answers.end(B)) == (None, 1)
    told = "the leader of call-events/0, call-events/2 has not answered for 20 s"
    assert heard.answers.silence() == told


def test_of_many_silent_partitions_five_are_named():
    heard = Heard()
    heard.answers.watch([TopicPartition("call-events", number) for number in range(7)])
    heard.now += 20
    heard.answers.hear({})
    assert "call-events/4 and 2 more has not answered" in heard.answers.silence()


def test_a_new_partition_is_given_the_patience_from_when_it_is_watched():
    heard = Heard()
    heard.answers.watch([A])
    heard.answers.hear({A: 1})
    heard.now += 14
    heard.answers.hear({A: 1})
    heard.answers.watch([A, B])
    heard.now += 14
    assert heard.answers.silence() is None


def test_when_a_broker_last_answered_is_unknown_before_any_has():
    heard = Heard()
    assert heard.answers.timestamp_seconds is None
    heard.answers.hear({})
    first = heard.answers.timestamp_seconds
    heard.now += 60
    assert 59 < first - heard.answers.timestamp_seconds <= 60
