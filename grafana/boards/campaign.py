"""A campaign: where it loses leads, which source is worth its money, whether today is as other days."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import frame
from grafana.boards.speed import leads_due_and_met
from grafana.frame import Section
from grafana.panels import COUNT, SECONDS, SHARE, Column, Query, bands, bars, limits, lines, stat, table
from grafana.promql import Scope, ratio, steps
from schemas.events import STAGES
from streams.windows import DUE_SECONDS

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
            stat(
                "Reach rate",
                "Decision makers reached (immediate hang-ups taken out) ÷ dials. Standard from 15 %."
                + _ALL_SOURCES,
                SHARE,
                Query(scope.reach(), "reach"),
                Query(scope.events("dialed"), "dials"),
                colours=bands("reach"),
                beside=["dials"],
                size=(6, 4),
            ),
            stat(
                "Qualification rate",
                "Leads qualified ÷ leads reached, of the chosen sources. Standard from 50 %.",
                SHARE,
                Query(of_source.qualification(), "qualification"),
                Query(of_source.leads("reached"), "reached"),
                colours=bands("qualification"),
                beside=["reached"],
                size=(6, 4),
            ),
            stat(
                "Close rate",
                "Leads won ÷ leads qualified, of the chosen sources. Standard from 50 %.",
                SHARE,
                Query(of_source.close(), "close"),
                Query(of_source.leads("qualified"), "qualified"),
                colours=bands("close"),
                beside=["qualified"],
                size=(6, 4),
            ),
            stat(
                "Called in time",
                f"Of the leads whose {DUE_SECONDS // 60} minutes ended in the window, those called by then. "
                "Standard from 90 %. Of all sources.",
                SHARE,
                Query(scope.response(), "in time"),
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
                "Machine answers, immediate hang-ups (taken off the reach), calls an agent ended at once, "
                "and arrivals that only a later stage gave away: many of them mean that a system leaves "
                "events out." + _ALL_SOURCES,
                COUNT,
                Query(scope.total("callfunnel_window_machine_answers"), "machine answers"),
                Query(hangups, "immediate hang-ups"),
                Query(scope.total("callfunnel_window_agent_hangups"), "ended by the agent at once"),
                Query(scope.total("callfunnel_window_implied_arrivals"), "implied arrivals"),
                size=(8, 8),
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
                "immediate hang-ups are not counted by source.",
                {"source": "Source"},
                Column(of_source.leads("created", "source"), "New leads"),
                Column(of_source.events("dialed", "source"), "Dials"),
                Column(of_source.leads("reached", "source"), "Reached"),
                Column(of_source.leads("qualified", "source"), "Qualified"),
                Column(
                    of_source.qualification("source"),
                    "Qualification",
                    SHARE,
                    bands("qualification"),
                ),
                Column(of_source.leads("won", "source"), "Won"),
                Column(of_source.close("source"), "Close", SHARE, bands("close")),
                Column(
                    ratio(of_source.events("dialed", "source"), of_source.leads("won", "source")),
                    "Dials per win",
                ),
                sort="Dials",
                size=(12, 8),
            ),
            lines(
                "Qualification rate by source",
                "Leads qualified ÷ leads reached of each source, in the window that ends at each moment.",
                SHARE,
                Query(of_source.qualification("source"), "{{source}}"),
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
                "Bands: 10, 15 and 30 %." + _ALL_SOURCES,
                SHARE,
                *(Query(scope.reach(offset=ago, window="today"), day) for ago, day in days),
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
                Query(scope.response(), "in time"),
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
            stat(
                "Oldest uncalled lead",
                "How long the open lead that waits longest has been waiting for its first call.",
                SECONDS,
                Query(scope.oldest_uncalled(), "oldest"),
                colours=limits(DUE_SECONDS, 900),
                size=(4, 8),
                empty="none",
            ),
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
