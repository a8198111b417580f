from collections import Counter, defaultdict
from itertools import islice

import pytest

from callfunnel.agents.demo.generator import TYPICAL_FAULTS, Faults, FloorSettings, live
from callfunnel.schemas.events import TYPES

START_MS = 1_767_603_600_000  # a Monday, 09:00 UTC
HOUR_MS = 3_600_000
FLOOR = FloorSettings()


def stream(n, seed=1, floor=FLOOR, faults=None):
    return list(islice(live(seed, floor, START_MS, faults), n))


@pytest.fixture(scope="module")
def day():
    return [event for _, event in stream(80_000)]


def of_type(events, kind):
    return [event for event in events if event["type"] == kind]


def share(part, whole):
    return len(part) / len(whole)


def test_the_same_seed_gives_the_same_stream_and_another_seed_another():
    assert stream(5_000, faults=TYPICAL_FAULTS) == stream(5_000, faults=TYPICAL_FAULTS)
    assert stream(5_000) != stream(5_000, seed=2)


def test_a_longer_stream_begins_with_the_shorter_one():
    assert stream(5_000)[:1_000] == stream(1_000)


def test_two_seeds_share_no_ids():
    first, second = ({event["event_id"] for _, event in stream(2_000, seed=seed)} for seed in (1, 2))
    assert len(first) == len(second) == 2_000
    assert not first & second


def test_everything_that_the_funnel_is_made_of_occurs(day):
    funnel = {
        "lead_created",
        "dial",
        "connect",
        "dm_reached",
        "qualified",
        "won",
        "call_ended",
        "disqualified",
        "lost",
    }
    assert funnel <= {event["type"] for event in day} <= TYPES.keys()


def test_events_are_told_in_the_order_they_happen(day):
    times = [event["occurred_at"] for event in day]
    assert times == sorted(times)


def test_the_stream_begins_with_the_hour_before_told_at_once_and_calls_under_way():
    told = stream(20_000)
    at_once = [event for at_ms, event in told if at_ms == START_MS]
    assert at_once[0]["occurred_at"] < START_MS - HOUR_MS + 10_000
    assert at_once[-1]["occurred_at"] <= START_MS
    connected = {event["call_id"] for event in of_type(at_once, "connect")}
    ended = {event["call_id"] for event in of_type(at_once, "call_ended")}
    assert 2 < len(connected - ended) <= FLOOR.seats
    assert all(at_ms == event["occurred_at"] for at_ms, event in told if at_ms > START_MS)


@pytest.mark.parametrize("events_per_second", [1, 20, 60])
def test_a_floor_can_be_sized_by_its_rate(events_per_second):
    told = stream(20_000, floor=FLOOR.at_rate(events_per_second))
    seconds = (told[-1][1]["occurred_at"] - told[0][1]["occurred_at"]) / 1000
    assert len(told) / seconds == pytest.approx(events_per_second, rel=0.25)


def test_agents_dial_as_often_as_they_are_meant_to(day):
    hours = (day[-1]["occurred_at"] - day[0]["occurred_at"]) / HOUR_MS
    assert len(of_type(day, "dial")) / FLOOR.seats / hours == pytest.approx(40, rel=0.15)
    assert len({event["agent"] for event in of_type(day, "dial")}) == FLOOR.seats


def test_an_agent_has_one_call_at_a_time(day):
    free_from_ms = {}
    for event in day:
        if event["type"] == "dial":
            assert event["occurred_at"] >= free_from_ms.get(event["agent"], 0)
        if event["type"] == "call_ended":
            free_from_ms[event["agent"]] = event["occurred_at"]


def test_each_campaign_has_the_quality_it_was_given(day):
    for campaign in FLOOR.campaigns:
        events = [event for event in day if event["campaign"] == campaign.name]
        dials = of_type(events, "dial")
        human = [event for event in of_type(events, "connect") if event["answered_by"] == "human"]
        assert share(human, dials) == pytest.approx(campaign.connected, rel=0.2)
        assert share(of_type(events, "dm_reached"), human) == pytest.approx(campaign.reached, rel=0.25)
        assert share(of_type(events, "won"), of_type(events, "qualified")) < campaign.won * 1.1


def test_better_sources_convert_better(day):
    won, reached = defaultdict(int), defaultdict(int)
    for event in day:
        won[event["source"]] += event["type"] == "won"
        reached[event["source"]] += event["type"] == "dm_reached"
    rates = {source: won[source] / reached[source] for source in reached}
    assert rates["referral"] > rates["web"] > rates["list"]


def test_a_few_percent_of_the_reached_hang_up_at_once(day):
    calls = defaultdict(dict)
    for event in day:
        if "call_id" in event:
            calls[event["call_id"]][event["type"]] = event["occurred_at"]
    ended = [call for call in calls.values() if "dm_reached" in call and "call_ended" in call]
    verdicts = {"qualified", "disqualified", "won"}
    short = [call for call in ended if call["call_ended"] - call["dm_reached"] < 15_000]
    at_once = [call for call in short if not verdicts & set(call)]
    assert 0.02 <= share(at_once, ended) <= 0.05


def test_four_in_ten_new_leads_are_called_within_minutes_and_some_never(day):
    created = {event["lead_id"]: event["occurred_at"] for event in of_type(day, "lead_created")}
    old_enough = [lead for lead, at_ms in created.items() if at_ms < day[-1]["occurred_at"] - 2 * HOUR_MS]
    called = {}
    for event in of_type(day, "dial"):
        called.setdefault(event["lead_id"], event["occurred_at"])
    waits = [called[lead] - created[lead] for lead in old_enough if lead in called]
    assert sum(wait < 15 * 60_000 for wait in waits) / len(old_enough) == pytest.approx(0.40, abs=0.05)
    assert sum(wait < 2 * HOUR_MS for wait in waits) / len(old_enough) == pytest.approx(0.70, abs=0.05)


def test_talk_takes_minutes_and_a_sale_takes_longer(day):
    talk = {event["call_id"]: event["talk_seconds"] for event in of_type(day, "call_ended")}
    reached = [talk[event["call_id"]] for event in of_type(day, "dm_reached") if event["call_id"] in talk]
    won = [talk[event["call_id"]] for event in of_type(day, "won") if event["call_id"] in talk]
    median = sorted(reached)[len(reached) // 2]
    assert 120 < median < 300
    assert sorted(won)[len(won) // 2] > 1.5 * median


def test_faults_come_in_the_shares_asked_for():
    faults = Faults(out_of_order=0.005, late=0.01, duplicated=0.02, lost_ends=0.05, poison=0.01)
    told = stream(40_000, faults=faults)
    good = [(at_ms, event) for at_ms, event in told if not str(event["event_id"]).endswith("-bad")]
    assert 1 - len(good) / len(told) == pytest.approx(0.01, rel=0.3)
    seen = Counter(event["event_id"] for _, event in good)
    assert sum(times - 1 for times in seen.values()) / len(seen) == pytest.approx(0.02, rel=0.3)
    now = [(at_ms, event) for at_ms, event in good if at_ms > START_MS + HOUR_MS]
    late = [event for at_ms, event in now if at_ms - event["occurred_at"] >= 60_000]
    assert share(late, now) == pytest.approx(0.01, rel=0.4)

    events = [event for _, event in good]
    connects = {event["call_id"] for event in of_type(events, "connect")}
    ends = {event["call_id"] for event in of_type(events, "call_ended")}
    assert 1 - len(connects & ends) / len(connects) == pytest.approx(0.05, rel=0.3)


def test_publishing_times_never_go_back_whatever_goes_wrong():
    times = [at_ms for at_ms, _ in stream(20_000, faults=Faults(out_of_order=0.1, late=0.1, duplicated=0.1))]
    assert times == sorted(times)
