"""The funnel of the whole floor, read in five seconds: how much, how well, where it leaks and what to do."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from callfunnel.schemas.events import STAGES
from callfunnel.streams.rates import RATES
from callfunnel.streams.windows import DUE_SECONDS
from grafana import frame
from grafana.frame import Section
from grafana.panels import (
    COUNT,
    SECONDS,
    SHARE,
    Column,
    Query,
    bands,
    bars,
    heat,
    limits,
    lines,
    oldest_uncalled,
    rate_stat,
    stat,
    table,
    words,
)
from grafana.promql import Scope, ratio

UID = "callfunnel-overview"

RED = (
    ("Reach", *RATES["reach"].when_red, "callfunnel-agents"),
    ("Qualification", *RATES["qualification"].when_red, "callfunnel-campaign"),
    ("Close", *RATES["close"].when_red, "callfunnel-agents"),
    ("Called in time", *RATES["response"].when_red, "callfunnel-speed"),
    ("Behind by", "The numbers are old.", "Do not act on them.", "callfunnel-engine"),
)
"""What is red, what that says, what to do first, and the dashboard that says more."""

RED_AS_TABLE = "\n".join(
    (
        "| red | what it says | what to do first | more |",
        "|---|---|---|---|",
        *(
            f"| **{name}** | {says} | {first} | [{frame.TITLES[uid]}](/d/{uid}) |"
            for name, says, first, uid in RED
        ),
        "",
        "Fix the first red stage from the top: what leaks above never arrives below. "
        "Few calls make any rate jump: read the volume beside it.",
    )
)

MEANING = {
    "created": "New leads announced in the window.",
    "dialed": "Leads dialed for the first time in the window; those from a list were never announced.",
    "connected": "Leads with whom a human picked up for the first time in the window.",
    "reached": "Leads whose decision maker was reached for the first time in the window, without hang-ups.",
    "qualified": "Leads qualified in the window.",
    "won": "Leads won in the window.",
}


scope = Scope(frame.matchers(campaign="=~"))
hangups = scope.total("callfunnel_window_dm_hangups")
rates = (
    rate_stat(
        "Reach rate",
        "Decision makers reached (immediate hang-ups taken out) ÷ dials. Standard from 15 %, very good from "
        "30 %, at 10 % or less something is badly wrong.",
        "reach",
        scope.share("reach"),
        scope.judged("reach"),
        Query(scope.events("dialed"), "dials"),
    ),
    rate_stat(
        "Qualification rate",
        "Leads qualified ÷ leads reached. Standard from 50 %.",
        "qualification",
        scope.share("qualification"),
        scope.judged("qualification"),
        Query(scope.leads("reached"), "reached"),
    ),
    rate_stat(
        "Close rate",
        "Leads won ÷ leads qualified. Standard from 50 %.",
        "close",
        scope.share("close"),
        scope.judged("close"),
        Query(scope.leads("qualified"), "qualified"),
    ),
    stat(
        "Dials to wins",
        "Wins ÷ dials, repeats counted. At standard 15 % × 50 % × 50 % = 3.75 %.",
        SHARE,
        Query(ratio(scope.events("won"), scope.events("dialed")), "dials to wins"),
        Query(scope.events("won"), "wins"),
        beside=["wins"],
        decimals=2,
    ),
    stat(
        "Called in time",
        f"Of the leads whose {DUE_SECONDS // 60} minutes ended in the window, those called by then. "
        "Leads never called count. Standard from 90 %.",
        SHARE,
        Query(scope.judged("response"), "in time"),
        Query(scope.due(), "due"),
        colours=bands("response"),
        beside=["due"],
    ),
    stat(
        "Immediate hang-ups",
        "Decision makers who hung up at once ÷ all who were reached. Above 25 % something is wrong with "
        "the first ten seconds.",
        SHARE,
        Query(ratio(hangups, scope.events("reached")), "hang-ups"),
        Query(hangups, "calls"),
        colours=limits(0.15, 0.25),
        beside=["calls"],
    ),
)
everyone = "all"
of_campaign = "{{campaign}}"


def now() -> Section:
    return Section(
        "Now: how much and how well",
        [
            stat(
                stage.capitalize(),
                MEANING[stage],
                COUNT,
                Query(scope.leads(stage), stage),
                size=(4, 3),
            )
            for stage in STAGES
        ],
        rates,
        [
            bars(
                "Funnel",
                "Leads that arrived at each stage in the window, each lead once per stage. Leads from a "
                "list are dialed without having been created.",
                COUNT,
                *(Query(scope.leads(stage), stage) for stage in STAGES),
                size=(10, 11),
            ),
            words(
                "When a stage is red",
                "What each red number says and the first thing to do about it.",
                RED_AS_TABLE,
                (10, 11),
            ),
            [
                oldest_uncalled(scope, size=(4, 5)),
                stat(
                    "Uncalled leads",
                    "Open leads that nobody has called yet, of any age.",
                    COUNT,
                    Query(scope.total("callfunnel_leads_uncalled"), "uncalled"),
                    size=(4, 6),
                ),
            ],
        ],
    )


def over_time() -> Section:
    return Section(
        "Rates over time, over the bands of their standards",
        [
            lines(
                "Reach rate over time",
                "Reach of the window that ends at each moment. Bands: 10, 15 and 30 %." + frame.GAPS,
                SHARE,
                Query(scope.judged("reach"), everyone),
                Query(scope.judged("reach", "campaign"), of_campaign),
                colours=bands("reach"),
                soft_max=0.4,
            ),
            lines(
                "Qualification rate over time",
                "Qualification of the window that ends at each moment. Band: 50 %." + frame.GAPS,
                SHARE,
                Query(scope.judged("qualification"), everyone),
                Query(scope.judged("qualification", "campaign"), of_campaign),
                colours=bands("qualification"),
                soft_max=1,
            ),
            lines(
                "Close rate over time",
                "Close rate of the window that ends at each moment. Band: 50 %." + frame.GAPS,
                SHARE,
                Query(scope.judged("close"), everyone),
                Query(scope.judged("close", "campaign"), of_campaign),
                colours=bands("close"),
                soft_max=1,
            ),
        ],
        [
            lines(
                "Events of each stage",
                "What the floor did in the window that ends at each moment, repeats counted: "
                "the volumes behind the rates.",
                COUNT,
                *(Query(scope.events(stage), stage) for stage in STAGES),
                size=(12, 8),
            ),
            lines(
                "Calls that went nowhere",
                "Machine answers, decision makers who hung up at once (taken off the reach) and calls "
                "an agent ended at once.",
                COUNT,
                Query(scope.total("callfunnel_window_machine_answers"), "machine answers"),
                Query(hangups, "immediate hang-ups"),
                Query(scope.total("callfunnel_window_agent_hangups"), "ended by the agent at once"),
                size=(12, 8),
            ),
        ],
    )


def by_campaign() -> Section:
    return Section(
        "Campaigns and response",
        [
            table(
                "Campaigns",
                "Volumes and rates of each campaign in the window. A click on a campaign opens it."
                + frame.GAPS,
                {"campaign": "Campaign"},
                Column(scope.leads("created", "campaign"), "New leads"),
                Column(scope.events("dialed", "campaign"), "Dials"),
                Column(scope.reached("campaign"), "Reached"),
                Column(scope.judged("reach", "campaign"), "Reach", SHARE, bands("reach")),
                Column(scope.leads("qualified", "campaign"), "Qualified"),
                Column(
                    scope.judged("qualification", "campaign"),
                    "Qualification",
                    SHARE,
                    bands("qualification"),
                ),
                Column(scope.leads("won", "campaign"), "Won"),
                Column(scope.judged("close", "campaign"), "Close", SHARE, bands("close")),
                Column(scope.due("campaign"), "Due"),
                Column(scope.judged("response", "campaign"), "Called in time", SHARE, bands("response")),
                Column(
                    scope.oldest_uncalled("campaign"),
                    "Oldest uncalled",
                    SECONDS,
                    limits(DUE_SECONDS, 900),
                ),
                links=frame.to_campaign(),
                sort="Dials",
            )
        ],
        [
            heat(
                "Time to the first call",
                "Leads created in the window that ends at each moment, by the time from their creation to "
                "the first dial. Uncalled leads are not in it: see Speed to lead.",
                SECONDS,
                scope.total("callfunnel_window_lead_response_seconds_bucket", "le", clock="attempt"),
                size=(24, 9),
            )
        ],
    )


def build() -> Dashboard:
    return frame.build(
        UID,
        "The funnel of the floor: volumes, rates against their standards, campaigns and what to do when a "
        "stage is red.",
        [frame.job(), frame.window(), frame.campaign()],
        [
            now(),
            over_time(),
            by_campaign(),
        ],
    )
