"""When a rate is judged, and what is said where it is not."""

from datetime import UTC
from operator import attrgetter

import orjson
import pytest

from callfunnel.agents.view.api import funnel_document
from callfunnel.agents.view.snapshot import Funnel
from callfunnel.schemas.events import NONE, STAGES
from callfunnel.streams.rates import RATES
from callfunnel.streams.rows import POSITION_KEY

NOW = 1_750_000_020
REACH, QUALIFICATION, CLOSE = (RATES[name] for name in ("reach", "qualification", "close"))
JUDGED = [rate for rate in RATES.values() if rate.standard]
name = attrgetter("name")


def seen(**stages: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Leads and events of each stage; those not given have an event for each lead."""
    return dict.fromkeys(STAGES, (100, 100)) | stages


def test_a_rate_of_what_nobody_observed_has_no_band():
    stages = seen(qualified=(5289, 0))
    assert CLOSE.band(5289, 5289, stages) is None
    assert CLOSE.why_unjudged(5289, 5289, stages) == (
        "not measured: 5,289 of 5,289 qualified leads have no event of their own"
    )
    assert QUALIFICATION.why_unjudged(5289, 44446, stages) == CLOSE.why_unjudged(5289, 5289, stages)


@pytest.mark.parametrize("rate", [rate for rate in JUDGED if rate.stages], ids=name)
@pytest.mark.parametrize("side", [0, 1])
def test_a_fifth_of_either_side_may_be_implied_and_no_lead_more(rate, side):
    stage = rate.stages[side]
    for leads in (5, 10, 15, 35, 1000, 12345):
        least = -(-4 * leads // 5)
        assert rate.band(50, 100, seen(**{stage: (leads, least)}))
        assert rate.band(50, 100, seen(**{stage: (leads, least - 1)})) is None
        assert "not measured" in rate.why_unjudged(50, 100, seen(**{stage: (leads, least - 1)}))


def test_more_events_than_leads_are_repeats():
    assert REACH.band(30, 100, seen(dialed=(40, 100))) == "very good"


def test_a_rate_above_everything_has_no_band():
    assert REACH.band(100, 100, seen()) == "very good"
    assert REACH.band(101, 100, seen()) is None
    assert REACH.why_unjudged(101, 100, seen()) == "above 100%: more reached than dialed"


@pytest.mark.parametrize("rate", JUDGED, ids=name)
def test_a_rate_has_a_band_or_a_reason_why_not(rate):
    for numerator, denominator in ((0, 0), (1, 3), (5, 100), (99, 100), (200, 100)):
        for stages in (seen(), seen(reached=(100, 0), qualified=(100, 0))):
            judged = rate.band(numerator, denominator, stages)
            assert (judged is None) == bool(rate.why_unjudged(numerator, denominator, stages))


def test_what_has_no_standard_needs_no_reason():
    assert RATES["conversion"].why_unjudged(5, 100, seen(created=(100, 0))) is None


def document(rows, **chosen):
    funnel = Funnel(UTC)
    funnel.apply(0, POSITION_KEY, b'{"offset":1,"watermark_ms":1750000020000,"fold":"x"}')
    for row, columns in rows.items():
        for resolution, pane in (("1h", NOW // 3600 * 3600), ("all", 0)):
            key = orjson.dumps([resolution, pane, "campaign+source", *row])
            funnel.apply(0, key, orjson.dumps(columns))
    return funnel_document(funnel.snapshot(NOW), now_s=NOW, delay_s=None, window="1d", **chosen)


def judged(rows, **chosen):
    return {rate["name"]: (rate["band"], rate["unjudged"]) for rate in document(rows, **chosen)["ratios"]}


LEADS = {"leads_reached": 60, "events_reached": 70, "leads_qualified": 40, "leads_won": 30, "events_won": 30}


def test_the_api_says_what_is_not_measured():
    why = "not measured: 40 of 40 qualified leads have no event of their own"
    found = judged({("spring", "web"): LEADS})
    assert (found["qualification"], found["close"]) == ((None, why), (None, why))
    assert judged({("spring", "web"): LEADS | {"events_qualified": 40}})["close"] == ("standard", None)


def test_an_event_that_names_no_campaign_may_be_of_any_campaigns_lead():
    """The campaign of a lead is the first that any of its events names; the others need not name it."""
    rows = {("spring", "web"): LEADS, (NONE, NONE): {"events_qualified": 40}}
    for chosen in ({}, {"campaign": "spring"}, {"source": "web"}, {"campaign": "spring", "source": "web"}):
        assert judged(rows, **chosen)["close"] == ("standard", None), chosen
    rows = {("spring", "web"): LEADS, ("autumn", "web"): {"events_qualified": 40}}
    assert judged(rows, campaign="spring")["close"][0] is None
