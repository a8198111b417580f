"""How the cost of a worker grows: with leads, agents, workers, and the size of a batch.

The law: one thing is changed at a time. Workers are started, given their partitions and the leads that they
keep, and stopped by a signal; then the events are published, the workers go on, and what is measured is the
CPU time that the operating system gave them from there to the last event. No figure is shown of a run whose
tables are not the oracle's.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import click
import msgspec

from bench import load, machine
from bench.starts import settings_of
from callfunnel.agents.config import Settings
from callfunnel.agents.kafka import topics
from callfunnel.agents.kafka.changelog import read_tables
from callfunnel.schemas.events import Event
from callfunnel.streams import oracle
from deploy.kafka import kraft
from integration.workers import ROOT, Worker, Workers, publish, record

CONSUMED = "callfunnel_worker_events_consumed_total"
BATCHES = "callfunnel_worker_batch_events_count"
ACTIVE = 'callfunnel_worker_partitions{state="active"}'
SECONDS_AT_MOST = 900
SILENT_SECONDS = 60.0
"""How long a worker may be stopped by a signal before the group gives its partitions away."""
PICTURE = ROOT / ".github/pictures/growth.png"


class Case(msgspec.Struct, frozen=True):
    """What a run is of. `leads` are in the tables before it; its events are of others."""

    leads: int = 10_000
    agents: int = 1_000
    workers: int = 1
    partitions: int = 8
    batch_events: int = 20_000


class Run(msgspec.Struct):
    case: Case
    cpu_s_per_million: float = 0.0
    events_per_second: float = 0.0
    memory_mib: float = 0.0
    """Of all workers, after the last event."""
    peak_mib: float = 0.0
    events_in_a_batch: float = 0.0
    wrong: str = ""


def axes(full: bool) -> dict[str, list[Case]]:
    few, many = (Case(partitions=8), Case(partitions=32))
    return {
        "leads": [Case(leads=n) for n in (10_000, 100_000, 1_000_000, *((5_000_000,) if full else ()))],
        "agents": [Case(agents=n) for n in (10, 100, 1_000, 10_000)],
        "workers, 8 partitions": [msgspec.structs.replace(few, workers=n) for n in (1, 2, 4)],
        "workers, 32 partitions": [msgspec.structs.replace(many, workers=n) for n in (1, 2, 4)],
        "batch_events": [Case(partitions=2, batch_events=n) for n in (500, 2_000, 10_000, 50_000)],
    }


def tables_of(stream: str, *sizes: int) -> oracle.Tables:
    """The oracle's tables of a stream of `load`, wave by wave: without common leads, tables add up."""
    events = (msgspec.convert(event, Event) for event in getattr(load, stream)(*sizes))
    tables: oracle.Tables = {}
    while wave := list(islice(events, load.WAVE)):
        tables = oracle.total({0: tables, 1: oracle.tables(wave)})
    return tables


Stream = tuple[str, int, int]
"""A function of `load` and what it is called with."""


def streams_of(case: Case, events: int) -> list[Stream]:
    return [("untouched", case.leads, case.agents), ("worked", events, case.agents)]


def expected_tables(streams: Iterable[Stream]) -> Mapping[Stream, oracle.Tables]:
    """The oracle's tables of each stream, before anything is measured: it needs the processors."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        longest_first = sorted(streams, key=lambda stream: stream[1], reverse=True)
        found = {pool.submit(tables_of, *stream): stream for stream in longest_first}
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
        publish(settings, (record(event) for event in load.untouched(case.leads, case.agents)))
        wait(workers, lambda: total(workers, CONSUMED) >= case.leads, "the leads are not in the tables")
        records = [record(event) for event in load.worked(events, case.agents)]
        batches = total(workers, BATCHES)
        send(workers, signal.SIGSTOP)
        publish(settings, records)
        del records
        cpu, began = cpu_seconds(workers), time.monotonic()
        send(workers, signal.SIGCONT)
        wait(workers, lambda: total(workers, CONSUMED) >= case.leads + events, "the events are not consumed")
        run.cpu_s_per_million = (cpu_seconds(workers) - cpu) / events * 1e6
        run.events_per_second = events / (time.monotonic() - began)
        run.events_in_a_batch = events / (total(workers, BATCHES) - batches)
        run.memory_mib = sum(machine.memory_mib(worker.process.pid, "VmRSS") for worker in workers)
        run.peak_mib = sum(machine.memory_mib(worker.process.pid, "VmHWM") for worker in workers)
        send(workers, signal.SIGTERM)
        for worker in workers:
            worker.exit_code(60)
        left = read_tables(settings, case.partitions)
    applied = sum(table.position.applied for table in left.values() if table.position)
    wrong = oracle.differences(
        oracle.total({n: expected[stream] for n, stream in enumerate(streams_of(case, events))}),
        oracle.total({number: table.rows for number, table in left.items()}),
    )
    if applied != case.leads + events:
        wrong.append(f"{applied} events are in the tables, not {case.leads + events}")
    run.wrong = f"{len(wrong)} cells differ, the first: {wrong[0]}" if wrong else ""
    return run


def wait(workers: list[Worker], holds: Callable[[], bool], otherwise: str) -> None:
    """Asks seldom: each answer is work for the worker."""

    def held() -> bool:
        time.sleep(0.2)
        return holds()

    workers[0].wait_until(held, SECONDS_AT_MOST, f": {otherwise}")


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

    together = [axis for axis in found if "," in axis]
    alone = [axis for axis in found if axis not in together]
    columns = [(axis, axis, [axis]) for axis in alone] + [("workers", "workers", together)]
    figure, places = pyplot.subplots(2, len(columns), figsize=(13, 5.5), sharey="row", layout="constrained")
    for column, (title, field, lines) in enumerate(columns):
        for row, (what, unit) in enumerate(
            (("cpu_s_per_million", "CPU s per million events"), ("memory_mib", "resident MiB, all workers"))
        ):
            place = places[row][column]
            for line in lines:
                runs = [run for run in found[line] if not run.wrong]
                sizes = [getattr(run.case, field) for run in runs]
                label = line.partition(", ")[2]
                place.plot(sizes, [getattr(run, what) for run in runs], marker="o", label=label)
            place.set_xscale("log", base=2 if field == "workers" else 10)
            if field == "workers":
                place.set_xticks(sizes, map(str, sizes))
            place.grid(alpha=0.3)
            if len(lines) > 1:
                place.legend()
            if not column:
                place.set_ylabel(unit)
            if row:
                place.set_xlabel(title)
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
        "| grows | leads | agents | workers | partitions | batch_events | events in a batch "
        "| CPU s per million events | events/s | MiB | peak MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for axis, runs in found.items():
        for run in runs:
            case = run.case
            lines.append(
                f"| {axis.partition(',')[0]} | {case.leads:,} | {case.agents:,} | {case.workers} "
                f"| {case.partitions} | {case.batch_events:,} "
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
@click.option("--only", multiple=True, help="One of leads, agents, workers, batch_events; may be repeated.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
@click.option("--picture", default=PICTURE, type=click.Path(path_type=Path), help="Where to draw.")
def main(events: int, full: bool, only: tuple[str, ...], report: Path | None, picture: Path) -> None:
    """How the cost of a worker grows, on Apache Kafka: leads, agents, workers, size of a batch.

    \b
      python -m bench.growth                          everything but 5,000,000 leads
      python -m bench.growth --only leads --full      10,000 to 5,000,000 leads
      python -m bench.growth --json growth.json       the figures in a file

    CPU is what the operating system gave the workers from the first to the last event. Ends with 1 when the
    tables of a run are not the oracle's. The pictures are drawn when nothing is left out.
    """
    chosen = {name: cases for name, cases in axes(full).items() if not only or name.partition(",")[0] in only}
    if not chosen:
        raise click.UsageError(f"--only is none of {', '.join(axes(full))}")
    cases = list(dict.fromkeys(case for cases in chosen.values() for case in cases))
    runs: dict[Case, Run] = {}
    expected = expected_tables({stream for case in cases for stream in streams_of(case, events)})
    with kraft.Cluster() as kafka:
        for number, case in enumerate(cases, 1):
            runs[case] = measure(case, installation(case, kafka.address, number), events, expected)
            about = ", ".join(f"{value:,} {name}" for name, value in msgspec.structs.asdict(case).items())
            click.echo(f"{number}/{len(cases)} {about}: {told(runs[case])}", err=True)
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
        view=False,
        session_timeout_seconds=SILENT_SECONDS,
        stall_seconds=2 * SILENT_SECONDS,
    )


if __name__ == "__main__":
    main()
