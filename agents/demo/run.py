"""The whole product on one machine: a broker, workers, real data replayed through them, then a live floor.

The law: the demo runs what production runs, as the same processes with the same commands, and what it starts,
it ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any, Literal

import orjson
from msgspec import Struct, to_builtins
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from callfunnel.agents import exit_codes
from callfunnel.agents.choice import not_built
from callfunnel.agents.config import PREFIX, Settings, export
from callfunnel.agents.demo import bank_marketing, generator
from callfunnel.agents.demo.broker import choose, end_process, free_port, start_process
from callfunnel.agents.errors import Failure, Stalled
from callfunnel.agents.kafka import topics
from callfunnel.agents.kafka.changelog import Tables, read_tables
from callfunnel.agents.kafka.connection import admin_client, kafka_python_options
from callfunnel.agents.publish.publisher import Publisher
from callfunnel.agents.scratch import Scratch
from callfunnel.agents.view.api import funnel_document
from callfunnel.agents.view.exposition import Exposition, new_registry
from callfunnel.agents.view.http import Pages
from callfunnel.agents.view.snapshot import View
from callfunnel.agents.view.terminal import funnel_table
from callfunnel.schemas.codec import Decoder, Limits, Rejected
from callfunnel.streams import oracle

_PATIENCE_SECONDS = 120.0
_MOST_DIFFERENCES = 200
_RESTART_CODES = frozenset({exit_codes.OK, exit_codes.TEMPFAIL, exit_codes.UNAVAILABLE})


class Options(Struct, frozen=True):
    """What the command line asked for."""

    broker: str | None
    once: bool
    as_json: bool
    workers: int
    partitions: int
    seats: int
    seed: int
    http_port: int | None


class Verdict(Struct, frozen=True):
    """What `--once --json` prints."""

    events: int
    rejected: int
    duplicates: int
    stages: dict[str, dict[str, int]]
    seconds: float
    folded_by: Literal["core", "definition"]
    """The oracle is the definition: where that has folded, too, there is no second one to compare with."""
    oracle: str | list[str]


def run(options: Options) -> int:
    """Run the demo; the exit code. Ctrl-C and SIGTERM end it with 0, `once` ends it by itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True)
    with ExitStack() as stack:
        try:
            return _run(options, console, stack)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            console.print("\nEnding what was started …")
            return exit_codes.OK if not options.once else exit_codes.INTERRUPTED


def _run(options: Options, console: Console, stack: ExitStack) -> int:
    Settings.from_environ(os.environ)  # a wrong variable is told before anything is started
    broker = stack.enter_context(choose(options.broker))
    names = {}
    if options.broker:  # topics of this run alone, removed at its end
        mark = f"callfunnel-demo-{int(time.time() * 1000):x}"
        events = f"{mark}-call-events"
        names = {"app_id": mark, "source_topic": events, "dead_letter_topic": f"{events}.dlq"}
    settings = Settings.from_environ(
        os.environ,
        **names,
        broker=broker.address,
        profile="development",
        partitions=options.partitions,
        clock="event",
        replay_until=(date.today() + timedelta(days=366)).isoformat(),  # behind the live floor, however long
        http_port=options.http_port,
        wait_seconds=30.0,
    )
    what = (
        f"Apache Kafka or compatible at {broker.address}"
        if options.broker
        else f"embedded broker at {broker.address}"
    )
    topics.wait_for_broker(settings, console.print)
    console.print(f"[dim]broker [/] {what}")
    if options.broker:
        stack.callback(_delete_topics, settings)
    topics.create(settings)
    view = View.of(settings, unasked_seconds=settings.view_refresh_seconds)
    exposition = Exposition.of(settings, view, new_registry())
    pages = Pages.of(settings, view=view, exposition=exposition, not_ready=view.not_ready)
    if not options.once:
        pages.start()
        stack.callback(pages.stop)
    view.start()
    stack.callback(view.stop)
    workers = stack.enter_context(started_workers(settings, options.workers, console))
    checked = stack.enter_context(_oracle(settings)) if options.once else None
    if not options.once:
        _tell_addresses(settings, workers, pages.url)

    started = time.monotonic()
    published = _replay(settings, workers, console)
    _settle(view, workers, published, console)
    seconds = time.monotonic() - started
    if checked is not None:
        tables = read_tables(settings, options.partitions)
        return _verdict(options, published, tables, seconds, checked, console)
    _show(view, published, seconds, pages.url)
    go_live(settings, workers.tend, seats=options.seats, seed=options.seed)
    return exit_codes.OK


class Workers:
    """Worker processes that are started again when they are killed, under the same name in the group.

    `changes` are settings that they have and the others do not.
    """

    def __init__(
        self, settings: Settings, count: int, folder: Path, console: Console, **changes: str
    ) -> None:
        self._folder = folder
        self._console = console
        self._settings = {
            "broker": settings.broker,
            "profile": settings.profile,
            "app_id": settings.app_id,
            "source_topic": settings.source_topic,
            "dead_letter_topic": settings.dead_letter_topic,
            "clock": settings.clock,
            "replay_until": settings.replay_until or "",
            "view": "false",
            "wait_seconds": "30",
        } | changes
        names = [f"demo-{number}" for number in range(1, count + 1)]
        self.ports = {name: int(changes.get("http_port") or free_port()) for name in names}
        self.processes = {name: self._start(name) for name in names}

    def tend(self) -> None:
        """Start again what was killed. Raises `Failure` when a worker gave up by itself."""
        for name, process in self.processes.items():
            code = process.poll()
            if code is None:
                continue
            if code >= 0 and code not in _RESTART_CODES:
                words = (self._folder / f"{name}.log").read_text(errors="replace").strip().splitlines()[-3:]
                raise Failure(f"Worker {name} ended with exit code {code}: " + " / ".join(words))
            self.processes[name] = self._start(name)
            why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self._console.print(
                f"Worker {process.pid} ended by {why}; started again as {self.processes[name].pid}."
            )

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            end_process(process, patience_seconds=5)

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        settings = self._settings | {"instance": name, "http_port": str(self.ports[name])}
        own = {f"{PREFIX}{key.upper()}": value for key, value in settings.items()}
        command = [sys.executable, "-m", "callfunnel.agents.cli", "worker"]
        # A worker that is killed leaves its temporary files: they go with the demo's.
        own["TMPDIR"] = str(self._folder)
        return start_process(command, self._folder / f"{name}.log", os.environ | own)


@contextmanager
def started_workers(settings: Settings, count: int, console: Console, **changes: str) -> Iterator[Workers]:
    """`Workers`, ended with the context."""
    with Scratch("demo") as scratch:
        workers = Workers(settings, count, scratch.path, console, **changes)
        pids = ", ".join(str(process.pid) for process in workers.processes.values())
        console.print(f"[dim]workers[/] {count} (pid {pids})")
        try:
            yield workers
        finally:
            workers.stop()


def _replay(settings: Settings, workers: Workers, console: Console) -> int:
    """Publish the bundled history; how many events were acknowledged."""
    with (
        Publisher(
            settings.broker,
            settings.source_topic,
            client=kafka_python_options(settings),
            limits=settings.limits,
            replay=True,
        ) as publisher,
        _progress(console) as progress,
    ):
        task = progress.add_task("publishing", total=bank_marketing.EVENTS)
        for number, event in enumerate(bank_marketing.events(bank_marketing.read()), start=1):
            publisher.publish(event)
            if number % 1000 == 0:
                progress.update(task, completed=publisher.acknowledged)
                workers.tend()
        publisher.flush()
        progress.update(task, completed=publisher.acknowledged)
        if publisher.refused:
            raise Failure(f"The bundled data breaks the contract: {publisher.refused[0]}")
        return publisher.acknowledged


def _settle(view: View, workers: Workers, events: int, console: Console) -> None:
    """Return when every published event is in the tables."""
    with _progress(console) as progress:
        task = progress.add_task("folding   ", total=events)
        done, moved = 0, time.monotonic()
        while done < events:
            time.sleep(0.1)
            workers.tend()
            if view.failure is not None:
                raise view.failure
            now_done = sum(its.offset for its in view.snapshot.positions.values()) if view.snapshot else 0
            if now_done != done:
                done, moved = now_done, time.monotonic()
                progress.update(task, completed=done)
            elif time.monotonic() - moved > _PATIENCE_SECONDS:
                raise Stalled(
                    f"{done} of {events} events are in the tables; nothing moved for {_PATIENCE_SECONDS:g} s"
                )


@contextmanager
def _oracle(settings: Settings) -> Iterator["AsyncResult[dict[int, oracle.Tables]]"]:
    """The batch oracle at work in a process of its own: it reads the file and knows nothing of Kafka."""
    options = {
        "hangup_ms": settings.hangup_ms,
        "timezone": settings.timezone,
        "minute_hours": settings.pane_retention_minute_hours,
        "hour_days": settings.pane_retention_hour_days,
        "day_days": settings.pane_retention_day_days,
    }
    with get_context("spawn").Pool(1) as pool:
        yield pool.apply_async(expected_tables, (settings.partitions, options))


def expected_tables(partitions: int, options: Mapping[str, Any]) -> dict[int, oracle.Tables]:
    """What the tables of the bundled data must be, by partition."""
    from kafka.partitioner.default import murmur2

    values = [orjson.dumps(event) for event in bank_marketing.events(bank_marketing.read())]
    verdicts = Decoder(Limits(clock="event")).decode_all(values, [None] * len(values), [-1] * len(values))
    events = [event for event in verdicts if not isinstance(event, Rejected)]
    return oracle.partitioned(
        events, lambda lead_id: (murmur2(lead_id.encode()) & 0x7FFFFFFF) % partitions, **options
    )


def _verdict(
    options: Options,
    published: int,
    tables: Mapping[int, Tables],
    seconds: float,
    checked: "AsyncResult[dict[int, oracle.Tables]]",
    console: Console,
) -> int:
    console.print("[dim]comparing with the batch oracle …[/]")
    expected = checked.get()
    actual = {number: part.rows for number, part in tables.items()}
    differences = [
        f"partition {number}: {difference}"
        for number in sorted(expected.keys() | actual.keys())
        for difference in oracle.differences(expected.get(number, {}), actual.get(number, {}))
    ]
    stages = oracle.stage_summary(oracle.total(actual))
    differences += [
        f"{stage}: {stages[stage]['events']:,} events, and the campaign is known to have {known:,}"
        for stage, known in bank_marketing.KNOWN.items()
        if stages[stage]["events"] != known
    ]
    positions = [part.position for part in tables.values() if part.position]
    verdict = Verdict(
        events=published,
        rejected=sum(position.rejected for position in positions),
        duplicates=sum(position.duplicates for position in positions),
        stages=stages,
        seconds=round(seconds, 1),
        folded_by="definition" if not_built() else "core",
        oracle=_shortened(differences) or "equal",
    )
    if options.as_json:
        sys.stdout.write(orjson.dumps(to_builtins(verdict)).decode() + "\n")
    else:
        out = Console()
        for stage, counts in verdict.stages.items():
            out.print(f"{stage:10} {counts['leads']:>8,} leads {counts['events']:>8,} events")
        out.print(f"{published:,} events in {seconds:.1f} s")
        out.print("against the batch oracle: " + ("different" if differences else "equal"))
        if not_built():
            out.print(
                "Both are the definition, not checked against a second one: there is no core here (make "
                "core). What is known of the campaign was compared, too.",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
        for difference in _shortened(differences):
            out.print(difference, soft_wrap=True, highlight=False)
    return exit_codes.NEGATIVE if differences else exit_codes.OK


def _shortened(differences: list[str]) -> list[str]:
    more = len(differences) - _MOST_DIFFERENCES
    return differences if more <= 0 else [*differences[:_MOST_DIFFERENCES], f"… and {more} more cells"]


def _tell_addresses(settings: Settings, workers: Workers, url: str) -> None:
    pids = " ".join(str(process.pid) for process in workers.processes.values())
    engines = " ".join(f"http://{settings.http_host}:{port}/metrics" for port in workers.ports.values())
    Console().print(
        f"\n  the funnel   {url}\n"
        f"  Prometheus   {url}metrics\n"
        f"  its workers  {engines}\n"
        f"  terminal     {program()} top --url {url}\n"
        f"  kill it      kill -9 {pids}    (it is started again; no number changes)\n"
        f"  the broker   {export(settings)}\n\n"
        "Ctrl-C ends everything.\n",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def _show(view: View, events: int, seconds: float, url: str) -> None:
    assert view.snapshot is not None
    out = Console()
    document = funnel_document(view.snapshot, now_s=view.now_s, delay_s=view.delay_s, window="all")
    out.print(funnel_table(document))
    out.print(
        f"\n{events:,} events of a real campaign, published and folded in {seconds:.0f} s. "
        f"Now a live floor calls: {url}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def program() -> str:
    """How `callfunnel` is called from here."""
    own = Path(sys.executable).with_name("callfunnel")
    return "callfunnel" if shutil.which("callfunnel") or not own.exists() else os.path.relpath(own)


def go_live(settings: Settings, tend: Callable[[], None], *, seats: int, seed: int) -> None:
    """Publish a live floor's events at their own pace until Ctrl-C; `tend` is called again and again."""
    floor = generator.FloorSettings(seats=seats)
    stream = generator.live(seed, floor, int(time.time() * 1000), generator.TYPICAL_FAULTS)
    with Publisher(
        settings.broker,
        settings.source_topic,
        client=kafka_python_options(settings),
        limits=settings.limits,
        replay=True,
    ) as publisher:
        for at_ms, event in stream:
            while (ahead := at_ms / 1000 - time.time()) > 0:
                tend()
                time.sleep(min(ahead, 0.25))
            publisher.publish(event)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _delete_topics(settings: Settings) -> None:
    with admin_client(settings) as admin:
        admin.delete_topics([spec.name for spec in topics.wanted(settings)])
