"""The dashboards as files: what the code gives, what Grafana's own model reads, and free of known mistakes.

Whether the expressions find anything is `tests/e2e/test_dashboards.py`'s to say.
"""

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.prometheus import find
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import patience
from callfunnel.schemas.events import STAGES
from callfunnel.streams.rates import RATES
from grafana import build, frame
from grafana.check import asked, panels, problems, selectors
from grafana.panels import COLOURS, bands
from grafana.promql import SERIES, Scope

ROOT = Path(__file__).parents[2]
FILES = {path.name: json.loads(path.read_text()) for path in sorted(build.FOLDER.glob("*.json"))}

Documents = dict[str, dict[str, Any]]


def test_the_files_are_what_the_code_gives():
    stale = "run `python -m grafana.build`"
    assert {path.name: path.read_text() for path in build.FOLDER.glob("*.json")} == build.documents(), stale


def test_building_twice_gives_the_same_bytes():
    assert build.documents() == build.documents()


def test_nothing_is_wrong_with_the_dashboards():
    assert problems(FILES) == []


def test_there_is_a_file_for_every_title():
    assert FILES.keys() == {f"{uid}.json" for uid in frame.TITLES}


@pytest.mark.parametrize("name", FILES)
def test_grafanas_own_model_reads_a_dashboard_without_losing_anything(name: str):
    register_default_plugins()
    read = Dashboard.from_json(copy.deepcopy(FILES[name]))
    assert build.plain(read) == FILES[name]


@pytest.mark.parametrize("rate", [name for name, rate in RATES.items() if rate.standard])
def test_the_colour_of_a_rate_is_its_band_at_every_edge(rate: str):
    steps = bands(rate)
    for numerator in range(0, 1001):
        value = numerator / 1000
        shown = [step for step in steps if step.value is None or value >= step.value][-1].color
        expected = RATES[rate].band(numerator, 1000, dict.fromkeys(STAGES, (0, 0)))
        assert expected is not None
        assert shown == COLOURS[expected], f"{rate} {value}"


@pytest.mark.parametrize("rate", RATES.values(), ids=lambda rate: rate.name)
def test_both_sides_of_a_rate_are_exported_by_window(rate):
    for column, sign in (*rate.numerator.items(), *rate.denominator.items()):
        assert column in SERIES
        assert sign in (1, -1)
    assert next(iter(rate.numerator.values())) == next(iter(rate.denominator.values())) == 1


def test_the_provisioned_folder_and_data_source_are_those_of_the_dashboards():
    folder = ROOT / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "callfunnel.yaml").read_text())["providers"]
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    wanted = {
        variable["query"]
        for document in FILES.values()
        for variable in document["templating"]["list"]
        if variable["type"] == "datasource"
    }
    assert wanted == {source["type"]} == {"prometheus"}
    assert source["isDefault"]


def test_promtool_parses_every_expression(tmp_path: Path):
    _, promtool = find()
    questions = [question for document in FILES.values() for question in asked(document)]
    assert len(questions) > 200
    assert _complaints(promtool, tmp_path, [question.expr for question in questions]) == ""
    assert "unexpected" in _complaints(promtool, tmp_path, ["sum by (campaign) (up{}))"])


def _complaints(promtool: str, folder: Path, expressions: list[str]) -> str:
    """What promtool says of the expressions; variables are replaced by something of their kind."""
    rules = [
        {"record": f"expression:{number}", "expr": plain(expr)} for number, expr in enumerate(expressions)
    ]
    file = folder / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def asked_of(promtool: str, folder: Path, series: dict[str, str], expected: dict[str, Any]) -> str:
    """What promtool says of expressions after eleven minutes: a number, or nothing where it is None."""
    questions = [
        {
            "expr": plain(expr),
            "eval_time": "11m",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for expr, value in expected.items()
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": questions}]
    file = folder / "asked.json"
    file.write_text(json.dumps({"tests": tests}))
    done = patience.run([promtool, "test", "rules", str(file)], seconds=60)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_behind_by_is_the_freshest_views_and_nothing_where_nobody_knows(tmp_path: Path):
    _, promtool = find()
    complete = 'callfunnel_view_snapshot_timestamp_seconds{{job="{}", instance="{}"}}'.format
    series = {complete("fresh", "a"): "0+60x11", complete("fresh", "b"): "60+0x11"}
    series |= {complete("late", "a"): "60+0x11", complete("ahead", "a"): "1+60x11"}
    behind = {job: Scope({"job": f'="{job}"'}).behind() for job in ("fresh", "late", "ahead", "gone")}
    expected = {behind["fresh"]: 0, behind["late"]: 600, behind["ahead"]: 0, behind["gone"]: None}
    assert asked_of(promtool, tmp_path, series, expected) == ""


def test_none_is_said_of_uncalled_leads_at_once_and_by_a_view_that_knows(tmp_path: Path):
    _, promtool = find()
    state = 'callfunnel_view_state{{job="{}", instance="a", state="current"}}'.format
    oldest = (
        'callfunnel_oldest_uncalled_lead_timestamp_seconds{{job="{}", instance="a", campaign="c"}}'.format
    )
    series = {state("called"): "1+0x11", oldest("called"): "0+0x10 stale"}
    series |= {state("waits"): "1+0x11", oldest("waits"): "60+0x11"}
    series |= {state("stale"): "1+0x10 0", oldest("stale"): "0+0x10 stale"}
    series |= {state("dead"): "1+0x10 stale", oldest("dead"): "0+0x10 stale"}
    expected = {
        Scope({"job": f'="{job}"'}).oldest_uncalled_or_none(): value
        for job, value in {"called": -1, "waits": 600, "stale": None, "dead": None}.items()
    }
    assert asked_of(promtool, tmp_path, series, expected) == ""


def test_a_rate_is_over_the_colours_of_its_standard_only_where_it_can_be_judged(tmp_path: Path):
    _, promtool = find()
    series = {}
    for job, counts in {
        "measured": {"reached": (50, 40), "qualified": (20, 16)},
        "unmeasured": {"reached": (50, 40), "qualified": (20, 15)},
        "above": {"reached": (10, 10), "qualified": (20, 20)},
        "unnamed": {"reached": (50, 40), "qualified": (20, 0)},
    }.items():
        for stage, (leads, events) in counts.items():
            labels = f'job="{job}", instance="a", funnel_stage="{stage}", window="1h"'
            of_campaign = f'{labels}, campaign="spring", source="web"'
            series[f"callfunnel_window_leads{{{of_campaign}}}"] = f"{leads}+0x11"
            series[f"callfunnel_window_events{{{of_campaign}}}"] = f"{events}+0x11"
    unnamed = 'job="unnamed", instance="a", funnel_stage="qualified", window="1h"'
    series[f'callfunnel_window_events{{{unnamed}, campaign="none", source="none"}}'] = "16+0x11"

    expected: dict[str, Any] = {}
    for job, value in {"measured": 0.4, "unmeasured": None, "above": None, "unnamed": 0.4}.items():
        scope = Scope({"job": f'="{job}"', "window": '="1h"', "campaign": '=~"spring"', "source": '=~"web"'})
        for by in ("", "campaign", "source"):
            expected[f"sum({scope.judged('qualification', by)})"] = value
        shown = 2 if job == "above" else 0.4
        expected[f"sum({scope.share('qualification')} unless ({scope.judged('qualification')}))"] = (
            None if value else shown
        )
    assert asked_of(promtool, tmp_path, series, expected) == ""


def plain(expr: str) -> str:
    for variable, value in (
        ("$__rate_interval", "1m"),
        ("$__range", "6h"),
        ("$minimum", "20"),
        ("$target", "10"),
    ):
        expr = expr.replace(variable, value)
    return expr


def test_selectors_are_found_with_labels_range_and_what_stands_before_them():
    expr = 'sum by (a) (rate(x_total{job="$job", b=~"c{d}"}[5m])) / (up{job="j"} > 0)'
    assert [(s.name, s.matchers, s.range) for s in selectors(expr)] == [
        ("x_total", (("job", "=", "$job"), ("b", "=~", "c{d}")), "[5m]"),
        ("up", (("job", "=", "j"),), ""),
    ]
    assert next(selectors(expr)).before == "sum by (a) (rate("


# Mistakes that people make: each must be named by the checker.


def panel(documents: Documents, title: str, uid: str = "callfunnel-overview") -> dict[str, Any]:
    return next(one for one in documents[f"{uid}.json"]["panels"] if one["title"] == title)


def in_expression(old: str, new: str, title: str = "Funnel", uid: str = "callfunnel-overview"):
    def change(documents: Documents) -> None:
        target = panel(documents, title, uid)["targets"][0]
        assert old in target["expr"], target["expr"]
        target["expr"] = target["expr"].replace(old, new)

    return change


def in_panel(path: str, value: Any, title: str = "Reach rate"):
    def change(documents: Documents) -> None:
        *way, last = path.split(".")
        at: Any = panel(documents, title)
        for step in way:
            at = at[int(step) if step.isdigit() else step]
        assert last in at
        at[last] = value

    return change


def in_dashboard(change: Callable[[dict[str, Any]], Any]):
    return lambda documents: change(documents["callfunnel-overview.json"])


def variable(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in document["templating"]["list"] if one["name"] == name)


def without_engine(documents: Documents) -> None:
    del documents["callfunnel-engine.json"]


def without_freshness(documents: Documents) -> None:
    del documents["callfunnel-overview.json"]["panels"][:5]


def a_copy(documents: Documents) -> None:
    documents["copy.json"] = copy.deepcopy(documents["callfunnel-overview.json"])


def no_location(documents: Documents) -> None:
    for one in panels(documents["callfunnel-agents.json"]):
        for target in one.get("targets", ()):
            target["expr"] = target["expr"].replace("callfunnel_location_window_events", "up")


MISTAKES: dict[str, tuple[Callable[[Documents], Any], str]] = {
    "an unknown metric": (in_expression("_window_leads", "_window_lead"), "there is no metric"),
    "an unknown label": (in_expression("campaign=~", "campain=~"), "has no label campain"),
    "an impossible stage": (in_expression('"created"', '"create"'), "funnel_stage is never create"),
    "all windows at once": (in_expression('window="$window", ', ""), "sums over window"),
    "all stages at once": (in_expression(', funnel_stage="created"', ""), "sums over funnel_stage"),
    "a window that is none": (in_expression("$window", "1w"), "window is never 1w"),
    "both clocks at once": (
        in_expression('clock="attempt"', 'campaign!=""', "Time to the first call"),
        "sums over clock",
    ),
    "buckets summed": (
        in_expression("sum by (le)", "sum", "Time to the first call"),
        "sums over buckets",
    ),
    "replicas counted twice": (
        in_expression("max without (instance, pod) ", ""),
        "without `max without (instance, pod)` first",
    ),
    "every job": (in_expression('job="$job", ', ""), "is of every job"),
    "a filter that does nothing": (in_expression(', campaign=~"$campaign"', ""), "is not narrowed by"),
    "a multiple variable compared with =": (in_expression("campaign=~", "campaign="), "must be =~"),
    "a variable that is not there": (in_expression("$campaign", "$campagne"), "$campagne is used"),
    "a group that is no label": (
        in_expression("sum by (le)", "sum by (le, agent)", "Time to the first call"),
        "groups by agent",
    ),
    "a counter's height": (
        in_expression("rate(", "abs(", "Consumed by worker", "callfunnel-engine"),
        "is a counter",
    ),
    "a rate of a gauge": (
        in_expression("max without (instance, pod) (", "max without (instance, pod) (rate("),
        "is no counter",
    ),
    "a fixed rate interval": (
        in_expression("$__rate_interval", "30s", "Consumed by worker", "callfunnel-engine"),
        "fits one scrape interval only",
    ),
    "a bracket too many": (in_expression("})", "}))"), "closes nothing"),
    "a bracket too few": (in_expression("})", "}"), "is never closed"),
    "an empty expression": (in_panel("targets.0.expr", ""), "asks for nothing"),
    "a missing unit": (in_panel("fieldConfig.defaults.unit", ""), "has the unit ''"),
    "a missing description": (in_panel("description", ""), "has no description"),
    "a hard-coded data source": (
        in_panel("datasource", {"type": "prometheus", "uid": "P1"}),
        "data source is",
    ),
    "a hard-coded data source of a target": (
        in_panel("targets.1.datasource", {"type": "prometheus", "uid": "P1"}),
        "data source is",
    ),
    "a hard-coded data source of a variable": (
        in_dashboard(
            lambda d: variable(d, "campaign").update(datasource={"type": "prometheus", "uid": "P1"})
        ),
        "variable 'campaign': the data source is",
    ),
    "a rate without its volume": (
        lambda documents: panel(documents, "Reach rate")["targets"].pop(),
        "without its volume",
    ),
    "an override of nothing": (in_panel("targets.2.legendFormat", "Dials"), "nothing is named 'dials'"),
    "a plugin panel": (in_panel("type", "volkovlabs-echarts-panel"), "is not a core panel"),
    "a big number of a time range": (in_panel("targets.0.instant", False), "shows the last value of a time"),
    "a table of a time range": (in_panel("targets.0.instant", False, "Campaigns"), "shows the last value"),
    "a number where there is none": (
        lambda documents: panel(documents, "Won")["targets"][0].update(expr="up or vector(0)"),
        "shows a number where there is none",
    ),
    "an absence that is not said": (in_panel("fieldConfig.defaults.noValue", "0"), "does not say 'no data'"),
    "an absence in green": (
        in_panel("fieldConfig.defaults.thresholds.steps.0.color", "green"),
        "gives a colour to what is not there",
    ),
    "an absence in green in a column": (
        lambda documents: panel(documents, "Campaigns")["fieldConfig"]["overrides"][3]["properties"][2][
            "value"
        ]["steps"].pop(0),
        "gives a colour to what is not there",
    ),
    "a dashboard that does not say how fresh it is": (without_freshness, "does not begin with the row"),
    "a freshness that is told in the middle": (
        in_dashboard(lambda d: d["panels"].append(d["panels"].pop(2))),
        "does not begin with the row",
    ),
    "a repeated panel id": (in_panel("id", 2), "2 panels have the id 2"),
    "a repeated title": (in_panel("title", "Funnel"), "2 panels have the title 'Funnel'"),
    "a repeated refId": (in_panel("targets.1.refId", "A"), "2 targets have the refId 'A'"),
    "panels over each other": (in_panel("gridPos.y", 1), "overlap"),
    "a panel outside": (in_panel("gridPos.w", 25), "outside of the 24 columns"),
    "a link to nowhere": (
        in_dashboard(lambda d: d["links"][0].update(url="/d/callfunnel-campain")),
        "links to callfunnel-campain",
    ),
    "a link in a table to nowhere": (
        lambda documents: panel(documents, "Campaigns")["fieldConfig"]["overrides"][-1]["properties"][0][
            "value"
        ][0].update(url="/d/gone"),
        "links to gone",
    ),
    "a link in a text to nowhere": (
        in_panel("options.content", "[x](/d/lost)", "When a stage is red"),
        "links to lost",
    ),
    "a link that forgets the variables": (
        in_dashboard(lambda d: d["links"][0].update(includeVars=False)),
        "forgets the variables",
    ),
    "a link that hands on more than is taken": (
        lambda documents: documents["callfunnel-engine.json"]["links"][0].update(includeVars=True),
        "hands on All of $job",
    ),
    "a dashboard without a way to another": (in_dashboard(lambda d: d["links"].pop()), "has no link to"),
    "a variable nobody uses": (
        in_dashboard(lambda d: variable(d, "window").update(name="windows")),
        "the variable $windows is there, and nothing uses it",
    ),
    "All that leaves series out": (
        in_dashboard(lambda d: variable(d, "campaign").update(allValue=".+")),
        "All must be there",
    ),
    "a variable of an unknown metric": (
        in_dashboard(
            lambda d: variable(d, "campaign")["query"].update(
                query='label_values(events{job="$job"}, campaign)'
            )
        ),
        "there is no metric events",
    ),
    "a dashboard that can be edited": (in_dashboard(lambda d: d.update(editable=True)), "edited by hand"),
    "a dashboard without a description": (
        in_dashboard(lambda d: d.update(description="")),
        "has no description",
    ),
    "two dashboards at one address": (a_copy, "2 dashboards have this uid"),
    "a file that is not named after its address": (
        in_dashboard(lambda d: d.update(uid="overview")),
        "is not the file's name",
    ),
    "a metric nobody sees": (no_location, "callfunnel_location_window_events is exported, and no dashboard"),
    "a dashboard that is gone": (without_engine, "links to callfunnel-engine, and there is no such"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_checker_names_a_mistake(mistake: str):
    make, named = MISTAKES[mistake]
    documents = copy.deepcopy(FILES)
    make(documents)
    found = problems(documents)
    assert [problem for problem in found if named in problem], found
