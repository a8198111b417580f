"""The core keeps spans as rows come and go; the other kind adds up anew what it is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callfunnel.agents.choice import not_built, sums_for
from callfunnel.streams.panes import TWICE
from callfunnel.streams.rows import encode_base_key, encode_columns, encode_key
from callfunnel.streams.sums import NotARow, PlainSums

PANES = (0, 60, 120, 180)
COLUMNS = ("events_dialed", "uncalled", "attempt_60")
FIGURES = (("uncalled",), ("events_dialed", "attempt_60"))
DIMENSIONS = {
    "campaign+source": [("spring", "web"), ("spring", "mail"), ("fall", "ü")],
    "location": [("Köln",)],
}

rollups = st.sampled_from(sorted(DIMENSIONS))
numbers = st.integers(0, 1)


@st.composite
def keys(draw):
    rollup = draw(rollups)
    dimensions = draw(st.sampled_from(DIMENSIONS[rollup]))
    if draw(st.integers(0, 3)) == 0:
        return encode_base_key(draw(st.sampled_from(("fold", "other"))), rollup, dimensions)
    resolution = draw(st.sampled_from(("1m", TWICE, "1h", "all")))
    return encode_key((resolution, draw(st.sampled_from(PANES)), rollup, *dimensions), draw(numbers))


values = st.none() | st.dictionaries(st.sampled_from(COLUMNS), st.integers(1, 1 << 40), min_size=1).map(
    encode_columns
)
applied = st.tuples(st.just("apply"), numbers, st.dictionaries(keys(), values, max_size=4))
shown = st.tuples(st.just("show"), numbers, numbers)
spans = st.tuples(st.sampled_from(PANES), st.sampled_from((0, 1, 60, 61, 300))).map(
    lambda at: (at[0], at[0] + at[1])
)
asked = st.tuples(
    st.just("ask"), st.sampled_from("ab"), rollups, st.sampled_from(("1m", "1h", "all", "base")), spans
)


def answers(sums, name, rollup, resolution, span):
    table = f"{name} {rollup} {resolution}", rollup, resolution
    wanted = set(DIMENSIONS[rollup])
    first = sums.first(rollup, resolution, "uncalled", wanted) if resolution != "base" else {}
    depths = (0, *range(1, len(DIMENSIONS[rollup][0])), None)
    totals = [sums.total(*table, *span, depth) for depth in depths]
    of_figures = (f"figures {table[0]}", *table[1:], *span, FIGURES)
    figures = [sums.figures(*of_figures, depth) for depth in depths]
    return totals, figures, sums.seen(*table, *span), first, len(sums)


@pytest.mark.skipif(bool(not_built()), reason="the core is not built")
@given(st.lists(applied | applied | shown | asked | asked, max_size=30))
def test_both_kinds_give_the_same_whatever_came_and_wherever_a_span_was_before(steps):
    plain, core = PlainSums(), sums_for("core")()
    before = []
    for what, *arguments in steps:
        if what == "ask":
            answer = answers(plain, *arguments)
            assert answers(core, *arguments) == answer
            given_now = core.total(f"kept {arguments[1:3]}", *arguments[1:3], *arguments[3])
            before.append((given_now, dict(given_now)))
        else:
            for sums in (plain, core):
                if what == "apply":
                    sums.apply(arguments[0], arguments[1].items())
                else:
                    sums.show(*arguments)
    assert all(kept == as_it_was for kept, as_it_was in before)  # what was given does not change


def rows_of(places, panes, n):
    return {
        encode_key(("1m", pane, "campaign+source", f"c{place % 7}", f"s{place}")): encode_columns(
            {"events_dialed": n, "leads_won": place % 5 + 1, "attempt_60": pane + n, "attempt_ms": n << 33}
        )
        for place in range(places)
        for pane in panes
    }


@pytest.mark.skipif(bool(not_built()), reason="the core is not built")
def test_both_kinds_give_the_same_of_many_rows_at_once_and_up_to_one_that_is_none():
    plain, core = PlainSums(), sums_for("core")()
    at = "a span", "campaign+source", "1m", 60, 181
    for rows in (rows_of(900, PANES, 1), rows_of(800, PANES[1:], 2), dict.fromkeys(rows_of(300, PANES, 0))):
        for sums in (plain, core):
            sums.apply(0, rows.items())
        assert [core.total(*at, depth) for depth in (0, 1, 2)] == [
            plain.total(*at, depth) for depth in (0, 1, 2)
        ]
    for sums in (plain, core):
        with pytest.raises(NotARow):
            sums.apply(0, [*rows_of(30, PANES, 9).items(), (b"none", b""), *rows_of(40, PANES, 9).items()])
    assert core.total(*at) == plain.total(*at)
    assert len(core) == len(plain)
