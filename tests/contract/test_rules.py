"""Rules, alerts, runbooks and their tests belong together, and speak of metrics that exist.

What needs promtool, amtool and Alertmanager is skipped where they are missing, and fails there instead when
FUNNEL_REQUIRE_PROMTOOL is 1.
"""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import patience
from callfunnel.agents.cli import callfunnel
from callfunnel.agents.config import Settings, variable
from callfunnel.agents.demo.broker import end_process, free_port
from callfunnel.schemas.events import STAGES
from callfunnel.streams.measures import LEADS
from callfunnel.streams.metrics import CATALOGUE, CLOCKS
from callfunnel.streams.rates import OBSERVED, RATES, Rate, Terms
from callfunnel.streams.windows import AGES, WINDOWS
from contract.calling_hours import with_usual_hours
from grafana.promql import SERIES
from patience import Deadline

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
ALERTMANAGER = DEPLOY / "alertmanager/alertmanager.yml"
RUNBOOKS = {path.stem: path.read_text("utf-8") for path in sorted((DEPLOY / "runbooks").glob("*.md"))}
README = (PROMETHEUS / "README.md").read_text("utf-8")
[SUMMER_TIME] = [
    rules
    for snippet in re.findall(r"```yaml\n(.*?)```", README, re.S)
    if "record" in (rules := yaml.safe_load(snippet))[0]
]
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))

RULES = [
    rule
    for path in sorted((PROMETHEUS / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
VARIABLES = {
    board["uid"]: {variable["name"] for variable in board["templating"]["list"]}
    for path in sorted((DEPLOY.parent / "grafana/dashboards").glob("*.json"))
    for board in [json.loads(path.read_text("utf-8"))]
}
"""By dashboard."""

TARGET = {"job", "instance", "pod"}
SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "gaugehistogram": ("_bucket", "_gcount", "_gsum")}
EXPORTED = {
    metric.name + suffix: {*metric.labels, *TARGET, *({"le"} if suffix == "_bucket" else ())}
    for metric in CATALOGUE
    for suffix in SUFFIXES.get(metric.type, ("",))
} | {"up": TARGET, "process_start_time_seconds": TARGET}
LEVELS = {
    "callfunnel": set(),
    "job": {"job"},
    "job_partition": {"job", "partition"},
    "job_reason": {"job", "reason"},
    "stage": {"job", "window", "funnel_stage"},
    "campaign": {"job", "window", "campaign"},
    "campaign_age": {"job", "campaign", "age"},
    "campaign_stage": {"job", "window", "campaign", "funnel_stage"},
    "team_stage": {"job", "window", "team", "funnel_stage"},
}
KNOWN = EXPORTED | {name: LEVELS[name.partition(":")[0]] for name in RECORDED}
VALUES = {
    "funnel_stage": STAGES,
    "window": WINDOWS,
    "age": AGES,
    "clock": tuple(CLOCKS),
    "state": tuple(state for metric in CATALOGUE for state in metric.states),
    "job": ("callfunnel",),
}
FUNCTIONS = {  # the same in Prometheus 2.42 and 3
    "changes", "count", "day_of_month", "day_of_week", "delta", "group", "hour", "increase", "label_replace",
    "max", "min_over_time", "month", "rate", "sum", "time", "vector",
}  # fmt: skip

_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?\s*(\(?)")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
_OPERATORS = {"and", "or", "unless", "offset", "bool"}


def _seconds(duration: str) -> int:
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[duration[-1]]


def mistakes(expression: str) -> list[str]:
    """What in an expression does not exist: metrics, labels, values of labels, functions."""
    found = []
    labels = [label.strip() for clause in _GROUPING.findall(expression) for label in clause.split(",")]
    everything = set().union(*KNOWN.values())
    found += [f"no label {label}" for label in labels if label and label not in everything]
    rest = re.sub(r',\s*"[^"]*"', "", _GROUPING.sub("", expression))  # without strings as arguments
    for name, selector, call in _NAME.findall(rest):
        if name in _OPERATORS:
            continue
        if call and not selector:
            found += [f"no function {name}"] if name not in FUNCTIONS else []
            continue
        if name not in KNOWN:
            found.append(f"no metric {name}")
            continue
        for label, values in _MATCHER.findall(selector):
            if label not in KNOWN[name]:
                found.append(f"{name} has no label {label}")
            found += [
                f"{label} is never {value}"
                for value in values.split("|")
                if label in VALUES and value not in VALUES[label]
            ]
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_an_expression_reads_only_what_is_exported_or_recorded(rule):
    assert mistakes(rule["expr"]) == []


def test_a_business_alert_is_kept_until_an_engine_alert_can_inhibit_it():
    inhibiting = [
        _seconds(rule["for"])
        for rule in ALERTS.values()
        if rule["labels"] == {"category": "engine", "severity": "critical"}
        and rule["alert"] != "RecoveryStuck"  # what it restores is not counted meanwhile: WatermarkStalled
    ]
    kept = {
        rule["alert"]: _seconds(rule.get("keep_firing_for", "0s"))
        for rule in ALERTS.values()
        if rule["labels"]["category"] == "business"
    }
    assert len(inhibiting) == 5
    assert min(kept.values()) > max(inhibiting)


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("sum(callfunnel_window_event)", "no metric callfunnel_window_event"),
        ("rate(callfunnel_worker_events_consumed[5m])", "no metric callfunnel_worker_events_consumed"),
        ("callfunnel_lead_response_seconds_count", "no metric callfunnel_lead_response_seconds_count"),
        ("campaign:callfunnel_reach:rate", "no metric campaign:callfunnel_reach:rate"),
        ('callfunnel_window_events{stage="won"}', "callfunnel_window_events has no label stage"),
        ('callfunnel_window_leads_due{source="web"}', "callfunnel_window_leads_due has no label source"),
        ('campaign:callfunnel_reach:ratio{team="a"}', "campaign:callfunnel_reach:ratio has no label team"),
        ('callfunnel_window_events{window="6h"}', "window is never 6h"),
        ('callfunnel_window_events{funnel_stage=~"won|wins"}', "funnel_stage is never wins"),
        ('callfunnel_leads_uncalled{age="1h"}', "age is never 1h"),
        ("sum by (team_name) (callfunnel_agent_window_events)", "no label team_name"),
        ("callfunnel_view_rows and on (cluster) up", "no label cluster"),
        ("absent(up)", "no function absent"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_expression_is_found(expression, mistake):
    assert mistakes(expression) == [mistake]


@pytest.mark.parametrize("name", [metric.name for metric in CATALOGUE if metric.where == "view"])
def test_a_metric_of_the_view_is_first_made_one_of_its_replicas(name):
    exempt = (  # read for each process
        "callfunnel_view_state",
        "callfunnel_view_snapshot_timestamp_seconds",
        "callfunnel_view_broker_answer_timestamp_seconds",
        "callfunnel_view_render_seconds",
    )
    for rule in RULES:
        for before in re.findall(rf"([^\n]*?)(?<![\w:]){name}(?![\w:])", rule["expr"]):
            first = re.search(r"max (?:without \(instance, pod\)|by \(job, \w+\)) \($", before)
            assert first or name in exempt, f"{rule.get('alert') or rule['record']}: {before}{name}"


def test_alerts_and_runbooks_are_one_to_one():
    assert set(ALERTS) == set(RUNBOOKS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_what_where_and_what_to_do(name):
    labels, annotations = ALERTS[name]["labels"], ALERTS[name]["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert labels in (
        *({"severity": s, "category": c} for s in ("critical", "warning") for c in ("business", "engine")),
        {"severity": "none", "category": "watchdog"},
    )
    assert annotations["runbook_url"] == "{{ $externalLabels.runbooks }}/" + name + ".md"
    place, _, given = annotations["dashboard_url"].partition("?")
    address, _, uid = place.rpartition("/d/")
    assert (address, uid in VARIABLES) == ("{{ $externalLabels.grafana }}", True)
    assert set(re.findall(r"var-(\w+)=", given)) <= VARIABLES[uid]
    assert RUNBOOKS[name].splitlines()[:3] == [
        f"# {name}",
        "",
        f"{labels['severity']} · {labels['category']} · dashboard `{uid}`",
    ]


@pytest.mark.parametrize("name", RUNBOOKS)
def test_a_runbook_goes_from_meaning_to_mitigation(name):
    assert re.findall(r"^## (.+)$", RUNBOOKS[name], re.M) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert all(part.strip() for part in re.split(r"^## .+$", RUNBOOKS[name], flags=re.M))


@pytest.mark.parametrize("name", RUNBOOKS)
def test_what_a_runbook_tells_to_type_exists(name):
    text = RUNBOOKS[name]
    assert set(re.findall(r"CALLFUNNEL_\w+", text)) <= {
        variable(field) for field in Settings.__struct_fields__
    }
    assert set(re.findall(r"\]\((\w+)\.md\)", text)) <= set(RUNBOOKS)
    assert set(re.findall(r"\bcallfunnel_\w+", text)) <= KNOWN.keys() | {metric.name for metric in CATALOGUE}
    for words in re.findall(r"`callfunnel ([^`]+)`", text):
        command = callfunnel
        for word in words.split():
            if hasattr(command, "get_command") and not word.startswith("-"):
                command = command.get_command(None, word)
                assert command is not None, words
        options = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert set(re.findall(r"--[\w-]+", words)) <= options, words


def test_business_alerts_wait_for_numbers_that_may_be_judged():
    for name, rule in ALERTS.items():
        judged = "and on (job) job:callfunnel_judged:bool" in rule["expr"] or rule["expr"].startswith(
            "job:callfunnel_judged:bool"
        )
        assert judged == (rule["labels"]["category"] == "business"), name


_GAINED = re.compile(r"\b(?:increase|rate|changes|resets|(?:max|sum|count)_over_time)\([^\[]+\[(\w+)\]")


@pytest.mark.parametrize("name", ALERTS)
def test_what_comes_at_once_lasts_long_enough_to_be_told(name):
    """A counter that jumps at one moment has gained something for as long as the range, and no longer."""
    ranges = [_seconds(range_) for range_ in _GAINED.findall(ALERTS[name]["expr"])]
    assert all(_seconds(ALERTS[name].get("for", "0s")) < range_ for range_ in ranges)
    assert bool(ranges) == (name in ("LateHigh", "RejectedHigh", "RebalanceStorm", "CrashLoop"))


def test_the_jobs_that_must_be_there_are_those_that_prometheus_scrapes():
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    named = set(re.findall(r'"job", "(\w+)"', RECORDED["job:callfunnel_expected:bool"]))
    assert named == {job["job_name"] for job in config["scrape_configs"]}


def test_only_the_list_of_jobs_names_one():
    assert [rule for rule in RULES if "job=" in rule["expr"] or "job=~" in rule["expr"]] == []


def recorded(rate: Rate) -> str:
    """The expression that the recording rule of a rate has, by the rate's declaration.

    Leads are read where their stage is measured; where events are read, that is asked beside them.
    """
    measured = "campaign_stage:callfunnel_window_leads:measured"
    by_stage, apart = "campaign_stage:{}:sum", "ignoring (funnel_stage)"

    def term(column: str) -> str:
        name, labels = SERIES[column]
        if not labels:
            return f"campaign:{name}:max"
        record = measured if column in LEADS else by_stage.format(name)
        return f'{record}{{funnel_stage="{labels["funnel_stage"]}"}}'

    def sum_of(terms: Terms) -> str:
        first, *others = (
            f"{'+' if sign > 0 else '-'} {apart} {term(column)}" for column, sign in terms.items()
        )
        first = first.removeprefix(f"+ {apart} ")
        return f"({' '.join((first, *others))})" if others else first

    share = f"{sum_of(rate.numerator)} / {apart} ({sum_of(rate.denominator)} > 0) <= 1"
    of_leads = {*rate.numerator, *rate.denominator} <= set(LEADS)
    stages = () if of_leads else rate.stages
    return " and ".join((share, *(f'{apart} {measured}{{funnel_stage="{stage}"}}' for stage in stages)))


@pytest.mark.parametrize("rate", [rate for rate in RATES.values() if rate.stages], ids=lambda rate: rate.name)
def test_a_recorded_rate_divides_what_its_declaration_says(rate):
    written = RECORDED.get(f"campaign:callfunnel_{rate.name}:ratio")
    if written is None:
        return  # no alert reads it
    in_one_line = " ".join(written.split()).replace("( ", "(").replace(" )", ")")
    assert in_one_line == recorded(rate)


def number_after(pattern: str, expression: str) -> float:
    [number] = re.findall(pattern + r"\s*([\d.]+)", expression)
    return float(number)


def test_thresholds_are_the_standards():
    floors = {rate.name: {name: floor for name, _, floor in rate.standard} for rate in RATES.values()}
    reach, qualification, response = floors["reach"], floors["qualification"], floors["response"]
    few, of = OBSERVED
    measured = RECORDED["campaign_stage:callfunnel_window_leads:measured"]
    assert number_after("<=", measured) == of / few
    budget = number_after(r"vector\(", RECORDED["callfunnel:response_sla:budget"])
    assert number_after('ratio{window="1h"} <=', ALERTS["ReachRateCritical"]["expr"]) == reach["watch"]
    assert number_after('ratio{window="1d"} <', ALERTS["ReachRateBelowStandard"]["expr"]) == reach["standard"]
    assert (
        number_after('ratio{window="1d"} <', ALERTS["QualificationRateLow"]["expr"])
        == qualification["standard"]
    )
    assert 1 - budget == response["standard"]
    breach = number_after("burn15m >", ALERTS["LeadResponseSlaBreach"]["expr"])
    assert 1 - breach * budget == pytest.approx(response["watch"])


def test_a_burn_rate_that_an_alert_waits_for_can_be_reached():
    budget = number_after(r"vector\(", RECORDED["callfunnel:response_sla:budget"])
    factors = {
        name: [float(n) for n in re.findall(r":burn\w+ > ([\d.]+)", rule["expr"])]
        for name, rule in ALERTS.items()
    }
    assert {name: f for name, f in factors.items() if f} == {
        "LeadResponseSlaBreach": [2],
        "LeadResponseSlaBurn": [1, 1],
    }
    assert max(map(max, filter(None, factors.values()))) < 1 / budget


CASES = [
    case
    for path in TESTS
    for group in yaml.safe_load(path.read_text("utf-8"))["tests"]
    for case in group.get("alert_rule_test", ())
]


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_test_that_fires_and_one_that_stays_quiet(name):
    expected = [case["exp_alerts"] for case in CASES if case["alertname"] == name]
    assert any(expected)
    assert not all(expected) or name == "Watchdog"  # it is never quiet
    assert all("job" in alert["exp_labels"] for alerts in expected for alert in alerts)


def test_the_readme_lists_every_alert_and_no_other():
    alerts = README.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| \[(\w+)\]\(\.\./runbooks/\1\.md\) ", alerts, re.M) == list(ALERTS)


# With the programs.


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed (Debian: apt-get install prometheus prometheus-alertmanager)"
        if os.environ.get("FUNNEL_REQUIRE_PROMTOOL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(name: str, *arguments: str | Path) -> str:
    done = patience.run([program(name), *map(str, arguments)], seconds=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_accepts_the_configuration_and_the_rules():
    assert "SUCCESS" in run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.fixture(scope="module")
def usual_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests of the rules, beside rules with the calling hours that they suppose."""
    folder = tmp_path_factory.mktemp("rules") / "prometheus"
    shutil.copytree(PROMETHEUS, folder)
    file = folder / "rules/calling-hours.yml"
    file.write_text(with_usual_hours(file.read_text("utf-8")))
    return folder


@pytest.mark.parametrize("name", [path.name for path in TESTS])
def test_the_rules_do_what_their_tests_say(usual_hours, name):
    assert "SUCCESS" in run("promtool", "test", "rules", usual_hours / "tests" / name)


def test_calling_hours_may_be_set_as_the_readme_says_without_failing_a_test():
    text = (PROMETHEUS / "rules/calling-hours.yml").read_text("utf-8")
    rules = yaml.safe_load(text)
    [rule] = SUMMER_TIME
    assert mistakes(rule["expr"]) == []
    offset, opened = rules["groups"][0]["rules"]
    offset |= rule
    opened["expr"] = (
        opened["expr"]
        .replace("9 * 3600", "7.5 * 3600")
        .replace("11 * 3600", "8 * 3600")
        .replace("<= 5", "<= 6")
    )
    assert with_usual_hours(json.dumps(rules)) == with_usual_hours(text)


def test_the_summer_time_of_the_readme_begins_and_ends_on_the_last_sunday(tmp_path):
    [rule] = SUMMER_TIME
    assert rule["record"] == "callfunnel:utc_offset_seconds"
    days = {"86d": 3600, "88d": 7200, "180d": 7200, "296d": 7200, "298d": 3600, "340d": 3600}
    path = tmp_path / "summer.yml"  # in 1970 those Sundays were 29 March (day 87) and 25 October (day 297)
    expected = [
        {"expr": rule["expr"], "eval_time": day, "exp_samples": [{"labels": "{}", "value": seconds}]}
        for day, seconds in days.items()
    ]
    tests = {"evaluation_interval": "1d", "tests": [{"interval": "1d", "promql_expr_test": expected}]}
    path.write_text(json.dumps(tests))
    assert "SUCCESS" in run("promtool", "test", "rules", path)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_goes_to_those_who_can_act(name):
    labels = {"alertname": name, "job": "callfunnel", **ALERTS[name]["labels"]}
    receiver = {"business": "floor"}.get(labels["category"], labels["category"])
    routed = run(
        "amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}",
        *(f"{label}={value}" for label, value in labels.items()),
    )  # fmt: skip
    assert routed.splitlines()[0] == receiver


def test_alertmanager_accepts_its_configuration():
    assert "SUCCESS" in run("amtool", "check-config", ALERTMANAGER)


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running Alertmanager with our configuration."""
    command = program(
        "prometheus-alertmanager" if shutil.which("prometheus-alertmanager") else "alertmanager"
    )
    folder = tmp_path_factory.mktemp("alertmanager")
    address = f"127.0.0.1:{free_port()}"
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [
                command, f"--config.file={ALERTMANAGER}", f"--storage.path={folder}",
                f"--web.listen-address={address}", "--cluster.listen-address=",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{address}/-/ready", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield address
    finally:
        end_process(process, patience_seconds=5)


def inhibited(address: str, wanted: list[dict[str, str]], *alerts: dict[str, str]) -> list[dict[str, str]]:
    """Post the alerts and say which of them are inhibited, as soon as it is those that are `wanted`.

    Alertmanager takes note of what inhibits in the order of the message, after it has answered: something is
    known not to be inhibited once what is posted behind it is.
    """
    url = f"http://{address}/api/v2/alerts"
    body = json.dumps([{"labels": labels} for labels in alerts]).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=5).close()
    deadline = Deadline(10)
    while True:
        with urllib.request.urlopen(url, timeout=5) as answer:
            held = {frozenset(one["labels"].items()): one["status"] for one in json.load(answer)}
        found = [one for one in alerts if held.get(frozenset(one.items()), {}).get("inhibitedBy")]
        if found == wanted or deadline.is_over:
            return found
        time.sleep(0.05)


def as_sent(name: str, job: str, **labels: str) -> dict[str, str]:
    return {"alertname": name, "job": job, **ALERTS[name]["labels"], **labels}


BUSINESS = [name for name, rule in ALERTS.items() if rule["labels"]["category"] == "business"]
CRITICAL = [
    name for name, rule in ALERTS.items() if rule["labels"] == {"category": "engine", "severity": "critical"}
]


@pytest.mark.parametrize("cause", CRITICAL)
def test_a_critical_engine_alert_inhibits_every_business_alert_of_its_job(alertmanager, cause):
    job = f"under-{cause}"
    business = [as_sent(name, job, campaign=name) for name in BUSINESS]
    assert inhibited(alertmanager, business, as_sent(cause, job), *business) == business


def test_a_warning_of_the_engine_and_the_trouble_of_another_job_inhibit_nothing(alertmanager):
    here = [as_sent("LagGrowing", "here", partition="0"), as_sent("NoDialsDuringHours", "here")]
    there = [as_sent("EngineDown", "there"), as_sent("NoDialsDuringHours", "there")]
    assert inhibited(alertmanager, there[1:], *here, *there) == there[1:]


@pytest.mark.parametrize(
    ("worse", "other"),
    [
        ("ReachRateCritical", "ReachRateBelowStandard"),
        ("ReachRateCritical", "ReachDropVsBaseline"),
        ("LeadResponseSlaBreach", "LeadResponseSlaBurn"),
    ],
)
def test_of_two_alerts_about_one_campaign_the_worse_remains(alertmanager, worse, other):
    job = f"{worse}-{other}"
    lesser = as_sent(other, job, campaign="spring")
    alerts = [as_sent(other, job, campaign="autumn"), as_sent(worse, job, campaign="spring"), lesser]
    assert inhibited(alertmanager, [lesser], *alerts) == [lesser]


@pytest.mark.parametrize(
    ("cause", "effects"),
    [
        ("BrokerSilent", ["NumbersMissing", "WatermarkStalled", "WorkerNotReady", "ViewNotCurrent"]),
        ("NumbersMissing", ["ViewNotCurrent"]),
        ("WatermarkStalled", ["ViewNotCurrent"]),
    ],
)
def test_of_a_cause_and_what_follows_from_it_the_cause_is_told(alertmanager, cause, effects):
    following = [as_sent(name, cause, instance="a") for name in effects]
    other = as_sent("ProcessDown", cause, instance="b")
    assert inhibited(alertmanager, following, as_sent(cause, cause), other, *following) == following


def test_the_watchdog_is_told_whatever_else_is(alertmanager):
    watchdog = as_sent("Watchdog", "watched")
    others = [as_sent(name, "watched") for name in CRITICAL]
    quieted = [one for one in others if one["alertname"] != "EngineDown"]
    assert inhibited(alertmanager, quieted, watchdog, *others) == quieted


def test_while_nothing_serves_metrics_no_other_engine_alert_is_told(alertmanager):
    others = [
        as_sent(name, "dead", partition="0") for name, rule in ALERTS.items()
        if rule["labels"]["category"] == "engine" and name != "EngineDown"
    ]  # fmt: skip
    assert inhibited(alertmanager, others, as_sent("EngineDown", "dead"), *others) == others
