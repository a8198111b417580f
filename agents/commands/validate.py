"""`callfunnel validate`: the gate's verdict on a file of events, before anything is published."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import BinaryIO

import click

from agents import exit_codes
from agents.event_file import EventFile

_BATCH_LINES = 2000


@click.command("validate")
@click.argument("file", type=EventFile(), metavar="FILE|-")
@click.option("--replay", is_flag=True, help="The events are history: none is too old or from the future.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object for each refused line and a last one."
)
@click.option("--quiet", is_flag=True, help="Print only the summary.")
def command(file: str, replay: bool, as_json: bool, quiet: bool) -> int:
    """Check events against the contract: one JSON object a line, or one event over many lines.

    Every refused line is told with its number, the reason and what would be right, as the engine would
    judge the same bytes if they were published now. Exit code 1 if any line is refused.

    \b
    Example:
      callfunnel validate events.jsonl
      tail -f dialer.log | callfunnel validate -
    """
    from schemas.codec import Decoder, Limits, Rejected

    decoder = Decoder(Limits(clock="event" if replay else "wall"))
    accepted, refused = 0, Counter[str]()
    with _opened(file) as stream:
        records = _records(stream)
        while batch := list(islice(records, _BATCH_LINES)):
            lines, values = zip(*batch, strict=True)
            now_ms = time.time_ns() // 1_000_000
            verdicts = decoder.decode_all(values, [None] * len(values), [now_ms] * len(values))
            for line, verdict in zip(lines, verdicts, strict=True):
                if not isinstance(verdict, Rejected):
                    accepted += 1
                    continue
                refused[verdict.reason] += 1
                if as_json and not quiet:
                    told = {"line": line, "reason": verdict.reason, "detail": verdict.detail}
                    print(json.dumps(told, ensure_ascii=False))
                elif not quiet:
                    print(f"line {line}: {verdict.reason}: {verdict.detail}")
    if as_json:
        click.echo(json.dumps({"accepted": accepted, "refused": dict(refused.most_common())}))
    else:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in refused.most_common())
        click.echo(
            f"{accepted:,} accepted, {refused.total():,} refused" + (f": {reasons}" if reasons else "")
        )
    return exit_codes.NEGATIVE if refused else exit_codes.OK


def _records(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The records of a file with the numbers of their lines; blank lines are none."""
    for line, value in enumerate(stream, 1):
        if line == 1 and value.strip() in (b"{", b"["):
            yield line, value + stream.read()
        elif value.strip():
            yield line, value.rstrip(b"\r\n")


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
