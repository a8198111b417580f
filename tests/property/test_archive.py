"""State that ends: what a partition keeps no more still counts once, however records are cut into batches."""

from collections import Counter
from itertools import chain

from held import restore
from hypothesis import given
from hypothesis import strategies as st
from msgspec.json import encode
from msgspec.structs import replace

from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.streams import oracle
from callfunnel.streams.engine import Partition
from callfunnel.streams.log import unpack
from callfunnel.streams.panes import resolutions
from property.strategies import batches, deliveries, event_sets
from property.test_derivation import parts, write
from property.test_fold import FOLD

KEPT = {"minute_hours": 6, "hour_days": 1, "day_days": 1}
KEPT_DAYS = 2
"""Hours are kept for one day, and end within a day."""
ZONES = ("Europe/Berlin", "UTC", "Asia/Kolkata")
DECODER = Decoder(Limits())


def fold_in(timezone, hangup_ms=15_000):
    return replace(
        FOLD, timezone=timezone, hangup_ms=hangup_ms, resolutions=resolutions(*KEPT.values()), event_days=1
    )


def taken_over(tables, fold, changelog):
    state = Partition(0, 1, fold, DECODER, tables)
    restore(state, changelog["funnel"], changelog["leads"])
    return state


def fold_batch(state, events, changelog):
    values = [encode(event) for event in events]
    end = (state.offset or 0) + len(values)
    write(state.apply(values, [None] * len(values), [-1] * len(values), end), changelog)


def totals(state):
    """The rows, and in those of all time what archived leads add."""
    rows = {key: Counter(columns) for key, columns in state.tables.rows().items()}
    for (_, *key), columns in state.base.rows().items():
        rows.setdefault(("all", *key), Counter()).update(columns)
    return rows


@st.composite
def batched_deliveries(draw):
    return draw(batches(draw(deliveries(draw(event_sets())))))


def expected(batches, timezone):
    counted = oracle.as_they_count(chain(*batches), kept_days=KEPT_DAYS, timezone=timezone)
    return oracle.tables(counted, timezone=timezone, **KEPT)


@given(batched_deliveries(), st.sampled_from(ZONES), st.booleans())
def test_archived_leads_and_the_others_are_those_of_all_events_that_count(tables, batches, zone, restarts):
    changelog = {"funnel": {}, "leads": {}}
    state = Partition(0, 1, fold_in(zone), DECODER, tables)
    for batch in batches:
        fold_batch(state, batch, changelog)
        if restarts:
            state = taken_over(tables, fold_in(zone), changelog)
    again = taken_over(tables, fold_in(zone), changelog)
    for one in (state, again):
        assert oracle.differences(expected(batches, zone), totals(one)) == []


@given(batched_deliveries(), st.sampled_from(ZONES))
def test_no_log_is_kept_of_a_lead_of_which_nothing_happened_since_the_horizon(tables, batches, zone):
    changelog = {"funnel": {}, "leads": {}}
    state = Partition(0, 1, fold_in(zone), DECODER, tables)
    for batch in batches:
        fold_batch(state, batch, changelog)
    kept = [unpack(log)[-1].at_ms for log in state.tables.logs().values()]
    assert all(newest_ms >= state.written.horizon_ms for newest_ms in kept)
    assert state.tables.logs().keys() == changelog["leads"].keys() - {b"\0position"}


@given(batched_deliveries(), st.sampled_from(ZONES), st.sampled_from((15_000, 5_000)))
def test_a_derivation_leaves_what_is_archived_as_it_is(tables, batches, zone, hangup_ms):
    if not batches:
        return
    changelog = {"funnel": {}, "leads": {}}
    before = Partition(0, 1, fold_in("UTC"), DECODER, tables)
    for batch in batches:
        fold_batch(before, batch, changelog)
    state = taken_over(tables, fold_in(zone, hangup_ms), changelog)
    for part in parts(state, 5):
        write(part, changelog)
    again = taken_over(tables, fold_in(zone, hangup_ms), changelog)
    for one in (state, again):
        assert one.base.rows() == before.base.rows()
        assert one.tables.logs() == before.tables.logs()
        logs = list(map(unpack, one.tables.logs().values()))
        live = oracle.tables_of(logs, hangup_ms=hangup_ms, timezone=zone, **KEPT)
        assert oracle.differences(live, one.tables.rows()) == []
