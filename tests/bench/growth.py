"""How the cost of a worker grows: with leads, agents, segments, workers, and the size of a batch.

The law: one thing is changed at a time. Workers are started, given their partitions and the leads that they
keep, and stopped by a signal; then the events are published, the workers go on, and what is measured is the
CPU time that the operating system gave them from there until they are at rest. Nobody asks them for anything
meanwhile. No figure is shown of a run whose tables are not the oracle's.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import msgspec
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from bench import load, machine
from bench.starts import settings_of
from callfunnel.agents.config import Settings
from callfunnel.agents.kafka import topics
from callfunnel.agents.kafka.changelog import read_tables
from callfunnel.schemas.events import Event
from callfunnel.schemas.topics import funnel_changelog
from callfunnel.streams import oracle
from deploy.kafka import kraft
from integration.workers import ROOT, Worker, Workers, publish, record

CONSUMED = "callfunnel_worker_events_consumed_total"
IN_NUMBERS = "callfunnel_source_records_total"
BATCHES = "callfunnel_worker_batch_events_count"
ACTIVE = 'callfunnel_worker_partitions{state="active"}'
SECONDS_AT_MOST = 900
SILENT_SECONDS = 60.0
"""How long a worker may be stopped by a signal before the group gives its partitions away."""
LOOK_SECONDS, QUIET_SECONDS = 0.1, 1.0
AT_REST = 0.1
"""A worker that takes a smaller share of a core for so long has nothing to do."""
PICTURE = ROOT / ".github/pictures/growth.png"

Stream = tuple[Any, ...]
"""A function of `load` and what it is called with."""


class Case(msgspec.Struct, frozen=True):
    """What a run is of. `leads` are in the tables before it; its events are of others, or of these."""

    leads: int = 10_000
    returning: bool = False
    """Whether the events are of leads that are in the tables."""
    agents: int = 1_000
    campaigns: int = 5
    sources: int = 3
    view: bool = True
    workers: int = 1
    partitions: int = 8
    batch_events: int = 20_000

    @property
    def segments(self) -> int:
        return self.campaigns * self.sources

    def before(self) -> Stream:
        return "untouched", self.leads, self.agents, self.campaigns, self.sources

    def measured(self, events: int) -> Stream:
        if self.returning:
            return "returned", events, self.leads, self.agents, self.campaigns, self.sources
        return "worked", events, self.agents, self.campaigns, self.sources


class Run(msgspec.Struct):
    case: Case
    cpu_s_per_million: float = 0.0
    events_per_second: float = 0.0
    """Up to the last transaction."""
    memory_mib: float = 0.0
    """Of all workers, after the last event."""
    peak_mib: float = 0.0
    events_in_a_batch: float = 0.0
    wrong: str = ""


def axes(full: bool) -> dict[str, list[Case]]:
    few, many = (Case(partitions=12), Case(partitions=32))
    return {
        "view": [Case(view=False), Case()],
        "leads, kept": [Case(leads=n) for n in (10_000, 100_000, 1_000_000, *((5_000_000,) if full else ()))],
        "leads, returning": [Case(leads=n, returning=True) for n in (10_000, 1_000_000)],
        "agents": [Case(agents=n) for n in (10, 100, 1_000, 10_000)],
        "segments": [Case(campaigns=n, sources=m) for n, m in ((5, 3), (24, 4), (100, 10), (500, 20))],
        "workers, 12 partitions": [msgspec.structs.replace(few, workers=n) for n in (1, 2, 3)],
        "workers, 32 partitions": [msgspec.structs.replace(many, workers=n) for n in (1, 2, 4)],
        "batch_events": [Case(partitions=2, batch_events=n) for n in (500, 2_000, 10_000, 50_000)],
    }


def tables_of(stream: Stream) -> oracle.Tables:
    """What the oracle's tables gain by a stream, wave by wave: without common leads, tables add up."""
    events = (msgspec.convert(event, Event) for event in happening(stream))
    if stream[0] == "returned":
        return gained(list(events), stream)
    tables: oracle.Tables = {}
    while wave := list(islice(events, load.WAVE)):
        tables = oracle.total({0: tables, 1: oracle.tables(wave)})
    return tables


def gained(returned: list[Event], stream: Stream) -> oracle.Tables:
    """The tables of the leads that returned, without what these had before."""
    ids = {event.lead_id for event in returned}
    _, _, *sizes = stream
    kept = [msgspec.convert(event, Event) for event in load.untouched(*sizes) if event["lead_id"] in ids]
    before = {key: {name: -n for name, n in row.items()} for key, row in oracle.tables(kept).items()}
    return oracle.total({0: before, 1: oracle.tables(kept + returned)})


def happening(stream: Stream) -> Iterator[dict[str, Any]]:
    name, *sizes = stream
    events: Iterator[dict[str, Any]] = getattr(load, name)(*sizes)
    return events


def expected_tables(streams: Iterable[Stream]) -> Mapping[Stream, oracle.Tables]:
    """The oracle's tables of each stream, before anything is measured: it needs the processors."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        longest_first = sorted(streams, key=lambda stream: stream[1], reverse=True)
        found = {pool.submit(tables_of, stream): stream for stream in longest_first}
        with click.progressbar(
            as_completed(found), length=len(found), label="oracle", file=sys.stderr
        ) as finished:
            return {found[future]: future.result() for future in finished}


def measure(case: Case, settings: Settings, events: int, expected: Mapping[Stream, oracle.Tables]) -> Run:
    run = Run(case)
    topics.create(settings)
    with (
        redirect_stdout(None),  # what the workers logged is told when one fails, and else not
        tempfile.TemporaryDirectory(prefix="growth-") as folder,
        Workers(settings, Path(folder)) as crew,
    ):
        workers = [crew.start() for _ in range(case.workers)]
        wait(workers, lambda: shared_out(workers, case.partitions), "the partitions are not shared out")
        publish(settings, map(record, happening(case.before())))
        rest(workers, case.leads, "the leads are not in the tables")
        records = list(map(record, happening(case.measured(events))))
        batches = total(workers, BATCHES)
        send(workers, signal.SIGSTOP)
        publish(settings, records)
        del records
        cpu, began = cpu_seconds(workers), time.time()
        send(workers, signal.SIGCONT)
        spent = rest(workers, case.leads + events, "the events are not consumed")
        run.cpu_s_per_million = (spent - cpu) / events * 1e6
        run.events_per_second = events / (written_s(settings, case.partitions) - began)
        run.events_in_a_batch = events / (total(workers, BATCHES) - batches)
        run.memory_mib = sum(machine.memory_mib(worker.process.pid, "VmRSS") for worker in workers)
        run.peak_mib = sum(machine.memory_mib(worker.process.pid, "VmHWM") for worker in workers)
        send(workers, signal.SIGTERM)
        for worker in workers:
            worker.exit_code(60)
        left = read_tables(settings, case.partitions)
    applied = sum(table.position.applied for table in left.values() if table.position)
    wrong = oracle.differences(
        oracle.total({0: expected[case.before()], 1: expected[case.measured(events)]}),
        oracle.total({number: table.rows for number, table in left.items()}),
    )
    if applied != case.leads + events:
        wrong.append(f"{applied} events are in the tables, not {case.leads + events}")
    run.wrong = f"{len(wrong)} cells differ, the first: {wrong[0]}" if wrong else ""
    return run


def rest(workers: list[Worker], events: int, otherwise: str) -> float:
    """Wait until so many events are in the tables and in the numbers, and the workers have nothing to do.

    Returns the CPU seconds that they had then. An answer is work for them, so they are asked only when they
    have nothing else to do.
    """
    spent, quiet_since = cpu_seconds(workers), time.monotonic()

    def are_at_rest() -> bool:
        nonlocal spent, quiet_since
        before, spent = spent, cpu_seconds(workers)
        if spent - before > AT_REST * LOOK_SECONDS * len(workers):
            quiet_since = time.monotonic()
        if time.monotonic() - quiet_since < QUIET_SECONDS:
            return False
        shown = [worker.metric(IN_NUMBERS) for worker in workers if worker.settings.view]
        return min([total(workers, CONSUMED), *shown]) >= events

    wait(workers, are_at_rest, otherwise, LOOK_SECONDS)
    return spent


def written_s(settings: Settings, partitions: int) -> float:
    """When the newest record of the funnel changelog was written."""
    admin = AdminClient({"bootstrap.servers": settings.broker})
    topic = funnel_changelog(settings.app_id)
    asked = {TopicPartition(topic, number): OffsetSpec.max_timestamp() for number in range(partitions)}
    return max(found.result().timestamp for found in admin.list_offsets(asked).values()) / 1000


def wait(
    workers: list[Worker], holds: Callable[[], bool], otherwise: str, every_seconds: float = 0.2
) -> None:
    workers[0].wait_until(holds, SECONDS_AT_MOST, f": {otherwise}", every_seconds)


def shared_out(workers: list[Worker], partitions: int) -> bool:
    """Whether every worker has its part, and still has it a moment later."""

    def all_have() -> bool:
        fair = partitions // len(workers)
        return all(worker.is_ready and worker.metric(ACTIVE) == fair for worker in workers)

    if not all_have():
        return False
    time.sleep(1.0)
    return all_have()


def total(workers: list[Worker], name: str) -> float:
    return sum(worker.metric(name) for worker in workers)


def cpu_seconds(workers: list[Worker]) -> float:
    return sum(machine.cpu_seconds(worker.process.pid) for worker in workers)


def send(workers: list[Worker], number: signal.Signals) -> None:
    for worker in workers:
        worker.send(number)


def draw(found: dict[str, list[Run]], path: Path) -> None:
    """Two rows of small pictures: CPU above, memory below, a column for each thing that grows."""
    from matplotlib import pyplot

    columns: dict[str, dict[str, list[Run]]] = {}
    for axis, runs in found.items():
        field, _, label = axis.partition(", ")
        if field != "view":
            columns.setdefault(field, {})[label] = [run for run in runs if not run.wrong]
    figure, places = pyplot.subplots(2, len(columns), figsize=(15, 5.5), sharey="row", layout="constrained")
    for column, (field, lines) in enumerate(columns.items()):
        for row, (what, unit) in enumerate(
            (("cpu_s_per_million", "CPU s per million events"), ("memory_mib", "resident MiB, all workers"))
        ):
            place = places[row][column]
            for label, runs in lines.items():
                sizes = [getattr(run.case, field) for run in runs]
                place.plot(sizes, [getattr(run, what) for run in runs], marker="o", label=label)
            place.set_xscale("log", base=2 if field == "workers" else 10)
            if field == "workers":
                place.set_xticks([1, 2, 3, 4], list("1234"))
            place.grid(alpha=0.3)
            if len(lines) > 1:
                place.legend()
            if not column:
                place.set_ylabel(unit)
            if row:
                place.set_xlabel(field)
    for row in places:
        row[0].set_ylim(bottom=0)  # of the whole row: the axis is shared
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def told(run: Run) -> str:
    if run.wrong:
        return f"WRONG: {run.wrong}"
    return (
        f"{run.cpu_s_per_million:.1f} CPU s/M, {run.events_per_second:,.0f} events/s, "
        f"{run.memory_mib:.0f} MiB, peak {run.peak_mib:.0f}, {run.events_in_a_batch:,.0f} events in a batch"
    )


def table(found: dict[str, list[Run]]) -> str:
    lines = [
        "| grows | leads | agents | campaigns × sources | view | workers | partitions | batch_events "
        "| events in a batch | CPU s per million events | events/s | MiB | peak MiB |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for axis, runs in found.items():
        for run in runs:
            case = run.case
            lines.append(
                f"| {axis} | {case.leads:,} | {case.agents:,} | {case.campaigns} × {case.sources} "
                f"| {'with' if case.view else 'without'} | {case.workers} | {case.partitions} "
                f"| {case.batch_events:,} "
                + (
                    f"| WRONG: {run.wrong.splitlines()[0]} | | | | |"
                    if run.wrong
                    else f"| {run.events_in_a_batch:,.0f} | {run.cpu_s_per_million:.1f} "
                    f"| {run.events_per_second:,.0f} | {run.memory_mib:.0f} | {run.peak_mib:.0f} |"
                )
            )
    return "\n".join(lines)


@click.command()
@click.option("--events", default=200_000, show_default=True, help="Events of a run.")
@click.option("--full", is_flag=True, help="5,000,000 leads as well: gigabytes, and ten minutes more.")
@click.option(
    "--only",
    multiple=True,
    help="One of view, leads, agents, segments, workers, batch_events; may be repeated.",
)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
@click.option("--picture", default=PICTURE, type=click.Path(path_type=Path), help="Where to draw.")
def main(events: int, full: bool, only: tuple[str, ...], report: Path | None, picture: Path) -> None:
    """How the cost of a worker grows, on Apache Kafka: leads, agents, segments, workers, size of a batch.

    \b
      python -m bench.growth                          everything but 5,000,000 leads
      python -m bench.growth --only leads --full      10,000 to 5,000,000 leads
      python -m bench.growth --json growth.json       the figures in a file

    CPU is what the operating system gave the workers from the first event until they rest. Ends with 1 when
    the tables of a run are not the oracle's. The pictures are drawn when nothing is left out.
    """
    chosen = {name: cases for name, cases in axes(full).items() if not only or name.partition(",")[0] in only}
    if not chosen:
        raise click.UsageError(f"--only is none of {', '.join(axes(full))}")
    cases = list(dict.fromkeys(case for cases in chosen.values() for case in cases))
    runs: dict[Case, Run] = {}
    expected = expected_tables(
        {stream for case in cases for stream in (case.before(), case.measured(events))}
    )
    with kraft.Cluster() as kafka:
        for number, case in enumerate(cases, 1):
            runs[case] = measure(case, installation(case, kafka.address, number), events, expected)
            click.echo(f"{number}/{len(cases)} {case}: {told(runs[case])}", err=True)
    found = {axis: [runs[case] for case in cases] for axis, cases in chosen.items()}
    click.echo(table(found))
    machine.write(report, events=events, runs=found)
    if not only:
        draw(found, picture)
    if any(run.wrong for run in runs.values()):
        sys.exit(1)


def installation(case: Case, broker: str, number: int) -> Settings:
    return settings_of(
        broker,
        f"growth-{number}",
        clock="event",
        partitions=case.partitions,
        batch_events=case.batch_events,
        view=case.view,
        session_timeout_seconds=SILENT_SECONDS,
        stall_seconds=2 * SILENT_SECONDS,
    )


if __name__ == "__main__":
    main()
