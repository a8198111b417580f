"""The snapshot as Prometheus metrics.

The law: what is rendered is, byte for byte, what `prometheus_client` would render from `collect()`, faster;
no series is there twice, and a sum over a family stays right however few series it is limited to.
"""

import hmac
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, islice, repeat
from operator import add
from typing import Any, Literal, Self

import prometheus_client
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric as ClientMetric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.utils import floatToGoString

from callfunnel.agents.config import Settings
from callfunnel.agents.kafka.connection import read_secret
from callfunnel.agents.view.snapshot import Snapshot, Standing, View
from callfunnel.schemas.events import NONE
from callfunnel.streams.measures import PERSON, SEGMENT, Histogram, Rollup
from callfunnel.streams.metrics import BY_NAME, CATALOGUE, OUTCOMES, Metric, Reads
from callfunnel.streams.rows import Columns
from callfunnel.streams.sums import Dimensions
from callfunnel.streams.windows import AGES, WINDOWS

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

OTHER = "__other__"
"""The label value that holds what is above the limit of a family. No dimension's value becomes this label."""

Labels = tuple[str, ...]
Pairs = tuple[tuple[str, str], ...]
Values = tuple[float, ...]
_Rows = Iterable[tuple[Labels, Values]]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def new_registry() -> CollectorRegistry:
    """A registry with the process's own metrics, and without `_created` series."""
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    return registry


def accepts_openmetrics(accept: str) -> bool:
    """Whether the first format of an `Accept` header that we can write is OpenMetrics 1.0.0."""
    for media in accept.split(","):
        kind, *parameters = (part.strip() for part in media.split(";"))
        version = next(
            (p.removeprefix("version=").strip('"') for p in parameters if p.startswith("version=")), ""
        )
        if kind == "application/openmetrics-text" and (not version or re.match(r"[1-9]\d*\.", version)):
            return True
        if kind == "text/plain":
            return False
    return False


@lru_cache(maxsize=65_536)
def label_value(text: str) -> str:
    """What of a dimension's value may be a label: no control characters, 64 at most, never empty.

    A value that begins with two underscores gets a third: different values stay different, none is `OTHER`.
    """
    text = _CONTROL.sub("", text)
    return f"_{text}"[:64] if text.startswith("__") else text[:64] or NONE


def agent_labels(kind: Literal["id", "hashed", "off"], key: bytes = b"") -> Callable[[Dimensions], Labels]:
    """How `(team, agent)` becomes labels: as it is, with a keyed hash for the agent, or the team alone."""

    @lru_cache(maxsize=65_536)
    def hashed(agent: str) -> str:
        return NONE if agent == NONE else hmac.new(key, agent.encode(), "sha256").hexdigest()[:12]

    def labels(row: Dimensions) -> Labels:
        team, agent = row
        if kind == "off":
            return (label_value(team),)
        return label_value(team), label_value(agent) if kind == "id" else hashed(agent)

    return labels


def _go(number: float) -> str:
    return str(floatToGoString(number))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Sample:
    """The place of a value in a row: the suffix of its name and the labels that are not the row's."""

    suffix: str = ""
    labels: Pairs = ()


@dataclass(frozen=True, slots=True)
class Family:
    """The series of one metric: per row of label values one number for each sample of the layout."""

    metric: Metric
    labels: Labels
    layout: tuple[Sample, ...]
    rows: Mapping[Labels, Values]


_ONE = (Sample(),)
_BY_WINDOW = tuple(Sample("", (("window", window),)) for window in WINDOWS)
_BY_OUTCOME = tuple(Sample("_total", (("outcome", outcome),)) for outcome in OUTCOMES)
_BY_AGE = tuple(Sample("", (("age", age),)) for age in AGES)


@lru_cache
def _layout(metric: Metric) -> tuple[Sample, ...]:
    """The samples of a family that reads rows: of each window in turn its figures."""
    reads = metric.reads
    assert reads is not None
    windows: list[Pairs] = [(("window", window),) for window in reads.windows] or [()]
    return tuple(
        sample
        for window in windows
        for value, figure in reads.figures
        for sample in _samples(metric, figure, (*window, *(((reads.by, value),) if reads.by else ())))
    )


def _samples(metric: Metric, figure: str | Histogram, labels: Pairs) -> Iterator[Sample]:
    if isinstance(figure, str):
        yield Sample("_total" if metric.type == "counter" else "", labels)
        return
    for le in (*(_go(float(bound)) for bound in figure.bounds), "+Inf"):
        yield Sample("_bucket", (*labels, ("le", le)))
    yield Sample("_gcount", labels)
    yield Sample("_gsum", labels)


class Exposition:
    """Renders the numbers, how the view stands, and the registry. Safe to call from any thread.

    While there are no numbers, no business family has a series. `standing` is `None` where there is no view.
    `series_limit` is the most series of a family; the label sets that come first stay, later ones are summed
    into `__other__`.
    """

    def __init__(
        self,
        standing: Callable[[], Standing] | None,
        registry: CollectorRegistry,
        *,
        agent_label: Literal["id", "hashed", "off"] = "id",
        agent_key: bytes = b"",
        series_limit: int = 10_000,
    ) -> None:
        self._standing = standing
        self._registry = registry
        self._person = agent_labels(agent_label, agent_key)
        self._person_names = ("team",) if agent_label == "off" else ("team", "agent")
        self._series_limit = series_limit
        self._admitted: dict[str, set[Labels]] = {}
        self._overflowed: dict[str, int] = {}
        self._templates: dict[tuple[str, str], dict[Labels, str]] = {}
        self._lock = threading.Lock()
        self._of: Snapshot | None = None
        self._families: list[Family] = []
        self._render_seconds = 0.0

    @classmethod
    def of(cls, settings: Settings, view: View | None, registry: CollectorRegistry) -> Self:
        """The exposition as configured."""
        return cls(
            view.standing if view else None,
            registry,
            agent_label=settings.agent_label,
            agent_key=(read_secret(settings, "agent_label_key_file") or "").encode(),
            series_limit=settings.series_limit,
        )

    def render(self, openmetrics: bool) -> bytes:
        """The page of `/metrics`."""
        with self._lock:
            started = time.perf_counter()
            business = self._render(self.families(), openmetrics)
            self._render_seconds = time.perf_counter() - started
        return business + (generate_openmetrics if openmetrics else generate_latest)(self._registry)

    def collect(self) -> Iterator[ClientMetric]:
        """The families of the view as `prometheus_client` would have them."""
        for family in self.families():
            metric = family.metric
            name = metric.name.removesuffix("_total")
            client = ClientMetric(name, metric.help, metric.type, metric.unit_in_name)
            for row, values in family.rows.items():
                outer = dict(zip(family.labels, row, strict=True))
                for sample, value in zip(family.layout, values, strict=True):
                    client.add_sample(name + sample.suffix, outer | dict(sample.labels), value)
            yield client

    def families(self) -> list[Family]:
        """The families of the view: those of the numbers, made once for each snapshot, and its own."""
        if self._standing is None:
            return []
        standing = self._standing()
        snapshot = standing.snapshot
        if snapshot is not self._of:
            self._overflowed.clear()
            self._families = sorted(self._business(snapshot), key=_place) if snapshot else []
            self._of = snapshot
        about_them = self._about(snapshot) if snapshot else ()
        return [*self._families, *about_them, *self._own(standing)]

    def _business(self, at: Snapshot) -> Iterator[Family]:
        for metric in CATALOGUE:
            if metric.reads:
                yield self._sums(metric, metric.reads, at)
        for name, n in (("callfunnel_window_leads_due", 0), ("callfunnel_window_leads_met", 1)):
            counts = (
                (_campaign(row), tuple(at.due[window].get(row, (0, 0))[n] for window in WINDOWS))
                for row in sorted(at.seen[SEGMENT.name])
            )
            yield self._family(BY_NAME[name], ("campaign",), _BY_WINDOW, counts)

        none: Values = (0,) * len(AGES)
        ages = (
            (_campaign(row), at.uncalled[row].by_age if row in at.uncalled else none)
            for row in sorted(at.seen[SEGMENT.name] | at.uncalled.keys())
        )
        yield self._family(BY_NAME["callfunnel_leads_uncalled"], ("campaign",), _BY_AGE, ages)
        oldest = ((_campaign(row), (found.oldest_s,)) for row, found in sorted(at.uncalled.items()))
        metric = BY_NAME["callfunnel_oldest_uncalled_lead_timestamp_seconds"]
        yield self._family(metric, ("campaign",), _ONE, oldest, min)

        positions = {(str(partition),): at.positions[partition] for partition in sorted(at.positions)}
        yield _one(
            "watermark_timestamp_seconds", {p: (its.watermark_ms / 1000,) for p, its in positions.items()}
        )
        yield Family(
            BY_NAME["callfunnel_source_records_total"],
            ("partition",),
            _BY_OUTCOME,
            {p: (its.applied, its.duplicates, its.rejected, its.rerouted) for p, its in positions.items()},
        )
        yield _one("source_lost_records", {p: (its.lost,) for p, its in positions.items()})
        lost = {p: (its.lost_at_ms / 1000,) for p, its in positions.items() if its.lost_at_ms}
        yield _one("source_loss_timestamp_seconds", lost)

    def _sums(self, metric: Metric, reads: Reads, at: Snapshot) -> Family:
        rollup = reads.rollup.name
        rows: Iterable[Dimensions]
        if reads.windows:
            tables = [at.windows[window][rollup] for window in reads.windows]
            rows = sorted(at.seen[rollup])
        else:  # the active ones first: a limit of series cuts off the last
            tables = [at.windows["all"][rollup]]
            rows = sorted(tables[0], key=lambda row: (row not in at.seen[rollup], row))
        names, labels = self._labels(reads)
        pick = _picker(reads.figures)
        found = (
            (labels(row), tuple(chain.from_iterable([pick(table.get(row)) for table in tables])))
            for row in rows
        )
        family = self._family(metric, names, _layout(metric), found)
        return _in_seconds(family) if metric.type == "gaugehistogram" else family

    def _labels(self, reads: Reads) -> tuple[Labels, Callable[[Dimensions], Labels]]:
        if reads.rollup is PERSON:
            return self._person_names, self._person
        if reads.dimensions == reads.rollup.dimensions:
            return reads.dimensions, _all_labels
        return reads.dimensions, _some_labels(reads.rollup, reads.dimensions)

    def _about(self, at: Snapshot) -> Iterator[Family]:
        yield _one("view_rows", {(): (at.rows,)})
        shown = {family.metric.name: family for family in self._families}
        series: dict[Labels, Values] = {
            (name,): (len(family.rows) * len(family.layout),) for name, family in shown.items()
        }
        yield _one("view_series", series)
        yield _one("view_series_limit", {(): (self._series_limit,)})
        overflowed = {(name,): (self._overflowed[name],) for name in shown if name in self._overflowed}
        yield _one("view_series_overflowed", overflowed)
        yield _one("view_render_seconds", {(): (self._render_seconds,)})

    def _own(self, its: Standing) -> Iterator[Family]:
        states = BY_NAME["callfunnel_view_state"].states
        yield _one("view_state", {(state,): (float(state == its.state),) for state in states})
        yield _one("view_lag_records", _known(its.lag))
        lags: dict[Labels, Values] = {(str(n),): (its.source_lags[n],) for n in sorted(its.source_lags)}
        yield _one("view_source_lag_records", lags)
        yield _one("view_snapshot_timestamp_seconds", _known(its.complete_s))
        yield _one("view_broker_answer_timestamp_seconds", _known(its.answered_s))

    def _family(
        self,
        metric: Metric,
        labels: Labels,
        layout: tuple[Sample, ...],
        rows: _Rows,
        merge: Callable[[float, float], float] = add,
    ) -> Family:
        """Rows with the same labels become one; rows above the limit become `__other__`."""
        name = metric.name
        merged: dict[Labels, Values] = {}
        for row, values in rows:
            before = merged.get(row)
            merged[row] = values if before is None else tuple(map(merge, before, values))
        room = max(1, self._series_limit // len(layout) - 1)
        admitted = self._admitted.setdefault(name, set())
        admitted.intersection_update(merged)
        if len(admitted) < len(merged):
            admitted.update(islice((row for row in merged if row not in admitted), room - len(admitted)))
        self._overflowed[name] = (len(merged) - len(admitted)) * len(layout)
        if self._overflowed[name]:
            other = (OTHER,) * len(labels)
            for row in merged.keys() - admitted - {other}:
                values = merged.pop(row)
                before = merged.get(other)
                merged[other] = values if before is None else tuple(map(merge, before, values))
        return Family(metric, labels, layout, merged)

    def _render(self, families: Iterable[Family], openmetrics: bool) -> bytes:
        lines: list[str] = []
        for family in families:
            metric = family.metric
            name = metric.name.removesuffix("_total") if openmetrics else metric.name
            for suffix, kind, places in _parts(family, openmetrics):
                lines.append(f"# HELP {name}{suffix} {metric.help}\n# TYPE {name}{suffix} {kind}\n")
                if openmetrics and metric.unit_in_name:
                    lines.append(f"# UNIT {name} {metric.unit_in_name}\n")
                templates = self._templates.setdefault((metric.name, f"{suffix}{len(places)}"), {})
                pattern = _pattern(family, places)
                whole = len(places) == len(family.layout)
                for row, values in family.rows.items():
                    template = templates.get(row)
                    if template is None:
                        labels = dict(zip(family.labels, map(_escape, row), strict=True))
                        template = templates[row] = pattern % labels
                    chosen = values if whole else [values[place] for place in places]
                    lines.append(template % tuple(map(_number, chosen)))
                for gone in (
                    templates.keys() - family.rows.keys() if len(templates) > len(family.rows) else ()
                ):
                    del templates[gone]
        return "".join(lines).encode()


def _place(family: Family) -> int:
    return CATALOGUE.index(family.metric)


def _one(name: str, rows: Mapping[Any, Values]) -> Family:
    """A family of one number for each row."""
    metric = BY_NAME[f"callfunnel_{name}"]
    return Family(metric, metric.labels, _ONE, rows)


def _known(number: float | None) -> dict[Labels, Values]:
    return {} if number is None else {(): (number,)}


def _all_labels(row: Dimensions) -> Labels:
    return tuple(map(label_value, row))


def _campaign(row: Dimensions) -> Labels:
    return (label_value(row[0]),)


def _some_labels(rollup: Rollup, dimensions: Labels) -> Callable[[Dimensions], Labels]:
    places = [rollup.dimensions.index(name) for name in dimensions]
    return lambda row: tuple([label_value(row[place]) for place in places])


@lru_cache
def _picker(figures: tuple[tuple[str, str | Histogram], ...]) -> Callable[[Columns | None], Values]:
    """What takes these figures out of a row: the columns as they are, or the histograms as their samples."""
    names = tuple([figure for _, figure in figures if isinstance(figure, str)])
    histograms = [figure for _, figure in figures if isinstance(figure, Histogram)]
    if not histograms:
        none: Values = (0,) * len(names)
        return lambda columns: tuple(map(columns.get, names, repeat(0))) if columns else none

    def pick(columns: Columns | None) -> Values:
        values: list[float] = []
        held = columns or {}
        for histogram in histograms:
            bins = list(accumulate(map(held.get, histogram.bins, repeat(0))))
            values += (*bins, bins[-1], held.get(histogram.sum, 0))
        return tuple(values)

    return pick


def _in_seconds(family: Family) -> Family:
    """Sums were added up in whole milliseconds; now they become seconds."""
    divisors = [1000 if sample.suffix == "_gsum" else 1 for sample in family.layout]
    rows = {
        row: tuple([n if by == 1 else n / by for n, by in zip(values, divisors, strict=True)])
        for row, values in family.rows.items()
    }
    return Family(family.metric, family.labels, family.layout, rows)


def _parts(family: Family, openmetrics: bool) -> Iterator[tuple[str, str, list[int]]]:
    """Suffix, type and places in the layout of what the format calls a family.

    The text format has no gauge histogram: buckets go as a histogram, count and sum as gauges of their own.
    """
    everything = list(range(len(family.layout)))
    if openmetrics or family.metric.type != "gaugehistogram":
        yield "", family.metric.type, everything
        return
    yield "", "histogram", [n for n in everything if family.layout[n].suffix == "_bucket"]
    for suffix in ("_gcount", "_gsum") if family.rows else ():
        yield suffix, "gauge", [n for n in everything if family.layout[n].suffix == suffix]


def _pattern(family: Family, places: Iterable[int]) -> str:
    """The lines of any row: `%(label)s` for each of its labels, `%%s` for each number."""
    name = family.metric.name.removesuffix("_total")
    own = [(label, f"%({label})s") for label in family.labels]
    lines = []
    for sample in (family.layout[place] for place in places):
        text = ",".join(f'{label}="{value}"' for label, value in sorted((*own, *sample.labels)))
        lines.append(f"{name}{sample.suffix}{{{text}}} %%s\n" if text else f"{name}{sample.suffix} %%s\n")
    return "".join(lines)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"").replace("%", "%%")


class _Numbers(dict[float, str]):
    """Numbers as text; the usual ones are kept."""

    def __missing__(self, number: float) -> str:
        text = _go(number)
        if 0 < number < 100_000 and number == int(number):
            self[number] = text
        return text


_number = _Numbers({0: "0.0"}).__getitem__
