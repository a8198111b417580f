"""The funnel document as a table for the terminal, with the colours of the standards."""

from datetime import UTC, datetime
from typing import Any

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from callfunnel.streams.windows import WINDOWS_AND_ALL

_STYLE = {"critical": "bold red", "watch": "bold yellow", "standard": "bold green", "very good": "bold cyan"}
_BAR = 24
_CALM = ("live", "replay")


def funnel_table(document: dict[str, Any]) -> RenderableType:
    """Stages, rates and uncalled leads of one funnel document (see `agents.view.api`)."""
    segment = [f"{name} {document[name]}" for name in ("campaign", "source") if document[name] is not None]
    title = " · ".join(["Funnel", WINDOWS_AND_ALL[document["window"]].title, *segment])
    return Group(
        Text(title, style="bold"), _stages(document), Text(), _rates(document), Text(), *_closing(document)
    )


def _stages(document: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("", max_width=_BAR)
    table.add_column("leads", justify="right", no_wrap=True)
    table.add_column("events", justify="right", no_wrap=True)
    most = max(1, *(stage["leads"] for stage in document["stages"]))
    for stage in document["stages"]:
        bar = Bar(most, 0, stage["leads"], color="blue")
        table.add_row(stage["stage"], bar, f"{stage['leads']:,}", f"{stage['events']:,}")
    return table


def _rates(document: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("rate", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("of", justify="right", no_wrap=True)
    table.add_column("is", no_wrap=True)
    table.add_column("standard", style="dim")
    for rate in [*document["ratios"], document["response"]]:
        style = _STYLE.get(rate["band"], "")
        value = "–" if rate["value"] is None else f"{rate['value']:.1%}"
        steps = [
            f"{'' if step['band'] == 'standard' else step['band']} ≥ {step['from']:.0%}".lstrip()
            for step in rate["standard"]
            if step["band"] != "watch"
        ]
        judged = rate["band"] or (_short(rate["unjudged"]) if rate["denominator"] else "")
        table.add_row(
            rate["title"].lower(),
            Text(value, style=style),
            f"{rate['numerator']:,} / {rate['denominator']:,}",
            Text(judged, style=style),
            ", ".join(steps),
        )
    return table


def _short(unjudged: str | None) -> str:
    """Of the reason why a rate has no band, what fits beside it."""
    return (unjudged or "").partition(":")[0]


def _closing(document: dict[str, Any]) -> list[Text]:
    uncalled, delay = document["uncalled"], document["watermark"]["delay_seconds"]
    unjudged = [rate["unjudged"] for rate in document["ratios"]]
    lines = [Text(why) for why in dict.fromkeys(unjudged) if why and _short(why) == "not measured"]
    lines += [
        Text.assemble(f"{count['title']} ", (f"{count['count']:,}", "bold"))
        for count in document["counts"]
        if count["count"]
    ]
    lines.append(Text.assemble("uncalled leads ", (f"{uncalled['leads']:,}", "bold")))
    if uncalled["leads"]:
        lines[-1].append(
            "  " + "  ".join(f"{age}: {leads:,}" for age, leads in uncalled["ages"].items()), "dim"
        )
        waits = document["now_timestamp_seconds"] - uncalled["oldest_timestamp_seconds"]
        lines.append(Text(f"the oldest waits for {_span(waits)}", style="red" if waits > 900 else ""))
    state, reason = document.get("state", "live"), document.get("reason")
    if state not in _CALM or reason:
        lines.append(standing(state, reason))
    archived = document["archived"]
    if document["window"] == "all" and archived["leads"]:
        before = datetime.fromtimestamp(archived["before_timestamp_seconds"], UTC)
        told = f"archived: {archived['leads']:,} leads without an event since {before:%Y-%m-%d}"
        lines.append(Text(f"{told}, {archived['uncalled']:,} of them never called", style="dim"))
    for partition, share in document.get("poisoned", {}).items():
        poison = f"{share:.0%} of the newest records of partition {partition} are rejected and missing here"
        lines.append(Text(poison, style="bold yellow"))
    if delay is None:
        lines.append(Text("no events yet", style="yellow"))
    else:
        text = f"newest event {_span(delay)} ago" if delay else "as of the newest event"
        lines.append(Text(text, style="dim" if state in _CALM else "yellow"))
    return lines


def standing(state: str, reason: str | None) -> Text:
    """How the numbers stand, in one word and a sentence."""
    return Text(f"{state.replace('_', ' ')}{f': {reason}' if reason else ''}", style="bold yellow")


def _span(seconds: float) -> str:
    for unit, length, below in (("s", 1, 90), ("min", 60, 5_400), ("h", 3_600, 172_800)):
        if seconds < below:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} days"
