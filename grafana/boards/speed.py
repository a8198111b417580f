"""How fast a new lead is called: the promise and its budget, who waits, and how long it takes."""

from collections.abc import Iterator

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel, Threshold

from callfunnel.streams.measures import HISTOGRAMS
from callfunnel.streams.metrics import CLOCKS
from callfunnel.streams.windows import AGES, DUE_SECONDS
from grafana import frame
from grafana.frame import Line, Section
from grafana.panels import (
    COLOURS,
    COUNT,
    SECONDS,
    SHARE,
    WITHOUT,
    Column,
    Query,
    bands,
    bars,
    heat,
    limits,
    lines,
    oldest_uncalled,
    standard,
    stat,
    table,
)
from grafana.promql import Scope, ratio

UID = "callfunnel-speed"

_OBJECTIVE = standard("response")
_BUDGET = f"{1 - _OBJECTIVE:g}"
_WITHIN = (60, DUE_SECONDS, 900, 3_600, 86_400)
_QUANTILES = (0.5, 0.9, 0.99)


scope = Scope(frame.matchers(campaign="=~"))


def missed(**labels: str) -> str:
    return ratio(f"{scope.due(**labels)} - {scope.met(**labels)}", scope.due(**labels))


def leads_due_and_met() -> Panel:
    return lines(
        "Leads due and met",
        "Leads whose time ended in the window that ends at each moment; of those, the ones called in time.",
        COUNT,
        Query(scope.due(), "due"),
        Query(scope.met(), "met"),
    )


def within(seconds: int) -> str:
    name = "callfunnel_lead_response_seconds"
    return ratio(
        scope.total(f"{name}_bucket", clock="attempt", le=f"{seconds}.0"),
        scope.total(f"{name}_gcount", clock="attempt"),
    )


left = [
    WITHOUT,
    Threshold(value=1 - 1 / (1 - _OBJECTIVE), color=COLOURS["critical"]),
    Threshold(value=0, color=COLOURS["watch"]),
    Threshold(value=0.5, color=COLOURS["standard"]),
]
mean = "callfunnel_window_lead_response_seconds"


def promise() -> Section:
    return Section(
        f"The promise: {_OBJECTIVE:.0%} of new leads are called within {DUE_SECONDS // 60} minutes",
        [
            stat(
                "Called in time",
                f"Of the leads whose {DUE_SECONDS // 60} minutes ended in the window, those called by then. "
                "Leads that nobody ever calls count as missed. Standard from 90 %, critical below 80 %.",
                SHARE,
                Query(scope.judged("response"), "in time"),
                Query(scope.due(), "due"),
                colours=bands("response"),
                beside=["due"],
            ),
            stat(
                "Budget left today",
                f"Of the {_BUDGET} of today's due leads that may be missed, the share that is left. Below "
                "0: the promise is broken.",
                SHARE,
                Query(f"1 - {missed(window='today')} / {_BUDGET}", "left"),
                Query(scope.due(window="today"), "due"),
                colours=left,
                beside=["due"],
                decimals=0,
            ),
            stat(
                "Missed",
                "Leads whose time ended in the window without a call.",
                COUNT,
                Query(f"{scope.due()} - {scope.met()}", "missed"),
                colours=limits(1, 10),
            ),
            oldest_uncalled(scope),
            stat(
                "Median time to first call",
                "Half of the called leads that were created in the window were dialed faster than this. "
                "Read it with the share called in time: it knows nothing of leads never called.",
                SECONDS,
                Query(scope.quantile(0.5, "attempt"), "median"),
                Query(scope.total(f"{mean}_gcount", clock="attempt"), "called"),
                colours=limits(DUE_SECONDS, 3_600),
                beside=["called"],
            ),
            stat(
                "Mean time to first call",
                "Sum ÷ number of the times from creation to the first dial, leads created in the window.",
                SECONDS,
                Query(
                    ratio(
                        scope.total(f"{mean}_gsum", clock="attempt"),
                        scope.total(f"{mean}_gcount", clock="attempt"),
                    ),
                    "mean",
                ),
            ),
        ],
        [
            lines(
                "Called in time over time",
                "The share of due leads that was called in time, in the window that ends at each moment.",
                SHARE,
                Query(scope.judged("response"), "all"),
                Query(scope.judged("response", "campaign"), "{{campaign}}"),
                colours=bands("response"),
                soft_max=1,
            ),
            leads_due_and_met(),
            lines(
                "Burn",
                "How fast the budget is spent: missed ÷ due ÷ what may be missed. At 1 the budget lasts "
                f"exactly; {1 / (1 - _OBJECTIVE):.0f} is the most, when every lead is missed.",
                COUNT,
                *(Query(f"{missed(window=window)} / {_BUDGET}", window) for window in ("5m", "1h", "1d")),
                colours=limits(1, 2),
            ),
        ],
    )


def waiting() -> Section:
    return Section(
        "Who waits now",
        [
            bars(
                "Uncalled leads by age",
                "Open leads that nobody has called yet, by how long ago they were created.",
                COUNT,
                *(Query(scope.total("callfunnel_leads_uncalled", age=age), age) for age in AGES),
                size=(8, 8),
            ),
            lines(
                "Uncalled leads over time",
                "Open leads that nobody had called yet at each moment, by their age.",
                COUNT,
                Query(scope.total("callfunnel_leads_uncalled", "age"), "{{age}}"),
                stacked=True,
            ),
            lines(
                "Oldest uncalled lead over time",
                "How long the lead that waited longest had been waiting, by campaign.",
                SECONDS,
                Query(scope.oldest_uncalled("campaign"), "{{campaign}}"),
                colours=limits(DUE_SECONDS, 900),
            ),
        ],
        [
            table(
                "Campaigns",
                "The promise of each campaign in the window, and who waits. A click on a campaign opens it.",
                {"campaign": "Campaign"},
                Column(scope.due("campaign"), "Due"),
                Column(scope.met("campaign"), "Called in time"),
                Column(scope.judged("response", "campaign"), "Share", SHARE, bands("response")),
                Column(scope.total("callfunnel_leads_uncalled", "campaign"), "Uncalled"),
                Column(
                    scope.oldest_uncalled("campaign"),
                    "Oldest uncalled",
                    SECONDS,
                    limits(DUE_SECONDS, 900),
                ),
                links=frame.to_campaign(),
                sort="Oldest uncalled",
                size=(24, 6),
            )
        ],
    )


def durations() -> Section:
    return Section(
        "How long it takes",
        [
            heat(
                "Time to the first call",
                "Leads created in the window that ends at each moment, by the time to their first dial.",
                SECONDS,
                scope.total(f"{mean}_bucket", "le", clock="attempt"),
                size=(12, 9),
            ),
            heat(
                "Time to the first answer",
                "Leads created in the window that ends at each moment, by the time until a human picked up.",
                SECONDS,
                scope.total(f"{mean}_bucket", "le", clock="connect"),
                size=(12, 9),
            ),
        ],
        [
            lines(
                "Time to the first call: quantiles",
                "p50, p90 and p99 of the leads created in the window that were called; exact to a bucket.",
                SECONDS,
                *(Query(scope.quantile(q, "attempt"), f"p{q * 100:g}") for q in _QUANTILES),
            ),
            lines(
                "Time to the first answer: quantiles",
                "p50, p90 and p99 of the leads created in the window with whom a human picked up; exact to "
                "a bucket.",
                SECONDS,
                *(Query(scope.quantile(q, "connect"), f"p{q * 100:g}") for q in _QUANTILES),
            ),
            bars(
                "Ever called within",
                "Of all leads ever announced and called, the share whose first call came within a minute, "
                "five minutes, a quarter of an hour, an hour and a day.",
                SHARE,
                *(
                    Query(within(seconds), name)
                    for seconds, name in zip(
                        _WITHIN, ("1 min", "5 min", "15 min", "1 h", "1 day"), strict=True
                    )
                ),
                size=(8, 8),
            ),
        ],
        *others(),
    )


def others() -> Iterator[Line]:
    """Of each histogram that no panel above is made for: quantiles in the window, the mean of all time."""
    for histogram in HISTOGRAMS:
        if histogram.name in CLOCKS:
            continue
        ever = f"callfunnel_{histogram.name}_seconds"
        buckets = scope.total(f"callfunnel_window_{histogram.name}_seconds_bucket", "le")
        mean_of_all = ratio(scope.total(f"{ever}_gsum"), scope.total(f"{ever}_gcount"))
        yield [
            lines(
                histogram.help,
                "Quantiles in the window that ends at each moment, exact to a bucket; the mean of all time.",
                SECONDS,
                *(Query(f"histogram_quantile({q:g}, {buckets})", f"p{q * 100:g}") for q in _QUANTILES),
                Query(mean_of_all, "mean of all time"),
                size=(24, 8),
            )
        ]


def build() -> Dashboard:
    return frame.build(
        UID,
        "Speed to lead: the five-minute promise over all due leads, uncalled leads by age, response times.",
        [frame.job(), frame.window(), frame.campaign()],
        [
            promise(),
            waiting(),
            durations(),
        ],
    )
