"""The series a panel asks for, and the rates made of them.

The law: a series of the view is read once, however many replicas expose it (`max without (instance, pod)`);
no sum runs over two windows or two clocks; a rate has the numerator and the denominator of one view, and is
absent where there is nothing to divide by. A rate over the colours of a standard is one that can be judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from callfunnel.schemas.events import NONE, STAGES
from callfunnel.streams.measures import FIGURES, SEGMENT
from callfunnel.streams.metrics import BY_NAME, CATALOGUE, Metric
from callfunnel.streams.rates import OBSERVED, RATES, Terms
from callfunnel.streams.windows import DUE, MET

NAMED_BY_LEADS = ("campaign", "source")
"""Labels that an event may leave out although its lead has them."""

PARTS = ("_bucket", "_gcount", "_gsum", "_count", "_sum")
"""What a histogram's name may end in."""

SERIES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    name: (metric.name, {reads.by: value} if reads.by else {})
    for name, figure in FIGURES.items()
    for metric in CATALOGUE
    if (reads := metric.reads) and reads.rollup is SEGMENT and reads.windows
    for value, shown in reads.figures
    if shown == figure
} | {DUE: ("callfunnel_window_leads_due", {}), MET: ("callfunnel_window_leads_met", {})}
"""The family that exposes a number of a campaign by window, and the labels that choose it there."""


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

    def each(self, name: str) -> str:
        """A figure that each process has for itself, by instance."""
        return f"max by (instance) ({self._selector(name, {})})"

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

    def figure(self, name: str, by: str = "", offset: str = "", **labels: str) -> str:
        """A number in the window (`FIGURES`)."""
        name, chosen = SERIES[name]
        return self.total(name, by, offset, **chosen, **labels)

    def terms(self, terms: Terms, by: str = "", offset: str = "", **labels: str) -> str:
        """Numbers added up with their signs; the first one counts in full."""
        first, *others = terms
        expr = self.figure(first, by, offset, **labels)
        for other in others:
            expr += f" {'+' if terms[other] > 0 else '-'} {self.figure(other, by, offset, **labels)}"
        return expr

    def events(self, stage: str, by: str = "", offset: str = "", **labels: str) -> str:
        """What happened: events of a stage in the window, repeats counted."""
        return self.figure(f"events_{stage}", by, offset, **labels)

    def leads(self, stage: str, by: str = "", offset: str = "", **labels: str) -> str:
        """Who got how far: leads that arrived at a stage in the window, each once."""
        return self.figure(f"leads_{stage}", by, offset, **labels)

    def reached(self, by: str = "", **labels: str) -> str:
        """Decision makers reached, as the reach rate counts them."""
        return self.terms(RATES["reach"].numerator, by, **labels)

    def share(self, rate: str, by: str = "", **labels: str) -> str:
        """A rate as a number, whether it can be judged or not."""
        above, below = RATES[rate].numerator, RATES[rate].denominator
        return ratio(self.terms(above, by, **labels), self.terms(below, by, **labels))

    def judged(self, rate: str, by: str = "", **labels: str) -> str:
        """A rate; absent where its stages are not measured, or above 1."""
        measured = (self.measured(stage, by, **labels) for stage in RATES[rate].stages)
        return judged(self.share(rate, by, **labels), *measured)

    def measured(self, stage: str, by: str = "", **labels: str) -> str:
        """The leads of a stage; absent where it is not measured."""
        return measured_leads(self.leads(stage, by, **labels), self._possible(stage, by, **labels))

    def _possible(self, stage: str, by: str, **labels: str) -> str:
        """The events of a stage that may be of the chosen leads: those that name no campaign may be."""
        others = {
            label: matcher.removesuffix('"') + f'|{NONE}"'
            for label, matcher in self.matchers.items()
            if label in NAMED_BY_LEADS and label != by
        }
        wider = replace(self, matchers={**self.matchers, **others})
        found = wider.events(stage, by, **labels)
        if by not in NAMED_BY_LEADS:
            return found
        unnamed = wider.events(stage, by, **labels, **{by: NONE})
        return f"({found} unless {unnamed}) + on () group_left () sum({unnamed}) or {found}"

    def due(self, by: str = "", **labels: str) -> str:
        return self.figure(DUE, by, **labels)

    def met(self, by: str = "", **labels: str) -> str:
        return self.figure(MET, by, **labels)

    def quantile(self, q: float, clock: str) -> str:
        """A quantile of the response times of the leads created in the window."""
        name = "callfunnel_window_lead_response_seconds_bucket"
        return f"histogram_quantile({q:g}, {self.total(name, 'le', clock=clock)})"

    def oldest_uncalled(self, by: str = "") -> str:
        """The age in seconds of the lead that waits longest for its first call."""
        created = self.series("callfunnel_oldest_uncalled_lead_timestamp_seconds")
        return f"time() - min{f' by ({by})' if by else ''} ({created})"

    def oldest_uncalled_or_none(self) -> str:
        """The same, and -1 where a view shows the numbers of now and no lead waits."""
        current = f"{self.series('callfunnel_view_state', state='current')} == 1"
        return f"{self.oldest_uncalled()} or -max({current})"

    def newest_event(self) -> str:
        """The age in seconds of the newest event in the numbers."""
        return f"time() - max({self.series('callfunnel_watermark_timestamp_seconds')} > 0)"

    def complete(self) -> str:
        """Up to when the numbers of the freshest view are complete, in Unix seconds, of each job."""
        return f"max by (job) ({self.series('callfunnel_view_snapshot_timestamp_seconds')})"

    def behind(self) -> str:
        """How many seconds ago that is: as the recording rule `job:callfunnel_behind_seconds:max`."""
        return f"max(clamp_min(time() - {self.complete()}, 0))"


def ratio(numerator: str, denominator: str) -> str:
    """A share; absent, not 0 or NaN, where the denominator is 0."""
    return f"({numerator}) / ({denominator} > 0)"


def judged(share: str, *measured: str) -> str:
    """A share where it can be judged: not above 1, and of leads that are `measured_leads`."""
    return " and ".join((f"{share} <= 1", *measured))


def measured_leads(leads: str, events: str) -> str:
    """The leads of a stage; absent where too few of them have an event of their own (`OBSERVED`)."""
    few, of = OBSERVED
    return f"({leads} <= {of / few:g} * ({events}))"


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
