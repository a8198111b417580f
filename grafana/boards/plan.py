"""What the floor must dial to make its target, how far it is, and which stage would shorten the way most.

All of it is activity, what happened in the window: only there is won ÷ dials the product of the three rates.
"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from callfunnel.streams.rates import RATES
from grafana import frame
from grafana.frame import Section
from grafana.panels import COUNT, SECONDS, SHARE, Column, Query, bars, lines, standard, stat, table
from grafana.promql import Scope, judged, ratio, share_bound

UID = "callfunnel-plan"

ENOUGH = 10
"""Wins in the window below which nothing is planned: ten wins leave the dials open by a factor of three."""

QUANTILE = 1.645
"""Standard errors on each side of nine in ten outcomes."""

EXPECTED, AT_BEST, AT_WORST = 0.0, QUANTILE, -QUANTILE
_BASIS = (
    f" From won ÷ dials in the window, absent below {ENOUGH} wins; best and worst hold nine times in ten."
)


scope = Scope(frame.matchers(campaign="=~"))
dials_today = scope.events("dialed", window="today")
won_today = scope.events("won", window="today")
to_win = f"clamp_min($target - {won_today}, 0)"
wins = Query(scope.events("won"), "wins in the window")


def happened(stage: str) -> str:
    """Events of a stage in the window; those of reached as the reach rate counts them."""
    return f"({scope.reached()})" if stage == "reached" else scope.events(stage)


def conversion(errors: float = EXPECTED, by: str = "") -> str:
    """Won ÷ dials, or a bound of it; absent below `ENOUGH` wins."""
    won, dials = scope.events("won", by), scope.events("dialed", by)
    share = share_bound(won, dials, errors) if errors else ratio(won, dials)
    return f"({share}) and {won} >= {ENOUGH}"


def dials_for(wins: str, errors: float = EXPECTED) -> str:
    return f"ceil({wins} / ({conversion(errors)}))"


def outlook(wins: str, *names: str) -> list[Query]:
    """The dials that so many wins take, under the names of expected, at best and at worst."""
    bounds = (EXPECTED, AT_BEST, AT_WORST)
    return [Query(dials_for(wins, errors), name) for errors, name in zip(bounds, names, strict=True)]


def dials_per_win(by: str = "", errors: float = EXPECTED) -> str:
    return f"1 / ({conversion(errors, by)})"


def at_standard(name: str, rate: str, share: str) -> Query:
    """Dials for a win if the share came up to the standard of a rate; one that is better stays as it is."""
    floor = standard(rate)
    return Query(f"{dials_per_win()} * clamp_max(({share}) / {floor:g}, 1)", f"{name} at {floor:.0%}")


def at_standard_of_events(rate: str) -> Query:
    """The same of a rate of leads, with events in place of leads: another number, under another name."""
    above, below = RATES[rate].stages
    share = ratio(happened(above), happened(below))
    measured = judged(share, scope.measured(above), scope.measured(below))
    return at_standard(f"{above} ÷ {below} events", rate, measured)


def plan() -> Section:
    return Section(
        "$target wins today",
        [
            stat(
                "Share of the target",
                "Wins since midnight ÷ the wins wanted today.",
                SHARE,
                Query(f"{won_today} / $target", "of the target"),
                Query(won_today, "wins"),
                beside=["wins"],
            ),
            stat("Dials made", "Dials since midnight.", COUNT, Query(dials_today, "dials")),
            stat(
                "Dials needed",
                "Dials that the target takes." + _BASIS,
                COUNT,
                *outlook("$target", "expected", "at best", "at worst"),
                wins,
                beside=[wins.name],
                size=(6, 4),
            ),
            stat(
                "Dials to go",
                "Dials that the wins still missing take." + _BASIS,
                COUNT,
                *outlook(to_win, "expected", "at best", "at worst"),
                wins,
                beside=[wins.name],
                size=(6, 4),
            ),
            stat(
                "Time to go",
                "How long the expected dials to go take at the pace of the last hour, breaks not counted; "
                f"absent without a dial in it, or below {ENOUGH} wins.",
                SECONDS,
                Query(
                    f"3600 * {dials_for(to_win)} / ({scope.events('dialed', window='1h')} > 0)",
                    "at this pace",
                ),
                wins,
                beside=[wins.name],
            ),
        ],
        [
            lines(
                "Dials made and needed",
                "Dials since midnight, and what the whole target takes." + _BASIS,
                COUNT,
                Query(dials_today, "made"),
                *outlook("$target", "needed", "needed at best", "needed at worst"),
                size=(12, 9),
            ),
            bars(
                "What would help most",
                "Dials for a win as it is, and if one rate came up to its standard: the shortest bar is the "
                "stage worth fixing first. A rate that meets its standard changes nothing." + frame.GAPS,
                COUNT,
                Query(dials_per_win(), "as it is"),
                at_standard("reach", "reach", scope.judged("reach")),
                at_standard_of_events("qualification"),
                at_standard_of_events("close"),
                size=(12, 9),
            ),
        ],
    )


def takes() -> Section:
    return Section(
        "What a win takes",
        [
            table(
                "Dials for a win, by campaign",
                "Volumes of each campaign in the window, and its dials for a win." + _BASIS,
                {"campaign": "Campaign"},
                Column(scope.events("dialed", "campaign"), "Dials"),
                Column(scope.reached("campaign"), "Reached"),
                Column(scope.events("qualified", "campaign"), "Qualified"),
                Column(scope.events("won", "campaign"), "Won"),
                Column(dials_per_win("campaign"), "Dials for a win"),
                Column(dials_per_win("campaign", AT_BEST), "At best"),
                Column(dials_per_win("campaign", AT_WORST), "At worst"),
                links=frame.to_campaign(),
                sort="Dials",
                size=(12, 9),
            ),
            lines(
                "Touches for a win",
                "Dials, human answers and decision makers for a win, in the window that ends at each moment.",
                COUNT,
                *(
                    Query(ratio(touches, f"({scope.events('won')} >= {ENOUGH})"), name)
                    for touches, name in (
                        (scope.events("dialed"), "dials"),
                        (scope.events("connected"), "human answers"),
                        (scope.reached(), "decision makers"),
                    )
                ),
                size=(12, 9),
            ),
        ],
    )


def build() -> Dashboard:
    return frame.build(
        UID,
        "The plan of the day: dials needed against dials made, what a win takes, and what would help most.",
        [frame.job(), frame.window("1d"), frame.campaign(), frame.target()],
        [plan(), takes()],
    )
