"""The panels that dashboards are made of: core panels of Grafana with one look.

The law: every panel says in its description what it counts and in its unit in what; the colours of a rate are
the bands of `streams.rates`, edges included. A big number is the number of now: where there is
none, the panel says so, without a colour.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import gt
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import bargauge as bargauges
from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard as boards
from grafana_foundation_sdk.builders import heatmap as heatmaps
from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.builders import stat as stats
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.builders import text as texts
from grafana_foundation_sdk.builders import timeseries as graphs
from grafana_foundation_sdk.models import common, dashboard, heatmap
from grafana_foundation_sdk.models.dashboard import Panel, Threshold
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from callfunnel.streams.rates import RATES, Band
from callfunnel.streams.windows import DUE_SECONDS
from grafana.promql import Scope

DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLOURS: dict[Band, str] = {"critical": "red", "watch": "orange", "standard": "green", "very good": "blue"}
SHARE, COUNT, SECONDS, MOMENT = "percentunit", "short", "s", "dateTimeAsLocal"
NOTHING = "–"
NO_DATA = "no data"
UNJUDGED = "not judged"

Steps = list[Threshold]


@dataclass(frozen=True)
class Query:
    """An expression and the name of what comes back."""

    expr: str
    name: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    expr: str
    name: str
    unit: str = COUNT
    colours: Steps | None = None


WITHOUT = Threshold(value=None, color="text")
"""The colour of what is not there; Grafana takes it from the first step."""


def bands(rate: str) -> Steps:
    """The colours of a rate. A step holds its own value, so one that begins above it is the next number."""
    found = [WITHOUT, Threshold(value=0, color=COLOURS["critical"])]
    for name, holds, floor in reversed(RATES[rate].standard):
        value = math.nextafter(floor, math.inf) if holds is gt else floor
        found.append(Threshold(value=value, color=COLOURS[name]))
    return found


def standard(rate: str) -> float:
    """From where a rate meets its standard."""
    return next(floor for name, _, floor in RATES[rate].standard if name == "standard")


def limits(watch: float, critical: float) -> Steps:
    """The colours of what is the better the less there is."""
    return [
        WITHOUT,
        Threshold(value=0, color=COLOURS["standard"]),
        Threshold(value=watch, color=COLOURS["watch"]),
        Threshold(value=critical, color=COLOURS["critical"]),
    ]


def at_least(standard: float) -> Steps:
    """The colours of what is red below a line."""
    return [
        WITHOUT,
        Threshold(value=0, color=COLOURS["critical"]),
        Threshold(value=standard, color=COLOURS["standard"]),
    ]


PLAIN: Steps = [WITHOUT]


def stat(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    colours: Steps = PLAIN,
    beside: Iterable[str] = (),
    plain: Iterable[str] = (),
    named: Mapping[str, str] | None = None,
    says: Mapping[float, tuple[str, str]] | None = None,
    size: tuple[int, int] = (4, 4),
    decimals: int | None = None,
) -> Panel:
    """Big numbers of this moment.

    `beside` names the queries that are volumes beside a rate: plain counts without colour; `plain` those that
    only have no colour. `named`: queries that give 1 or nothing, of which the name is shown, in this colour.
    `says`: the text and the colour that stand for a value.
    """
    several = len(queries) > 1 and not named
    made = (
        stats.Panel()
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .text_mode(common.BigValueTextMode.VALUE_AND_NAME if several else common.BigValueTextMode.VALUE)
        .reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .no_value(NO_DATA)
    )
    if says:
        made.mappings([_says(says)])
    for name in beside:
        made.override_by_name(name, [_property("unit", COUNT), _property("decimals", 0), _fixed("text")])
    for name in plain:
        made.override_by_name(name, [_fixed("text")])
    for name, colour in (named or {}).items():
        made.override_by_name(name, [_property("mappings", [_says({1: (name.replace("_", " "), colour)})])])
    targets = _targets(queries, instant=True)
    return _finished(made, title, description, unit, size, colours, targets, decimals)


def rate_stat(
    title: str,
    description: str,
    rate: str,
    share: str,
    judged: str,
    volume: Query,
    size: tuple[int, int] = (4, 4),
) -> Panel:
    """A share in the colour of its band where it can be judged; elsewhere without one, as `UNJUDGED`."""
    stages = " or ".join(RATES[rate].stages)
    return stat(
        title,
        f"{description} Without colour, as `not judged`: above 100 %, or fewer than four fifths of the leads "
        f"{stages} have an event of their own.",
        SHARE,
        Query(judged, rate),
        Query(f"{share} unless ({judged})", UNJUDGED),
        volume,
        colours=bands(rate),
        beside=[volume.name],
        plain=[UNJUDGED],
        size=size,
    )


def oldest_uncalled(scope: Scope, size: tuple[int, int] = (4, 4)) -> Panel:
    return stat(
        "Oldest uncalled lead",
        "How long the open lead that waits longest has been waiting for its first call.",
        SECONDS,
        Query(scope.oldest_uncalled_or_none(), "oldest"),
        colours=limits(DUE_SECONDS, 900),
        says={-1: ("none", COLOURS["standard"])},
        size=size,
    )


def bars(
    title: str, description: str, unit: str, *queries: Query, colours: Steps = PLAIN, size: tuple[int, int]
) -> Panel:
    """Horizontal bars, in the order of the queries."""
    made = (
        bargauges.Panel()
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .value_mode(common.BarGaugeValueMode.TEXT)
        .name_placement(common.BarGaugeNamePlacement.LEFT)
        .reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .min(0)
        .no_value(NO_DATA)
    )
    if colours is PLAIN:
        made.color_scheme(_colour(dashboard.FieldColorModeId.CONTINUOUS_BLUES))
    return _finished(made, title, description, unit, size, colours, _targets(queries, instant=True))


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    colours: Steps | None = None,
    size: tuple[int, int] = (8, 8),
    stacked: bool = False,
    soft_max: float | None = None,
) -> Panel:
    """Values over time, over the bands of `colours` where there are some."""
    made = (
        graphs.Panel()
        .line_width(2)
        .fill_opacity(40 if stacked else 0)
        .show_points(common.VisibilityMode.NEVER)
        .min(0)
        .legend(
            options.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull"])
        )
        .tooltip(
            options.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .color_scheme(_colour(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .no_value(NOTHING)
    )
    if soft_max is not None:
        made.axis_soft_max(soft_max)
    if stacked:
        made.stacking(options.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if colours:
        style = options.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.AREA)
        made.thresholds_style(style)
    return _finished(made, title, description, unit, size, colours or PLAIN, _targets(queries))


def heat(title: str, description: str, unit: str, expr: str, *, size: tuple[int, int]) -> Panel:
    """A distribution over time, from the cumulative buckets that `expr` gives by `le`."""
    made = (
        heatmaps.Panel()
        .calculate(False)
        .cell_values(heatmaps.CellValues().unit(COUNT))
        .y_axis(heatmaps.YAxisConfig().unit(unit))
        .rows_frame(heatmaps.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
        .color(
            heatmaps.HeatmapColorOptions()
            .mode(heatmap.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .scale(heatmap.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .tooltip(heatmaps.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(True))
    )
    target = _target("A", Query(expr, "{{le}}")).format(PromQueryFormat.HEATMAP).range()
    return _finished(made, title, description, unit, size, PLAIN, [target])


def table(
    title: str,
    description: str,
    rows: Mapping[str, str],
    *columns: Column,
    links: Mapping[str, tuple[str, str]] | None = None,
    sort: str = "",
    size: tuple[int, int] = (24, 8),
) -> Panel:
    """One row for each value of the labels `rows` (label: heading); `links`: label to title and address."""
    made = tables.Panel().cell_height(common.TableCellHeight.SM).no_value(NOTHING)
    order = {label: n for n, label in enumerate(rows)}
    order |= {
        f"Value #{ref}": len(rows) + n
        for n, (ref, _) in enumerate(zip(ascii_uppercase, columns, strict=False))
    }
    names = dict(rows) | {
        f"Value #{ref}": column.name for ref, column in zip(ascii_uppercase, columns, strict=False)
    }
    made.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    made.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": {"Time": True}, "indexByName": order, "renameByName": names},
        )
    )
    for column in columns:
        properties = [_property("unit", column.unit)]
        if column.unit == SHARE:
            properties.append(_property("decimals", 1))
        if column.colours:
            properties += [
                _property("thresholds", {"mode": "absolute", "steps": column.colours}),
                _property("color", {"mode": "thresholds"}),
                _property("custom.cellOptions", {"type": "color-text"}),
            ]
        made.override_by_name(column.name, properties)
    for label, (words, address) in (links or {}).items():
        made.override_by_name(rows[label], [_property("links", [{"title": words, "url": address}])])
    if sort:
        made.sort_by([options.TableSortByFieldState().display_name(sort).desc(True)])
    queries = [Query(column.expr) for column in columns]
    targets = [target.format(PromQueryFormat.TABLE) for target in _targets(queries, instant=True)]
    return _finished(made, title, description, COUNT, size, PLAIN, targets)


def words(title: str, description: str, content: str, size: tuple[int, int]) -> Panel:
    """Text in Markdown."""
    made = texts.Panel().title(title).description(description).mode(TextMode.MARKDOWN).content(content)
    return made.span(size[0]).height(size[1]).build()


def _targets(queries: Iterable[Query], instant: bool = False) -> list[prometheus.Dataquery]:
    made = [_target(ref, query) for ref, query in zip(ascii_uppercase, queries, strict=False)]
    return [target.instant() if instant else target.range() for target in made]


def _target(ref: str, query: Query) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery().ref_id(ref).datasource(DATASOURCE).expr(query.expr).legend_format(query.name)
    )


def _finished(
    made: Any,
    title: str,
    description: str,
    unit: str,
    size: tuple[int, int],
    colours: Steps,
    targets: list[prometheus.Dataquery],
    decimals: int | None = None,
) -> Panel:
    width, height = size
    made.title(title).description(description).datasource(DATASOURCE).unit(unit).span(width).height(height)
    made.thresholds(boards.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(colours))
    if decimals is not None or unit == SHARE:
        made.decimals(1 if decimals is None else decimals)
    built: Panel = made.targets(targets).build()
    return built


def _colour(mode: dashboard.FieldColorModeId) -> boards.FieldColor:
    return boards.FieldColor().mode(mode)


def _says(texts: Mapping[float, tuple[str, str]]) -> dashboard.ValueMap:
    results = {
        f"{value:g}": dashboard.ValueMappingResult(text=text, color=colour)
        for value, (text, colour) in texts.items()
    }
    return dashboard.ValueMap(options=results)


def _fixed(colour: str) -> dashboard.DynamicConfigValue:
    return _property("color", {"mode": "fixed", "fixedColor": colour})


def _property(name: str, value: Any) -> dashboard.DynamicConfigValue:
    return dashboard.DynamicConfigValue(id_val=name, value=value)
