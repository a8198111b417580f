"""Who does well and who needs help: agents with enough dials to say so, teams, and places."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import frame
from grafana.frame import Section
from grafana.panels import (
    COUNT,
    SHARE,
    Column,
    Query,
    at_least,
    bands,
    bars,
    lines,
    rate_stat,
    standard,
    stat,
    table,
)
from grafana.promql import Scope, judged, measured_leads, ratio

UID = "callfunnel-agents"
_WITH_HANGUPS = (
    " Immediate hang-ups are in it: they are not counted by agent, so it is a little above the reach rate."
)


scope = Scope(frame.matchers(team="=~", agent="=~"))


def events(stage: str, by: str = "") -> str:
    return scope.total("callfunnel_agent_window_events", by, funnel_stage=stage)


def leads(stage: str, by: str = "") -> str:
    return scope.total("callfunnel_agent_window_leads", by, funnel_stage=stage)


def at(stage: str) -> str:
    return scope.total("callfunnel_location_window_events", "location", funnel_stage=stage)


def share(of: str, from_: str, by: str = "") -> str:
    return ratio(events(of, by), events(from_, by))


def measured(stage: str, by: str = "") -> str:
    return measured_leads(leads(stage, by), events(stage, by))


def reached_of_dials(by: str = "") -> str:
    return judged(share("reached", "dialed", by), measured("reached", by), measured("dialed", by))


def of_leads(above: str, below: str) -> str:
    rate = ratio(leads(above, agent), leads(below, agent))
    return judged(rate, measured(above, agent), measured(below, agent))


agent = "team, agent"


def ranked(expr: str) -> str:
    return f"({expr}) and ({events('dialed', agent)} >= $minimum)"


enough = f"sum({events('dialed', agent)} >= bool $minimum)"


def now() -> Section:
    return Section(
        "The chosen agents in the last $window",
        [
            stat(
                "Dials",
                "Dials of the chosen agents in the window.",
                COUNT,
                Query(events("dialed"), "dials"),
            ),
            stat(
                "Decision makers",
                "Decision makers reached by the chosen agents, immediate hang-ups among them.",
                COUNT,
                Query(events("reached"), "reached"),
            ),
            rate_stat(
                "Reached of dials",
                "Decision makers reached ÷ dials." + _WITH_HANGUPS,
                "reach",
                share("reached", "dialed"),
                reached_of_dials(),
                Query(events("dialed"), "dials"),
            ),
            stat(
                "Qualified",
                "Leads that the chosen agents qualified in the window.",
                COUNT,
                Query(leads("qualified"), "qualified"),
            ),
            stat(
                "Won",
                "Leads that the chosen agents won in the window.",
                COUNT,
                Query(leads("won"), "won"),
            ),
            stat(
                "Agents ranked",
                "Agents with at least the chosen number of dials; the others are not ranked.",
                COUNT,
                Query(enough, "ranked"),
                Query(f"count({events('dialed', agent)} > 0)", "at work"),
                beside=["at work"],
            ),
        ],
    )


def leaderboard() -> Section:
    return Section(
        "Leaderboard: agents with at least $minimum dials",
        [
            table(
                "Leaderboard",
                "Agents with enough dials in the window, by wins; leads belong to the agent of the call "
                "that brought them to the stage. Reached of dials holds immediate hang-ups, which are not "
                "counted by agent. A click on a team shows it alone." + frame.GAPS,
                {"team": "Team", "agent": "Agent"},
                Column(ranked(leads("won", agent)), "Won"),
                Column(ranked(leads("qualified", agent)), "Qualified"),
                Column(ranked(events("reached", agent)), "Reached"),
                Column(ranked(events("connected", agent)), "Connected"),
                Column(events("dialed", agent) + " >= $minimum", "Dials"),
                Column(
                    ranked(reached_of_dials(agent)),
                    "Reached of dials",
                    SHARE,
                    bands("reach"),
                ),
                Column(
                    ranked(of_leads("qualified", "reached")),
                    "Qualification",
                    SHARE,
                    bands("qualification"),
                ),
                Column(
                    ranked(of_leads("won", "qualified")),
                    "Close",
                    SHARE,
                    bands("close"),
                ),
                Column(
                    ranked(ratio(leads("won", agent), events("dialed", agent))),
                    "Wins of dials",
                    SHARE,
                ),
                links={"team": ("Only ${__data.fields.team}", frame.address(UID, team="team"))},
                sort="Won",
                size=(24, 12),
            )
        ],
        [
            bars(
                "Who needs help",
                "The ten ranked agents who reach the smallest share of their dials."
                + _WITH_HANGUPS
                + frame.GAPS,
                SHARE,
                Query(
                    f"bottomk(10, {ranked(reached_of_dials(agent))})",
                    "{{agent}} · {{team}}",
                ),
                colours=at_least(standard("reach")),
                size=(12, 9),
            ),
            bars(
                "Who to learn from",
                "The ten ranked agents who win the largest share of their dials.",
                SHARE,
                Query(
                    f"topk(10, {ranked(ratio(leads('won', agent), events('dialed', agent)))})",
                    "{{agent}} · {{team}}",
                ),
                size=(12, 9),
            ),
        ],
    )


def teams() -> Section:
    return Section(
        "Teams",
        [
            lines(
                "Reached of dials by team",
                "Decision makers reached ÷ dials of each team, in the window that ends at each moment."
                + _WITH_HANGUPS
                + frame.GAPS,
                SHARE,
                Query(reached_of_dials("team"), "{{team}}"),
                colours=bands("reach"),
                soft_max=0.4,
            ),
            lines(
                "Dials by team",
                "Dials of each team in the window that ends at each moment.",
                COUNT,
                Query(events("dialed", "team"), "{{team}}"),
            ),
            lines(
                "Wins by team",
                "Leads that each team won in the window that ends at each moment.",
                COUNT,
                Query(leads("won", "team"), "{{team}}"),
            ),
        ],
    )


def places() -> Section:
    return Section(
        "Places",
        [
            table(
                "Locations",
                "Each location in the window, repeats counted, whatever teams are chosen." + _WITH_HANGUPS,
                {"location": "Location"},
                Column(at("dialed"), "Dials"),
                Column(at("connected"), "Connected"),
                Column(at("reached"), "Reached"),
                Column(judged(ratio(at("reached"), at("dialed"))), "Reached of dials", SHARE, bands("reach")),
                Column(at("won"), "Won"),
                sort="Dials",
                size=(12, 7),
            ),
            lines(
                "Dials by location",
                "Dials at each location in the window that ends at each moment, whatever teams are chosen.",
                COUNT,
                Query(at("dialed"), "{{location}}"),
                size=(12, 7),
            ),
        ],
    )


def build() -> Dashboard:
    return frame.build(
        UID,
        "Agents ranked above a minimum of dials, teams and places compared, volumes beside every rate.",
        [frame.job(), frame.window(), frame.team(), frame.agent(), frame.minimum()],
        [
            now(),
            leaderboard(),
            teams(),
            places(),
        ],
    )
