"""A campaign: where it loses leads, which source is worth its money, whether today is as other days."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from callfunnel.schemas.events import STAGES
from callfunnel.streams.measures import BESIDE_STAGES
from callfunnel.streams.windows import DUE_SECONDS
from grafana import frame
from grafana.boards.speed import leads_due_and_met
from grafana.frame import Section
from grafana.panels import (
    COUNT,
    SHARE,
    Column,
    Query,
    bands,
    bars,
    lines,
    oldest_uncalled,
    rate_stat,
    stat,
    table,
)
from grafana.promql import Scope, ratio, steps

UID = "callfunnel-campaign"
_ALL_SOURCES = " Of all sources: hang-ups are not counted by source."


scope = Scope(frame.matchers(campaign="=~"))
of_source = Scope(frame.matchers(campaign="=~", source="=~"))
hangups = scope.total("callfunnel_window_dm_hangups")
days = (("", "today"), ("1d", "yesterday"), ("1w", "a week ago"))


def now() -> Section:
    return Section(
        "$campaign in the last $window",
        [
            stat(
                stage.capitalize(),
                f"Leads of the chosen sources that arrived at the stage `{stage}` in the window, each once.",
                COUNT,
                Query(of_source.leads(stage), stage),
                size=(4, 3),
            )
            for stage in STAGES
        ],
        [
            rate_stat(
                "Reach rate",
                "Decision makers reached (immediate hang-ups taken out) ÷ dials. Standard from 15 %."
                + _ALL_SOURCES,
                "reach",
                scope.share("reach"),
                scope.judged("reach"),
                Query(scope.events("dialed"), "dials"),
                size=(6, 4),
            ),
            rate_stat(
                "Qualification rate",
                "Leads qualified ÷ leads reached, of the chosen sources. Standard from 50 %.",
                "qualification",
                of_source.share("qualification"),
                of_source.judged("qualification"),
                Query(of_source.leads("reached"), "reached"),
                size=(6, 4),
            ),
            rate_stat(
                "Close rate",
                "Leads won ÷ leads qualified, of the chosen sources. Standard from 50 %.",
                "close",
                of_source.share("close"),
                of_source.judged("close"),
                Query(of_source.leads("qualified"), "qualified"),
                size=(6, 4),
            ),
            stat(
                "Called in time",
                f"Of the leads whose {DUE_SECONDS // 60} minutes ended in the window, those called by then. "
                "Standard from 90 %. Of all sources.",
                SHARE,
                Query(scope.judged("response"), "in time"),
                Query(scope.due(), "due"),
                colours=bands("response"),
                beside=["due"],
                size=(6, 4),
            ),
        ],
    )


def losses() -> Section:
    return Section(
        "Where leads are lost",
        [
            bars(
                "From stage to stage",
                "Leads that arrived at a stage ÷ leads that arrived at the one before, both in the window. "
                "The shortest bar is the widest leak. A short window may show more than 100 %: they need "
                "not be the same leads.",
                SHARE,
                *(
                    Query(
                        ratio(of_source.leads(after), of_source.leads(before)),
                        f"{before} → {after}",
                    )
                    for before, after in steps()
                ),
                size=(8, 8),
            ),
            lines(
                "Lost between stages",
                "Arrivals at a stage − arrivals at the next, in the window that ends at each moment: how "
                "many leads each step costs.",
                COUNT,
                *(
                    Query(
                        f"clamp_min({of_source.leads(before)} - {of_source.leads(after)}, 0)",
                        f"{before} → {after}",
                    )
                    for before, after in steps()
                ),
                size=(8, 8),
            ),
            lines(
                "Calls that went nowhere",
                "Machine answers, answers that turned out to be a machine's, immediate hang-ups (taken off "
                "the reach), calls an agent ended at once, and arrivals that only a later stage gave away: "
                "many of them mean that a system leaves events out." + _ALL_SOURCES,
                COUNT,
                Query(scope.total("callfunnel_window_machine_answers"), "machine answers"),
                Query(scope.total("callfunnel_window_connects_voided"), "answers that were a machine's"),
                Query(hangups, "immediate hang-ups"),
                Query(scope.total("callfunnel_window_agent_hangups"), "ended by the agent at once"),
                Query(scope.total("callfunnel_window_implied_arrivals"), "implied arrivals"),
                size=(8, 8),
            ),
        ],
        [
            lines(
                "Other events",
                "Events that are no stage of the funnel, in the window that ends at each moment.",
                COUNT,
                *(Query(of_source.figure(each.column), each.title) for each in BESIDE_STAGES),
                size=(12, 8),
            ),
            lines(
                "Taken back",
                "Events of the window that a retraction took back, or that contradict another copy of the "
                "same event; and retractions of the last day whose events have not come: is the id right, "
                "and the lead? Of all sources.",
                COUNT,
                Query(scope.figure("retractions"), "taken back"),
                Query(
                    scope.total("callfunnel_window_corrections", window="1d", correction="open"),
                    "retractions without an event",
                ),
                size=(12, 8),
            ),
        ],
    )


def sources() -> Section:
    return Section(
        "Sources compared",
        [
            table(
                "Sources",
                "Each source of the campaign in the window, leads once per stage. Without a reach rate: "
                "immediate hang-ups are not counted by source." + frame.GAPS,
                {"source": "Source"},
                Column(of_source.leads("created", "source"), "New leads"),
                Column(of_source.events("dialed", "source"), "Dials"),
                Column(of_source.leads("reached", "source"), "Reached"),
                Column(of_source.leads("qualified", "source"), "Qualified"),
                Column(
                    of_source.judged("qualification", "source"),
                    "Qualification",
                    SHARE,
                    bands("qualification"),
                ),
                Column(of_source.leads("won", "source"), "Won"),
                Column(of_source.judged("close", "source"), "Close", SHARE, bands("close")),
                Column(
                    ratio(of_source.events("dialed", "source"), of_source.leads("won", "source")),
                    "Dials per win",
                ),
                sort="Dials",
                size=(12, 8),
            ),
            lines(
                "Qualification rate by source",
                "Leads qualified ÷ leads reached of each source, in the window that ends at each moment."
                + frame.GAPS,
                SHARE,
                Query(of_source.judged("qualification", "source"), "{{source}}"),
                colours=bands("qualification"),
                soft_max=1,
                size=(12, 8),
            ),
        ],
    )


def against_other_days() -> Section:
    return Section(
        "Today against other days",
        [
            lines(
                "Dials so far today",
                "Dials since midnight, beside yesterday and the same day last week at the same time.",
                COUNT,
                *(Query(of_source.events("dialed", offset=ago, window="today"), day) for ago, day in days),
            ),
            lines(
                "Wins so far today",
                "Leads won since midnight, beside yesterday and the same day last week at the same time.",
                COUNT,
                *(Query(of_source.leads("won", offset=ago, window="today"), day) for ago, day in days),
            ),
            lines(
                "Reach rate today",
                "Reach since midnight, beside yesterday and the same day last week at the same time. "
                "Bands: 10, 15 and 30 %." + frame.GAPS + _ALL_SOURCES,
                SHARE,
                *(Query(scope.judged("reach", offset=ago, window="today"), day) for ago, day in days),
                colours=bands("reach"),
                soft_max=0.4,
            ),
        ],
    )


def new_leads() -> Section:
    return Section(
        "New leads",
        [
            lines(
                "Called in time over time",
                "The share of due leads that was called in time, in the window that ends at each moment.",
                SHARE,
                Query(scope.judged("response"), "in time"),
                colours=bands("response"),
                soft_max=1,
            ),
            leads_due_and_met(),
            lines(
                "Uncalled leads",
                "Open leads that nobody has called yet, by their age.",
                COUNT,
                Query(scope.total("callfunnel_leads_uncalled", "age"), "{{age}}"),
                stacked=True,
                size=(4, 8),
            ),
            oldest_uncalled(scope, size=(4, 8)),
        ],
    )


def build() -> Dashboard:
    return frame.build(
        UID,
        "Campaigns: loss from stage to stage, sources compared, today against yesterday and last week.",
        [frame.job(), frame.window(), frame.campaign(), frame.source()],
        [
            now(),
            losses(),
            sources(),
            against_other_days(),
            new_leads(),
        ],
    )
