import pytest

from callfunnel.agents.engine.rerouting import LAPS, REROUTED, Mark
from callfunnel.agents.kafka.microbatch import MicroBatch

OURS = REROUTED, b"app murmur2 6"


def batch(*headers):
    made = MicroBatch("call-events", 0, 0, len(headers), 1)
    made.headers = list(headers)
    return made


def test_a_mark_says_who_moved_the_event_and_by_which_homes():
    mark = Mark("app", "murmur2", 6)
    assert mark.added_to([("trace", b"t")]) == [("trace", b"t"), OURS]
    assert mark.added_to([OURS]) == [OURS, OURS]


@pytest.mark.parametrize(
    "others",
    [
        [(REROUTED, b"1")],
        [(REROUTED, None)],
        [(REROUTED, b"app murmur2 8")],
        [(REROUTED, b"app crc32 6")],
        [(REROUTED, b"another murmur2 6")],
        [("trace", b"app murmur2 6")],
    ],
)
def test_only_the_marks_of_this_app_as_it_is_end_the_moving(others):
    headers = [(), others * 9, [*others * 9, *[OURS] * (LAPS - 1)], [*others, *[OURS] * LAPS]]
    assert Mark("app", "murmur2", 6).stuck(batch(*headers)) == {3}


def test_whose_publishers_are_trusted_moves_nothing_and_takes_nothing_that_was_moved():
    headers = [(), [("trace", b"t")], [(REROUTED, b"1")], [OURS]]
    assert Mark("app", "trust", 6).stuck(batch(*headers)) == {2, 3}
    assert Mark("app", "trust", 6).stuck(batch((), ())) == frozenset()
