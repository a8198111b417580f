"""Every expression of every dashboard, rule and alert, run by a real Prometheus that scrapes the real engine.

The engine is a worker with a view and a second replica of the view, fed with a slice of the bundled campaign
and with a live floor whose events come late, twice, out of order and sometimes broken. What a dashboard shows
must be there, be a number, and be the engine's own number.
"""

import json
import math
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from e2e.prometheus import Prometheus, Refused, find, leave_out, to_wednesday_afternoon

from callfunnel.agents.config import Settings
from callfunnel.agents.demo import bank_marketing, generator
from callfunnel.agents.demo.broker import EmbeddedBroker, embedded_program
from callfunnel.agents.kafka import topics
from callfunnel.agents.view.exposition import Exposition, new_registry
from callfunnel.agents.view.http import Pages
from callfunnel.agents.view.snapshot import LOCATION, PERSON, SEGMENT, Snapshot, View
from callfunnel.schemas.events import NONE
from callfunnel.streams.measures import FIRST_DIAL
from callfunnel.streams.metrics import CATALOGUE
from callfunnel.streams.windows import AGES, WINDOWS
from grafana import build
from grafana.check import TARGET, UNUSED, Asked, asked, label_values, names_used
from grafana.frame import ALL
from grafana.promql import metric_of
from integration.workers import ROOT, Publishing, Record, Worker, Workers, publish, record
from patience import Deadline

JOB = "callfunnel"
DASHBOARDS = [json.loads(path.read_text()) for path in sorted(build.FOLDER.glob("*.json"))]
RULES = {
    rule.get("alert") or rule["record"]: rule
    for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
    for rule in group["rules"]
}
FEED_SECONDS = 45
SCRAPES = 20

EMPTY = {
    "callfunnel_source_lost_records": "no record is lost on this broker",
    "ALERTS": "no alert fires on a healthy engine",
    "unless ((": "every rate can be judged",
    **{
        f'state="{state}"': "the view is current"
        for state in ("connecting", "catching_up", "stale", "failed")
    },
}
"""What may find nothing here, with the reason; it must find nothing, or it need not be listed."""

NOT_SHOWN = {
    "process_virtual_memory_bytes": "says nothing about memory in use",
}
"""What is exported and no dashboard shows, with the reason."""


@dataclass
class Floor:
    prometheus: Prometheus
    worker: Worker
    view: View
    started_s: float
    replicas: ExitStack
    """Closed: the second replica of the view is gone."""


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Floor]:
    with a_floor(tmp_path_factory.mktemp("dashboards"), FEED_SECONDS) as made:
        yield made


@contextmanager
def a_floor(folder: Path, feed_seconds: float) -> Iterator[Floor]:
    """A floor whose Prometheus has scraped it a while and remembers two days; its engine may be killed."""
    find()
    if embedded_program() is None:
        leave_out("the embedded broker is not installed (noida-db)")
    with EmbeddedBroker() as broker:
        settings = Settings.from_environ(
            {},
            broker=broker.address,
            profile="development",
            partitions=4,
            clock="event",
            replay_until="2100-12-31",
            timezone=midday(),
            wait_seconds=10.0,
        )
        topics.create(settings)
        history, live = calls(int(time.time() * 1000))
        publish(settings, history)
        with Workers(settings, folder) as crew, ExitStack() as replicas:
            view, replica_url = replicas.enter_context(replica(settings))
            worker = crew.start().wait_until_ready()
            worker.wait_until(
                lambda: folded(view) >= len(history), 90, f"has not folded {len(history)} records"
            )
            addresses = [url.split("/")[2] for url in (worker.url, replica_url)]
            rules = folder / "rules"
            shutil.copytree(ROOT / "deploy/prometheus/rules", rules)
            to_wednesday_afternoon(rules)
            prometheus = Prometheus(folder / "prometheus", JOB, addresses, rules)
            now_s, page = time.time(), openmetrics(replica_url)
            for days in (1, 7):
                prometheus.remember(page, addresses[1], now_s - days * 86_400)
            with Publishing(settings, live, feed_seconds), prometheus:
                started_s = time.time()
                wait_for_scrapes(prometheus)
                yield Floor(prometheus, worker, view, started_s, replicas)


@contextmanager
def replica(settings: Settings) -> Iterator[tuple[View, str]]:
    """A view like that of `callfunnel view`, and its address."""
    view = View.of(settings)
    shown = Exposition.of(settings, view, new_registry())
    pages = Pages(settings.http_host, 0, view=view, exposition=shown, not_ready=view.not_ready)
    view.start()
    pages.start()
    try:
        yield view, pages.url
    finally:
        pages.stop()
        view.stop()


def midday() -> str:
    """A time zone where it is about noon, so that today has something to show."""
    east = 12 - time.gmtime().tm_hour
    return f"Etc/GMT{-east:+d}"


def calls(now_ms: int) -> tuple[list[Record], list[Record]]:
    """What happened until now, some of a real campaign and an hour of a floor; and its next minute."""
    bank = list(bank_marketing.events(islice(bank_marketing.read(), 500)))
    faults = generator.Faults(out_of_order=0.005, late=0.01, duplicated=0.01, lost_ends=0.002, poison=0.004)
    stream = generator.live(7, generator.FloorSettings(seats=150), now_ms, faults)
    told = list(takewhile(lambda one: one[0] < now_ms + FEED_SECONDS * 1000, stream))
    history = [record(event) for event in bank]
    history += [_record(event, at_ms) for at_ms, event in told if at_ms <= now_ms]
    return history, [_record(event, at_ms) for at_ms, event in told if at_ms > now_ms]


def _record(event: dict[str, Any], at_ms: int) -> Record:
    return Record(orjson.dumps(event), str(event.get("lead_id", "")).encode(), at_ms)


def folded(view: View) -> int:
    return sum(its.offset for its in view.snapshot.positions.values()) if view.snapshot else 0


def openmetrics(url: str) -> str:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}metrics", headers=accept)) as answer:
        return str(answer.read().decode())


def wait_for_scrapes(prometheus: Prometheus) -> None:
    deadline = Deadline(60)
    while True:
        found = prometheus.now(f'min(count_over_time(up{{job="{JOB}"}}[1m]))')
        if found and found[0][1] >= SCRAPES:
            return
        assert not deadline.is_over, "Prometheus does not scrape"
        time.sleep(0.5)


def chosen(document: dict[str, Any], prometheus: Prometheus, *, window: str, narrow: bool) -> dict[str, str]:
    """A value for each variable, found as Grafana finds it: everything, or the first values there are."""
    values: dict[str, str] = {}
    for variable in document["templating"]["list"]:
        name = variable["name"]
        if variable["type"] == "custom":
            values[name] = {"window": window, "minimum": "20" if window == "1h" else "1"}[name]
        elif variable["type"] == "textbox":
            values[name] = variable["query"]
        elif variable["type"] == "query":
            series, label = label_values(variable)
            known = prometheus.ask(f"label/{label}/values", **{"match[]": filled(series, values)})
            assert known, f"{document['uid']}: the variable {name} has no values"
            # One agent alone may well have won nothing in an hour.
            if not variable.get("multi"):
                values[name] = known[0]
            elif narrow and name != "agent":
                values[name] = "(" + "|".join(re.escape(value) for value in known[:2]) + ")"
            else:
                values[name] = ALL
    return values


def filled(expr: str, values: dict[str, str]) -> str:
    """An expression as Grafana sends it."""
    for name, value in {"__rate_interval": "60s", "__range": "60s", **values}.items():
        text = value if name in ("__rate_interval", "__range", "minimum") else value.replace("\\", "\\\\")
        expr = re.sub(rf"\${name}\b", lambda _, text=text: text, expr)
    assert "$" not in expr, expr
    return expr


def finding(floor: Floor, question: Asked, values: dict[str, str]) -> str | None:
    """What is wrong with the answer to a question."""
    expr = filled(question.expr, values)
    try:
        if question.kind in ("instant", "variable"):
            numbers = [value for _, value in floor.prometheus.now(expr)]
        else:
            end_s = time.time()
            series = floor.prometheus.over(expr, end_s - 5, end_s, 1)
            numbers = [value for _, several in series for value in several]
    except Refused as refused:
        return f"{question.place}: {refused}: {expr}"
    if not numbers:
        return f"{question.place}: finds no series: {expr}"
    if all(map(math.isnan, numbers)):
        return f"{question.place}: finds nothing but NaN: {expr}"
    return None


def reason(question: Asked) -> str | None:
    return next((why for name, why in EMPTY.items() if name in question.expr), None)


@pytest.mark.parametrize("uid", [document["uid"] for document in DASHBOARDS])
@pytest.mark.parametrize("window", ["1h", "1d"])
@pytest.mark.parametrize("narrow", [False, True], ids=["everything", "narrowed"])
def test_every_expression_finds_numbers(floor: Floor, uid: str, window: str, narrow: bool):
    document = next(one for one in DASHBOARDS if one["uid"] == uid)
    values = chosen(document, floor.prometheus, window=window, narrow=narrow)
    questions = list(asked(document))
    found = {question: finding(floor, question, values) for question in questions}
    wrong = [why for question, why in found.items() if why and not reason(question)]
    assert wrong == []
    found_all_the_same = [question for question, why in found.items() if reason(question) and not why]
    assert found_all_the_same == [], "these need not be listed in EMPTY"


@pytest.mark.parametrize("window", WINDOWS)
def test_every_window_is_answered_without_complaint(floor: Floor, window: str):
    """In five minutes, or just after midnight, nothing may be there to divide; an error is always wrong."""
    for document in DASHBOARDS:
        values = chosen(document, floor.prometheus, window=window, narrow=False)
        for question in asked(document):
            floor.prometheus.now(filled(question.expr, values))


def without_thresholds(expr: str) -> str:
    """An alert's expression that finds series although all is well.

    A comparison says 0 or 1, what must not be there must be, and what was a week ago is looked up now.
    """
    at_present = re.sub(r" offset \d+\w", "", expr)
    return re.sub(r"\bunless\b", "and", re.sub(r"([<>]=?|==) ", r"\1 bool ", at_present))


def asked_by_rule(expr: str, name: str) -> Asked:
    if name in ALERTS or name == BEHIND:
        expr = without_thresholds(expr.replace(BEHIND, f"({RULES[BEHIND]['expr']})"))
    return Asked(name, expr, "instant")


ALERTS = {name for name, rule in RULES.items() if "alert" in rule}
BEHIND = "job:callfunnel_behind_seconds:max"
"""Nothing while every partition is read to its end, which changes from one moment to the next."""


@pytest.mark.parametrize("name", RULES)
def test_every_rule_and_every_alert_finds_what_it_compares(floor: Floor, name: str):
    question = asked_by_rule(RULES[name]["expr"], name)
    found = finding(floor, question, {})
    if reason(question):
        assert found, "it need not be listed in EMPTY"
    else:
        assert found is None


def test_prometheus_evaluates_every_rule_without_an_error(floor: Floor):
    groups = floor.prometheus.ask("rules")["groups"]
    found = {
        rule["name"]: (rule["health"], rule.get("lastError")) for group in groups for rule in group["rules"]
    }
    assert found == dict.fromkeys(RULES, ("ok", None))


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("ReachRateCritical", "and ignoring (funnel_stage)", "and"),
        ("ImmediateHangupShare", "and on (job) job", "and job"),
        ("LeadResponseSlaBurn", "open1h >= 10", "open1hour >= 10"),
        ("OldestUncalledLead", 'age="15-60m"', 'age="15-60"'),
        ("NoDialsDuringHours", 'window="5m"', 'window="5min"'),
        ("EngineDown", "sum by (job) (up)", "sum by (job) (ups)"),
        ("NumbersMissing", 'state="current"', 'state="live"'),
        ("BrokerSilent", "answer_timestamp", "answers_timestamp"),
        ("WorkerNotReady", "worker_ready", "workers_ready"),
        ("RecoveryStuck", "on (job, instance) sum by (job, instance)", "on (job, instance) sum by (job)"),
        ("PartitionsUnassigned", 'state="active"', 'state="assigned"'),
        (
            "campaign:callfunnel_reach:ratio",
            "- ignoring (funnel_stage) campaign:callfunnel_window_dm_hangups",
            "- campaign:callfunnel_window_dm_hangups",
        ),
        ("campaign:callfunnel_response_sla:burn1h", "/ on () group_left ()", "/"),
    ],
)  # fmt: skip
def test_a_rule_that_finds_nothing_is_found(floor: Floor, name: str, right: str, wrong: str):
    assert RULES[name]["expr"].count(right) == 1
    assert finding(floor, asked_by_rule(RULES[name]["expr"].replace(right, wrong), name), {})


@pytest.mark.parametrize(
    ("expr", "named"),
    [
        ('sum(callfunnel_window_leads{job="$job", window="1w"})', "finds no series"),
        ('sum(callfunnel_window_leads{job="$job", funnel_stage="dialled"})', "finds no series"),
        ('callfunnel_window_leads{job="$job", window="1h"} * NaN', "nothing but NaN"),
        ('sum by (campaign (up{job="$job"})', "parse error"),
        ('rate(up{job="$job"})', "expected type range vector"),
    ],
)
def test_the_check_names_a_mistake(floor: Floor, expr: str, named: str):
    found = finding(floor, Asked("here", expr, "instant"), {"job": JOB})
    assert found
    assert named in found


def test_what_is_exported_is_shown_and_what_is_shown_is_exported(floor: Floor):
    page = floor.worker.get("/metrics")[1]
    exported = set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))
    used = names_used(DASHBOARDS)
    shown = {metric.name if (metric := metric_of(name)) else name for name in used}
    declared = {metric.name for metric in CATALOGUE}
    of_exported = {metric.name if (metric := metric_of(name)) else name for name in exported}
    assert declared - of_exported == set()
    assert of_exported - shown - UNUSED.keys() == NOT_SHOWN.keys()
    from_prometheus = {"up", "scrape_duration_seconds", "ALERTS"}
    assert shown - of_exported == from_prometheus


def test_series_have_the_labels_that_are_declared(floor: Floor):
    for name in sorted(names_used(DASHBOARDS)):
        metric = metric_of(name)
        if metric is None or name in EMPTY:
            continue
        found = floor.prometheus.ask(
            "series", **{"match[]": f'{name}{{job="{JOB}"}}', "start": floor.started_s}
        )
        labels = {frozenset(series) - {"__name__", "le"} - TARGET for series in found}
        assert labels == {frozenset(metric.labels)}, name


def test_the_funnel_of_two_replicas_is_the_engines_own(floor: Floor):
    """Last: when the floor is at rest, what the overview shows is what the API says, to the last lead."""
    (overview,) = (document for document in DASHBOARDS if document["uid"] == "callfunnel-overview")
    values = chosen(overview, floor.prometheus, window="1d", narrow=False)
    shown = {question.place: filled(question.expr, values) for question in asked(overview)}
    deadline = Deadline(FEED_SECONDS + 30)
    while True:
        document = json.loads(floor.worker.get("/api/v1/funnel?window=1d")[1])
        stages = {stage["stage"]: stage for stage in document["stages"]}
        expected = {
            f"panel 'Funnel' {ref}": stages[name]["leads"] for ref, name in zip("ABCDEF", stages, strict=True)
        }
        expected |= {
            f"panel 'Events of each stage' {ref}": stages[name]["events"]
            for ref, name in zip("ABCDEF", stages, strict=True)
        }
        rates = {ratio["name"]: ratio["value"] for ratio in document["ratios"]}
        expected |= {
            "panel 'Reach rate' A": rates["reach"],
            "panel 'Qualification rate' A": rates["qualification"],
            "panel 'Close rate' A": rates["close"],
            "panel 'Called in time' A": document["response"]["value"],
            "panel 'Called in time' B": document["response"]["due"],
            "panel 'Uncalled leads' A": document["uncalled"]["leads"],
        }
        found = {place: floor.prometheus.now(shown[place])[0][1] for place in expected}
        # The last event is some time ago, and read.
        behind_s = floor.prometheus.now(shown["panel 'Behind by' A"])[0][1]
        if found == pytest.approx(expected, abs=1e-12) and 0 <= behind_s < 15:
            break
        assert not deadline.is_over, {
            place: (found[place], wanted) for place, wanted in expected.items() if found[place] != wanted
        } | {"behind": behind_s}
        time.sleep(1)
    assert found["panel 'Events of each stage' B"] > 3_000
    up = floor.prometheus.now(f'sum(up{{job="{JOB}"}})')
    assert up == [({}, 2.0)]


def query_of(uid: str, title: str, name: str) -> str:
    """The expression of what is called `name` in a panel: a line, a bar, a number or a column."""
    (document,) = (one for one in DASHBOARDS if one["uid"] == f"callfunnel-{uid}")
    (panel,) = (one for one in document["panels"] if one["title"] == title)
    columns = {
        column: value.removeprefix("Value #")
        for transformation in panel.get("transformations", ())
        for value, column in transformation["options"].get("renameByName", {}).items()
    }
    (expr,) = (
        one["expr"]
        for one in panel["targets"]
        if name == one.get("legendFormat") or columns.get(name) == one["refId"]
    )
    return str(expr)


TARGET_WINS = 1_000
Shown = dict[tuple[str, ...], float]
"""The values of a panel by the values of their labels, in the order of the labels' names."""


def stats_shown(prometheus: Prometheus) -> dict[tuple[str, str, str], float]:
    """What the big numbers of all dashboards show at this moment, as Grafana asks for them.

    Of a query that is not of now, it shows the last value in the dashboard's six hours.
    """
    shown: dict[tuple[str, str, str], float] = {}
    values = {"job": JOB, "window": "1h", "minimum": "1", "target": "10", "__rate_interval": "5s"}
    values |= dict.fromkeys(("campaign", "source", "team", "agent"), ALL)
    end_s = time.time()
    for document in DASHBOARDS:
        for panel in document["panels"]:
            for target in panel["targets"] if panel["type"] == "stat" else ():
                expr = filled(target["expr"], values)
                if target.get("instant"):
                    found = [value for _, value in prometheus.now(expr)]
                else:
                    found = [each[-1] for _, each in prometheus.over(expr, end_s - 6 * 3600, end_s, 15)]
                if found:
                    shown[document["uid"], panel["title"], target["legendFormat"]] = found[0]
    return shown


def test_after_the_engine_died_no_stat_shows_a_number(tmp_path: Path):
    """A floor of its own: nobody else could use it afterwards."""
    with a_floor(tmp_path, feed_seconds=1) as floor:
        before = stats_shown(floor.prometheus)
        assert len(before) > 90
        assert before["callfunnel-overview", "View", "current"] == 1
        floor.worker.kill()
        floor.replicas.close()
        processes = ("callfunnel-engine", "Processes up")
        theirs = {(*processes, "up"): 0.0, (*processes, "known"): 2.0}  # Prometheus knows these by itself
        deadline = Deadline(60)
        while (shown := stats_shown(floor.prometheus)) != theirs:
            assert not deadline.is_over, shown
            time.sleep(1)


def expected_of(at: Snapshot) -> dict[tuple[str, str, str], Shown]:
    """What panels must show of a day: dashboard, panel, name; and the numbers, made of the view's rows."""
    segments, people, places = (at.windows["1d"][rollup] for rollup in (SEGMENT, PERSON, LOCATION))
    due, met = (sum(pair[n] for pair in at.due["1d"].values()) for n in (0, 1))
    dials, wins = total(segments, "events_dialed"), total(segments, "events_won")
    won_today = total(at.windows["today"][SEGMENT], "events_won")
    # Wilson's interval, nine outcomes in ten: the roots of (share - p)² = z² · p · (1 - p) ÷ dials.
    share, z2 = wins / dials, 1.645**2 / dials
    least = (share + z2 / 2 - math.sqrt((share + z2 / 2) ** 2 - (1 + z2) * share**2)) / (1 + z2)
    bins = {end: total(segments, name) for end, name in zip(FIRST_DIAL.ends, FIRST_DIAL.bins, strict=True)}
    sources = {row[1] for row in segments}
    campaigns = {name: {row: segments[row] for row in segments if row[0] == name} for name, _ in segments}
    hangups = total(segments, "dm_hangups")
    at_work = {row: columns for row, columns in people.items() if columns.get("events_dialed")}

    def of_source(source: str, column: str) -> int:
        return total({row: columns for row, columns in segments.items() if row[1] == source}, column)

    def source_is_measured(source: str, stage: str) -> bool:
        events = sum(of_source(one, f"events_{stage}") for one in {source, NONE})
        return of_source(source, f"leads_{stage}") <= 1.25 * events

    def of_agents(column: str) -> Shown:
        return {(agent, team): columns.get(column, 0) for (team, agent), columns in at_work.items()}

    def agents_rate(above: str, below: str) -> Shown:
        return {
            (agent, team): columns.get(f"leads_{above}", 0) / columns[f"leads_{below}"]
            for (team, agent), columns in at_work.items()
            if 0 < columns.get(f"leads_{below}", 0) >= columns.get(f"leads_{above}", 0)
            and all(
                columns.get(f"leads_{stage}", 0) <= 1.25 * columns.get(f"events_{stage}", 0)
                for stage in (above, below)
            )
        }

    return {
        ("agents", "Reached of dials", "reach"): {
            (): total(people, "events_reached") / total(people, "events_dialed")
        },
        ("agents", "Won", "won"): {(): total(people, "leads_won")},
        ("agents", "Leaderboard", "Won"): of_agents("leads_won"),
        ("agents", "Leaderboard", "Connected"): of_agents("events_connected"),
        ("agents", "Leaderboard", "Qualification"): agents_rate("qualified", "reached"),
        ("agents", "Locations", "Connected"): {
            row: columns.get("events_connected", 0) for row, columns in places.items()
        },
        ("campaign", "Won", "won"): {(): total(segments, "leads_won")},
        ("campaign", "From stage to stage", "connected → reached"): {
            (): total(segments, "leads_reached") / total(segments, "leads_connected")
        },
        ("campaign", "Calls that went nowhere", "immediate hang-ups"): {(): hangups},
        ("campaign", "Sources", "Qualified"): {(one,): of_source(one, "leads_qualified") for one in sources},
        ("campaign", "Sources", "Close"): {
            (one,): of_source(one, "leads_won") / of_source(one, "leads_qualified")
            for one in sources
            if 0 < of_source(one, "leads_qualified") >= of_source(one, "leads_won")
            and all(source_is_measured(one, stage) for stage in ("won", "qualified"))
        },
        ("speed", "Missed", "missed"): {(): due - met},
        ("speed", "Burn", "1d"): {(): (due - met) / due / 0.1},
        ("speed", "Median time to first call", "median"): {(): quantile(0.5, list(bins.values()))},
        ("speed", "Median time to first call", "called"): {(): sum(bins.values())},
        ("speed", "Mean time to first call", "mean"): {
            (): total(segments, "attempt_ms") / 1000 / sum(bins.values())
        },
        ("speed", "Uncalled leads by age", "15-60m"): {
            (): sum(found.by_age[AGES.index("15-60m")] for found in at.uncalled.values())
        },
        ("plan", "Share of the target", "of the target"): {(): won_today / TARGET_WINS},
        ("plan", "Dials needed", "expected"): {(): math.ceil(TARGET_WINS * dials / wins)},
        ("plan", "Dials needed", "at worst"): {(): math.ceil(TARGET_WINS / least)},
        ("plan", "Dials to go", "expected"): {(): math.ceil((TARGET_WINS - won_today) * dials / wins)},
        ("plan", "What would help most", "reach at 15%"): {
            (): dials / wins * min((total(segments, "events_reached") - hangups) / dials / 0.15, 1)
        },
        ("plan", "Dials for a win, by campaign", "Dials for a win"): {
            (name,): total(rows, "events_dialed") / total(rows, "events_won")
            for name, rows in campaigns.items()
            if total(rows, "events_won") >= 10
        },
        ("engine", "Partitions", "{{state}}"): {
            ("active",): 4,
            ("recovering",): 0,
            ("deriving",): 0,
        },
        ("engine", "Waiting", "records"): {(): 0},
        ("engine", "Workers ready", "ready"): {(): 1},
    }


def total(rows: Mapping[Any, Mapping[str, int]], column: str) -> int:
    return sum(columns.get(column, 0) for columns in rows.values())


def quantile(q: float, counts: list[int]) -> float:
    """As Prometheus: on the line from the lower to the upper bound of the bucket where it lies."""
    below, rank = 0, q * sum(counts)
    for lower, upper, count in zip((0, *FIRST_DIAL.bounds), FIRST_DIAL.bounds, counts, strict=False):
        if below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below += count
    return FIRST_DIAL.bounds[-1]


def test_each_kind_of_panel_of_each_board_shows_the_views_own_numbers(floor: Floor):
    """At rest, too: a number that is there and wrong is worse than none."""
    deadline = Deadline(FEED_SECONDS + 30)
    while True:
        assert floor.view.snapshot
        expected = expected_of(floor.view.snapshot)
        found: dict[tuple[str, str, str], Shown] = {}
        for uid, title, name in expected:
            values = {"job": JOB, "window": "1d", "minimum": "1", "target": str(TARGET_WINS)}
            values |= dict.fromkeys(("campaign", "source", "team", "agent"), ALL)
            series = floor.prometheus.now(filled(query_of(uid, title, name), values))
            found[uid, title, name] = {
                tuple(labels[label] for label in sorted(labels)): value for labels, value in series
            }
        wrong = {
            place: (found[place], wanted)
            for place, wanted in expected.items()
            if found[place] != pytest.approx(wanted)
        }
        if not wrong:
            break
        assert not deadline.is_over, wrong
        time.sleep(1)
    assert len(expected["agents", "Leaderboard", "Won"]) > 50
