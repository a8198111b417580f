"""The series a panel asks for, and the rates made of them.

The law: a series of the view is read once, however many replicas expose it (`max without (instance, pod)`);
no sum runs over two windows or two clocks; a rate has the numerator and the denominator of one view, and is
absent where there is nothing to divide by.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from schemas.events import STAGES
from streams.metrics import BY_NAME, Metric

PARTS = ("_bucket", "_gcount", "_gsum", "_count", "_sum")
"""What a histogram's name may end in."""


def metric_of(name: str) -> Metric | None:
    """The declared metric that a series of this name belongs to."""
    for part in ("", *PARTS):
        metric = BY_NAME.get(name.removesuffix(part)) if name.endswith(part) else None
        if metric is not None and (not part or "histogram" in metric.type):
            return metric
    return None


@dataclass(frozen=True)
class Scope:
    """What the variables of a dashboard narrow its series to: by label the matcher, such as `=~"$team"`."""

    matchers: Mapping[str, str]

    def series(self, name: str, offset: str = "", **labels: str) -> str:
        """A series narrowed by the variables; `labels` come before them."""
        metric, selector = metric_of(name), self._selector(name, labels)
        if offset:
            selector += f" offset {offset}"
        return f"max without (instance, pod) ({selector})" if metric and metric.where == "view" else selector

    def _selector(self, name: str, labels: Mapping[str, str]) -> str:
        metric = metric_of(name)
        own = ("job", *metric.labels) if metric else ("job",)
        chosen = {label: self.matchers[label] for label in own if label in self.matchers}
        chosen |= {label: f'="{value}"' for label, value in labels.items()}
        return name + "{" + ", ".join(label + matcher for label, matcher in chosen.items()) + "}"

    def rate(self, name: str, by: str = "", function: str = "rate", over: str = "$__rate_interval") -> str:
        """What a counter gains, summed, of all or `by` labels; taken of each replica before one is chosen."""
        metric, selector = metric_of(name), self._selector(name, {})
        gained = f"{function}({selector}[{over}])"
        if metric and metric.where == "view":
            gained = f"max without (instance, pod) ({gained})"
        return f"sum{f' by ({by})' if by else ''} ({gained})"

    def total(self, name: str, by: str = "", offset: str = "", **labels: str) -> str:
        """The sum of a series, of all or `by` labels."""
        return f"sum{f' by ({by})' if by else ''} ({self.series(name, offset, **labels)})"

    def events(self, stage: str, by: str = "", offset: str = "", **labels: str) -> str:
        """What happened: events of a stage in the window, repeats counted."""
        return self.total("callfunnel_window_events", by, offset, funnel_stage=stage, **labels)

    def leads(self, stage: str, by: str = "", offset: str = "", **labels: str) -> str:
        """Who got how far: leads that arrived at a stage in the window, each once."""
        return self.total("callfunnel_window_leads", by, offset, funnel_stage=stage, **labels)

    def reached(self, by: str = "", **labels: str) -> str:
        """Decision makers reached, without those who hung up at once."""
        hangups = self.total("callfunnel_window_dm_hangups", by, **labels)
        return f"{self.events('reached', by, **labels)} - {hangups}"

    def reach(self, by: str = "", **labels: str) -> str:
        return ratio(self.reached(by, **labels), self.events("dialed", by, **labels))

    def qualification(self, by: str = "", **labels: str) -> str:
        return ratio(self.leads("qualified", by, **labels), self.leads("reached", by, **labels))

    def close(self, by: str = "", **labels: str) -> str:
        return ratio(self.leads("won", by, **labels), self.leads("qualified", by, **labels))

    def due(self, by: str = "", **labels: str) -> str:
        return self.total("callfunnel_window_leads_due", by, **labels)

    def met(self, by: str = "", **labels: str) -> str:
        return self.total("callfunnel_window_leads_met", by, **labels)

    def response(self, by: str = "", **labels: str) -> str:
        """The share of the due leads that was called in time."""
        return ratio(self.met(by, **labels), self.due(by, **labels))

    def quantile(self, q: float, clock: str) -> str:
        """A quantile of the response times of the leads created in the window."""
        name = "callfunnel_window_lead_response_seconds_bucket"
        return f"histogram_quantile({q:g}, {self.total(name, 'le', clock=clock)})"

    def oldest_uncalled(self, by: str = "") -> str:
        """The age in seconds of the lead that waits longest for its first call."""
        created = self.series("callfunnel_oldest_uncalled_lead_timestamp_seconds")
        return f"time() - min{f' by ({by})' if by else ''} ({created})"

    def behind(self) -> str:
        """The age in seconds of the newest event of the partition furthest behind; 0 where all is read.

        As the recording rule `job:callfunnel_behind_seconds:max`: a partition where nothing happens is not
        behind, and one whose lag no worker tells is.
        """
        watermark = self.series("callfunnel_watermark_timestamp_seconds")
        newest = f"max by (job, partition) ({watermark} > 0)"
        lag = f"max by (job, partition) ({self.series('callfunnel_worker_consumer_lag')})"
        return f"max((time() - {newest} unless on (job, partition) {lag} == 0) or 0 * {newest})"


def ratio(numerator: str, denominator: str) -> str:
    """A share; absent, not 0 or NaN, where the denominator is 0."""
    return f"({numerator}) / ({denominator} > 0)"


def share_bound(hits: str, tries: str, errors: float) -> str:
    """The bound of the share `hits` ÷ `tries` that lies `errors` standard errors above or below it.

    Wilson's interval: it stays a share where there are few hits.
    """
    square, sign = errors * errors, "+" if errors > 0 else "-"
    spread = f"sqrt({hits} * clamp_min({tries} - {hits}, 0) / ({tries} > 0) + {square / 4:g})"
    return f"({hits} + {square / 2:g} {sign} {abs(errors):g} * {spread}) / ({tries} + {square:g})"


def steps() -> tuple[tuple[str, str], ...]:
    """Pairs of stages that a lead goes through one after the other.

    They begin at the dial: a lead that is dialed from a list was never announced.
    """
    return tuple(pairwise(STAGES[1:]))
