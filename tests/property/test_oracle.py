"""What must hold of the oracle for any input: the identities by which the numbers reconcile."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from callfunnel.schemas.events import STAGES, Dial, Event, Retracted
from callfunnel.streams.definition import ADJUSTED, CREATED, Unit, column_of, live_of, taken_back, units
from callfunnel.streams.log import entry_of, in_force, joined
from callfunnel.streams.measures import COLUMNS, CORRECTIONS, RETRACTED
from callfunnel.streams.oracle import (
    Tables,
    differences,
    lost_and_doubled,
    partitioned,
    stage_summary,
    tables,
    total,
)
from property.strategies import deliveries, event_sets, keep_everything, settings


def only_all_time(rows: Tables) -> Tables:
    return {key: columns for key, columns in rows.items() if key[0] == "all"}


def live(events: list[Event]) -> list[Event]:
    """The events that facts look at."""
    logs: dict[str, set] = {}
    for event in events:
        logs.setdefault(event.lead_id, set()).add(entry_of(event))
    of_leads = {lead: joined((), log) for lead, log in logs.items()}
    held = {lead: in_force(log) for lead, log in of_leads.items()}
    found = {lead: set(live_of(held[lead], taken_back(log, held[lead]))) for lead, log in of_leads.items()}
    return [event for event in events if entry_of(event) in found[event.lead_id]]


def units_of(events: list[Event]) -> list[Unit]:
    by_lead: dict[str, set] = {}
    for event in live(events):
        by_lead.setdefault(event.lead_id, set()).add(entry_of(event))
    return [unit for entries in by_lead.values() for unit in units(joined((), entries))]


GROSS = {*RETRACTED, *RETRACTED.values(), *(name for name in COLUMNS if name.startswith(CORRECTIONS))}


@given(st.data(), event_sets(), settings)
def test_what_is_taken_back_counts_as_if_it_had_never_been_sent(
    data: st.DataObject, events: list[Event], chosen: dict
) -> None:
    able = [event for event in events if not isinstance(event, Retracted)]
    if not able:
        return
    target = data.draw(st.sampled_from(able))
    at_ms = target.at_ms + data.draw(st.sampled_from((-1, 0, 1, 10**9)))
    ids = {"event_id": "back", "occurred_at": at_ms, "lead_id": target.lead_id}
    back = Retracted(**ids, retracts=target.event_id)
    last_ms = max(event.at_ms for event in (*events, back))
    later = Dial(event_id="later", occurred_at=last_ms, lead_id="another")
    never = [
        event
        for event in events
        if (event.lead_id, event.event_id) != (target.lead_id, target.event_id)
        or isinstance(event, Retracted)
    ]

    def facts(world: list[Event]) -> Tables:
        rows = tables(world, **chosen)
        kept = {key: {name: n for name, n in row.items() if name not in GROSS} for key, row in rows.items()}
        return {key: row for key, row in kept.items() if row}

    assert facts([*events, back, later]) == facts([*never, later])


@given(event_sets(), settings)
def test_what_is_not_in_force_is_taken_off(events: list[Event], chosen: dict) -> None:
    """Activity less what is taken back is the activity of the events that facts look at."""
    sums: Counter[str] = Counter()
    for columns in only_all_time(tables(events, **chosen)).values():
        sums.update(columns)
    alive = {(event.lead_id, entry_of(event)) for event in live(events)}
    expected = Counter(column_of(entry) for _, entry in alive)
    assert {name: sums[name] - sums[back] for name, back in RETRACTED.items()} == {
        name: expected[name] for name in RETRACTED
    }


@given(st.data(), settings)
def test_any_order_and_any_duplication_give_the_same_tables(data: st.DataObject, chosen: dict) -> None:
    events = data.draw(event_sets())
    assert tables(data.draw(deliveries(events)), **chosen) == tables(events, **chosen)


@given(event_sets(), settings)
def test_every_event_counts_once_in_every_rollup(events: list[Event], chosen: dict) -> None:
    counted: Counter[str] = Counter()
    counting = {*RETRACTED, CORRECTIONS}
    for (resolution, _, rollup, *_), columns in tables(events, **{**chosen, **keep_everything}).items():
        for column, n in columns.items():
            if resolution == "1d" and column in counting:
                counted[rollup] += n
    entries = {(event.lead_id, entry_of(event)) for event in events}
    seen = sum(column_of(entry) is not None for _, entry in entries)
    assert counted == ({"campaign+source": seen, "team+agent": seen, "location": seen} if seen else {})


@given(event_sets(), settings)
def test_no_stage_has_more_leads_than_the_one_before(events: list[Event], chosen: dict) -> None:
    leads = [numbers["leads"] for numbers in stage_summary(tables(events, **chosen)).values()]
    assert len(leads) == len(STAGES)
    assert leads == sorted(leads, reverse=True)


@given(event_sets(), settings)
def test_every_created_lead_is_awaited_or_was_dialed_before(events: list[Event], chosen: dict) -> None:
    sums: Counter[str] = Counter()
    for columns in only_all_time(tables(events, **chosen)).values():
        sums.update(columns)
    created = sum(
        unit.is_recycled or any(entry.rank == CREATED for entry in unit.entries) for unit in units_of(events)
    )
    bins = [n for name, n in sums.items() if name.startswith("attempt_") and name != "attempt_ms"]
    assert sums["awaited"] + sums["dialed_before_creation"] == created
    assert sum(bins) + sums["uncalled"] <= sums["awaited"]


@given(event_sets())
def test_each_event_is_of_one_unit_and_those_of_a_lead_follow_each_other(events: list[Event]) -> None:
    for unit in units_of(events):
        assert unit.entries
        times = [entry.at_ms for entry in unit.entries]
        assert times == sorted(times)
    alive = {(event.lead_id, entry_of(event)) for event in live(events) if event.rank != ADJUSTED}
    assert sum(len(unit.entries) for unit in units_of(events)) == len(alive)


@given(event_sets(), settings)
def test_coarser_rows_are_the_sums_of_the_finer(events: list[Event], chosen: dict) -> None:
    rows = tables(events, **{**chosen, **keep_everything})
    sums: dict[str, dict[tuple[str, ...], Counter[str]]] = {"1m": {}, "1h": {}, "1d": {}, "all": {}}
    for (resolution, _, *rest), columns in rows.items():
        sums[resolution].setdefault(tuple(rest), Counter()).update(columns)
    assert sums["1m"] == sums["1h"] == sums["1d"]
    assert sums["all"] == {row: columns for row, columns in sums["1d"].items() if row[0] == "campaign+source"}


@given(event_sets(), settings)
def test_what_is_kept_decides_which_rows_there_are_but_never_what_they_say(
    events: list[Event], chosen: dict
) -> None:
    held, everything = tables(events, **chosen), tables(events, **{**chosen, **keep_everything})
    assert held.items() <= everything.items()
    assert only_all_time(held) == only_all_time(everything)


@given(event_sets(), settings)
def test_no_row_is_empty_and_no_column_is_zero_or_less(events: list[Event], chosen: dict) -> None:
    assert all(columns and min(columns.values()) > 0 for columns in tables(events, **chosen).values())


@given(event_sets(), settings)
def test_leads_do_not_touch_each_other(events: list[Event], chosen: dict) -> None:
    chosen = {**chosen, **keep_everything}
    one_each = partitioned(events, lambda lead_id: ord(lead_id), **chosen)
    assert total(one_each) == tables(events, **chosen)


@given(event_sets(), event_sets())
def test_the_comparison_is_silent_exactly_when_the_tables_are_equal(a: list[Event], b: list[Event]) -> None:
    one, other = tables(a), tables(b)
    lost, doubled = lost_and_doubled(one, other)
    assert (differences(one, other) == []) == (one == other) == (lost + doubled == 0)
    assert lost_and_doubled(other, one) == (doubled, lost)
