"""Every definition of `streams/README.md`, with the numbers worked out by hand."""

from collections import Counter
from datetime import datetime, timedelta, timezone

import pytest

from callfunnel.schemas.events import (
    CallEnded,
    Connect,
    Dial,
    Disqualified,
    DmReached,
    Event,
    LeadCreated,
    Lost,
    Qualified,
    Won,
)
from callfunnel.streams.log import fingerprint
from callfunnel.streams.oracle import (
    Tables,
    differences,
    lost_and_doubled,
    partitioned,
    stage_summary,
    tables,
    total,
)

TEN = 1_242_122_400
"""2009-05-12T10:00:00Z"""

MIDNIGHT = 1_242_086_400
"""2009-05-12T00:00:00Z"""

_ids = iter(range(10**9))


def event(kind: type, seconds: float, lead: str = "l1", **fields: object) -> Event:
    """An event so many seconds after ten o'clock; its id grows with every call unless one is given."""
    fields = {"event_id": f"e{next(_ids):09}", **fields}
    return kind(occurred_at=TEN * 1000 + round(seconds * 1000), lead_id=lead, **fields)


def ever(rows: Tables, rollup: str = "campaign+source") -> dict[tuple[str, ...], dict[str, int]]:
    """The columns of a rollup by dimension values, of all days together."""
    sums: dict[tuple[str, ...], Counter[str]] = {}
    for key, columns in rows.items():
        if key[0] == "1d" and key[2] == rollup:
            sums.setdefault(key[3:], Counter()).update(columns)
    return {dimensions: dict(columns) for dimensions, columns in sums.items()}


def only(rows: Tables, prefix: str, rollup: str = "campaign+source") -> dict[str, int]:
    """The columns that start so, where all events are under the same dimension values."""
    (columns,) = ever(rows, rollup).values()
    return {name: n for name, n in columns.items() if name.startswith(prefix)}


# ── stages ────────────────────────────────────────────────────────────────────────────────────────


def test_a_lead_that_climbs_every_step_is_counted_at_each_and_nothing_is_implied():
    rows = tables(
        [
            event(LeadCreated, 0),
            event(Dial, 60, call_id="c"),
            event(Connect, 75, call_id="c"),
            event(DmReached, 90, call_id="c"),
            event(Qualified, 200, call_id="c"),
            event(Won, 300, call_id="c"),
            event(CallEnded, 310, call_id="c", talk_seconds=235.0, hangup_by="agent"),
        ]
    )
    stages = ("created", "dialed", "connected", "reached", "qualified", "won")
    assert only(rows, "events_") == {f"events_{stage}": 1 for stage in stages}
    assert only(rows, "leads_") == {f"leads_{stage}": 1 for stage in stages}
    assert only(rows, "attempt_") == {"attempt_60": 1, "attempt_ms": 60_000}
    assert only(rows, "connect_") == {"connect_120": 1, "connect_ms": 75_000}
    assert only(rows, "awaited") == {"awaited": 1}
    for nowhere in ("implied", "uncalled", "dialed_before", "dm_", "agent_", "machine_"):
        assert only(rows, nowhere) == {}


def test_no_events_make_no_rows():
    assert tables([]) == {}


def test_repeats_count_as_activity_but_the_lead_arrives_once():
    rows = tables([event(Dial, 0), event(Dial, 10), event(Dial, 20), event(Dial, 30, lead="l2")])
    assert only(rows, "events_") == {"events_dialed": 4}
    assert only(rows, "leads_") == {"leads_created": 2, "leads_dialed": 2}


@pytest.mark.parametrize(
    ("kind", "reached_stages"),
    [
        (LeadCreated, ["created"]),
        (Dial, ["created", "dialed"]),
        (Connect, ["created", "dialed", "connected"]),
        (DmReached, ["created", "dialed", "connected", "reached"]),
        (Qualified, ["created", "dialed", "connected", "reached", "qualified"]),
        (Won, ["created", "dialed", "connected", "reached", "qualified", "won"]),
    ],
)
def test_arriving_at_a_stage_implies_the_lower_ones(kind, reached_stages):
    rows = tables([event(kind, 0)])
    assert only(rows, "leads_") == {f"leads_{stage}": 1 for stage in reached_stages}
    assert only(rows, "implied") == ({"implied": len(reached_stages) - 1} if len(reached_stages) > 1 else {})
    assert only(rows, "events_") == {f"events_{reached_stages[-1]}": 1}


@pytest.mark.parametrize(
    ("kind", "column"), [(Disqualified, "events_disqualified"), (Lost, "events_lost"), (CallEnded, None)]
)
def test_events_without_a_stage_arrive_nowhere(kind, column):
    assert ever(tables([event(kind, 0)])) == ({("none", "none"): {column: 1}} if column else {})


def test_an_arrival_is_implied_by_an_earlier_higher_event_even_if_the_own_one_follows():
    rows = tables([event(Won, 0), event(Qualified, 60)])
    minute = {key[1]: columns for key, columns in rows.items() if key[0] == "1m" and key[2] == "location"}
    assert minute == {
        TEN: {
            "events_won": 1,
            "leads_created": 1,
            "leads_dialed": 1,
            "leads_connected": 1,
            "leads_reached": 1,
            "leads_qualified": 1,
            "leads_won": 1,
            "implied": 5,
        },
        TEN + 60: {"events_qualified": 1},
    }


def test_of_two_events_above_the_earlier_one_implies():
    rows = tables(
        [event(Won, 120, team="closers", agent="zoe"), event(Connect, 60, team="openers", agent="al")]
    )
    assert ever(rows, "team+agent") == {
        ("openers", "al"): {
            "events_connected": 1,
            "leads_created": 1,
            "leads_dialed": 1,
            "leads_connected": 1,
            "implied": 2,
        },
        ("closers", "zoe"): {
            "events_won": 1,
            "leads_reached": 1,
            "leads_qualified": 1,
            "leads_won": 1,
            "implied": 2,
        },
    }


def test_a_machines_answer_is_no_arrival_and_no_connect():
    rows = tables([event(Dial, 0), event(Connect, 9, answered_by="machine")])
    assert ever(rows) == {
        ("none", "none"): {
            "events_dialed": 1,
            "machine_answers": 1,
            "leads_created": 1,
            "leads_dialed": 1,
            "implied": 1,
        }
    }


# ── ties, duplicates, order ───────────────────────────────────────────────────────────────────────


def test_in_the_same_millisecond_the_lower_stage_comes_first_and_nothing_is_implied():
    rows = tables([event(kind, 0) for kind in (Won, Qualified, DmReached, Connect, Dial, LeadCreated)])
    assert only(rows, "implied") == {}


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (LeadCreated, Dial),
        (Dial, Connect),
        (Connect, DmReached),
        (DmReached, Qualified),
        (Qualified, Won),
        (Won, CallEnded),
        (CallEnded, Disqualified),
        (Disqualified, Lost),
    ],
)
def test_ties_break_by_the_place_in_the_catalogue_before_the_id(earlier, later):
    tied = [
        event(later, 0, event_id="a", location="wrong"),
        event(earlier, 0, event_id="b", location="right"),
    ]
    leads = [*tied, event(Dial, 1)]
    assert ever(tables(leads), "location")[("right",)]["leads_created"] == 1


def test_ties_of_the_same_type_break_by_the_fingerprint_of_the_id():
    first, second = sorted(("9", "10"), key=fingerprint)
    tied = [event(Dial, 0, event_id=second, agent="wrong"), event(Dial, 0, event_id=first, agent="right")]
    agents = ever(tables(tied), "team+agent")
    assert agents["none", "right"]["leads_dialed"] == 1
    assert agents["none", "wrong"] == {"events_dialed": 1}


def test_one_millisecond_decides_before_the_catalogue():
    rows = tables([event(LeadCreated, 0.001, location="later"), event(Dial, 0, location="earlier")])
    assert ever(rows, "location") == {
        ("earlier",): {"events_dialed": 1, "leads_created": 1, "leads_dialed": 1, "implied": 1},
        ("later",): {"events_created": 1},
    }


def test_a_duplicate_changes_nothing():
    once = [event(LeadCreated, 0, event_id="a"), event(Dial, 7, event_id="b")]
    twice = [*once, event(Dial, 7, event_id="b"), event(LeadCreated, 0, event_id="a")]
    assert tables(twice) == tables(once)
    assert only(tables(twice), "events_") == {"events_created": 1, "events_dialed": 1}


def test_the_same_id_on_another_lead_is_no_duplicate():
    rows = tables([event(Dial, 0, event_id="a", lead="l1"), event(Dial, 0, event_id="a", lead="l2")])
    assert only(rows, "events_") == {"events_dialed": 2}


def test_of_copies_that_differ_each_is_activity_and_the_earliest_alone_is_a_fact():
    copies = [event(Dial, 40 * 86_400, event_id="a", agent="bo"), event(Dial, 0, event_id="a", agent="ann")]
    agents = ever(tables(copies), "team+agent")
    assert (agents["none", "ann"]["events_dialed"], agents["none", "ann"]["leads_dialed"]) == (1, 1)
    assert agents["none", "bo"] == {"events_dialed": 1, "retracted_dialed": 1}
    assert ("1m", TEN, "location", "none") not in tables(copies), "each copy moves the watermark"


def test_one_id_may_serve_events_of_several_types():
    rows = tables([event(Dial, 0, event_id="a"), event(Won, 1, event_id="a")])
    assert only(rows, "events_") == {"events_dialed": 1, "events_won": 1}


def test_an_instant_is_the_same_in_every_spelling_and_rounded_down_to_the_millisecond():
    ten_in_berlin = datetime(2009, 5, 12, 12, 0, 0, 999, tzinfo=timezone(timedelta(hours=2)))
    dial = Dial(event_id="b", lead_id="l1", occurred_at=ten_in_berlin)
    rows = tables([event(LeadCreated, 0, event_id="a"), dial])
    assert only(rows, "attempt_") == {"attempt_5": 1}
    assert only(rows, "implied") == {}


# ── dimensions ────────────────────────────────────────────────────────────────────────────────────


def test_a_leads_dimensions_each_come_from_the_first_event_that_carries_it():
    rows = tables(
        [
            event(Dial, 30, campaign="autumn", location="Bonn"),
            event(LeadCreated, 0, source="web"),
            event(CallEnded, 20, campaign="spring", source="phone"),
        ]
    )
    assert ever(rows) == {
        ("spring", "web"): {
            "leads_created": 1,
            "leads_dialed": 1,
            "awaited": 1,
            "attempt_30": 1,
            "attempt_ms": 30_000,
        },
        ("none", "web"): {"events_created": 1},
        ("autumn", "none"): {"events_dialed": 1},
    }
    assert ever(rows, "location") == {
        ("Bonn",): {"events_dialed": 1, "leads_created": 1, "leads_dialed": 1},
        ("none",): {"events_created": 1},
    }


def test_team_and_agent_are_those_of_the_arriving_event_never_the_leads():
    rows = tables(
        [event(LeadCreated, 0, team="intake", agent="ida"), event(Dial, 5, agent="bo"), event(Connect, 9)]
    )
    assert ever(rows, "team+agent") == {
        ("intake", "ida"): {"events_created": 1, "leads_created": 1},
        ("none", "bo"): {"events_dialed": 1, "leads_dialed": 1},
        ("none", "none"): {"events_connected": 1, "leads_connected": 1},
    }


# ── hang-ups ──────────────────────────────────────────────────────────────────────────────────────


def a_call(reach: float, end: float, **fields: object) -> list[Event]:
    return [event(DmReached, reach, call_id="c", agent="ann"), event(CallEnded, end, call_id="c", **fields)]


VOID = {
    "events_reached": 1,
    "dm_hangups": 1,
    "leads_created": 1,
    "leads_dialed": 1,
    "leads_connected": 1,
    "implied": 3,
}
STANDS = {
    "events_reached": 1,
    "leads_created": 1,
    "leads_dialed": 1,
    "leads_connected": 1,
    "leads_reached": 1,
    "implied": 3,
}
AGENT = STANDS | {"agent_hangups": 1}


@pytest.mark.parametrize(
    ("call", "columns"),
    [
        pytest.param(a_call(0, 14.999), VOID, id="just under the threshold"),
        pytest.param(a_call(0, 15), STANDS, id="at the threshold"),
        pytest.param(a_call(0, 0), VOID, id="in the same millisecond"),
        pytest.param(a_call(1, 0), STANDS, id="the end before the reach proves nothing"),
        pytest.param(a_call(1, 0, talk_seconds=3.0), VOID, id="unless little was said"),
        pytest.param(a_call(0, 600, talk_seconds=14.9), VOID, id="little talk, however late the end"),
        pytest.param(a_call(0, 600, talk_seconds=0.0), VOID, id="no talk at all"),
        pytest.param(a_call(0, 600, talk_seconds=15.0), STANDS, id="talk at the threshold"),
        pytest.param(a_call(0, 5, talk_seconds=100.0), VOID, id="either measure is enough"),
        pytest.param(a_call(0, 5, hangup_by="customer"), VOID, id="by the customer"),
        pytest.param(a_call(0, 5, hangup_by="system"), VOID, id="by the system"),
        pytest.param(a_call(0, 5, hangup_by="agent"), AGENT, id="by the agent"),
        pytest.param(a_call(0, 15, hangup_by="agent"), STANDS, id="by the agent, but not at once"),
        pytest.param(a_call(0, 5)[:1], STANDS, id="a call that has not ended"),
    ],
)
def test_a_decision_maker_who_hangs_up_at_once_is_not_reached(call, columns):
    assert ever(tables(call), "team+agent") == {("none", "ann"): columns}


def test_the_threshold_is_a_setting():
    assert "dm_hangups" not in only(tables(a_call(0, 14), hangup_ms=10_000), "")
    assert only(tables(a_call(0, 9.999), hangup_ms=10_000), "dm_") == {"dm_hangups": 1}


@pytest.mark.parametrize("verdict", [Qualified, Disqualified, Won])
def test_a_verdict_of_the_call_gives_the_reach_back(verdict):
    rows = tables([*a_call(0, 5), event(verdict, 9_000, call_id="c")])
    assert only(rows, "dm_") == {}
    assert only(rows, "leads_reached") == {"leads_reached": 1}


@pytest.mark.parametrize(
    "no_verdict",
    [
        pytest.param(event(Lost, 9, call_id="c"), id="lost is none"),
        pytest.param(event(Disqualified, 9, call_id="other"), id="of another call"),
        pytest.param(event(Disqualified, 9), id="of no call"),
        pytest.param(event(Disqualified, 9, call_id="c", lead="l2"), id="of another lead"),
    ],
)
def test_nothing_else_gives_it_back(no_verdict):
    rows = tables([*a_call(0, 5), no_verdict])
    assert only(rows, "dm_") == {"dm_hangups": 1}
    assert only(rows, "leads_reached") == {}


def test_a_void_reach_still_proves_a_pick_up_at_its_own_moment():
    rows = tables([event(Connect, 60, agent="bo"), *a_call(0, 5)])
    assert ever(rows, "team+agent") == {
        ("none", "ann"): VOID,
        ("none", "bo"): {"events_connected": 1},
    }


def test_a_lead_whose_first_reach_is_void_is_reached_by_the_next():
    rows = tables([*a_call(0, 5), event(DmReached, 3_600, call_id="d", agent="bo")])
    assert ever(rows, "team+agent") == {
        ("none", "ann"): VOID,
        ("none", "bo"): {"events_reached": 1, "leads_reached": 1},
    }


def test_a_qualified_lead_is_reached_by_implication_when_its_reach_is_void():
    rows = tables([*a_call(0, 5), event(Qualified, 60, agent="bo")])
    assert ever(rows, "team+agent") == {
        ("none", "ann"): VOID,
        ("none", "bo"): {"events_qualified": 1, "leads_reached": 1, "leads_qualified": 1, "implied": 1},
    }


def test_a_call_has_one_hang_up_at_its_earliest_reach_and_all_its_reaches_are_void():
    second = event(DmReached, 3, call_id="c", agent="bo")
    rows = tables([second, *a_call(0, 5)])
    assert ever(rows, "team+agent") == {
        ("none", "ann"): VOID,
        ("none", "bo"): {"events_reached": 1, "reach_repeated": 1},
    }


def test_the_last_end_decides_who_hung_up_and_the_longest_talk_how_long_it_took():
    last_end = event(CallEnded, 6, call_id="c", hangup_by="agent")
    assert ever(tables([*a_call(0, 5, hangup_by="customer"), last_end]), "team+agent") == {
        ("none", "ann"): AGENT
    }
    long_talk = event(CallEnded, 20, call_id="c", talk_seconds=20.0)
    assert ever(tables([*a_call(0, 21, talk_seconds=2.0), long_talk]), "team+agent") == {
        ("none", "ann"): STANDS
    }


def test_events_without_a_call_id_are_of_no_call():
    rows = tables([event(DmReached, 0), event(CallEnded, 5)])
    assert only(rows, "dm_") == {}
    assert only(rows, "leads_reached") == {"leads_reached": 1}


def test_the_same_call_id_on_another_lead_is_another_call():
    rows = tables([event(DmReached, 0, call_id="c"), event(CallEnded, 5, call_id="c", lead="l2")])
    assert only(rows, "dm_") == {}


def test_a_hang_up_is_under_the_dimensions_of_the_reach_at_its_minute():
    rows = tables(
        [
            event(LeadCreated, -600, campaign="spring", source="web", location="Bonn"),
            event(DmReached, 59, call_id="c", campaign="autumn"),
            event(CallEnded, 61, call_id="c", campaign="winter", location="Ulm"),
        ]
    )
    hangups = {key for key, columns in rows.items() if columns.get("dm_hangups")}
    assert hangups == {("all", 0, "campaign+source", "autumn", "none")} | {
        (resolution, pane, rollup, *dimensions)
        for resolution, pane in (("1m", TEN), ("1h", TEN), ("1d", MIDNIGHT))
        for rollup, *dimensions in (
            ("campaign+source", "autumn", "none"),
            ("team+agent", "none", "none"),
            ("location", "none"),
        )
    }


# ── response clocks ───────────────────────────────────────────────────────────────────────────────

RESPONSE = ("awaited", "attempt_", "connect_", "uncalled", "dialed_before_creation")


@pytest.mark.parametrize(
    ("events", "columns"),
    [
        pytest.param([event(LeadCreated, 0)], {"awaited": 1, "uncalled": 1}, id="never called"),
        pytest.param([event(Dial, 0), event(Connect, 5)], {}, id="never created"),
        pytest.param(
            [event(LeadCreated, 0), event(Dial, 299), event(Dial, 20)],
            {"awaited": 1, "attempt_30": 1, "attempt_ms": 20_000},
            id="the first dial stops the clock",
        ),
        pytest.param(
            [event(LeadCreated, 100), event(LeadCreated, 0), event(Dial, 200)],
            {"awaited": 1, "attempt_240": 1, "attempt_ms": 200_000},
            id="the first creation starts it",
        ),
        pytest.param(
            [event(LeadCreated, 0), event(Dial, 0)], {"awaited": 1, "attempt_5": 1}, id="a dial at once"
        ),
        pytest.param(
            [event(LeadCreated, 0), event(Dial, -0.001), event(Dial, 60), event(Connect, 70)],
            {"dialed_before_creation": 1},
            id="dialed before creation",
        ),
        pytest.param(
            [event(LeadCreated, 0), event(Dial, 10), event(Connect, 400)],
            {"awaited": 1, "attempt_15": 1, "attempt_ms": 10_000, "connect_600": 1, "connect_ms": 400_000},
            id="both clocks",
        ),
        pytest.param(
            [event(LeadCreated, 0), event(Dial, 10), event(Connect, -5), event(Connect, 20)],
            {"awaited": 1, "attempt_15": 1, "attempt_ms": 10_000},
            id="the first connect before creation",
        ),
        pytest.param(
            [event(LeadCreated, 0), event(Connect, 0)], {"awaited": 1, "connect_5": 1}, id="a connect at once"
        ),
        pytest.param(
            [event(LeadCreated, 0), event(Connect, 20)],
            {"awaited": 1, "connect_30": 1, "connect_ms": 20_000},
            id="a connect without a dial: called by implication",
        ),
        pytest.param(
            [event(LeadCreated, 0), event(Connect, 10, answered_by="machine"), event(Connect, 50)],
            {"awaited": 1, "connect_60": 1, "connect_ms": 50_000},
            id="a machine does not stop the connect clock",
        ),
        pytest.param(
            [event(LeadCreated, 0), event(Connect, 10, answered_by="machine")],
            {"awaited": 1, "uncalled": 1},
            id="nor does it prove a call",
        ),
        pytest.param(
            [event(LeadCreated, 0), *a_call(10, 12)], {"awaited": 1}, id="a void reach proves a call"
        ),
        pytest.param([event(LeadCreated, 0), event(Lost, 10)], {"awaited": 1}, id="lost, never called"),
        pytest.param(
            [event(LeadCreated, 0), event(Disqualified, 10)], {"awaited": 1}, id="disqualified, never called"
        ),
        pytest.param([event(LeadCreated, 0), event(Won, 10)], {"awaited": 1}, id="won, never called"),
        pytest.param(
            [event(LeadCreated, 0), event(CallEnded, 10)],
            {"awaited": 1, "uncalled": 1},
            id="an end alone proves no call",
        ),
    ],
)
def test_the_response_clocks(events, columns):
    found = only(tables(events), "")
    assert {name: n for name, n in found.items() if name.startswith(RESPONSE)} == columns


@pytest.mark.parametrize(
    ("seconds", "label"),
    [
        (5, "5"),
        (5.001, "15"),
        (15, "15"),
        (30, "30"),
        (60, "60"),
        (120, "120"),
        (180, "180"),
        (240, "240"),
        (300, "300"),
        (300.001, "600"),
        (900, "900"),
        (1_800, "1800"),
        (3_600, "3600"),
        (14_400, "14400"),
        (28_800, "28800"),
        (86_400, "86400"),
        (86_400.001, "inf"),
    ],
)
def test_a_duration_falls_into_the_smallest_bound_it_does_not_exceed(seconds, label):
    rows = tables([event(LeadCreated, 0), event(Dial, seconds), event(Connect, seconds)])
    assert only(rows, "attempt_") == {f"attempt_{label}": 1, "attempt_ms": round(seconds * 1000)}
    assert only(rows, "connect_") == {f"connect_{label}": 1, "connect_ms": round(seconds * 1000)}


def test_response_is_counted_where_the_lead_was_created_and_only_by_campaign_and_source():
    rows = tables([event(LeadCreated, 0, campaign="spring", source="web"), event(Dial, 7_200)])
    awaited = {key for key, columns in rows.items() if columns.get("awaited")}
    assert awaited == {
        ("1m", TEN, "campaign+source", "spring", "web"),
        ("1h", TEN, "campaign+source", "spring", "web"),
        ("1d", MIDNIGHT, "campaign+source", "spring", "web"),
        ("all", 0, "campaign+source", "spring", "web"),
    }
    assert all(rows[key]["attempt_14400"] == 1 and rows[key]["attempt_ms"] == 7_200_000 for key in awaited)


# ── panes ─────────────────────────────────────────────────────────────────────────────────────────


def panes_of(rows: Tables, resolution: str) -> dict[int, int]:
    return {
        key[1]: columns["events_dialed"]
        for key, columns in rows.items()
        if key[0] == resolution and key[2] == "campaign+source"
    }


def test_an_event_is_in_the_pane_that_begins_at_or_before_it():
    rows = tables([event(Dial, -0.001), event(Dial, 0), event(Dial, 59.999), event(Dial, 60)])
    assert panes_of(rows, "1m") == {TEN - 60: 1, TEN: 2, TEN + 60: 1}
    assert panes_of(rows, "1h") == {TEN - 3_600: 1, TEN: 3}
    assert panes_of(rows, "1d") == {MIDNIGHT: 4}
    assert panes_of(rows, "all") == {0: 4}


@pytest.mark.parametrize(
    ("zone", "instant", "midnight"),
    [
        pytest.param("UTC", 1_238_284_799, 1_238_198_400, id="UTC: 2009-03-28T23:59:59Z"),
        pytest.param("Europe/Berlin", 1_238_281_199, 1_238_194_800, id="the second before Sunday 29 March"),
        pytest.param("Europe/Berlin", 1_238_281_200, 1_238_281_200, id="midnight, still in winter time"),
        pytest.param("Europe/Berlin", 1_238_363_999, 1_238_281_200, id="the end of a day of 23 hours"),
        pytest.param("Europe/Berlin", 1_238_364_000, 1_238_364_000, id="midnight, now in summer time"),
        pytest.param("Europe/Berlin", 1_256_421_600, 1_256_421_600, id="Sunday 25 October begins"),
        pytest.param("Europe/Berlin", 1_256_511_599, 1_256_421_600, id="the end of a day of 25 hours"),
        pytest.param("Europe/Berlin", 1_256_511_600, 1_256_511_600, id="Monday, in winter time again"),
        pytest.param("Asia/Kolkata", 1_242_122_400, 1_242_066_600, id="a zone with half an hour"),
        pytest.param("America/Sao_Paulo", 1_255_838_400, 1_255_834_800, id="a day without midnight"),
        pytest.param("Atlantic/Azores", 1_256_434_200, 1_256_428_800, id="a day with two"),
    ],
)
def test_day_panes_begin_at_midnight_in_the_zone(zone, instant, midnight):
    dial = Dial(event_id="a", lead_id="l1", occurred_at=instant * 1000)
    assert panes_of(tables([dial], timezone=zone), "1d") == {midnight: 1}


def test_hour_panes_begin_at_the_hour_of_utc_in_every_zone():
    rows = tables([event(Dial, 1_800)], timezone="Asia/Kolkata")
    assert panes_of(rows, "1h") == {TEN: 1}


@pytest.mark.parametrize(
    ("resolution", "kept"),
    [
        ("1m", TEN + 60 + 6 * 3_600),
        ("1h", TEN + 3_600 + 3 * 86_400),
        ("1d", MIDNIGHT + 86_400 + 400 * 86_400),
    ],
)
def test_a_pane_is_dropped_once_the_watermark_is_past_what_is_kept(resolution, kept):
    old = event(Dial, 0, campaign="old")

    def is_held(watermark_ms: int) -> bool:
        new = Lost(event_id="z", lead_id="l2", occurred_at=watermark_ms)
        return any(key[0] == resolution and key[3:] == ("old", "none") for key in tables([old, new]))

    assert is_held(kept * 1000 - 1)
    assert not is_held(kept * 1000)


def test_minutes_of_agents_and_places_are_kept_for_two_hours_at_most():
    old, new = event(Dial, 0, agent="ann", location="old"), event(Dial, 7_260)
    held = {(pane, rollup) for resolution, pane, rollup, *_ in tables([old, new]) if resolution == "1m"}
    assert {rollup for pane, rollup in held if pane == TEN} == {"campaign+source"}
    just_before = tables([old, event(Dial, 7_259)])
    assert ("1m", TEN, "location", "old") in just_before
    assert ("1m", TEN, "location", "old") not in tables([old, event(Dial, 3_660)], minute_hours=1)


def test_a_late_event_for_a_dropped_pane_counts_in_the_coarser_rows():
    late, newest = event(Dial, 0), event(Dial, 7 * 3_600)
    rows = tables([newest, late])
    assert panes_of(rows, "1m") == {TEN + 7 * 3_600: 1}
    assert panes_of(rows, "1h") == {TEN: 1, TEN + 7 * 3_600: 1}
    assert panes_of(rows, "1d") == {MIDNIGHT: 2}
    assert panes_of(rows, "all") == {0: 2}


def test_all_time_rows_are_of_campaigns_and_kept_for_ever():
    rows = tables([event(Dial, 0), event(Dial, 5_000 * 86_400)])
    assert panes_of(rows, "all") == {0: 2}
    assert {rollup for resolution, _, rollup, *_ in rows if resolution == "all"} == {"campaign+source"}


def test_what_is_kept_is_a_setting():
    events = [event(Dial, 0), event(Dial, 3 * 86_400)]
    rows = tables(events, minute_hours=1_000, hour_days=1, day_days=1)
    assert panes_of(rows, "1m") == {TEN: 1, TEN + 3 * 86_400: 1}
    assert panes_of(rows, "1h") == {TEN + 3 * 86_400: 1}
    assert panes_of(rows, "1d") == {MIDNIGHT + 3 * 86_400: 1}


def test_the_watermark_is_the_newest_event_of_any_type_and_any_lead():
    rows = tables([event(Dial, 0), event(CallEnded, 86_400, lead="l2")])
    assert panes_of(rows, "1m") == {}


# ── partitions and the comparison ─────────────────────────────────────────────────────────────────


def test_partitions_have_their_own_watermark_and_add_up():
    events = [event(Dial, 0, lead="a"), event(Dial, 0, lead="b"), event(Dial, 86_400, lead="b")]
    by_partition = partitioned(events, {"a": 0, "b": 3}.__getitem__)
    assert list(by_partition) == [0, 3]
    assert panes_of(by_partition[0], "1m") == {TEN: 1}
    assert panes_of(by_partition[3], "1m") == {TEN + 86_400: 1}
    assert panes_of(total(by_partition), "1m") == {TEN: 1, TEN + 86_400: 1}
    assert panes_of(total(by_partition), "all") == {0: 3}


def test_partitions_get_the_settings():
    (rows,) = partitioned(a_call(0, 5), lambda lead_id: 0, hangup_ms=5_000).values()
    assert only(rows, "dm_") == {}


def test_equal_tables_have_no_differences():
    rows = tables([event(LeadCreated, 0), event(Dial, 9)])
    assert differences(rows, dict(reversed(rows.items()))) == []
    assert lost_and_doubled(rows, rows) == (0, 0)


def test_differences_name_each_cell_coarse_rows_first():
    spring = ("campaign+source", "spring", "web")
    expected: Tables = {
        ("1m", TEN, *spring): {"leads_won": 1},
        ("1h", TEN, *spring): {"leads_won": 3, "events_won": 4},
        ("all", 0, *spring): {"leads_won": 5},
    }
    actual: Tables = {
        ("1h", TEN, *spring): {"leads_won": 2, "events_won": 4, "implied": 7},
        ("all", 0, *spring): {"leads_won": 6},
        ("1m", TEN + 60, *spring): {"leads_won": 1},
    }
    assert differences(expected, actual) == [
        "all campaign+source spring,web leads_won: expected 5, got 6",
        "1h 2009-05-12T10:00Z campaign+source spring,web implied: expected 0, got 7",
        "1h 2009-05-12T10:00Z campaign+source spring,web leads_won: expected 3, got 2",
        "1m 2009-05-12T10:00Z campaign+source spring,web leads_won: expected 1, got 0",
        "1m 2009-05-12T10:01Z campaign+source spring,web leads_won: expected 0, got 1",
    ]
    assert lost_and_doubled(expected, actual) == (2, 9)


def test_the_summary_adds_up_campaigns_and_sources_once():
    rows = tables(
        [
            event(Dial, 0, campaign="spring", lead="l1"),
            event(Dial, 9, campaign="autumn", lead="l1"),
            event(Won, 9, source="web", lead="l2"),
        ]
    )
    assert stage_summary(rows) == {
        "created": {"events": 0, "leads": 2},
        "dialed": {"events": 2, "leads": 2},
        "connected": {"events": 0, "leads": 1},
        "reached": {"events": 0, "leads": 1},
        "qualified": {"events": 0, "leads": 1},
        "won": {"events": 1, "leads": 1},
    }
