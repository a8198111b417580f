import pytest

from callfunnel.streams.columns import ATTEMPT_BINS, BINS, CONNECT_BINS, EVENTS, LEADS, RESPONSE, bin_of


@pytest.mark.parametrize(
    ("response_ms", "name"),
    [
        (0, "5"),
        (5_000, "5"),
        (5_001, "15"),
        (15_000, "15"),
        (60_000, "60"),
        (299_999, "300"),
        (300_000, "300"),
        (300_001, "600"),
        (86_400_000, "86400"),
        (86_400_001, "inf"),
        (10**12, "inf"),
    ],
)
def test_a_response_falls_into_the_smallest_bin_that_it_does_not_exceed(response_ms, name):
    assert BINS[bin_of(response_ms)] == name


def test_every_bin_has_a_column_for_each_clock():
    assert [name.removeprefix("attempt_") for name in ATTEMPT_BINS] == list(BINS)
    assert [name.removeprefix("connect_") for name in CONNECT_BINS] == list(BINS)


def test_no_response_column_belongs_to_an_agent():
    assert RESPONSE.isdisjoint({*EVENTS, *LEADS, "implied", "dm_hangups", "agent_hangups"})
    assert len(RESPONSE) == 2 * 16 + 5
