"""What `callfunnel publish` does: lines of events through a publisher, before the eyes of a person.

The law: every line that is not blank ends acknowledged or refused, and what is told and saved of the progress
never counts one that is neither.
"""

import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from agents import exit_codes
from agents.checkpoint import Checkpoint, Done
from agents.config import Settings
from agents.connection import kafka_python_options
from agents.errors import Failure
from agents.publisher import Publisher, Refused

_NOTE_SECONDS = 0.5


def publish_file(
    settings: Settings, path: Path, checkpoint: Checkpoint, *, replay: bool, rate: float | None, as_json: bool
) -> int:
    """Publish the lines that `checkpoint` does not know as done. Returns the exit code."""
    with open(path, "rb") as lines:
        return _publish(settings, lines, path.stat().st_size, checkpoint, replay, rate, as_json)


def publish_stdin(settings: Settings, *, replay: bool, rate: float | None, as_json: bool) -> int:
    """Publish lines as they come in. Returns the exit code."""
    return _publish(settings, sys.stdin.buffer, None, None, replay, rate, as_json)


class LinePublisher:
    """Publishes the lines behind those of `done`, at most `rate` of them a second."""

    def __init__(self, publisher: Publisher, done: Done, rate: float | None = None) -> None:
        self._publisher = publisher
        self._before = done
        self._rate = rate
        self._line = done.line
        self._taken = 0
        """Lines that the publisher took, up to that one."""
        self._refused = done.refused
        self._refused_ahead: deque[int] = deque()
        """Refused lines behind one that is not settled yet."""

    @property
    def done(self) -> Done:
        """What is settled by now, with what earlier runs settled."""
        through, acknowledged = self._publisher.settled
        if acknowledged <= self._taken:  # else Ctrl-C came just behind a line that is acknowledged by now
            through = min(through, self._line)
        line = max(self._before.line, through)
        while self._refused_ahead and self._refused_ahead[0] <= line:
            self._refused_ahead.popleft()
            self._refused += 1
        return Done(line, self._before.acknowledged + acknowledged, self._refused)

    def publish(
        self,
        lines: Iterable[bytes],
        on_refused: Callable[[Refused], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Publish to the last line and wait for the acknowledgements.

        `on_progress` hears now and then how many bytes are read.
        """
        started = noted = time.monotonic()
        sent = bytes_read = 0
        for number, line in enumerate(lines, start=1):
            bytes_read += len(line)
            event = line.strip()
            if number <= self._before.line or not event:
                continue
            if self._rate:
                time.sleep(max(0.0, started + sent / self._rate - time.monotonic()))
            if verdict := self._publisher.publish(event, position=number):
                self._refused_ahead.append(number)
                on_refused(Refused(number, verdict.reason, verdict.detail))
            else:
                self._taken += 1
            self._line = number  # last: a refused line that Ctrl-C leaves untold is left to the next run
            sent += 1
            if time.monotonic() - noted >= _NOTE_SECONDS:
                noted = time.monotonic()
                on_progress(bytes_read)
        self._publisher.flush()
        on_progress(bytes_read)


def _publish(
    settings: Settings,
    source: BinaryIO,
    size: int | None,
    checkpoint: Checkpoint | None,
    replay: bool,
    rate: float | None,
    as_json: bool,
) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the progress is told and saved
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what ends a run is told once, by a Failure
    stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    before = checkpoint.load() if checkpoint else Done()
    if before.line:
        stderr.print(f"Going on behind line {before.line:,}, where an earlier run stopped.")
    started = time.monotonic()
    publisher = Publisher(
        settings.broker,
        settings.source_topic,
        client=kafka_python_options(settings),
        limits=settings.limits,
        replay=replay,
    )
    lines = LinePublisher(publisher, before, rate)
    refusals: list[Refused] = []
    code = exit_codes.OK
    with _bar(stderr, size) as bar:
        task = bar.add_task("publishing", total=size, settled=0)

        def tell(refused: Refused) -> None:
            stderr.print(f"line {refused.position}: {refused.reason}: {refused.detail}")
            if as_json:
                refusals.append(refused)

        def note(bytes_read: int) -> None:
            done = lines.done
            bar.update(task, completed=bytes_read, settled=done.acknowledged + done.refused)
            if checkpoint:
                checkpoint.save(done)

        try:
            with publisher:
                lines.publish(source, tell, note)
        except KeyboardInterrupt:
            code = exit_codes.INTERRUPTED
        except Failure as failure:
            code = failure.exit_code
            stderr.print(f"Error: {failure.message}")

    done = lines.done
    finished = code == exit_codes.OK
    if finished and done.refused:
        code = exit_codes.NEGATIVE
    if checkpoint and finished:
        checkpoint.remove()
    elif checkpoint:
        checkpoint.save(done)
    _report(done, refusals, finished, time.monotonic() - started, bool(checkpoint), as_json, stderr)
    return code


def _bar(stderr: Console, size: int | None) -> Progress:
    settled = TextColumn("{task.fields[settled]:,} settled")
    columns = (SpinnerColumn(), settled) if size is None else (BarColumn(), settled, TimeElapsedColumn())
    return Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)


def _report(
    done: Done,
    refused: list[Refused],
    finished: bool,
    seconds: float,
    can_resume: bool,
    as_json: bool,
    stderr: Console,
) -> None:
    if as_json:
        report = {
            "finished": finished,
            "settled_through_line": done.line,
            "acknowledged": done.acknowledged,
            "refused": done.refused,
            "refusals": [
                {"line": each.position, "reason": each.reason, "detail": each.detail} for each in refused
            ],
            "seconds": round(seconds, 3),
        }
        sys.stdout.buffer.write(orjson.dumps(report, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.flush()
        return
    stderr.print(
        f"{done.acknowledged:,} events acknowledged, {done.refused:,} lines refused, in {seconds:.1f} s."
    )
    if not finished and can_resume:
        stderr.print(f"Settled through line {done.line:,}: the same command goes on from there.")
