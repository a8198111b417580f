"""A worker's metrics of itself, as the catalogue declares them (`streams/metrics.py`)."""

from collections import defaultdict
from collections.abc import Mapping
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from callfunnel.streams.metrics import CATALOGUE, OWNED, Metric

_MADE_BY = {"counter": Counter, "gauge": Gauge, "histogram": Histogram, "info": Info}

Labels = tuple[str, ...]


class EngineMetrics:
    """`callfunnel_worker_events_late_total` is `.events_late`. Series that are known beforehand are there."""

    ready: Gauge
    broker_answer_timestamp_seconds: Gauge
    events_consumed: Counter
    events_rejected: Counter
    rejected_share: Gauge
    poisoned: Gauge
    crowded_leads: Counter
    events_duplicate: Counter
    events_conflicting: Counter
    events_late: Counter
    events_replayed: Counter
    events_rerouted: Counter
    source_gap_events: Counter
    batch_events: Histogram
    batch_seconds: Histogram
    event_delay_seconds: Histogram
    consumer_lag: Gauge
    partitions: Gauge
    rebalances: Counter
    recovery_remaining_records: Gauge
    table_rows: Gauge
    build_info: Info

    def __init__(self, registry: CollectorRegistry) -> None:
        self._told: defaultdict[Gauge, set[Labels]] = defaultdict(set)
        for metric in _DECLARED:
            more = {"buckets": metric.buckets} if metric.type == "histogram" else {}
            labels = () if metric.type == "info" else metric.labels
            made = _MADE_BY[metric.type](
                metric.name.removesuffix("_info"),
                metric.help,
                labels,
                unit=metric.unit_in_name,
                registry=registry,
                **more,
            )
            setattr(self, short(metric), made)
            if labels and labels == tuple(metric.values):
                for values in product(*metric.values.values()):
                    made.labels(*values)

    def own(self, topic: str, partition: int) -> None:
        """Create the counters of a partition at 0, before anything of it is counted."""
        place = {"topic": topic, "partition": str(partition)}
        for metric in _DECLARED:
            if metric.type == "counter" and {*metric.labels} & {*OWNED}:
                getattr(self, short(metric)).labels(**{label: place[label] for label in metric.labels})

    def tell(self, gauge: Gauge, values: Mapping[Labels, float]) -> None:
        """Make these the series of a gauge, and remove its others."""
        for labels in self._told[gauge] - values.keys():
            gauge.remove(*labels)
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        self._told[gauge] = set(values)


_DECLARED = tuple(metric for metric in CATALOGUE if metric.where == "worker")


def short(metric: Metric) -> str:
    """The attribute that holds a metric of the worker."""
    return metric.name.removeprefix("callfunnel_worker_").removesuffix("_total")
