"""What a lead remembers and what it counts for. Which numbers are right is the oracle's tests' business."""

import pytest

from callfunnel.schemas.events import (
    CallEnded,
    Connect,
    Dial,
    Disqualified,
    DmReached,
    LeadCreated,
    Lost,
    Qualified,
    Won,
)
from callfunnel.streams.counts import Counts
from callfunnel.streams.lead import Call, Lead, contribute, fingerprint, pack, unpack

T = 1_750_000_020_000
MINUTE = T // 1000
SECOND = 1000
HANGUP_MS = 15_000


def event(cls, after_ms=0, event_id="e", **fields):
    return cls(event_id=event_id, occurred_at=T + after_ms, lead_id="l", **fields)


def lead_of(*events):
    lead = Lead()
    for one in events:
        lead.absorb(one, one.at_ms)
    return lead


def counted(*events):
    """The columns that the events' lead adds, whatever the minute and the dimensions."""
    sums: dict[str, int] = {}
    for rollup, *_, column, n in contributions(lead_of(*events)):
        if rollup == "campaign+source":
            sums[column] = sums.get(column, 0) + n
    return sums


def contributions(lead, n=1):
    """(rollup, dimension values …, minute, column, number)"""
    counts = Counts()
    contribute(lead, HANGUP_MS, n, counts)
    return {
        (rollup, *group, minute, column, number)
        for rollup, groups in counts.rollups()
        for group, minutes in groups.items()
        for minute, columns in minutes.items()
        for column, number in columns.items()
    }


# Fingerprints


def test_a_fingerprint_has_eight_bytes_and_depends_on_the_whole_id():
    assert len(fingerprint("")) == len(fingerprint("x" * 64)) == 8
    assert len({fingerprint(f"event-{n}") for n in range(10_000)}) == 10_000


def test_a_lead_knows_the_events_it_has_seen():
    lead = Lead(seen=b"".join(map(fingerprint, "abc")))
    assert all(map(lead.has_seen, map(fingerprint, "abc")))
    assert not lead.has_seen(fingerprint("d"))
    assert not Lead().has_seen(fingerprint("a"))


def test_bytes_of_two_neighbours_are_no_fingerprint():
    lead = Lead(seen=b"AAAABBBBCCCCDDDD")
    assert not lead.has_seen(b"BBBBCCCC")


def test_a_fingerprint_is_found_behind_a_false_match():
    lead = Lead(seen=b"AAAABBBBCCCCDDDDBBBBCCCC")
    assert lead.has_seen(b"BBBBCCCC")
    lead = Lead(seen=b"aaaaaaabaaaaaaaa")
    assert lead.has_seen(b"aaaaaaaa")


# What a lead remembers


def test_a_packed_lead_unpacks_to_the_same():
    lead = lead_of(
        event(LeadCreated, campaign="spring", location="Köln"),
        event(Dial, SECOND, call_id="c", agent="ann", team="north"),
        event(DmReached, 2 * SECOND, call_id="c"),
        event(CallEnded, 3 * SECOND, call_id="c", talk_seconds=1.5, hangup_by="customer"),
        event(Lost, 4 * SECOND),
    )
    lead.seen = fingerprint("a")
    assert unpack(pack(lead)) == lead


def test_leads_do_not_share_their_calls():
    assert Lead().calls is not Lead().calls


def test_the_earliest_event_of_a_stage_stays_whatever_comes_later():
    early, late = event(Dial, 0, "a", agent="ann"), event(Dial, 1, "b", agent="bo")
    assert lead_of(early, late) == lead_of(late, early)
    assert lead_of(late, early).dialed == (T, 1, "a", "none", "ann")


def test_each_dimension_comes_from_the_earliest_event_that_carries_it():
    lead = lead_of(
        event(Dial, 2, "c", campaign="late", source="web"),
        event(Dial, 1, "b", campaign="spring"),
        event(Dial, 0, "a"),
    )
    assert lead.campaign == (T + 1, 1, "b", "spring")
    assert lead.source == (T + 2, 1, "c", "web")
    assert lead.location is None


@pytest.mark.parametrize("closing", [Disqualified, Lost, Won])
def test_a_lead_is_closed_by_its_end(closing):
    assert lead_of(event(closing)).closed
    assert not lead_of(event(Qualified), event(CallEnded)).closed


def test_a_machine_answers_without_arriving():
    assert lead_of(event(Connect, answered_by="machine")).connected is None
    assert lead_of(event(Connect)).connected == (T, 2, "e", "none", "none")


def test_reaches_outside_a_call_and_in_calls_are_kept_apart():
    lead = lead_of(event(DmReached, 5, "a"), event(DmReached, 3, "b", call_id="c"))
    assert lead.reached == (T + 5, 3, "a", "none", "none")
    assert [call.reach[0] for call in lead.calls.values()] == [T + 3]


@pytest.mark.parametrize(
    ("news", "tells"),
    [
        (event(Dial, 1, "b"), False),
        (event(Dial, -1, "b"), True),
        (event(Dial, 1, "b", source="web"), True),
        (event(Connect, 1, "b", answered_by="machine"), False),
        (event(CallEnded, 1, "b"), False),
        (event(CallEnded, 1, "b", call_id="unheard of"), False),
        (event(CallEnded, 1, "b", call_id="c"), True),
        (event(DmReached, 6, "b", call_id="c"), False),
        (event(DmReached, 4, "b", call_id="c"), True),
        (event(Disqualified, 1, "b"), True),
    ],
)
def test_absorb_tells_whether_anything_counts_differently(news, tells):
    lead = lead_of(event(Dial, 0, "a"), event(DmReached, 5, "r", call_id="c"))
    before = contributions(lead)
    assert lead.absorb(news, news.at_ms) is tells
    if not tells:
        assert contributions(lead) == before


# Calls that ended at once

REACH = (T, 3, "r", "north", "ann", "spring", "web", "Köln")


def end(after_ms, talk_seconds=None, by=None):
    return (T + after_ms, 6, "x", talk_seconds, by)


@pytest.mark.parametrize(
    ("call", "hangup"),
    [
        (Call(REACH, end(14_999)), "dm_hangups"),
        (Call(REACH, end(15_000)), None),
        (Call(REACH, end(0)), "dm_hangups"),
        (Call(REACH, end(-1)), None),
        (Call(REACH, end(60_000, talk_seconds=14.9)), "dm_hangups"),
        (Call(REACH, end(60_000, talk_seconds=15.0)), None),
        (Call(REACH, end(5_000, talk_seconds=300)), "dm_hangups"),
        (Call(REACH, end(-1, talk_seconds=0.0)), "dm_hangups"),
        (Call(REACH, end(5_000, by="customer")), "dm_hangups"),
        (Call(REACH, end(5_000, by="system")), "dm_hangups"),
        (Call(REACH, end(5_000, by="agent")), "agent_hangups"),
        (Call(REACH, end(5_000), verdict=True), None),
        (Call(REACH, None), None),
        (Call(None, end(5_000)), None),
    ],
)
def test_a_call_ended_at_once_when_its_end_or_its_talk_says_so(call, hangup):
    assert call.hangup(HANGUP_MS) == hangup


# What a lead counts for


def test_a_lead_without_events_counts_for_nothing():
    assert contributions(Lead()) == set()


def test_an_arrival_is_counted_at_its_minute_under_the_leads_and_the_agents_names():
    lead = lead_of(
        event(LeadCreated, campaign="spring", source="web", location="Köln", agent="nobody"),
        event(Dial, 90 * SECOND, "d", campaign="other", team="north", agent="ann"),
    )
    assert contributions(lead) == {
        ("campaign+source", "spring", "web", MINUTE, "leads_created", 1),
        ("campaign+source", "spring", "web", MINUTE + 60, "leads_dialed", 1),
        ("campaign+source", "spring", "web", MINUTE, "awaited", 1),
        ("campaign+source", "spring", "web", MINUTE, "attempt_120", 1),
        ("campaign+source", "spring", "web", MINUTE, "attempt_ms", 90_000),
        ("team+agent", "none", "nobody", MINUTE, "leads_created", 1),
        ("team+agent", "north", "ann", MINUTE + 60, "leads_dialed", 1),
        ("location", "Köln", MINUTE, "leads_created", 1),
        ("location", "Köln", MINUTE + 60, "leads_dialed", 1),
    }


def test_a_lead_taken_back_leaves_nothing():
    lead = lead_of(
        event(LeadCreated, source="web"),
        event(Connect, 90 * SECOND, "c", agent="ann"),
        event(DmReached, 91 * SECOND, "r", call_id="c", campaign="spring"),
        event(CallEnded, 92 * SECOND, "x", call_id="c"),
    )
    assert contributions(lead, -1) == {(*cell, -n) for *cell, n in contributions(lead)}


def test_response_columns_are_no_agents_and_no_locations():
    lead = lead_of(event(LeadCreated), event(Dial, SECOND, "d"), event(Connect, 2 * SECOND, "c"))
    response = {"awaited", "attempt_5", "attempt_ms", "connect_5", "connect_ms"}
    assert {rollup for rollup, *_, column, _ in contributions(lead) if column in response} == {
        "campaign+source"
    }


def test_a_later_stage_implies_the_ones_before_at_its_own_minute():
    assert {row for row in contributions(lead_of(event(Connect, agent="ann"))) if row[0] == "team+agent"} == {
        ("team+agent", "none", "ann", MINUTE, "leads_created", 1),
        ("team+agent", "none", "ann", MINUTE, "leads_dialed", 1),
        ("team+agent", "none", "ann", MINUTE, "leads_connected", 1),
        ("team+agent", "none", "ann", MINUTE, "implied", 2),
    }


def test_a_void_reach_is_a_pick_up_and_no_reach():
    assert counted(event(DmReached, call_id="c"), event(CallEnded, SECOND, "x", call_id="c")) == {
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
    lead = lead_of(
        event(LeadCreated, campaign="spring"),
        event(DmReached, 120 * SECOND, "r", call_id="c", campaign="autumn", team="north", agent="ann"),
        event(CallEnded, 121 * SECOND, "x", call_id="c", campaign="winter", agent="bo"),
    )
    assert {row for row in contributions(lead) if row[-2] == "dm_hangups"} == {
        ("campaign+source", "autumn", "none", MINUTE + 120, "dm_hangups", 1),
        ("team+agent", "north", "ann", MINUTE + 120, "dm_hangups", 1),
        ("location", "none", MINUTE + 120, "dm_hangups", 1),
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
    assert {name: n for name, n in columns.items() if name.startswith(("attempt", "connect"))} == {
        **{"attempt_5": 1, "attempt_ms": 5_000},
        **{"connect_15": 1, "connect_ms": 5_001},
    }


def test_an_answer_at_the_moment_of_creation_is_a_response_and_one_before_is_none():
    assert counted(event(LeadCreated), event(Connect, 0, "b"))["connect_5"] == 1
    assert "connect_5" not in counted(event(LeadCreated), event(Connect, -1, "b"))


def test_the_contributions_of_a_lead_that_was_never_created_hold_no_response():
    assert counted(event(Dial), event(Connect, 1, "b")) == {
        **{"leads_created": 1, "leads_dialed": 1, "leads_connected": 1, "implied": 1},
    }
