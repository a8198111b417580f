"""Every metric, declared once: exposition, dashboards, alerts, documentation and tests read this list.

The law: every rate can be derived from an exported numerator and denominator of the same view, and no label
ever holds a lead, a phone number or free text. `increase()` sees nothing of a counter's first value, so a
counter whose label values are known beforehand is there, at 0, before it counts anything.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from callfunnel.schemas.codec import REASONS
from callfunnel.schemas.events import STAGES
from callfunnel.streams.measures import (
    CORRECTIONS,
    CORRECTIONS_OPEN,
    CORRECTIONS_VOID,
    COUNTS,
    FIRST_ANSWER,
    FIRST_DIAL,
    HISTOGRAMS,
    LEADS,
    PERSON,
    PLACE,
    SEGMENT,
    SHOWN,
    Figure,
    Histogram,
    Rollup,
)
from callfunnel.streams.windows import AGES, WINDOWS

OUTCOMES = ("applied", "duplicate", "rejected", "rerouted")
"""What becomes of a record that is read: each has one outcome, for good."""

ALL_WINDOWS = tuple(WINDOWS)

CLOCKS = {histogram.name: histogram for histogram in (FIRST_DIAL, FIRST_ANSWER)}
"""What is measured from a lead's creation on: families tell them apart by the label `clock`."""

RETRACTIONS = (
    ("sent", Figure((CORRECTIONS,))),
    ("open", Figure((CORRECTIONS_OPEN,))),
    ("void", Figure((CORRECTIONS_VOID,))),
)

CLOSED: Mapping[str, tuple[str, ...]] = {
    "funnel_stage": tuple(each.name for each in SHOWN),
    "window": ALL_WINDOWS,
    "clock": tuple(CLOCKS),
    "correction": tuple(name for name, _ in RETRACTIONS),
    "age": AGES,
    "reason": tuple(REASONS),
    "outcome": OUTCOMES,
    "table": ("funnel", "leads"),
}
"""Labels whose values are known beforehand; the values of `state` are each metric's own."""

OWNED = ("topic", "partition")
"""Labels whose values are known from the moment when a worker takes a partition over."""

OPEN: Mapping[str, str] = {
    "campaign": "an event names it: a gauge tells that it is new",
    "source": "an event names it: a gauge tells that it is new",
    "team": "an event names it",
    "agent": "an event names it",
    "location": "an event names it",
}
"""Labels whose values nobody knows beforehand, with the reason."""


Kind = Literal["counter", "gauge", "histogram", "gaugehistogram", "info"]


@dataclass(frozen=True)
class Reads:
    """What a family adds up: figures of the rows of a rollup, by some of its dimensions."""

    rollup: Rollup
    dimensions: tuple[str, ...]
    figures: tuple[tuple[str, Figure | Histogram], ...]
    """For each value of the label `by`: numbers, or histograms with the same bounds."""
    by: str = ""
    windows: tuple[str, ...] = ()
    """Those that it is exposed of; none: it is of all time."""


@dataclass(frozen=True)
class Metric:
    """One family. `name` is the one used in queries: with `_total` on a counter, `_info` on an info."""

    name: str
    type: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    where: Literal["view", "worker"] = "view"
    buckets: tuple[float, ...] = ()
    states: tuple[str, ...] = ()
    """The values of its label `state`."""
    reads: Reads | None = None
    """None: it is no sum of columns."""

    @property
    def unit_in_name(self) -> str:
        """The unit, where the name ends in it: that is when OpenMetrics lets it be told."""
        name = self.name.removesuffix("_total")
        return self.unit if self.unit and name.endswith(f"_{self.unit}") else ""

    @property
    def values(self) -> Mapping[str, tuple[str, ...]]:
        """Its labels whose values are known beforehand, with these."""
        known = {**CLOSED, "state": self.states}
        if self.reads:
            by = tuple(value for value, _ in self.reads.figures)
            known |= {"window": self.reads.windows, self.reads.by: by}
        return {label: known[label] for label in self.labels if label in known}


def _worker(
    name: str,
    type_: Kind,
    help_: str,
    labels: tuple[str, ...] = (),
    unit: str = "",
    buckets: tuple[float, ...] = (),
    states: tuple[str, ...] = (),
) -> Metric:
    return Metric(f"callfunnel_worker_{name}", type_, help_, labels, unit, "worker", buckets, states)


def _read(name: str, help_: str, unit: str, reads: Reads, buckets: tuple[float, ...] = ()) -> Metric:
    type_: Kind = "gaugehistogram" if buckets else "counter" if name.endswith("_total") else "gauge"
    windows, by = ("window",) if reads.windows else (), (reads.by,) if reads.by else ()
    labels = (*windows, *by, *reads.dimensions)
    return Metric(f"callfunnel_{name}", type_, help_, labels, unit, buckets=buckets, reads=reads)


EVENTS = tuple((each.name, each.net) for each in SHOWN)
EVENTS_EVER = tuple((each.name, Figure((each.column,))) for each in SHOWN)
"""A counter: what is taken back stays in it."""
LEADS_BY_STAGE = tuple((stage, Figure((column,))) for stage, column in zip(STAGES, LEADS, strict=True))


def _by_stage(
    name: str,
    help_: str,
    rollup: Rollup,
    figures: tuple[tuple[str, Figure], ...],
    windows: tuple[str, ...] = ALL_WINDOWS,
) -> Metric:
    unit = "leads" if figures is LEADS_BY_STAGE else "events"
    return _read(name, help_, unit, Reads(rollup, rollup.dimensions, figures, "funnel_stage", windows))


def _of_campaign(
    name: str, help_: str, unit: str, figure: Figure, windows: tuple[str, ...] = ALL_WINDOWS
) -> Metric:
    return _read(name, help_, unit, Reads(SEGMENT, ("campaign",), (("", figure),), "", windows))


def _durations(
    name: str, since_ever: str, in_window: str, histograms: Mapping[str, Histogram], by: str = ""
) -> Iterator[Metric]:
    """The two families of histograms with the same bounds: of all time, and of windows."""
    figures = tuple(histograms.items())
    bounds = next(iter(histograms.values())).bounds
    for prefix, help_, windows in (("", since_ever, ()), ("window_", in_window, ALL_WINDOWS)):
        reads = Reads(SEGMENT, ("campaign",), figures, by, windows)
        yield _read(f"{prefix}{name}_seconds", help_, "seconds", reads, bounds)


CATALOGUE: tuple[Metric, ...] = (
    # What happened, and who got how far.
    _by_stage(
        "events_total",
        "Events of each stage since the beginning (activity view: repeats count, and what is taken back).",
        SEGMENT,
        EVENTS_EVER,
        windows=(),
    ),
    _by_stage(
        "window_events",
        "Events that occurred in the window and were not taken back (activity view: repeats count).",
        SEGMENT,
        EVENTS,
    ),
    _by_stage(
        "window_leads",
        "Leads whose first arrival at the stage lies in the window (each lead once per stage).",
        SEGMENT,
        LEADS_BY_STAGE,
    ),
    _by_stage(
        "agent_window_events",
        "Events of an agent that occurred in the window and were not taken back (activity view).",
        PERSON,
        EVENTS,
    ),
    _by_stage(
        "agent_window_leads",
        "Leads that an agent brought to the stage for the first time in the window.",
        PERSON,
        LEADS_BY_STAGE,
    ),
    _by_stage(
        "location_window_events",
        "Events at a location that occurred in the window and were not taken back (activity view).",
        PLACE,
        EVENTS,
    ),
    *(_of_campaign(f"window_{count.name}", count.help, count.unit, count.figure) for count in COUNTS),
    _read(
        "window_corrections",
        "Retractions of the window: all that came, those whose events have not come, and those of "
        "retractions, which change nothing.",
        "events",
        Reads(SEGMENT, ("campaign",), RETRACTIONS, "correction", ("1d", "today")),
    ),
    # How fast a new lead is called, and what else takes time. Gauge histograms: a late event can make a
    # response slower after the fact.
    Metric(
        "callfunnel_window_leads_due",
        "gauge",
        "Leads whose five minutes ended in the window, called or not.",
        ("window", "campaign"),
        "leads",
    ),
    Metric(
        "callfunnel_window_leads_met",
        "gauge",
        "Of the leads whose five minutes ended in the window, those called in time.",
        ("window", "campaign"),
        "leads",
    ),
    *_durations(
        "lead_response",
        "Time from a lead's creation to its first dial (attempt) or human answer (connect), all leads; "
        "late events may correct it downwards.",
        "Time from creation to first dial (attempt) or human answer (connect), leads created in the window.",
        CLOCKS,
        by="clock",
    ),
    *(
        metric
        for each in HISTOGRAMS
        if each.name not in CLOCKS
        for metric in _durations(
            each.name,
            f"{each.help}, all leads; late events may correct it downwards.",
            f"{each.help}, in the window.",
            {"": each},
        )
    ),
    Metric(
        "callfunnel_leads_uncalled",
        "gauge",
        "Open leads that nobody has called yet, by the age of the lead.",
        ("campaign", "age"),
        "leads",
    ),
    Metric(
        "callfunnel_oldest_uncalled_lead_timestamp_seconds",
        "gauge",
        "When the oldest uncalled lead was created; absent while every lead is called.",
        ("campaign",),
        "seconds",
    ),
    # What became of the source, as the positions in the tables say: no restart sets it back.
    Metric(
        "callfunnel_watermark_timestamp_seconds",
        "gauge",
        "Event time of the newest event of a source partition.",
        ("partition",),
        "seconds",
    ),
    Metric(
        "callfunnel_source_records_total",
        "counter",
        "Records read of the source since the tables were begun, by what became of them.",
        ("partition", "outcome"),
        "records",
    ),
    Metric(
        "callfunnel_source_conflicting_records_total",
        "counter",
        "Of the applied records, those that contradict another one of the same event_id and type.",
        ("partition",),
        "records",
    ),
    Metric(
        "callfunnel_source_lost_records",
        "gauge",
        "Offsets of the source that were gone before they could be read, since the tables were begun.",
        ("partition",),
        "records",
    ),
    Metric(
        "callfunnel_source_loss_timestamp_seconds",
        "gauge",
        "When a worker last found that offsets were gone before they could be read; absent while none were.",
        ("partition",),
        "seconds",
    ),
    # The view itself: these are there whether it is current or not.
    Metric(
        "callfunnel_view_state",
        "gauge",
        "1 for the state that the view is in, 0 for the others; business series exist while it is current.",
        ("state",),
        states=("connecting", "catching_up", "current", "stale", "failed"),
    ),
    Metric(
        "callfunnel_view_lag_records",
        "gauge",
        "Records of the changelog that the view has not read; absent while nobody knows.",
        (),
        "records",
    ),
    Metric(
        "callfunnel_view_source_lag_records",
        "gauge",
        "Records of a source partition that are not in the numbers yet; absent while nobody knows.",
        ("partition",),
        "records",
    ),
    Metric(
        "callfunnel_view_snapshot_timestamp_seconds",
        "gauge",
        "Up to when the newest numbers are complete: what had arrived by then is in them.",
        (),
        "seconds",
    ),
    Metric(
        "callfunnel_view_broker_answer_timestamp_seconds",
        "gauge",
        "When a broker last answered the view.",
        (),
        "seconds",
    ),
    Metric("callfunnel_view_rows", "gauge", "Rows held of the funnel table.", (), "rows"),
    Metric("callfunnel_view_series", "gauge", "Series a family exposes.", ("family",), "series"),
    Metric("callfunnel_view_series_limit", "gauge", "Series a family may expose.", (), "series"),
    Metric(
        "callfunnel_view_series_overflowed",
        "gauge",
        "Series above the limit whose values are summed into the label value __other__.",
        ("family",),
        "series",
    ),
    Metric(
        "callfunnel_view_render_seconds", "gauge", "Time the last rendering of a scrape took.", (), "seconds"
    ),
    # The engine.
    _worker(
        "ready", "gauge", "1 while this worker folds its partitions, 0 while something keeps it from it."
    ),
    _worker(
        "broker_answer_timestamp_seconds",
        "gauge",
        "When a broker last answered this worker.",
        (),
        "seconds",
    ),
    _worker(
        "events_consumed_total", "counter", "Records read from the source.", ("topic", "partition"), "events"
    ),
    _worker(
        "events_rejected_total",
        "counter",
        "Records refused and sent to the dead letters.",
        ("reason",),
        "events",
    ),
    _worker(
        "rejected_share",
        "gauge",
        "Rejected share of the newest dlq_share_window records of a partition; crowded leads are left out.",
        ("topic", "partition"),
    ),
    _worker(
        "poisoned",
        "gauge",
        "1 for a partition with a rejected share above dlq_max_share, until it falls to half of that.",
        ("topic", "partition"),
    ),
    _worker(
        "crowded_leads_total",
        "counter",
        "Leads whose further events this worker rejects, since they have as many as a lead may have.",
        (),
        "leads",
    ),
    _worker(
        "events_duplicate_total",
        "counter",
        "Exact copies of events that their lead has already.",
        (),
        "events",
    ),
    _worker(
        "events_conflicting_total",
        "counter",
        "Events that contradict another one of the same event_id and type: one of them is in force.",
        (),
        "events",
    ),
    _worker(
        "events_late_total",
        "counter",
        "Events that arrived more than late_seconds after they happened.",
        (),
        "events",
    ),
    _worker(
        "events_replayed_total",
        "counter",
        "Records skipped because the tables had them already.",
        (),
        "events",
    ),
    _worker(
        "events_rerouted_total", "counter", "Events sent on to the partition of their lead.", (), "events"
    ),
    _worker(
        "source_gap_events_total",
        "counter",
        "Offsets of the source that were gone before they could be read.",
        ("partition",),
        "events",
    ),
    _worker(
        "batch_events",
        "histogram",
        "Events in a batch.",
        (),
        "events",
        (1, 10, 100, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000),
    ),
    _worker(
        "batch_seconds",
        "histogram",
        "Time from the start of a batch to its commit.",
        (),
        "seconds",
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    ),
    _worker(
        "event_delay_seconds",
        "histogram",
        "Wall clock at the end of a batch minus the event time of its newest event.",
        (),
        "seconds",
        (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 86_400),
    ),
    _worker(
        "consumer_lag",
        "gauge",
        "Records of the source not yet in the tables; absent while nobody knows.",
        ("topic", "partition"),
        "events",
    ),
    _worker(
        "partitions",
        "gauge",
        "Partitions of this worker: active, recovering, or active and deriving their rows anew.",
        ("state",),
        "partitions",
        states=("active", "recovering", "deriving"),
    ),
    _worker("rebalances_total", "counter", "Times this worker's partitions changed.", (), "rebalances"),
    _worker(
        "recovery_remaining_records",
        "gauge",
        "Changelog records still to be restored.",
        ("table",),
        "records",
    ),
    _worker("table_rows", "gauge", "Rows this worker holds.", ("table",), "rows"),
    _worker(
        "build_info",
        "info",
        "What runs: versions of callfunnel and Python, and what folds: the core or the definition.",
        ("version", "python", "tables"),
    ),
)

BY_NAME = {metric.name: metric for metric in CATALOGUE}
