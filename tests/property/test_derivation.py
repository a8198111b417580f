"""Rows follow from logs: under another fold they are the oracle's, wherever a derivation was broken off."""

from held import restore
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from callfunnel.streams import oracle
from callfunnel.streams.engine import Partition
from callfunnel.streams.panes import resolutions
from callfunnel.streams.rows import POSITION_KEY, decode_position, generation_of
from property.strategies import batches, event_sets
from property.test_fold import DECODER, FOLD, feed, rows_of

KEPT = {"minute_hours": 6, "hour_days": 3, "day_days": 400}


@st.composite
def other_settings(draw):
    """What the oracle takes: a fold that may differ in everything that rows follow from."""
    return {
        "hangup_ms": draw(st.sampled_from((15_000, 5_000, 0, 3_600_000))),
        "timezone": draw(st.sampled_from(("Europe/Berlin", "UTC", "Asia/Kolkata"))),
        "minute_hours": draw(st.sampled_from((1, 6, 24))),
        "hour_days": draw(st.sampled_from((1, 3))),
        "day_days": draw(st.sampled_from((1, 400))),
    }


def fold_of(hangup_ms, timezone, **kept):
    return replace(FOLD, hangup_ms=hangup_ms, timezone=timezone, resolutions=resolutions(*kept.values()))


def take_over(tables, fold, changelog):
    state = Partition(0, 1, fold, DECODER, tables)
    restore(state, changelog["funnel"], changelog["leads"])
    return state


def write(effects, changelog):
    for table, changes in (("funnel", effects.funnel), ("leads", effects.leads)):
        for key, value in changes:
            changelog[table].pop(key, None)
            if value is not None:
                changelog[table][key] = value


def parts(state, most):
    """What is written one after the other."""
    while (part := state.sweep(most)) is not None:
        yield part
    if state.is_of_another_fold:
        while state.derive(most):
            pass
        yield from state.derived(most)
        yield state.turn()
    while (part := state.sweep(most)) is not None:
        yield part


def in_force(changelog):
    """The rows of the generation that the position names, and how many others there are."""
    generation = decode_position(changelog["funnel"][POSITION_KEY]).generation
    of_it = {
        key: value
        for key, value in changelog["funnel"].items()
        if key == POSITION_KEY or generation_of(key) == generation
    }
    return {"funnel": of_it}, len(changelog["funnel"]) - len(of_it)


@given(st.data(), event_sets(), other_settings())
def test_derived_rows_are_those_of_all_events_under_the_new_settings(tables, data, events, settings):
    changelog = {"funnel": {}, "leads": {}}
    before = Partition(0, 1, FOLD, DECODER, tables)
    for batch in data.draw(batches(events)):
        feed(before, batch, changelog)
    if not events:
        return
    fold, most = fold_of(**settings), data.draw(st.integers(1, 9))
    old = oracle.tables(events, timezone=FOLD.timezone, **KEPT)
    new = oracle.tables(events, **settings)

    for _ in range(data.draw(st.integers(0, 3))):  # each time it dies somewhere in the middle
        state, written = take_over(tables, fold, changelog), data.draw(st.integers(0, 30))
        for _, part in zip(range(written), parts(state, most), strict=False):
            write(part, changelog)
        held, _ = in_force(changelog)
        has_turned = decode_position(changelog["funnel"][POSITION_KEY]).fold == fold.id
        assert oracle.differences(new if has_turned else old, rows_of(held)) == []

    state = take_over(tables, fold, changelog)
    for part in parts(state, most):
        write(part, changelog)
    held, others = in_force(changelog)
    assert (oracle.differences(new, rows_of(held)), others) == ([], 0)
    assert oracle.differences(new, state.tables.rows()) == []
    assert state.tables.logs() == {
        key: value for key, value in changelog["leads"].items() if not key.startswith(b"\0")
    }


@given(st.data(), event_sets(), other_settings())
def test_after_a_derivation_events_count_as_if_it_had_always_been_so(tables, data, events, settings):
    if len(events) < 2:
        return
    changelog = {"funnel": {}, "leads": {}}
    half = len(events) // 2
    feed(Partition(0, 1, FOLD, DECODER, tables), events[:half], changelog)
    fold = fold_of(**settings)
    state = take_over(tables, fold, changelog)
    for part in parts(state, 5):
        write(part, changelog)
    feed(state, events[half:], changelog)
    expected = oracle.tables(events, **settings)
    held, _ = in_force(changelog)
    assert oracle.differences(expected, rows_of(held)) == []
    again = take_over(tables, fold, changelog)
    assert not again.is_of_another_fold
    assert oracle.differences(expected, again.tables.rows()) == []
