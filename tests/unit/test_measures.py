import pytest
from msgspec.structs import replace

from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.streams.fold import Fold
from callfunnel.streams.measures import COLUMNS, FIRST_DIAL, HISTOGRAMS, OF_SEGMENT, ROLLUPS
from callfunnel.streams.panes import RESOLUTIONS, TWICE, resolutions


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
def test_a_duration_falls_into_the_smallest_bin_that_it_does_not_exceed(response_ms, name):
    assert FIRST_DIAL.bin_of(response_ms) == f"attempt_{name}"


@pytest.mark.parametrize("histogram", HISTOGRAMS, ids=lambda histogram: histogram.name)
def test_a_histogram_has_a_column_for_each_bin_and_one_for_the_sum_and_no_agent_has_them(histogram):
    assert list(histogram.bounds) == sorted(set(histogram.bounds))
    assert {*histogram.bins, histogram.sum} == histogram.columns.keys() <= OF_SEGMENT
    assert len(histogram.columns) == len(histogram.bounds) + 2
    assert all(
        histogram.bin_of(bound * 1000) == name
        for bound, name in zip(histogram.bounds, histogram.bins[:-1], strict=True)
    )


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
    assert RESOLUTIONS == {TWICE: 0, "1h": 1, "1d": 2, "all": 3, "1m": 4}


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (HISTOGRAMS[1:], "there is no histogram attempt, which the core counts"),
        ((*HISTOGRAMS, replace(FIRST_DIAL, name="other")), "the core counts no histogram other"),
        ((replace(FIRST_DIAL, bounds=(5, 7)), *HISTOGRAMS[1:]), "there is no column attempt_7"),
    ],
)
def test_tables_are_not_made_where_the_core_counts_other_histograms(monkeypatch, declared, says):
    by_core = pytest.importorskip("callfunnel.streams.by_core")
    monkeypatch.setattr(by_core, "HISTOGRAMS", declared)
    fold = Fold(15_000, 600_000, 1_000, "UTC", "murmur2", resolutions())
    with pytest.raises(ValueError, match=says):
        by_core.CoreTables(fold, Decoder(Limits()))
