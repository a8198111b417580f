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
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from callfunnel.agents import exit_codes
from callfunnel.agents.config import Settings
from callfunnel.agents.errors import Failure, SettingError
from callfunnel.agents.kafka.connection import kafka_python_options
from callfunnel.agents.publish.destination import Acknowledged
from callfunnel.agents.publish.publisher import Publisher, Refused
from callfunnel.agents.publish.resume import Checkpoint, Done, Lines, ResumePoint

Start = Literal["resume", "from-start", "resume-anyway"]
"""Where to begin: behind the lines that are done if they are these, at the first line, behind them anyway."""

_NOTE_SECONDS = 0.5


def publish_file(
    settings: Settings,
    path: Path,
    checkpoint: Checkpoint,
    *,
    replay: bool,
    rate: float | None,
    as_json: bool,
    start: Start = "resume",
) -> int:
    """Publish the lines that `checkpoint` does not know as done. Returns the exit code.

    Raises SettingError when its resume point fits neither the file nor the topic, and nobody can be asked.
    """
    with checkpoint, path.open("rb") as lines:
        return _publish(settings, lines, path.stat().st_size, checkpoint, replay, rate, as_json, start)


def publish_stdin(settings: Settings, *, replay: bool, rate: float | None, as_json: bool) -> int:
    """Publish lines as they come in. Returns the exit code."""
    return _publish(settings, sys.stdin.buffer, None, None, replay, rate, as_json)


class LinePublisher:
    """Publishes the lines behind those that are `done`, at most `rate` of them a second.

    `lines` is the checksum of those, and stays the one of what is done.
    """

    def __init__(
        self, publisher: Publisher, done: Done, lines: Lines | None = None, rate: float | None = None
    ) -> None:
        self._publisher = publisher
        self._before = done
        self._rate = rate
        self.lines = lines or Lines()
        self._ahead: deque[bytes] = deque()
        """Lines behind those of the checksum."""
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
        while self._ahead and self.lines.count < line:
            self.lines.take(self._ahead.popleft())
        return Done(line, self._before.acknowledged + acknowledged, self._refused)

    def publish(
        self,
        lines: Iterable[bytes],
        on_refused: Callable[[Refused], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Publish to the last of `lines`, which are those behind the ones that are done, and wait for the
        acknowledgements.

        `on_progress` hears now and then how many bytes of the file are read.
        """
        started = noted = time.monotonic()
        sent, bytes_read = 0, self.lines.bytes
        for number, line in enumerate(lines, start=self._before.line + 1):
            self._ahead.append(line)
            bytes_read += len(line)
            event = line.strip()
            if not event:
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
    start: Start = "resume",
) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the progress is told and saved
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what ends a run is told once, by a Failure
    stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    publisher = Publisher(
        settings.broker,
        settings.source_topic,
        client=kafka_python_options(settings),
        limits=settings.limits,
        replay=replay,
    )
    before, last, read = Done(), None, Lines()
    if checkpoint:
        try:
            before, last, read = _resumed(checkpoint, source, publisher, start, stderr)
        except BaseException:
            publisher.close(0)
            raise
    started = time.monotonic()
    lines = LinePublisher(publisher, before, read, rate)
    refusals: list[Refused] = []
    code = exit_codes.OK
    with _bar(stderr, size) as bar:
        task = bar.add_task("publishing", total=size, settled=0)

        def tell(refused: Refused) -> None:
            stderr.print(f"line {refused.position}: {refused.reason}: {refused.detail}")
            if as_json:
                refusals.append(refused)

        def save(done: Done) -> None:
            if checkpoint:
                sha256, newest = lines.lines.sha256, publisher.last or last
                checkpoint.save(ResumePoint(checkpoint.publishes, done, sha256, publisher.topic_id, newest))

        def note(bytes_read: int) -> None:
            done = lines.done
            bar.update(task, completed=bytes_read, settled=done.acknowledged + done.refused)
            save(done)

        save(lines.done)  # a run that is killed at once has begun where it was told to
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
    else:
        save(done)
    _report(done, refusals, finished, time.monotonic() - started, bool(checkpoint), as_json, stderr)
    return code


def _resumed(
    checkpoint: Checkpoint, source: BinaryIO, publisher: Publisher, start: Start, stderr: Console
) -> tuple[Done, Acknowledged | None, Lines]:
    """What is done, and its last event; `source` is behind those lines then, whose checksum comes with it."""
    point, lines = checkpoint.load(), Lines()
    if point is None or not point.done.line or start == "from-start":
        return Done(), None, lines
    for line in islice(source, point.done.line):
        lines.take(line)
    other_file = checkpoint.misfit(point, lines)
    other_topic = publisher.misfit(point.topic_id, point.last, point.done.acknowledged)
    misfits = [told for told in (other_file, other_topic) if told]
    if start == "resume" and misfits:
        start = _decided(checkpoint, point, ". ".join(misfits), stderr)
    if start == "from-start":
        source.seek(0)
        return Done(), None, Lines()
    stderr.print(f"Going on behind line {point.done.line:,}, where an earlier run stopped.")
    if not point.lines_sha256:
        stderr.print(
            "That run was of an earlier version, which kept no id of the topic: if it may have been another "
            "topic of the same name, publish all lines again with --from-start."
        )
    return point.done, None if other_topic else point.last, lines


def _decided(checkpoint: Checkpoint, point: ResumePoint, misfits: str, stderr: Console) -> Start:
    """What a person decides. Raises SettingError where nobody can be asked."""
    told = f"An earlier run published {checkpoint.publishes} up to line {point.done.line:,}. But {misfits}."
    choices = (
        "--from-start publishes every line (an event that is there already counts once); --resume-anyway "
        f"goes on behind line {point.done.line:,} (what is missing before it stays missing)."
    )
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise SettingError(f"{told} Nothing was published now. {choices}")
    stderr.print(f"{told}\n{choices}")
    answers: dict[str, Start] = {"from-start": "from-start", "resume-anyway": "resume-anyway"}
    return answers[click.prompt("Which one", type=click.Choice([*answers]), err=True)]


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
