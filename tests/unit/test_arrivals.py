from callfunnel.agents.view.arrivals import Arrivals, Told
from callfunnel.streams.rows import Position

WALL = 1_750_000_000.0


class Compared:
    """Arrivals by a clock that is set by hand; the wall clock is `WALL` when it says 0."""

    def __init__(self):
        self.now = 0.0
        self.arrivals = Arrivals(clock=lambda: self.now, now=lambda: WALL + self.now)

    def compare(self, ends, at, *, starts=None, asked_at=None, before=None, watermark_s=WALL):
        """Partitions that end at `ends`, in numbers that go up to `at`; the age of what is complete."""
        starts = starts or {}
        told = Told(
            self.now if asked_at is None else asked_at,
            {number: range(starts.get(number, 0), end) for number, end in ends.items()},
            at if before is None else before,
        )
        positions = {
            number: Position(offset=offset, watermark_ms=int(watermark_s * 1000), fold="f")
            for number, offset in at.items()
        }
        self.arrivals.compare(told, positions)
        return self.now - self.arrivals.complete_at


def test_numbers_that_reach_the_ends_are_complete_up_to_the_question():
    compared = Compared()
    assert compared.compare({0: 10, 1: 20}, {0: 10, 1: 20}) == 0
    assert compared.arrivals.lags == {0: 0, 1: 0}
    compared.now = 3
    assert compared.compare({0: 10, 1: 20}, {0: 10, 1: 20}, asked_at=2) == 1


def test_under_a_steady_load_the_numbers_are_as_old_as_it_takes_to_reach_an_end():
    compared = Compared()
    for second in range(10):
        compared.now = second
        end = 1_000 * second
        age = compared.compare({0: end}, {0: max(0, end - 500)})  # never at the end that was just told
        assert age <= 1
        assert compared.arrivals.lags == {0: min(500, end)}


def test_the_partition_that_is_furthest_behind_decides():
    compared = Compared()
    compared.compare({0: 10, 1: 20}, {0: 10, 1: 20})
    for compared.now in range(1, 61):
        age = compared.compare({0: 10 + compared.now, 1: 20 + compared.now}, {0: 10 + compared.now, 1: 20})
    assert age == 60
    assert compared.arrivals.lags == {0: 0, 1: 60}


def test_while_a_backlog_is_worked_off_the_numbers_stay_those_of_its_beginning():
    compared = Compared()
    compared.compare({0: 10}, {0: 10})
    compared.now = 100
    assert compared.compare({0: 1_010}, {0: 10}) == 100
    compared.now = 101
    assert compared.compare({0: 1_020}, {0: 600}) == 101
    compared.now = 102
    assert compared.compare({0: 1_030}, {0: 1_010}) == 2  # what had arrived when the backlog was first seen
    compared.now = 103
    assert compared.compare({0: 1_030}, {0: 1_030}) == 0


def test_a_view_that_starts_late_takes_the_newest_event_for_the_moment_up_to_which_all_is_counted():
    compared = Compared()
    assert compared.compare({0: 50}, {0: 10}, watermark_s=WALL - 3_600) == 3_600
    compared = Compared()
    assert compared.compare({0: 50}, {0: 10}, watermark_s=WALL + 1_800) == 0  # a clock that is ahead


def test_where_nothing_was_ever_counted_records_wait_from_the_first_look_on():
    compared = Compared()
    assert compared.compare({0: 50, 1: 0}, {}) == 0
    compared.now = 20
    assert compared.compare({0: 50, 1: 0}, {}) == 20
    assert compared.arrivals.lags == {0: 50, 1: 0}


def test_records_that_retention_deleted_do_not_wait():
    compared = Compared()
    assert compared.compare({0: 50}, {0: 10}, starts={0: 50}) == 0
    assert compared.arrivals.lags == {0: 0}
    compared.compare({0: 50}, {}, starts={0: 45})
    assert compared.arrivals.lags == {0: 5}


def test_a_source_that_ends_before_the_numbers_is_another_one_and_how_many_wait_is_unknown():
    compared = Compared()
    compared.compare({0: 50, 1: 5}, {0: 50, 1: 5})
    compared.now = 20
    assert compared.compare({0: 30, 1: 5}, {0: 50, 1: 5}) == 20
    assert (compared.arrivals.lags, compared.arrivals.shrunk) == ({1: 0}, {0: 30})


def test_a_partition_that_is_gone_ends_before_the_numbers():
    compared = Compared()
    compared.compare({0: 5, 1: 5}, {0: 5, 1: 5})
    compared.now = 20
    assert compared.compare({0: 5}, {0: 5, 1: 5}) == 20
    assert compared.arrivals.shrunk == {1: 0}


def test_an_answer_may_be_older_than_the_numbers():
    compared = Compared()
    assert compared.compare({0: 30}, {0: 50}, before={0: 30}) == 0
    assert (compared.arrivals.lags, compared.arrivals.shrunk) == ({0: 0}, {})


def test_a_source_is_quiet_where_nothing_has_come_and_nothing_waits():
    def told(end, at):
        return Told(0.0, {0: range(end)}, {0: at})

    assert told(10, 10).is_quiet_since(told(10, 9))
    assert not told(10, 9).is_quiet_since(told(10, 9))
    assert not told(11, 11).is_quiet_since(told(10, 10))
    assert not told(10, 10).is_quiet_since(None)
