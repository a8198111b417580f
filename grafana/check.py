"""What is wrong with dashboards, found without a Grafana server.

The law: what a person would only notice in front of a screen, an empty panel, a doubled sum, a filter that
does nothing, a link into the void, is a line here. `tests/e2e/test_dashboards.py` finds the rest by running
every expression.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from callfunnel.streams.metrics import CATALOGUE, CLOCKS, CLOSED, OUTCOMES, Metric
from callfunnel.streams.windows import AGES, WINDOWS
from grafana.frame import FRESH
from grafana.panels import NO_DATA
from grafana.promql import PARTS, metric_of

Document = dict[str, Any]
Multiple = Mapping[Any, Mapping[str, bool]]
"""The uid of each dashboard, and its variables: whether each may have several values."""

CORE_PANELS = {"stat", "bargauge", "timeseries", "table", "heatmap", "text"}
UNITS = {"short", "percentunit", "s", "bytes", "cps", "dateTimeAsLocal"}
OTHERS = {
    "up": (),
    "scrape_duration_seconds": (),
    "process_start_time_seconds": (),
    "process_resident_memory_bytes": (),
    "process_cpu_seconds_total": (),
    "process_open_fds": (),
    "process_max_fds": (),
    "ALERTS": ("alertname", "alertstate", "severity"),
}
"""Series that are not of the catalogue, and their labels. The live check proves that they exist."""
UNUSED: Mapping[str, str] = {
    "callfunnel_worker_source_gap_events_total": "callfunnel_source_lost_records outlives the worker",
    "callfunnel_source_records_total": "the worker's counters say it by reason",
    "callfunnel_source_conflicting_records_total": "the worker's counter shows it",
    "callfunnel_source_loss_timestamp_seconds": "alerts read it",
}  # fmt: skip
"""Metrics of the catalogue that no dashboard shows, with the reason."""
TARGET = {"job", "instance", "pod"}
"""What Prometheus adds to every series."""
VALUES = {
    "funnel_stage": (*CLOSED["funnel_stage"], "disqualified", "lost"),
    "window": WINDOWS,
    "age": AGES,
    "clock": tuple(CLOCKS),
    "correction": CLOSED["correction"],
    "state": tuple(state for metric in CATALOGUE for state in metric.states),
    "outcome": OUTCOMES,
    "alertstate": ("firing", "pending"),
}
APART = ("window", "clock", "funnel_stage", "correction")
"""Labels whose values overlap or follow from each other: a sum over them counts twice."""
FRESHNESS = ("View", "Newest event", "Behind by", "Last snapshot")
"""The panels of the first row."""
BUILT_IN = {"__rate_interval", "__range", "__interval", "__url_time_range", "__data"}

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)?(?P<braces>\{[^}]*\})\s*(?P<range>\[[^\]]*\])?")
_BARE = re.compile(r"\b(callfunnel_\w+|process_\w+|scrape_\w+|up|ALERTS)\b(?!\s*\{)")
_MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*")\s*')
_VARIABLE = re.compile(r"\$(?:\{(\w+)[^}]*\}|(\w+))")
_LINK = re.compile(r"/d/([\w-]+)")


class Asked(NamedTuple):
    """An expression and where it stands."""

    place: str
    expr: str
    kind: str
    """`range`, `instant`, `variable` or `annotation`."""
    description: str = ""


class Selector(NamedTuple):
    """A series that an expression reads."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]
    range: str
    before: str
    """The text of the expression before it."""


def panels(document: Document) -> list[Document]:
    """The panels, without headings."""
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def asked(document: Document) -> Iterator[Asked]:
    """Every expression of a dashboard."""
    for panel in panels(document):
        for target in panel.get("targets", ()):
            kind = "instant" if target.get("instant") else "range"
            at = f"panel {panel.get('title')!r} {target.get('refId')}"
            yield Asked(at, target.get("expr", ""), kind, panel.get("description", ""))
    for annotation in document.get("annotations", {}).get("list", ()):
        yield Asked(f"annotation {annotation['name']!r}", annotation["target"]["expr"], "annotation")
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            series, label = label_values(variable)
            if "{" not in series:
                series += "{}"
            yield Asked(f"variable {variable['name']!r}", f"count by ({label}) ({series})", "variable")


def label_values(variable: Document) -> tuple[str, str]:
    """The series and the label of a variable's query. Raises ValueError when it asks for something else."""
    query = variable["query"]["query"]
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    if not match:
        raise ValueError(f"{query} is not label_values(series, label)")
    return match[1], match[2]


def selectors(expr: str) -> Iterator[Selector]:
    """The series that an expression reads."""
    # Strings keep their length without their content, so that nothing inside them is taken for a name.
    blank = _STRING.sub(lambda found: '"' + "_" * (len(found[0]) - 2) + '"', expr)
    for found in _SELECTOR.finditer(blank):
        inside = expr[found.start("braces") + 1 : found.end("braces") - 1]
        found_inside = _MATCHER.findall(inside)
        matchers = tuple((label, operator, value[1:-1]) for label, operator, value in found_inside)
        yield Selector(found["name"] or "", matchers, found["range"] or "", expr[: found.start()])


def problems(documents: Mapping[str, Document]) -> list[str]:
    """Everything that is wrong with the dashboards, by the name of their files."""
    multiple = {document.get("uid"): _multiple(document) for document in documents.values()}
    found: list[str] = []
    for file, document in documents.items():
        found += [f"{file}: {problem}" for problem in _of_dashboard(file, document, multiple)]
    for uid, times in Counter(document.get("uid") for document in documents.values()).items():
        if times > 1:
            found.append(f"{uid}: {times} dashboards have this uid")
    used = {
        metric.name
        for document in documents.values()
        for question in asked(document)
        for selector in selectors(question.expr)
        if (metric := metric_of(selector.name))
    }
    for metric in CATALOGUE:
        if metric.name not in used and metric.name not in UNUSED:
            found.append(f"{metric.name} is exported, and no dashboard shows it")
        if metric.name in used and metric.name in UNUSED:
            found.append(f"{metric.name} is shown, and listed as not shown")
    return found


def _of_dashboard(file: str, document: Document, multiple: Multiple) -> Iterator[str]:
    for field in ("uid", "title", "description", "tags", "refresh"):
        if not document.get(field):
            yield f"has no {field}"
    if f"{document.get('uid')}.json" != file:
        yield f"the uid {document.get('uid')!r} is not the file's name"
    if document.get("editable", True):
        yield "can be edited by hand, and the next start would undo it"
    yield from _of_freshness(document)
    yield from _of_panels(document)
    yield from _of_places(document)
    yield from _of_variables(document)
    yield from _of_links(document, multiple)
    for question in asked(document):
        for problem in _of_expression(question, _multiple(document)):
            yield f"{question.place}: {problem}"


def _of_freshness(document: Document) -> Iterator[str]:
    """Whoever looks at a number must see first whether it is one of now."""
    first = document["panels"][: 1 + len(FRESHNESS)]
    if [panel.get("title") for panel in first] != [FRESH, *FRESHNESS]:
        yield f"does not begin with the row {FRESH!r}: {', '.join(FRESHNESS)}"
    for panel in panels(document):
        if panel["type"] not in ("stat", "bargauge", "table"):
            continue
        at = f"panel {panel.get('title')!r}"
        if not all(target.get("instant") and not target.get("range") for target in panel.get("targets", ())):
            yield f"{at}: shows the last value of a time range, and not that of now"
        if any("vector(" in target.get("expr", "") for target in panel.get("targets", ())):
            yield f"{at}: shows a number where there is none"
        fields = panel["fieldConfig"]
        if panel["type"] != "table" and fields["defaults"].get("noValue") != NO_DATA:
            yield f"{at}: does not say {NO_DATA!r} where there is none"
        overridden = (
            one["value"]
            for override in fields.get("overrides", ())
            for one in override["properties"]
            if one["id"] == "thresholds"
        )
        for thresholds in (fields["defaults"].get("thresholds", {}), *overridden):
            if thresholds.get("steps", [{}])[0].get("color") != "text":
                yield f"{at}: gives a colour to what is not there"


def _of_panels(document: Document) -> Iterator[str]:
    for what, values in (
        ("id", [panel.get("id") for panel in document["panels"]]),
        ("title", [panel.get("title") for panel in document["panels"]]),
    ):
        for value, times in Counter(values).items():
            if times > 1 or not value:
                yield f"{times} panels have the {what} {value!r}"
    for panel in panels(document):
        at = f"panel {panel.get('title')!r}"
        if panel["type"] not in CORE_PANELS:
            yield f"{at}: {panel['type']} is not a core panel we use"
        if len(panel.get("description", "")) < 20:
            yield f"{at}: has no description"
        if panel["type"] == "text":
            continue
        yield from _of_sources(at, panel)
        fields = panel["fieldConfig"]["defaults"]
        if fields.get("unit") not in UNITS:
            yield f"{at}: has the unit {fields.get('unit')!r}"
        targets = panel.get("targets", [])
        if not targets or not all(target.get("expr") for target in targets):
            yield f"{at}: asks for nothing"
        for ref, times in Counter(target.get("refId") for target in targets).items():
            if times > 1 or not ref:
                yield f"{at}: {times} targets have the refId {ref!r}"
        names = {target.get("legendFormat") for target in targets}
        names |= _columns(panel)
        if panel["type"] == "stat" and fields.get("unit") == "percentunit" and not _counts(panel) & names:
            yield f"{at}: shows a rate without its volume"
        for override in panel["fieldConfig"].get("overrides", ()):
            if override["matcher"]["id"] == "byName" and override["matcher"]["options"] not in names:
                yield f"{at}: nothing is named {override['matcher']['options']!r}, which is overridden"


def _counts(panel: Document) -> set[str]:
    """What is shown in another unit than the panel's."""
    return {
        override["matcher"]["options"]
        for override in panel["fieldConfig"].get("overrides", ())
        if any(one["id"] == "unit" for one in override["properties"])
    }


def _columns(panel: Document) -> set[str]:
    return {
        name
        for transformation in panel.get("transformations", ())
        for name in transformation["options"].get("renameByName", {}).values()
    }


def _of_sources(at: str, holder: Document) -> Iterator[str]:
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    for one in (holder, *holder.get("targets", ()), *([holder["target"]] if "target" in holder else ())):
        if one.get("datasource") != wanted:
            yield f"{at}: the data source is {one.get('datasource')}, not the variable"


def _of_places(document: Document) -> Iterator[str]:
    places = [(panel.get("title"), panel["gridPos"]) for panel in document["panels"]]
    for title, place in places:
        if place["x"] < 0 or place["w"] < 1 or place["h"] < 1 or place["x"] + place["w"] > 24:
            yield f"panel {title!r}: is outside of the 24 columns"
    for (one, a), (other, b) in combinations(places, 2):
        if (
            a["x"] < b["x"] + b["w"]
            and b["x"] < a["x"] + a["w"]
            and a["y"] < b["y"] + b["h"]
            and b["y"] < a["y"] + a["h"]
        ):
            yield f"panels {one!r} and {other!r} overlap"


def _of_variables(document: Document) -> Iterator[str]:
    variables = {variable["name"]: variable for variable in document["templating"]["list"]}
    texts = [question.expr for question in asked(document)]
    texts += [panel.get("title", "") for panel in document["panels"]]
    texts += list(_addresses(document))
    used = {name for text in texts for found in _VARIABLE.findall(text) for name in found if name} | {
        "datasource"
    }
    for name in sorted(used - variables.keys() - BUILT_IN):
        yield f"the variable ${name} is used, and there is none"
    for name in sorted(variables.keys() - used):
        yield f"the variable ${name} is there, and nothing uses it"
    for name, variable in variables.items():
        at = f"variable {name!r}"
        if not variable.get("label") or not variable.get("description"):
            yield f"{at}: has no label or no description"
        if variable["type"] == "query":
            yield from _of_sources(at, variable)
        if variable.get("multi") and (not variable.get("includeAll") or variable.get("allValue") != ".*"):
            yield f"{at}: All must be there and match series without the label, `.*`"
        if variable["type"] == "custom":
            options = [option["value"] for option in variable.get("options", ())]
            if options != variable["query"].split(",") or variable["current"]["value"] not in options:
                yield f"{at}: its options are not those of its query"
    for annotation in document.get("annotations", {}).get("list", ()):
        yield from _of_sources(f"annotation {annotation['name']!r}", annotation)


def _addresses(document: Document) -> Iterator[str]:
    for link in document.get("links") or ():
        yield link.get("url") or ""
    for panel in panels(document):
        yield panel["options"].get("content", "") if panel["type"] == "text" else ""
        for override in panel.get("fieldConfig", {}).get("overrides", ()):
            for one in override["properties"]:
                if one["id"] == "links":
                    yield from (link["url"] for link in one["value"])


def _of_links(document: Document, multiple: Multiple) -> Iterator[str]:
    linked = {uid for address in _addresses(document) for uid in _LINK.findall(address)}
    for uid in sorted(linked - multiple.keys()):
        yield f"links to {uid}, and there is no such dashboard"
    own = _multiple(document)
    direct: set[str] = set()
    for link in document.get("links") or ():
        at, url = f"the link {link.get('title')!r}", link.get("url") or ""
        if not link.get("keepTime") or not (link.get("includeVars") or "${datasource:queryparam}" in url):
            yield f"{at} forgets the variables or the time"
        for uid in _LINK.findall(url):
            direct.add(uid)
            for name, several in multiple.get(uid, {}).items():
                if link.get("includeVars") and own.get(name) and not several:
                    yield f"{at} hands on All of ${name}, where one is taken"
    for uid in sorted(multiple.keys() - direct - {document.get("uid")}, key=str):
        yield f"has no link to {uid}"


def _multiple(document: Document) -> dict[str, bool]:
    """The variables, and whether each may have several values."""
    return {variable["name"]: bool(variable.get("multi")) for variable in document["templating"]["list"]}


def _of_expression(question: Asked, multi: Mapping[str, bool]) -> Iterator[str]:
    expr = question.expr
    yield from _of_brackets(expr)
    found = list(selectors(expr))
    if not found:
        yield f"reads no series: {expr}"
    for name in _BARE.findall(_STRING.sub('""', _GROUPING.sub("", expr))):
        yield f"{name}: is of every job, not of the chosen one"
    grouped = {
        label.strip()
        for how, labels in _GROUPING.findall(expr)
        if how != "without"
        for label in labels.split(",")
    } - {""}
    there: set[str] = set(TARGET)
    for selector in found:
        metric = metric_of(selector.name)
        if metric is None and selector.name not in OTHERS:
            if selector.name or question.kind != "variable":
                yield f"there is no metric {selector.name}"
            continue
        labels = _labels(selector, metric)
        there |= labels
        yield from _of_selector(question, selector, metric, labels, grouped, multi)
    if question.kind != "variable":
        for label in sorted(grouped - there):
            yield f"groups by {label}, which none of its series has"


def _labels(selector: Selector, metric: Metric | None) -> set[str]:
    labels = set(metric.labels) if metric else set(OTHERS.get(selector.name, ()))
    return labels | TARGET | ({"le"} if selector.name.endswith("_bucket") else set())


def _of_selector(
    question: Asked,
    selector: Selector,
    metric: Metric | None,
    labels: set[str],
    grouped: set[str],
    multi: Mapping[str, bool],
) -> Iterator[str]:
    name = selector.name
    matched = {label for label, _, _ in selector.matchers}
    known: Mapping[str, Collection[str]] = {**VALUES, **(metric.values if metric else {})}
    for label, operator, value in selector.matchers:
        if label not in labels:
            yield f"{name} has no label {label}"
        variable = value.removeprefix("$")
        if variable in multi and value.startswith("$"):
            wanted = "=~" if multi[variable] else "="
            if operator != wanted:
                yield f"{name}: {label}{operator}{value} must be {wanted}, as the variable allows"
        elif operator == "=" and value not in known.get(label, (value,)):
            yield f"{name}: {label} is never {value}"
    if question.kind == "variable":
        return
    if "job" not in matched:
        yield f"{name}: is of every job, not of the chosen one"
    for label in APART:
        if metric and label in metric.labels and label not in matched | grouped:
            yield f"{name}: sums over {label}"
    if name.endswith("_bucket") and "le" not in matched | grouped:
        yield f"{name}: sums over buckets that hold each other"
    for label in ("campaign", "source", "team", "agent"):
        forgotten = metric and label in metric.labels and label in multi and label not in matched
        if forgotten and f"Of all {label}s" not in question.description:
            yield f"{name}: is not narrowed by the variable ${label}, and the panel does not say so"
    counter = (
        (metric.type if metric else "") == "counter"
        or (metric is not None and metric.type == "histogram" and name.endswith(PARTS))
        or name == "process_cpu_seconds_total"
    )
    rated = re.search(r"\b(rate|increase)\($", selector.before)
    if counter and not rated:
        yield f"{name}: is a counter, and its height says nothing; take its rate"
    if rated and not counter:
        yield f"{name}: is no counter; a rate of it is noise"
    if rated and selector.range not in ("[$__rate_interval]", "[$__range]"):
        yield f"{name}: the rate is over {selector.range}, which fits one scrape interval only"
    first = r"max (without \(instance, pod\)|by \(instance\)) \((rate\(|increase\()?$"
    if metric and metric.where == "view" and not re.search(first, selector.before):
        yield f"{name}: without `max without (instance, pod)` first, replicas of the view count twice"


def _of_brackets(expr: str) -> Iterator[str]:
    pairs = {")": "(", "]": "[", "}": "{"}
    open_: list[str] = []
    for sign in _STRING.sub('""', expr):
        if sign in pairs.values():
            open_.append(sign)
        elif sign in pairs and (not open_ or open_.pop() != pairs[sign]):
            yield f"a {sign} closes nothing"
            return
    if open_:
        yield f"a {open_[-1]} is never closed"


def names_used(documents: Iterable[Document]) -> set[str]:
    """The names of all series that dashboards read."""
    return {
        selector.name
        for document in documents
        for question in asked(document)
        for selector in selectors(question.expr)
        if selector.name
    }
