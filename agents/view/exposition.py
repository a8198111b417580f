"""The snapshot as Prometheus metrics.

The law: what is rendered is, byte for byte, what `prometheus_client` would render from `collect()`, faster;
no series is there twice, and a sum over a family stays right however few series it is limited to.
"""

import hmac
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import accumulate, chain, islice, repeat, zip_longest
from operator import add, sub
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
from callfunnel.streams.measures import PERSON, SEGMENT, Figure, Histogram, Rollup
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
        if kind == "off":
            return (label_value(row[0]),)
        team, agent = row
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


_NO_LEADS = (0, 0)
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


def _samples(metric: Metric, figure: Figure | Histogram, labels: Pairs) -> Iterator[Sample]:
    if isinstance(figure, Figure):
        yield Sample("_total" if metric.type == "counter" else "", labels)
        return
    for le in (*(_go(float(bound)) for bound in figure.bounds), "+Inf"):
        yield Sample("_bucket", (*labels, ("le", le)))
    yield Sample("_gcount", labels)
    yield Sample("_gsum", labels)


@dataclass(frozen=True, slots=True)
class _Order:
    """Label sets in the order of the page. It is made of the dimension values of rows alone, so it outlives
    most snapshots."""

    rows: Set[Dimensions]
    active: Set[Dimensions]
    rows_of: Mapping[Labels, Sequence[Dimensions]]
    """By label set, the rows that are merged into it; of a family with less dimensions, their prefixes."""

    @classmethod
    def of(
        cls,
        rows: Set[Dimensions],
        active: Set[Dimensions],
        depth: int,
        label: Callable[[Dimensions], Labels],
    ) -> Self:
        """Those with active rows come first. Keys are copied: a view of them would keep their snapshot."""
        first = {row[:depth] for row in active & rows}
        rows_of: dict[Labels, list[Dimensions]] = {}
        for row in sorted({row[:depth] for row in rows}, key=lambda row: (row not in first, row)):
            rows_of.setdefault(label(row), []).append(row)
        return cls(frozenset(rows), frozenset(active), rows_of)


@dataclass(frozen=True, slots=True)
class _Choice:
    """The label sets of a family that have series of their own, with their rows."""

    order: _Order
    admitted: Sequence[tuple[Labels, Sequence[Dimensions]]]
    left_out: int


class _Written:
    """The lines of a row as they were written last."""

    __slots__ = ("lines", "template", "values")

    def __init__(self, template: str) -> None:
        self.template = template
        self.values: Values = ()
        self.lines = ""


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
        self._orders: dict[tuple[str, Labels, str], _Order] = {}
        self._choices: dict[str, _Choice] = {}
        self._overflowed: dict[str, int] = {}
        self._written: dict[tuple[str, str], dict[Labels, _Written]] = {}
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
        seen, names = at.seen[SEGMENT.name], ("campaign",)
        campaigns = self._order("windows", SEGMENT, names, _all_labels, seen, seen)
        due = [at.due_of_campaigns[window] for window in WINDOWS]
        for name, n in (("callfunnel_window_leads_due", 0), ("callfunnel_window_leads_met", 1)):
            counts = {
                row: tuple([of_window.get(row, _NO_LEADS)[n] for of_window in due])
                for rows in campaigns.rows_of.values()
                for row in rows
            }
            yield self._family(BY_NAME[name], names, _BY_WINDOW, campaigns, counts.__getitem__)

        ages: dict[Dimensions, Values] = {}
        oldest: dict[Dimensions, Values] = {}
        for (campaign, _), found in at.uncalled.items():
            row = (campaign,)
            before = ages.get(row)
            ages[row] = found.by_age if before is None else tuple(map(add, before, found.by_age))
            oldest[row] = (min(found.oldest_s, *oldest.get(row, ())),) if before else (found.oldest_s,)
        none: Values = (0,) * len(AGES)
        known = seen | at.uncalled.keys()
        campaigns = self._order("uncalled", SEGMENT, names, _all_labels, known, known)
        metric = BY_NAME["callfunnel_leads_uncalled"]
        yield self._family(metric, names, _BY_AGE, campaigns, lambda row: ages.get(row, none))
        campaigns = self._order("oldest", SEGMENT, names, _all_labels, oldest.keys(), oldest.keys())
        metric = BY_NAME["callfunnel_oldest_uncalled_lead_timestamp_seconds"]
        yield self._family(metric, names, _ONE, campaigns, oldest.__getitem__, merge=min)

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
        yield Family(
            BY_NAME["callfunnel_source_conflicting_records_total"],
            ("partition",),
            (Sample("_total"),),
            {p: (its.conflicting,) for p, its in positions.items()},
        )
        yield _one("source_lost_records", {p: (its.lost,) for p, its in positions.items()})
        lost = {p: (its.lost_at_ms / 1000,) for p, its in positions.items() if its.lost_at_ms}
        yield _one("source_loss_timestamp_seconds", lost)

    def _sums(self, metric: Metric, reads: Reads, at: Snapshot) -> Family:
        rollup, windows = reads.rollup, reads.windows or ("all",)
        names, label = self._labels(reads)
        seen = at.seen[rollup.name]
        if reads.windows:
            order = self._order("windows", rollup, names, label, seen, seen)
        else:  # the active ones first: a limit of series cuts off the last
            order = self._order("all", rollup, names, label, at.windows["all"][rollup.name].keys(), seen)
        depth = _depth(rollup, names)
        if depth == len(rollup.dimensions):
            tables = [at.windows[window][rollup.name] for window in windows]
        else:
            tables = [at.prefixes[window][rollup.name, depth] for window in windows]
        totals = [at.prefixes[window][rollup.name, 0] for window in windows]
        pick = _picker(reads.figures)
        family = self._family(
            metric,
            names,
            _layout(metric),
            order,
            lambda row: tuple(chain.from_iterable([pick(table.get(row)) for table in tables])),
            lambda: tuple(chain.from_iterable([pick(total.get(())) for total in totals])),
        )
        return _in_seconds(family) if metric.type == "gaugehistogram" else family

    def _labels(self, reads: Reads) -> tuple[Labels, Callable[[Dimensions], Labels]]:
        if reads.rollup is PERSON:
            return self._person_names, self._person
        if _depth(reads.rollup, reads.dimensions) == len(reads.dimensions):
            return reads.dimensions, _all_labels
        return reads.dimensions, _some_labels(reads.rollup, reads.dimensions)

    def _order(
        self,
        of: str,
        rollup: Rollup,
        names: Labels,
        label: Callable[[Dimensions], Labels],
        rows: Set[Dimensions],
        active: Set[Dimensions],
    ) -> _Order:
        """The label sets of these rows, in order; that of the snapshot before where the rows are the same."""
        key = rollup.name, names, of
        known = self._orders.get(key)
        if known is None or known.rows != rows or (known.active is not active and known.active != active):
            known = self._orders[key] = _Order.of(rows, active, _depth(rollup, names), label)
        return known

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
        order: _Order,
        values: Callable[[Dimensions], Values],
        total: Callable[[], Values] | None = None,
        merge: Callable[[float, float], float] = add,
    ) -> Family:
        """Rows with the same labels become one; rows above the limit become `__other__`.

        `total` gives what all rows add up to, where that is known: then no row above the limit is looked at.
        """

        def merged(rows: Iterable[Dimensions]) -> Values:
            return reduce(lambda one, other: tuple(map(merge, one, other)), map(values, rows))

        choice = self._choose(metric.name, len(layout), order)
        found = {
            label: values(rows[0]) if len(rows) == 1 else merged(rows) for label, rows in choice.admitted
        }
        self._overflowed[metric.name] = choice.left_out * len(layout)
        if choice.left_out:
            if total is not None:
                other: Values = tuple(map(sub, total(), map(sum, zip(*found.values(), strict=True))))
            else:
                other = merged(
                    row for label, rows in order.rows_of.items() if label not in found for row in rows
                )
            found[(OTHER,) * len(labels)] = other
        return Family(metric, labels, layout, found)

    def _choose(self, name: str, samples: int, order: _Order) -> _Choice:
        """Which label sets of a family have series of their own: first those that had them before."""
        choice = self._choices.get(name)
        if choice is None or choice.order is not order:
            room = max(1, self._series_limit // samples - 1)
            admitted = self._admitted.setdefault(name, set())
            admitted.intersection_update(order.rows_of)
            if len(admitted) < len(order.rows_of):
                new = (label for label in order.rows_of if label not in admitted)
                admitted.update(islice(new, room - len(admitted)))
            chosen = [(label, rows) for label, rows in order.rows_of.items() if label in admitted]
            choice = self._choices[name] = _Choice(order, chosen, len(order.rows_of) - len(chosen))
        return choice

    def _render(self, families: Iterable[Family], openmetrics: bool) -> bytes:
        lines: list[str] = []
        for family in families:
            metric = family.metric
            name = metric.name.removesuffix("_total") if openmetrics else metric.name
            for suffix, kind, places in _parts(family, openmetrics):
                lines.append(f"# HELP {name}{suffix} {metric.help}\n# TYPE {name}{suffix} {kind}\n")
                if openmetrics and metric.unit_in_name:
                    lines.append(f"# UNIT {name} {metric.unit_in_name}\n")
                written = self._written.setdefault((metric.name, f"{suffix}{len(places)}"), {})
                pattern = _pattern(family, places)
                whole = len(places) == len(family.layout)
                for row, values in family.rows.items():
                    its = written.get(row)
                    if its is None:
                        labels = dict(zip(family.labels, map(_escape, row), strict=True))
                        its = written[row] = _Written(pattern % labels)
                    if its.values != values:
                        chosen = values if whole else [values[place] for place in places]
                        its.values, its.lines = values, its.template % tuple(map(_number, chosen))
                    lines.append(its.lines)
                for gone in written.keys() - family.rows.keys() if len(written) > len(family.rows) else ():
                    del written[gone]
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


def _depth(rollup: Rollup, names: Labels) -> int:
    """How many dimension values of a row its labels need, where they are its first ones; else all."""
    is_prefix = rollup.dimensions[: len(names)] == names
    return len(names) if is_prefix else len(rollup.dimensions)


def _some_labels(rollup: Rollup, dimensions: Labels) -> Callable[[Dimensions], Labels]:
    places = [rollup.dimensions.index(name) for name in dimensions]
    return lambda row: tuple([label_value(row[place]) for place in places])


@lru_cache
def _picker(figures: tuple[tuple[str, Figure | Histogram], ...]) -> Callable[[Columns | None], Values]:
    """What takes these figures out of a row: numbers as they are, or the histograms as their samples."""
    numbers = [figure for _, figure in figures if isinstance(figure, Figure)]
    histograms = [figure for _, figure in figures if isinstance(figure, Histogram)]
    if not histograms:
        return _numbers(numbers)

    def pick(columns: Columns | None) -> Values:
        values: list[float] = []
        held = columns or {}
        for histogram in histograms:
            bins = list(accumulate(map(held.get, histogram.bins, repeat(0))))
            values += (*bins, bins[-1], held.get(histogram.sum, 0))
        return tuple(values)

    return pick


def _numbers(figures: Sequence[Figure]) -> Callable[[Columns | None], Values]:
    """What reads all of them at once: their first columns, then their second ones, and so on."""
    signed = [(add, names) for names in zip_longest(*[figure.of for figure in figures], fillvalue="")]
    signed += [(sub, names) for names in zip_longest(*[figure.less for figure in figures], fillvalue="")]
    (_, first), *others = signed
    none: Values = (0,) * len(figures)

    def pick(columns: Columns | None) -> Values:
        if not columns:
            return none
        get = columns.get
        values = tuple(map(get, first, repeat(0)))
        for sign, names in others:
            values = tuple(map(sign, values, map(get, names, repeat(0))))
        return values

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
