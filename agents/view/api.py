"""The funnel as one JSON document: what the API answers and what the page and the terminal draw.

The law: no rate without its numerator and denominator, and none of the two from another view.
"""

from collections.abc import Iterable
from typing import Any

from callfunnel.agents.view.snapshot import SEGMENT, Snapshot
from callfunnel.schemas.events import NONE, STAGES
from callfunnel.streams.measures import (
    BESIDE_STAGES,
    CORRECTIONS_OPEN,
    COUNTS,
    FIGURES,
    HISTOGRAMS,
    Histogram,
)
from callfunnel.streams.metrics import CLOCKS
from callfunnel.streams.rates import RATES, Observed, Rate, total
from callfunnel.streams.rows import Columns
from callfunnel.streams.windows import AGES, DUE, MET, WINDOWS_AND_ALL


class NoSuchSegmentError(LookupError):
    """Nothing was ever seen of the campaign or source that was asked for."""


def funnel_document(
    at: Snapshot,
    *,
    now_s: int,
    delay_s: float | None,
    window: str = "1h",
    campaign: str | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """The funnel of a window (one of `WINDOWS_AND_ALL`), of one campaign or source or of all.

    Times are Unix seconds: the numbers are those of `now_s`, the newest event happened `delay_s` ago. Raises
    NoSuchSegmentError.
    """
    totals = at.windows["all"][SEGMENT]
    for place, (name, wanted) in enumerate((("campaign", campaign), ("source", source))):
        if wanted is not None and not any(row[place] == wanted for row in totals):
            raise NoSuchSegmentError(f"there is no event of the {name} {wanted!r} yet")
    chosen = {row for row in totals if campaign in (None, row[0]) and source in (None, row[1])}
    # An event that names no campaign or source may be of any lead, so it may be of a chosen one.
    possible = {
        row
        for row in totals
        if (campaign is None or row[0] in (campaign, NONE)) and (source is None or row[1] in (source, NONE))
    }
    segments = at.windows[window][SEGMENT]
    columns = _add(columns for row, columns in segments.items() if row in chosen)
    of_any = _add(columns for row, columns in segments.items() if row in possible)
    due, met = (sum(at.due[window][row][n] for row in chosen if row in at.due[window]) for n in (0, 1))
    archived = _add(columns for row, columns in at.archived.items() if row in chosen)
    uncalled = [found for row, found in at.uncalled.items() if row in chosen]

    figures = {name: figure.read(columns) for name, figure in FIGURES.items()} | {DUE: due, MET: met}

    def events(stage: str) -> int:
        return figures[f"events_{stage}"]

    def leads(stage: str) -> int:
        return figures[f"leads_{stage}"]

    observed = {stage: (leads(stage), FIGURES[f"events_{stage}"].read(of_any)) for stage in STAGES}
    rates = {name: _rate(rate, figures, observed) for name, rate in RATES.items()}
    response = rates.pop("response")
    return {
        "window": window,
        "windows": list(WINDOWS_AND_ALL),
        "campaign": campaign,
        "source": source,
        "campaigns": sorted({row[0] for row in totals}),
        "sources": sorted({row[1] for row in totals}),
        "now_timestamp_seconds": now_s,
        "watermark": {
            "timestamp_seconds": at.newest_ms / 1000 if at.newest_ms else None,
            "delay_seconds": delay_s,
            "partitions": {
                str(partition): at.positions[partition].watermark_ms / 1000
                for partition in sorted(at.positions)
            },
        },
        "poisoned": {str(partition): share for partition, share in sorted(at.poisoned.items())},
        "stages": [{"stage": stage, "events": events(stage), "leads": leads(stage)} for stage in STAGES],
        "ratios": list(rates.values()),
        "response": response
        | {DUE: due, MET: met}
        | {name: _times(columns, histogram) for name, histogram in CLOCKS.items()},
        "calls": {count.name: figures[count.name] for count in COUNTS},
        "closed": {"disqualified": events("disqualified"), "lost": events("lost")},
        "uncalled": {
            "leads": sum(sum(found.by_age) for found in uncalled),
            "ages": {age: sum(found.by_age[n] for found in uncalled) for n, age in enumerate(AGES)},
            "oldest_timestamp_seconds": min((found.oldest_s for found in uncalled), default=None),
        },
        "archived": {
            "before_timestamp_seconds": at.horizon_ms / 1000 if archived else None,
            "leads": archived.get("leads_created", 0),
            "uncalled": archived.get("uncalled", 0),
        },
        "counts": [
            *({"name": count.name, "title": count.title, "count": figures[count.name]} for count in COUNTS),
            *(
                {"name": each.name, "title": each.title, "count": figures[each.column]}
                for each in BESIDE_STAGES
            ),
            {
                "name": CORRECTIONS_OPEN,
                "title": "retractions of events that have not come",
                "count": columns.get(CORRECTIONS_OPEN, 0),
            },
        ],
        "durations": [{"name": each.name, "title": each.help} | _times(columns, each) for each in HISTOGRAMS],
    }


def _rate(rate: Rate, figures: Columns, observed: Observed) -> dict[str, Any]:
    numerator, denominator = total(rate.numerator, figures), total(rate.denominator, figures)
    return {
        "name": rate.name,
        "view": rate.view,
        "definition": rate.definition,
        "numerator": numerator,
        "denominator": denominator,
        "value": numerator / denominator if denominator else None,
        "band": rate.band(numerator, denominator, observed),
        "unjudged": rate.why_unjudged(numerator, denominator, observed),
        "judged_from": rate.enough or None,
        "standard": [{"band": band, "from": bound} for band, _, bound in reversed(rate.standard)],
        "when_below": " ".join(rate.when_red).strip() or None,
        "title": rate.title,
    }


def _times(columns: Columns, histogram: Histogram) -> dict[str, Any]:
    bins = {end: columns.get(name, 0) for end, name in zip(histogram.ends, histogram.bins, strict=True)}
    count = sum(bins.values())
    return {
        "leads": count,
        "mean_seconds": columns.get(histogram.sum, 0) / 1000 / count if count else None,
        "bins": bins,
    }


def _add(rows: Iterable[Columns]) -> Columns:
    sums: Columns = {}
    for columns in rows:
        for column, n in columns.items():
            sums[column] = sums.get(column, 0) + n
    return sums
