"""What a lead counts for, by the definition."""

import pytest

from callfunnel.schemas.events import (
    CallEnded,
    Connect,
    Dial,
    Disqualified,
    DmReached,
    LeadCreated,
    LeadRecycled,
    Lost,
    Qualified,
    Retracted,
    Touch,
    Won,
)
from callfunnel.streams.definition import additions
from callfunnel.streams.log import entry_of, joined

T = 1_750_000_020_000
MINUTE = T // 1000
SECOND = 1000
HANGUP_MS = 15_000


def event(cls, after_ms=0, event_id="e", **fields):
    return cls(event_id=event_id, occurred_at=T + after_ms, lead_id="l", **fields)


def added(*events):
    """By (rollup, dimension values …, minute, column), what a lead with these events adds."""
    sums = {}
    for at_ms, rollup, dimensions, column, n in additions(joined((), set(map(entry_of, events))), HANGUP_MS):
        key = rollup.name, *dimensions, at_ms // 60_000 * 60, column
        sums[key] = sums.get(key, 0) + n
    return sums


def counted(*events):
    """The columns that the events' lead adds, whatever the minute and the dimensions."""
    sums = {}
    for (rollup, *_, column), n in added(*events).items():
        if rollup == "campaign+source":
            sums[column] = sums.get(column, 0) + n
    return sums


def facts(columns):
    """Without what every event counts by itself."""
    return {name: n for name, n in columns.items() if not name.startswith("events_")}


# Calls that ended at once


def hangup(ended_after_ms, *more, **end):
    reach = event(DmReached, 0, "r", call_id="c")
    columns = counted(reach, event(CallEnded, ended_after_ms, "x", call_id="c", **end), *more)
    return {name for name in columns if name.endswith("_hangups")}


@pytest.mark.parametrize(
    ("ended_after_ms", "end", "column"),
    [
        (14_999, {}, "dm_hangups"),
        (15_000, {}, None),
        (0, {}, "dm_hangups"),
        (-1, {}, None),
        (60_000, {"talk_seconds": 14.9}, "dm_hangups"),
        (60_000, {"talk_seconds": 14.9999}, "dm_hangups"),
        (60_000, {"talk_seconds": 15.0}, None),
        (5_000, {"talk_seconds": 300.0}, "dm_hangups"),
        (-1, {"talk_seconds": 0.0}, "dm_hangups"),
        (5_000, {"hangup_by": "customer"}, "dm_hangups"),
        (5_000, {"hangup_by": "system"}, "dm_hangups"),
        (5_000, {"hangup_by": "agent"}, "agent_hangups"),
    ],
)
def test_a_call_ended_at_once_when_its_end_or_its_talk_says_so(ended_after_ms, end, column):
    assert hangup(ended_after_ms, **end) == ({column} if column else set())


@pytest.mark.parametrize("verdict", [Qualified, Disqualified, Won])
def test_a_call_with_a_verdict_did_not_end_at_once(verdict):
    assert hangup(5_000, event(verdict, 0, "v", call_id="c")) == set()
    assert hangup(5_000, event(verdict, 0, "v", call_id="other")) == {"dm_hangups"}


def test_a_reach_or_an_end_alone_is_no_hangup():
    assert "dm_hangups" not in counted(event(DmReached, call_id="c"))
    assert "dm_hangups" not in counted(event(CallEnded, call_id="c"))
    assert "dm_hangups" not in counted(event(DmReached), event(CallEnded, 1, "x"))


def test_of_two_reaches_the_earliest_decides_and_of_two_ends_the_last():
    far = event(DmReached, -60_000, "a", call_id="c")
    assert "dm_hangups" not in counted(
        far, event(DmReached, 0, "r", call_id="c"), event(CallEnded, 1, "x", call_id="c")
    )
    ends = (
        event(CallEnded, 1, "x", call_id="c", hangup_by="customer"),
        event(CallEnded, 2, "y", call_id="c", hangup_by="agent"),
    )
    assert counted(event(DmReached, 0, "r", call_id="c"), *ends)["agent_hangups"] == 1


def test_the_longest_talk_of_a_call_decides():
    reach = event(DmReached, 0, "r", call_id="c")
    legs = [
        event(CallEnded, n, f"x{n}", call_id="c", talk_seconds=s) for n, s in ((20_000, 8), (90_000, 300))
    ]
    assert "dm_hangups" not in counted(reach, *legs)
    assert counted(reach, legs[0])["dm_hangups"] == 1


@pytest.mark.parametrize(
    ("answered_ms", "more", "is_hangup"),
    [(-5_000, {}, True), (-14_999, {}, True), (-15_001, {}, False), (-5_000, {"talk_seconds": 60.0}, False)],
)
def test_a_reach_that_is_noted_after_the_call_is_measured_from_the_answer(answered_ms, more, is_hangup):
    columns = counted(
        event(Connect, answered_ms, "k", call_id="c"),
        event(CallEnded, -1, "x", call_id="c", **more),
        event(DmReached, 0, "r", call_id="c"),
    )
    assert ("dm_hangups" in columns) == is_hangup


def test_without_an_answer_a_reach_after_the_end_stands():
    columns = counted(event(CallEnded, -1, "x", call_id="c"), event(DmReached, 0, "r", call_id="c"))
    assert columns["leads_reached"] == 1


# Calls as they really are


def test_a_connect_of_a_machine_s_call_is_voided_unless_it_says_human():
    dial = event(Dial, 0, "d", call_id="c")
    connects = [
        event(Connect, n, f"k{n}", call_id="c", answered_by=by) for n, by in ((1, None), (2, "human"))
    ]
    machine = event(Connect, 3, "m", call_id="c", answered_by="machine")
    columns = counted(dial, connects[0], machine)
    assert (columns["connect_voided"], columns["events_connected"], columns["machine_answers"]) == (1, 1, 1)
    assert "leads_connected" not in columns
    assert counted(dial, *connects, machine)["leads_connected"] == 1
    reached = counted(dial, connects[0], machine, event(DmReached, 4, "r", call_id="c"))
    assert "connect_voided" not in reached
    other = event(Connect, 3, "m", call_id="other", answered_by="machine")
    assert "connect_voided" not in counted(dial, connects[0], other)
    assert "connect_voided" not in counted(
        event(Connect, 1, "k"), event(Connect, 2, "m", answered_by="machine")
    )


def test_a_voided_connect_is_no_answer_to_a_new_lead():
    created, dial = event(LeadCreated, -9_000, "a"), event(Dial, 0, "d", call_id="c")
    connect = event(Connect, 1, "k", call_id="c")
    machine = event(Connect, 2, "m", call_id="c", answered_by="machine")
    assert counted(created, dial, connect)["connect_ms"] == 9_001
    assert "connect_ms" not in counted(created, dial, connect, machine)


def test_a_call_from_the_lead_reaches_it_by_no_dial():
    call = event(Connect, 0, "k", call_id="c", direction="inbound"), event(DmReached, 1, "r", call_id="c")
    assert (counted(*call)["inbound_reached"], counted(*call)["leads_reached"]) == (1, 1)
    assert "inbound_reached" not in counted(*call, event(Dial, 5, "d", call_id="c"))
    assert "inbound_reached" not in counted(*call, event(CallEnded, 2, "x", call_id="c"))
    first = event(Connect, -1, "k0", call_id="c", direction="outbound")
    assert "inbound_reached" not in counted(first, *call)


def test_a_call_counts_once_in_the_reach_rate():
    reaches = [event(DmReached, n, f"r{n}", call_id="c") for n in range(3)]
    assert (counted(*reaches)["events_reached"], counted(*reaches)["reach_repeated"]) == (3, 2)
    columns = counted(*reaches, event(CallEnded, 5, "x", call_id="c"))
    assert (columns["dm_hangups"], columns["reach_repeated"]) == (1, 2)
    assert "reach_repeated" not in counted(event(DmReached, 0, "r"), event(DmReached, 1, "s"))


# Cycles


def leads(*events):
    """By campaign, the stages that units arrived at, with how many."""
    found = {}
    for (rollup, campaign, *_, column), n in added(*events).items():
        if rollup == "campaign+source" and column.startswith("leads_"):
            stages = found.setdefault(campaign, {})
            stages[column.removeprefix("leads_")] = stages.get(column.removeprefix("leads_"), 0) + n
    return found


SPRING = event(LeadCreated, 0, "a", campaign="spring"), event(Dial, 60_000, "b", campaign="spring")
LOST = event(Lost, 120_000, "l")


def test_a_recycled_lead_is_another_unit_with_the_campaign_of_before():
    again = event(LeadRecycled, 180_000, "y"), event(Dial, 240_000, "c")
    assert leads(*SPRING, *again) == {"spring": {"created": 2, "dialed": 2}}
    assert leads(*SPRING, event(LeadRecycled, 180_000, "y", campaign="autumn")) == {
        "spring": {"created": 1, "dialed": 1},
        "autumn": {"created": 1},
    }
    columns = counted(*SPRING, *again)
    assert (columns["awaited"], columns["attempt_ms"], columns.get("implied")) == (2, 120_000, None)


def test_of_an_open_lead_neither_another_creation_nor_another_campaign_is_another_unit():
    more = event(LeadCreated, 180_000, "c", campaign="autumn"), event(Dial, 190_000, "d", campaign="autumn")
    assert leads(*SPRING, *more) == {"spring": {"created": 1, "dialed": 1}}


@pytest.mark.parametrize("closing", [LOST, event(Disqualified, 120_000, "l"), event(Won, 120_000, "l")])
def test_a_closed_lead_that_is_created_again_or_dialed_by_another_campaign_is_another_unit(closing):
    def units(*more):
        return sum(
            its["dialed"] for its in leads(*SPRING, closing, event(Dial, 999_000, "z"), *more).values()
        )

    assert units() == 1
    assert units(event(Dial, 180_000, "c", campaign="spring")) == 1
    assert units(event(Dial, 180_000, "c", campaign="autumn")) == 2
    assert units(event(LeadCreated, 180_000, "c")) == 2


def test_a_lead_that_is_qualified_after_it_was_lost_is_open_again():
    story = *SPRING, LOST, event(Qualified, 130_000, "q")
    assert leads(*story, event(LeadCreated, 180_000, "c"))["spring"]["created"] == 1
    assert (
        leads(*story, event(Lost, 140_000, "m"), event(LeadCreated, 180_000, "c"))["spring"]["created"] == 2
    )


def test_where_the_closed_lead_names_no_campaign_no_campaign_is_another():
    story = event(Dial, 0, "b"), event(Lost, 1, "l"), event(Dial, 2, "c", campaign="spring")
    assert leads(*story)["spring"]["dialed"] == 1


def test_of_the_millisecond_of_a_recycle_what_closes_stays_in_the_cycle_before():
    again = event(LeadRecycled, 0, "y"), event(LeadRecycled, 0, "y2")
    same = event(Won, 0, "w"), event(Dial, 0, "d", campaign="autumn")
    assert leads(event(LeadCreated, -1, "a", campaign="spring"), *same, *again) == {
        "spring": dict.fromkeys(("created", "dialed", "connected", "reached", "qualified", "won"), 1),
        "autumn": {"created": 1, "dialed": 1},
    }


def test_a_recycle_of_an_empty_lead_is_its_creation():
    assert leads(event(LeadRecycled, 0, "y", campaign="spring")) == {"spring": {"created": 1}}
    assert counted(event(LeadRecycled, 0, "y"))["uncalled"] == 1


def test_a_recycled_lead_that_was_never_called_waits_no_more():
    columns = counted(event(LeadCreated, 0, "a"), event(LeadRecycled, 60_000, "y"))
    assert (columns["awaited"], columns["uncalled"]) == (2, 1)


def test_without_its_recycle_two_units_are_one():
    story = *SPRING, event(LeadRecycled, 180_000, "y"), event(Dial, 240_000, "c")
    assert leads(*story, back(300_000, retracts="y")) == {"spring": {"created": 1, "dialed": 1}}


# What is taken back


def back(after_ms=0, event_id="back", **what):
    return event(Retracted, after_ms, event_id, **what)


def corrected(columns):
    return {
        name: n for name, n in columns.items() if name.startswith(("events_won", "retracted_", "corrections"))
    }


SALE = event(Won, 0, "w1")
HALF_AN_HOUR = 1_800_000


@pytest.mark.parametrize("after_ms", [HALF_AN_HOUR, 0, -600_000])
@pytest.mark.parametrize(
    "what", [{"retracts": "w1"}, {"retracts": "w1", "retracts_type": "won"}, {"retracts_type": "won"}]
)
def test_a_win_is_taken_back_before_or_after_it_comes(after_ms, what):
    if "retracts" not in what and after_ms < 0:
        return  # the latest up to its own time
    columns = counted(SALE, back(after_ms, **what))
    assert columns == {"events_won": 1, "retracted_won": 1, "corrections": 1}


def test_it_counts_in_the_minute_of_the_win_and_the_correction_in_its_own():
    columns = added(SALE, back(HALF_AN_HOUR, retracts="w1", campaign="spring"))
    assert columns["campaign+source", "none", "none", MINUTE // 60 * 60, "retracted_won"] == 1
    later = (MINUTE + 1_800) // 60 * 60
    assert columns["campaign+source", "spring", "none", later, "corrections"] == 1


def test_a_retraction_cannot_be_taken_back():
    columns = counted(SALE, back(1, "b1", retracts="w1"), back(2, "b2", retracts="b1"))
    assert corrected(columns) == {
        "events_won": 1,
        "retracted_won": 1,
        "corrections": 2,
        "corrections_void": 1,
    }


def test_a_retraction_is_open_until_its_event_comes():
    assert corrected(counted(back(retracts="w1"))) == {"corrections": 1, "corrections_open": 1}
    assert corrected(counted(back(retracts="w1"), SALE)) == {
        "events_won": 1,
        "retracted_won": 1,
        "corrections": 1,
    }
    other = counted(SALE, back(1, retracts="w1", retracts_type="lost"))
    assert corrected(other) == {"events_won": 1, "corrections": 1, "corrections_open": 1}


def test_an_id_takes_back_all_its_events_and_a_type_one_of_them():
    call = [event(cls, n, "CA1", call_id="CA1") for n, cls in enumerate((Dial, Connect, DmReached))]
    assert facts(counted(*call, back(9, retracts="CA1"))) == {
        **{f"retracted_{stage}": 1 for stage in ("dialed", "connected", "reached")},
        "corrections": 1,
    }
    kept = counted(*call, back(9, retracts="CA1", retracts_type="dm_reached"))
    assert (kept["leads_connected"], kept["retracted_reached"]) == (1, 1)
    assert not {"leads_reached", "retracted_dialed"} & kept.keys()


def test_a_type_alone_takes_the_latest_up_to_its_time_and_each_its_own():
    wins = [event(Won, minutes * 60_000, f"w{minutes}") for minutes in (0, 10, 20)]

    def left(*retractions):
        columns = added(*wins, *retractions)
        return [n for n in (0, 10, 20) if ("campaign+source", "none", "none", (MINUTE + n * 60) // 60 * 60,
                "retracted_won") not in columns]  # fmt: skip

    assert left(back(15 * 60_000, retracts_type="won")) == [0, 20]
    assert left(back(10 * 60_000, retracts_type="won")) == [0, 20]
    assert left(back(10 * 60_000 - 1, retracts_type="won")) == [10, 20]
    two = [back(15 * 60_000, "b1", retracts_type="won"), back(16 * 60_000, "b2", retracts_type="won")]
    assert left(*two) == [20]
    # What an id names is left out, whenever that retraction comes.
    assert left(back(15 * 60_000, "b1", retracts_type="won"), back(30 * 60_000, "b2", retracts="w10")) == [20]


def test_what_a_retracted_event_moved_goes_back():
    story = event(LeadCreated, 0, "a"), event(Dial, 20_000, "d1"), event(Dial, 90_000, "d2")
    columns = counted(*story, back(100_000, retracts="d1"))
    assert (columns["attempt_ms"], columns["events_dialed"], columns["retracted_dialed"]) == (90_000, 2, 1)
    gone = counted(*story, back(100_000, retracts="a"))
    assert "awaited" not in gone
    assert gone["leads_dialed"] == 1


def test_a_retraction_has_no_dimensions_for_its_lead():
    columns = added(event(Dial, 0, "d", source="web"), back(-1, retracts="x", campaign="spring"))
    assert ("campaign+source", "none", "web", MINUTE // 60 * 60, "leads_dialed") in columns


def test_a_machine_s_touch_counts_as_none_and_no_retraction_of_it_does():
    assert counted(event(Touch, 0, "t", channel="email", automated=True), back(1, retracts="t")) == {
        "corrections": 1
    }
    assert counted(event(Touch, 0, "t", channel="email"))["events_touch"] == 1


# Copies that contradict each other


def test_an_exact_copy_is_one_event():
    assert counted(event(Dial), event(Dial))["events_dialed"] == 1


def test_of_contradictory_copies_each_is_activity_and_the_earliest_is_the_fact():
    columns = counted(event(LeadCreated, 0, "a"), event(Dial, 30_000), event(Dial, 20_000))
    assert (columns["events_dialed"], columns["leads_dialed"]) == (2, 1)
    assert columns["attempt_ms"] == 20_000
    assert columns["retracted_dialed"] == 1, "one dial was made"


def test_copies_are_of_one_type_and_one_id_may_serve_a_whole_call():
    columns = counted(event(Dial), event(Connect, 1), event(DmReached, 2), event(Won, 3))
    assert [columns[f"leads_{stage}"] for stage in ("dialed", "connected", "reached", "won")] == [1] * 4
    assert columns["implied"] == 2  # created, qualified


def test_a_machine_that_is_noticed_later_is_another_event():
    columns = counted(event(Connect), event(Connect, answered_by="machine"))
    assert (columns["events_connected"], columns["machine_answers"]) == (1, 1)


# What a lead counts for


def test_a_lead_without_events_counts_for_nothing():
    assert added() == {}


def test_an_arrival_is_counted_at_its_minute_under_the_leads_and_the_agents_names():
    cells = added(
        event(LeadCreated, campaign="spring", source="web", location="Köln", agent="nobody"),
        event(Dial, 90 * SECOND, "d", campaign="other", team="north", agent="ann"),
    )
    assert {cell: n for cell, n in cells.items() if not cell[-1].startswith("events_")} == {
        ("campaign+source", "spring", "web", MINUTE, "leads_created"): 1,
        ("campaign+source", "spring", "web", MINUTE + 60, "leads_dialed"): 1,
        ("campaign+source", "spring", "web", MINUTE, "awaited"): 1,
        ("campaign+source", "spring", "web", MINUTE, "attempt_120"): 1,
        ("campaign+source", "spring", "web", MINUTE, "attempt_ms"): 90_000,
        ("team+agent", "none", "nobody", MINUTE, "leads_created"): 1,
        ("team+agent", "north", "ann", MINUTE + 60, "leads_dialed"): 1,
        ("location", "Köln", MINUTE, "leads_created"): 1,
        ("location", "Köln", MINUTE + 60, "leads_dialed"): 1,
    }


def test_activity_is_counted_under_the_events_own_names():
    cells = added(
        event(LeadCreated, campaign="spring"),
        event(Dial, 1, "d", campaign="other", location="Ulm", agent="ann"),
    )
    assert cells["campaign+source", "other", "none", MINUTE, "events_dialed"] == 1
    assert cells["team+agent", "none", "ann", MINUTE, "events_dialed"] == 1
    assert cells["location", "Ulm", MINUTE, "events_dialed"] == 1


def test_response_columns_are_no_agents_and_no_locations():
    cells = added(event(LeadCreated), event(Dial, SECOND, "d"), event(Connect, 2 * SECOND, "c"))
    response = {"awaited", "attempt_5", "attempt_ms", "connect_5", "connect_ms"}
    assert {rollup for rollup, *_, column in cells if column in response} == {"campaign+source"}


def test_a_later_stage_implies_the_ones_before_at_its_own_minute():
    cells = added(event(Connect, agent="ann"))
    assert {cell: n for cell, n in cells.items() if cell[0] == "team+agent"} == {
        ("team+agent", "none", "ann", MINUTE, "events_connected"): 1,
        ("team+agent", "none", "ann", MINUTE, "leads_created"): 1,
        ("team+agent", "none", "ann", MINUTE, "leads_dialed"): 1,
        ("team+agent", "none", "ann", MINUTE, "leads_connected"): 1,
        ("team+agent", "none", "ann", MINUTE, "implied"): 2,
    }


def test_a_void_reach_is_a_pick_up_and_no_reach():
    assert facts(counted(event(DmReached, call_id="c"), event(CallEnded, SECOND, "x", call_id="c"))) == {
        **{"leads_created": 1, "leads_dialed": 1, "leads_connected": 1, "implied": 3},
        "dm_hangups": 1,
    }


def test_a_verdict_gives_a_void_reach_back():
    columns = counted(
        event(DmReached, call_id="c"),
        event(CallEnded, SECOND, "x", call_id="c"),
        event(Disqualified, 2 * SECOND, "y", call_id="c"),
    )
    assert columns["leads_reached"] == 1
    assert "dm_hangups" not in columns


def test_an_agents_hang_up_is_counted_and_the_reach_stands():
    columns = counted(
        event(DmReached, call_id="c"), event(CallEnded, SECOND, "x", call_id="c", hangup_by="agent")
    )
    assert (columns["leads_reached"], columns["agent_hangups"]) == (1, 1)


def test_a_hang_up_is_counted_under_the_dimensions_of_the_reach():
    cells = added(
        event(LeadCreated, campaign="spring"),
        event(DmReached, 120 * SECOND, "r", call_id="c", campaign="autumn", team="north", agent="ann"),
        event(CallEnded, 121 * SECOND, "x", call_id="c", campaign="winter", agent="bo"),
    )
    assert {cell for cell in cells if cell[-1] == "dm_hangups"} == {
        ("campaign+source", "autumn", "none", MINUTE + 120, "dm_hangups"),
        ("team+agent", "north", "ann", MINUTE + 120, "dm_hangups"),
        ("location", "none", MINUTE + 120, "dm_hangups"),
    }


def test_two_calls_that_end_at_once_in_a_minute_are_two():
    columns = counted(
        *(event(DmReached, n, f"r{n}", call_id=f"c{n}") for n in range(2)),
        *(event(CallEnded, SECOND, f"x{n}", call_id=f"c{n}") for n in range(2)),
    )
    assert columns["dm_hangups"] == 2


def test_a_lead_dialed_before_its_creation_has_no_response():
    columns = counted(event(LeadCreated, 1, "a"), event(Dial, 0, "b"), event(Connect, 2, "c"))
    assert columns["dialed_before_creation"] == 1
    assert not {"awaited", "uncalled", "attempt_5", "connect_5"} & columns.keys()


def test_a_lead_that_nobody_called_is_uncalled_until_somebody_does_or_it_is_closed():
    created = event(LeadCreated)
    assert counted(created)["uncalled"] == 1
    assert "uncalled" not in counted(created, event(Lost, 1, "b"))
    assert "uncalled" not in counted(created, event(Connect, 1, "b"))
    assert counted(created, event(Connect, 1, "b", answered_by="machine"))["uncalled"] == 1


def test_a_response_is_measured_from_creation_to_the_first_dial_and_the_first_answer():
    columns = counted(event(LeadCreated), event(Dial, 5 * SECOND, "b"), event(Connect, 5_001, "c"))
    assert {name: n for name, n in columns.items() if name.startswith(("attempt", "connect_"))} == {
        **{"attempt_5": 1, "attempt_ms": 5_000},
        **{"connect_15": 1, "connect_ms": 5_001},
    }


def test_an_answer_at_the_moment_of_creation_is_a_response_and_one_before_is_none():
    assert counted(event(LeadCreated), event(Connect, 0, "b"))["connect_5"] == 1
    assert "connect_5" not in counted(event(LeadCreated), event(Connect, -1, "b"))


def test_a_lead_that_was_never_created_has_no_response():
    assert facts(counted(event(Dial), event(Connect, 1, "b"))) == {
        **{"leads_created": 1, "leads_dialed": 1, "leads_connected": 1, "implied": 1},
    }
