"""`callfunnel validate`: the engine's verdict on a file of events, before anything is published."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import click

from callfunnel.agents import exit_codes
from callfunnel.agents.publish.event_file import EventFile

if TYPE_CHECKING:
    from callfunnel.agents.config import Settings
    from callfunnel.agents.publish.validation import Validation

_TOLD = 10


@click.command("validate")
@click.argument("file", type=EventFile(), metavar="FILE|-")
@click.option("--replay", is_flag=True, help="The events are history: none is too old or from the future.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object for each refused line and a last one."
)
@click.option("--quiet", is_flag=True, help="Print only the summary.")
def command(file: str, replay: bool, as_json: bool, quiet: bool) -> int:
    """Check events against the contract: one JSON object a line, or one event over many lines.

    Every refused line is told with its number, the reason and what would be right, as a worker with the same
    CALLFUNNEL_ variables would judge the same bytes if they were published now. The summary says which time
    the events span, how many are copies or contradict each other, which fields look like a known one
    misspelt, and which leads have more events than one may have. Exit code 1 if any line is refused.

    \b
    Example:
      callfunnel validate events.jsonl
      tail -f dialer.log | callfunnel validate -
    """
    import os

    import orjson

    from callfunnel.agents.config import Settings
    from callfunnel.agents.publish.validation import Crowd, Validation, batches, records

    settings = Settings.from_environ(os.environ, clock="event" if replay else None)
    limits = settings.limits
    if settings.clock == "event":
        limits = limits.of_history(time.time_ns() // 1_000_000)
    validation = Validation(limits, Crowd(settings.lead_events))
    with _opened(file) as stream:
        for batch in batches(records(stream, limits.max_bytes)):
            for line, verdict in validation.judge(batch, time.time_ns() // 1_000_000):
                if quiet:
                    continue
                if as_json:
                    told = {"line": line, "reason": verdict.reason, "detail": verdict.detail}
                    print(orjson.dumps(told).decode())
                else:
                    print(f"line {line}: {verdict.reason}: {verdict.detail}")
    if as_json:
        click.echo(orjson.dumps(_summary(validation, settings)))
    else:
        for text in _told(validation, settings):
            click.echo(text)
    return exit_codes.NEGATIVE if validation.refused else exit_codes.OK


def _told(validation: "Validation", settings: "Settings") -> Iterator[str]:
    """The summary as lines of text."""
    refused = validation.refused
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in refused.most_common())
    counts = f"{validation.accepted:,} accepted, {refused.total():,} refused"
    yield f"{counts}: {reasons}" if reasons else counts
    first, last = _span(validation, settings)
    if first and last:
        judged = {"wall": "for a live floor", "event": "as history"}[settings.clock]
        yield f"accepted events from {first} to {last}, judged {judged}"
    if validation.copies == 1:
        yield "1 is an exact copy of an event before it: it changes nothing"
    elif validation.copies:
        yield f"{validation.copies:,} are exact copies of events before them: they change nothing"
    if validation.conflicting:
        yield (
            f"same event_id and type as an event before, and other content: {validation.conflicting:,}, "
            f"first in line {validation.first_conflicting_line:,}. Of such events only the earliest counts: "
            "give each an id of its own; to correct one, publish retracted and a new event"
        )
    for one in validation.misspelt[:_TOLD]:
        yield f"{one.lines:,} lines have a field {one.field}, which is ignored: did you mean {one.meant}?"
    for lead in validation.crowded_leads[:_TOLD]:
        yield (
            f"lead #{lead.lead} is crowded: {lead.refused:,} events, from line {lead.first_refused_line:,} "
            "on, are more than one lead may have. Is its id a placeholder for many leads?"
        )
    for what, found in (("fields", validation.misspelt), ("crowded leads", validation.crowded_leads)):
        if len(found) > _TOLD:
            yield f"{len(found) - _TOLD:,} more such {what}; --json names them"
    if validation.crowd.forgot:
        yield (
            "There are more leads than memory was taken for, so crowded leads and contradictions may be "
            "missing here."
        )


def _summary(validation: "Validation", settings: "Settings") -> dict[str, object]:
    from msgspec.structs import asdict

    first, last = _span(validation, settings)
    return {
        "accepted": validation.accepted,
        "refused": dict(validation.refused.most_common()),
        "copies": validation.copies,
        "conflicting": validation.conflicting,
        "first_conflicting_line": validation.first_conflicting_line,
        "clock": settings.clock,
        "first_event": first,
        "last_event": last,
        "misspelt": [asdict(one) for one in validation.misspelt],
        "crowded_leads": [asdict(one) for one in validation.crowded_leads],
        "crowded_leads_complete": not validation.crowd.forgot,
    }


def _span(validation: "Validation", settings: "Settings") -> tuple[str | None, str | None]:
    """The first and the last event time, in the time zone of the settings."""
    from datetime import UTC, datetime, timedelta
    from zoneinfo import ZoneInfo

    def text(at_ms: int | None) -> str | None:
        if at_ms is None:
            return None
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
        return at.astimezone(ZoneInfo(settings.timezone)).isoformat(timespec="seconds")

    return text(validation.first_ms), text(validation.last_ms)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """The file or standard input. On a terminal a bar shows how far it is read; `print` writes above it."""
    if file == "-":
        yield sys.stdin.buffer
    elif not sys.stderr.isatty():
        with open(file, "rb") as stream:
            yield stream
    else:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        with (
            Progress(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress,
            progress.open(file, "rb", description="validate") as stream,
        ):
            yield stream
