"""What all dashboards share: variables, links to each other, annotations, and where a panel stands."""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import dashboard as boards
from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel, RowPanel, VariableOption

from callfunnel.streams.windows import WINDOWS
from grafana.panels import COLOURS, COUNT, DATASOURCE, MOMENT, SECONDS, Query, limits, stat
from grafana.promql import Scope

TITLES = {
    "callfunnel-overview": "Funnel overview",
    "callfunnel-campaign": "Campaign",
    "callfunnel-agents": "Agents and teams",
    "callfunnel-speed": "Speed to lead",
    "callfunnel-plan": "Plan",
    "callfunnel-engine": "Engine",
}
"""Every dashboard: its uid, which is its address and the name of its file, and its title."""

ALL = ".*"
"""What `All` stands for: also series without the label, such as those of teams where agents are not told."""

Line = Sequence[Panel | Sequence[Panel]]
"""Panels beside each other; a sequence among them: panels below each other."""


class Section:
    """A heading and the lines under it."""

    def __init__(self, title: str, *lines: Line) -> None:
        self.title = title
        self.lines = lines


STATES = {
    "current": COLOURS["standard"],
    "connecting": COLOURS["watch"],
    "catching_up": COLOURS["watch"],
    "stale": COLOURS["critical"],
    "failed": COLOURS["critical"],
}
"""The states of a view, and their colours."""

FRESH = "How fresh these numbers are"
"""The heading of the first row of every dashboard."""


GAPS = " Nothing where a rate cannot be judged: above 100 %, or not measured."
"""What a panel says whose rates are only there where they can be judged."""


def freshness(job_matcher: str) -> Section:
    """Whether the numbers below are those of now; without a view there is no data here, nor below."""
    scope = Scope({"job": job_matcher})
    size = (6, 3)
    return Section(
        FRESH,
        [
            stat(
                "View",
                "What the view does; with several, each state that one of them is in. Only a view that is "
                "`current` shows the funnel's numbers; `stale`: the broker does not answer it.",
                COUNT,
                *(
                    Query(f"max({scope.series('callfunnel_view_state', state=state)} == 1)", state)
                    for state in STATES
                ),
                named=STATES,
                size=size,
            ),
            stat(
                "Newest event",
                "How long ago the newest event in the numbers happened. Old while the floor is quiet, or "
                "while its events do not arrive.",
                SECONDS,
                Query(scope.newest_event(), "ago"),
                size=size,
            ),
            stat(
                "Behind by",
                "How long ago the numbers were complete: what had arrived by then is in them. Above five "
                "minutes, do not act on them.",
                SECONDS,
                Query(scope.behind(), "behind"),
                colours=limits(60, 300),
                size=size,
            ),
            stat(
                "Last snapshot",
                "The moment up to which the numbers are complete.",
                MOMENT,
                Query(f"min({scope.complete()}) * 1000", "at"),
                size=size,
            ),
        ],
    )


def address(uid: str, **labels: str) -> str:
    """The address of a dashboard with the variables and the time of this one; `labels`: variables that
    take the value of a column of the row."""
    kept = [f"${{{name}:queryparam}}" for name in ("datasource", "job", "window")]
    given = [f"var-{name}=${{__data.fields.{label}:percentencode}}" for name, label in labels.items()]
    return f"/d/{uid}?" + "&".join((*kept, *given, "${__url_time_range}"))


def to_campaign() -> Mapping[str, tuple[str, str]]:
    """The link of a table's campaigns, each to its own dashboard."""
    address_of_one = address("callfunnel-campaign", campaign="campaign")
    return {"campaign": ("Open ${__data.fields.campaign}", address_of_one)}


def build(
    uid: str,
    description: str,
    variables: Sequence[Builder[dashboard.VariableModel]],
    sections: Sequence[Section],
    *,
    several_jobs: bool = False,
) -> Dashboard:
    """A dashboard of `sections`, the panels numbered and placed in reading order.

    `several_jobs`: its variable `job` may be more than one, which no other dashboard can take over.
    """
    job_matcher = '=~"$job"' if several_jobs else '="$job"'
    made = (
        boards.Dashboard(f"callfunnel · {TITLES[uid]}")
        .uid(uid)
        .description(description)
        .tags(["callfunnel"])
        .timezone("browser")
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .refresh("30s")
        .variables([_datasource(), *variables])
        .annotations(_annotations(job_matcher))
        .links(
            [
                boards.DashboardLink(title)
                .type(dashboard.DashboardLinkType.LINK)
                .icon("dashboard")
                .tooltip(f"{title}, of the same time")
                .url(f"/d/{other}" + ("?${datasource:queryparam}" if several_jobs else ""))
                .include_vars(not several_jobs)
                .keep_time(True)
                for other, title in TITLES.items()
                if other != uid
            ]
        )
        .build()
    )
    made.panels = _placed([freshness(job_matcher), *sections])
    return made


def job(multi: bool = False) -> boards.QueryVariable:
    """Which callfunnel. Numbers of two are never added up; their engines may be looked at together."""
    if not multi:
        text = "Which callfunnel: the Prometheus job that scrapes it."
        return _labels("job", "Job", text, "callfunnel_view_state")
    text = "Which workers and views: the Prometheus jobs that scrape them."
    return _labels(
        "job", "Job", text, '{__name__=~"callfunnel_worker_build_info|callfunnel_view_state"}', multi
    )


def window(chosen: str = "1h") -> boards.CustomVariable:
    *titles, last = (window.title for window in WINDOWS.values())
    text = f"What the numbers are of: {', '.join(titles)} or {last}."
    return _choice("window", "Window", text, tuple(WINDOWS), chosen)


def campaign() -> boards.QueryVariable:
    return _labels("campaign", "Campaign", "Campaigns to show.", 'callfunnel_events_total{job="$job"}', True)


def source() -> boards.QueryVariable:
    series = 'callfunnel_events_total{job="$job", campaign=~"$campaign"}'
    return _labels("source", "Source", "Sources of leads to show.", series, True)


def team() -> boards.QueryVariable:
    series = 'callfunnel_agent_window_events{job="$job", window="$window"}'
    return _labels("team", "Team", "Teams to show.", series, True)


def agent() -> boards.QueryVariable:
    series = 'callfunnel_agent_window_events{job="$job", window="$window", team=~"$team"}'
    return _labels("agent", "Agent", "Agents to show.", series, True)


def minimum() -> boards.CustomVariable:
    text = "Agents with fewer dials in the window are not ranked: a rate of a few calls says nothing."
    return _choice("minimum", "At least dials", text, ("1", "10", "20", "50", "100", "200"), "20")


def target() -> boards.TextBoxVariable:
    text = "The wins wanted today, of the chosen campaigns together."
    ten = VariableOption(selected=True, text="10", value="10")
    return (
        boards.TextBoxVariable("target")
        .label("Wins wanted today")
        .description(text)
        .default_value("10")
        .current(ten)
        .options([ten])
    )


def _datasource() -> boards.DatasourceVariable:
    text = "The Prometheus that scrapes callfunnel."
    return boards.DatasourceVariable("datasource").label("Data source").description(text).type("prometheus")


def _choice(
    name: str, label: str, description: str, values: Sequence[str], chosen: str
) -> boards.CustomVariable:
    known = [VariableOption(selected=value == chosen, text=value, value=value) for value in values]
    return (
        boards.CustomVariable(name)
        .label(label)
        .description(description)
        .values(",".join(values))
        .options(known)
        .current(VariableOption(selected=True, text=chosen, value=chosen))
    )


def _labels(
    name: str, label: str, description: str, series: str, multi: bool = False
) -> boards.QueryVariable:
    query = f"label_values({series}, {name})"
    made = (
        boards.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(DATASOURCE)
        .query({"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
        .definition(query)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.NATURAL_ASC)
    )
    if multi:
        made.multi(True).include_all(True).all_value(ALL)
        made.current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    return made


def _annotations(job_matcher: str) -> list[Builder[dashboard.AnnotationQuery]]:
    def made(name: str, colour: str, expr: str) -> boards.AnnotationQuery:
        target = prometheus.Dataquery().ref_id("Anno").datasource(DATASOURCE).expr(expr).range()
        return (
            boards.AnnotationQuery()
            .name(name)
            .icon_color(colour)
            .datasource(DATASOURCE)
            .enable(True)
            .target(target)
        )

    return [
        made(
            "Firing alerts", "red", f'ALERTS{{alertstate="firing", alertname!="Watchdog", job{job_matcher}}}'
        )
        .title_format("{{alertname}}")
        .text_format("{{severity}}")
        .tag_keys("alertname,severity"),
        made("Starts", "blue", f"process_start_time_seconds{{job{job_matcher}}} * 1000")
        .title_format("{{instance}} started")
        .use_value_for_time(True),
    ]


def _placed(sections: Sequence[Section]) -> list[Panel | RowPanel]:
    placed: list[Panel | RowPanel] = []
    top = 0
    for section in sections:
        heading = boards.Row(section.title).collapsed(False).id(len(placed) + 1).build()
        heading.grid_pos = dashboard.GridPos(x=0, y=top, w=24, h=1)
        placed.append(heading)
        top += 1
        for line in section.lines:
            left, lowest = 0, top
            for cell in line:
                stack = [cell] if isinstance(cell, Panel) else cell
                below = top
                for panel in stack:
                    assert panel.grid_pos is not None
                    panel.id_val = len(placed) + 1
                    panel.grid_pos.x, panel.grid_pos.y = left, below
                    below += panel.grid_pos.h
                    placed.append(panel)
                left += max(panel.grid_pos.w for panel in stack if panel.grid_pos)
                lowest = max(lowest, below)
            top = lowest
    return placed


def matchers(**more: str) -> Mapping[str, str]:
    """The matchers of a dashboard with one job: `more` are single (`=`) or multiple (`=~`) variables."""
    return {"job": '="$job"', "window": '="$window"'} | {
        label: f'{operator}"${label}"' for label, operator in more.items()
    }
