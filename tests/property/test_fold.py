"""The fast fold against the oracle: the same tables for any order, duplication and batch boundaries."""

from held import restore
from hypothesis import given
from hypothesis import strategies as st
from msgspec.json import encode
from msgspec.structs import replace

from callfunnel.agents.kafka.changelog import tables_of
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.streams import oracle
from callfunnel.streams.by_definition import DefinedTables
from callfunnel.streams.engine import Partition
from callfunnel.streams.fold import Fold
from callfunnel.streams.panes import resolutions
from callfunnel.streams.tables import Tables
from property.strategies import batches, deliveries, event_sets

ZONE = "Europe/Berlin"
KEPT = {"minute_hours": 6, "hour_days": 3, "day_days": 400}
FOLD = Fold(
    hangup_ms=15_000,
    late_ms=600_000,
    lead_events=1000,
    timezone=ZONE,
    partitioner="trust",
    resolutions=resolutions(*KEPT.values()),
)
DECODER = Decoder(Limits(clock="event"))


def partition(tables: type[Tables]) -> Partition:
    return Partition(0, 1, FOLD, DECODER, tables)


def feed(state: Partition, events, changelog):
    """Apply the events as one batch; keep what a changelog would hold."""
    if not events:
        return None
    values = [encode(event) for event in events]
    start = state.offset or 0
    effects = state.apply(values, [None] * len(values), [-1] * len(values), start + len(values))
    for table, changes in (("funnel", effects.funnel), ("leads", effects.leads)):
        for key, value in changes:
            if value is None:
                changelog[table].pop(key, None)
            else:
                changelog[table][key] = value
    return effects


def rows_of(changelog):
    return tables_of(changelog["funnel"]).rows


@st.composite
def batched_deliveries(draw):
    """The events of a set; and the same shuffled, some of them more than once, cut into batches."""
    events = draw(event_sets())
    return events, draw(batches(draw(deliveries(events))))


@given(batched_deliveries())
def test_the_tables_equal_the_oracle_for_any_order_duplication_and_batches(tables, delivery):
    events, batches = delivery
    state = partition(tables)
    changelog = {"funnel": {}, "leads": {}}
    for batch in batches:
        feed(state, batch, changelog)
    expected = oracle.tables(events, timezone=ZONE, **KEPT)
    assert oracle.differences(expected, state.tables.rows()) == []
    assert oracle.differences(expected, rows_of(changelog)) == []


@given(batched_deliveries())
def test_a_restart_between_any_two_batches_changes_nothing(tables, delivery):
    events, batches = delivery
    changelog = {"funnel": {}, "leads": {}}
    for batch in batches:
        state = partition(tables)
        restore(state, changelog["funnel"], changelog["leads"])
        feed(state, batch, changelog)
    expected = oracle.tables(events, timezone=ZONE, **KEPT)
    assert oracle.differences(expected, rows_of(changelog)) == []


@given(batched_deliveries())
def test_the_core_does_the_same_to_the_byte_and_either_goes_on_where_the_other_ended(tables, delivery):
    _, batches = delivery
    changelog = {"funnel": {}, "leads": {}}
    for number, batch in enumerate(batches):
        defined, other = partition(DefinedTables), partition(tables)
        for state in (defined, other):
            restore(state, changelog["funnel"], changelog["leads"])
        copy = {name: dict(rows) for name, rows in changelog.items()}
        expected, effects = feed(defined, batch, copy), feed(other, batch, changelog)
        if effects is not None:
            assert effects.leads == expected.leads
            assert replace(effects, funnel=[], leads=[]) == replace(expected, funnel=[], leads=[])
        assert changelog["funnel"] == copy["funnel"]
        changelog = copy if number % 2 else changelog
