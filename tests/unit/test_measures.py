import pytest

from callfunnel.streams.measures import (
    ATTEMPT_BINS,
    BINS,
    COLUMNS,
    CONNECT_BINS,
    EVENTS,
    LEADS,
    RESPONSE,
    ROLLUPS,
    bin_of,
)
from callfunnel.streams.panes import RESOLUTIONS


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
    assert bin_of(response_ms) == name


def test_every_bin_has_a_column_for_each_clock():
    assert [name.removeprefix("attempt_") for name in ATTEMPT_BINS] == list(BINS)
    assert [name.removeprefix("connect_") for name in CONNECT_BINS] == list(BINS)


def test_no_response_column_belongs_to_an_agent():
    assert RESPONSE.isdisjoint({*EVENTS, *LEADS, "implied", "dm_hangups", "agent_hangups"})
    assert len(RESPONSE) == 2 * 16 + 5


def test_an_id_never_means_something_else():
    """By hand: these numbers are in changelogs. A new column gets a number of its own."""
    bins = "5 15 30 60 120 180 240 300 600 900 1800 3600 14400 28800 86400 inf"
    names = [
        *[
            "events_created",
            "events_dialed",
            "events_connected",
            "events_reached",
            "events_qualified",
            "events_won",
        ],
        *[
            "leads_created",
            "leads_dialed",
            "leads_connected",
            "leads_reached",
            "leads_qualified",
            "leads_won",
        ],
        *["events_disqualified", "events_lost", "machine_answers", "dm_hangups", "agent_hangups", "implied"],
        *["awaited", "uncalled", "dialed_before_creation", "attempt_ms", "connect_ms"],
        *(f"attempt_{name}" for name in bins.split()),
        *(f"connect_{name}" for name in bins.split()),
    ]
    assert {name: COLUMNS[name] for name in names} == {name: id_ for id_, name in enumerate(names)}
    assert len(set(COLUMNS.values())) == len(COLUMNS)
    assert [(rollup.id, rollup.name, rollup.of_all_time) for rollup in ROLLUPS[:3]] == [
        (0, "campaign+source", True),
        (1, "team+agent", False),
        (2, "location", False),
    ]
    assert RESOLUTIONS == {"1m": 0, "1h": 1, "1d": 2, "all": 3}
