"""`python -m bench`, in the folder `tests`: callfunnel and its peers on the same topic of the same broker.

The law: CPU is what the operating system says of the whole process, from its start to its end; no number is
shown of a contender whose totals are not the oracle's; runs alternate, and medians are shown.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import click
import msgspec

from bench import machine
from bench.kafka_streams import left
from bench.starts import settings_of
from callfunnel.agents import memory
from callfunnel.agents.choice import Choice, tables_for
from callfunnel.agents.config import Settings
from callfunnel.agents.demo import generator
from callfunnel.agents.demo.broker import Broker, EmbeddedBroker, RunningBroker
from callfunnel.agents.kafka import topics
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.schemas.events import TYPES
from callfunnel.streams import oracle
from callfunnel.streams.by_definition import DefinedTables
from deploy.kafka import kraft
from integration.workers import PARTITIONS, Record, Workers, home, publish, record

ROOT = Path(__file__).parents[2]
PEERS = Path(os.environ.get("FUNNEL_PEERS_PYTHON", ROOT / ".venv/peers/bin/python"))
"""Quix Streams pins an older librdkafka client than ours: it has an environment of its own."""
KAFKA_STREAMS = ROOT / ".venv/kafka_streams"
SEED = 7
START_MS = 1_780_300_800_000
SECONDS_AT_MOST = 600
CONSUMED = "callfunnel_worker_events_consumed_total"
SHOWN = "callfunnel_events_total"

Totals = dict[tuple[str, str, str], int]


class Run(msgspec.Struct):
    """What one run of a contender took."""

    cpu_seconds: float
    wall_seconds: float
    peak_mib: float
    wrong: str = ""


class Contender(msgspec.Struct, frozen=True):
    """`command` is a module and its options, or a class of Java; without one it is callfunnel itself."""

    name: str
    does: str
    command: tuple[str, ...] = ()
    python: Path = Path(sys.executable)
    built: Path | None = None
    """Where Maven has put the classes, if it is in Java."""
    tables: Choice = "auto"
    view: bool = False
    is_slow: bool = False
    """Then it gets the small topic."""
    counts: bool = True

    @property
    def lacks(self) -> str:
        """What keeps it from running here, in a sentence, or nothing."""
        needed = self.built / "ready" if self.built else self.python
        if not needed.exists():
            return f"{needed} does not exist; `make bench` sets it up"
        return kraft.lacking() if self.built else ""


OURS = Contender("callfunnel", "the whole job as it starts, exact and durable, with its view", view=True)
UNVIEWED = Contender("callfunnel without its view", "the job alone, numbers are served elsewhere")
PLAIN = Contender("callfunnel, by the definition", "the job alone without the core", tables="definition")
DICTS = "similar tables in dicts, nothing kept"
LOOP = Contender("bare loop, msgspec", DICTS, ("bench.bare_loop", "msgspec"))
CONTENDERS = (
    OURS,
    UNVIEWED,
    PLAIN,
    LOOP,
    Contender("bare loop, orjson", DICTS, ("bench.bare_loop", "orjson")),
    Contender("librdkafka", "hands out the records, no job", ("bench.consume_only",), counts=False),
    Contender(
        "Kafka Streams",
        "the job alone on RocksDB, exact and durable, each event by itself",
        ("Funnel",),
        built=KAFKA_STREAMS,
    ),
    Contender("Quix Streams", "one rollup by the minute", ("bench.quix_streams",), PEERS, is_slow=True),
    Contender("plain Faust", "three rollups by the minute", ("bench.plain_faust",), is_slow=True),
)


GOALS = {OURS.name: 0.60, UNVIEWED.name: 0.40}
"""CPU, in that of the bare msgspec loop."""


class Filled(msgspec.Struct):
    """A topic with the first `events` of the floor, and what has to come out."""

    settings: Settings
    records: list[Record]
    totals: Totals
    tables: oracle.Tables

    @property
    def events(self) -> int:
        return len(self.records)


def fill(settings: Settings, records: list[Record]) -> Filled:
    topics.create(settings)
    publish(settings, records)
    events = Decoder(Limits(clock="event")).decode_all(
        [one.value for one in records], [one.key for one in records], [one.at_ms for one in records]
    )
    names = {kind: name for name, kind in TYPES.items()}
    totals = Counter(
        (event.campaign or "none", event.source or "none", names[type(event)])
        for event in events
        if event.stage is not None
    )
    return Filled(settings, records, dict(totals), oracle.total(oracle.partitioned(events, home)))


def floor(seats: int, events: int) -> list[Record]:
    """The events of a floor without faults, which peers without a memory of event ids could not count."""
    live = generator.live(SEED, generator.FloorSettings(seats=seats), START_MS)
    return [record(event, at_ms) for at_ms, event in islice(live, events)]


def run_once(contender: Contender, topic: Filled) -> Run:
    take = run_java if contender.built else run_peer if contender.command else run_callfunnel
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return take(contender, topic, Path(folder))


def run_peer(contender: Contender, topic: Filled, folder: Path) -> Run:
    module, *options = contender.command
    run, told = run_program([contender.python, "-m", module], topic, folder, options or [str(folder)])
    if not run.wrong and contender.counts:
        found = {(a, b, kind): n for a, b, kind, n in json.loads(told[-1] if told else "[]")}
        off = sum(abs(found.get(key, 0) - n) for key, n in topic.totals.items())
        run.wrong = f"totals are off by {off}" if found != topic.totals else ""
    return run


def run_java(contender: Contender, topic: Filled, folder: Path) -> Run:
    """Its app id is the folder's name; what it has committed is read after its end, as a worker's is."""
    program = (
        *(*kraft.find_java(), "-XX:+UseSerialGC", "-Xmx1g", "-XX:-UsePerfData"),
        *(f"-Djava.io.tmpdir={folder}", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"),
        *("-cp", f"{contender.built}/classes:{contender.built}/dependency/*", *contender.command),
    )
    run, _ = run_program(program, topic, folder, [str(folder), topic.settings.dead_letter_topic])
    if not run.wrong:
        run.wrong = wrong_cells(topic.tables, left.tables(topic.settings.broker, folder.name))
    return run


def run_program(
    program: Sequence[str | Path], topic: Filled, folder: Path, options: Sequence[str]
) -> tuple[Run, list[str]]:
    """Run it on the topic to its end; what it took, and its lines on stdout."""
    with open(folder / "out", "w+") as out, open(folder / "err", "w+") as err:
        began = time.monotonic()
        process = subprocess.Popen(
            [*program, topic.settings.broker, topic.settings.source_topic, str(topic.events), *options],
            stdout=out,
            stderr=err,
            cwd=ROOT / "tests",
            env=os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}"},
        )
        run = measured(process, began)
        if process.returncode:
            err.seek(0)
            run.wrong = f"ended with {process.returncode}: {err.read()[-500:]}"
        out.seek(0)
        return run, out.read().splitlines()


def run_callfunnel(contender: Contender, topic: Filled, folder: Path) -> Run:
    """A worker as it is deployed, on an app id of its own, until all is in its tables; then SIGTERM."""
    settings = msgspec.structs.replace(
        topic.settings, app_id=folder.name, tables=contender.tables, view=contender.view
    )
    done, at_least = CONSUMED, topic.events
    if contender.view:
        done, at_least = SHOWN, sum(stage["events"] for stage in oracle.stage_summary(topic.tables).values())
    topics.create(settings)
    with Workers(settings, folder) as crew:
        began = time.monotonic()
        worker = crew.start()
        worker.wait_until(
            lambda: worker.metric(done) >= at_least,
            SECONDS_AT_MOST,
            "has not counted the topic",
            every_seconds=1.0,  # each look is a scrape: 15 times as many as Prometheus makes
        )
        worker.send(signal.SIGTERM)
        run = measured(worker.process, began)
        tables = oracle.total(crew.wait(topic.events).tables)
    run.wrong = wrong_cells(topic.tables, tables)
    return run


def wrong_cells(expected: oracle.Tables, actual: oracle.Tables) -> str:
    wrong = oracle.differences(expected, actual)
    return f"{len(wrong)} cells differ, the first: {wrong[0]}" if wrong else ""


def measured(process: subprocess.Popen[bytes] | subprocess.Popen[str], began: float) -> Run:
    """Wait for the end of a process; what all of it took."""
    peak_mib = 0.0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        # What `wait4` tells of memory has that of the process that started it in it.
        peak_mib = max(peak_mib, machine.memory_mib(process.pid, "VmHWM"))
        if time.monotonic() > began + SECONDS_AT_MOST:
            process.kill()
        time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(usage.ru_utime + usage.ru_stime, time.monotonic() - began, peak_mib)


def race(contenders: Iterable[Contender], large: Filled, small: Filled, rounds: int) -> dict[str, list[Run]]:
    """Every contender once in each round, so that what disturbs the machine disturbs all."""
    runs: defaultdict[str, list[Run]] = defaultdict(list)
    for number in range(1, rounds + 1):
        for contender in contenders:
            topic = small if contender.is_slow else large
            run = run_once(contender, topic)
            runs[contender.name].append(run)
            told = run.wrong or f"{run.cpu_seconds / topic.events * 1e6:.2f} CPU s/M"
            click.echo(f"round {number}/{rounds} {contender.name}: {told}", err=True)
    return runs


class Result(msgspec.Struct):
    """Medians of the runs of a contender; `wrong` is the first reason not to believe them."""

    name: str
    does: str
    events: int
    cpu_s_per_million: float
    events_per_second: float
    peak_mib: float
    wrong: str


def summed_up(contender: Contender, runs: list[Run], events: int) -> Result:
    return Result(
        name=contender.name,
        does=contender.does,
        events=events,
        cpu_s_per_million=statistics.median(run.cpu_seconds for run in runs) / events * 1e6,
        events_per_second=events / statistics.median(run.wall_seconds for run in runs),
        peak_mib=statistics.median(run.peak_mib for run in runs),
        wrong=next((run.wrong for run in runs if run.wrong), ""),
    )


def table(results: list[Result]) -> str:
    ours = results[0].cpu_s_per_million
    lines = [
        "| | CPU s per million events | of callfunnel's | events/s | peak MiB | what it does |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for one in results:
        if one.wrong:
            lines.append(f"| {one.name} | WRONG: {one.wrong.splitlines()[0]} | | | | {one.does} |")
            continue
        lines.append(
            f"| {one.name} | {one.cpu_s_per_million:.1f} | {one.cpu_s_per_million / ours:.2f} "
            f"| {one.events_per_second:,.0f} | {one.peak_mib:.0f} | {one.does} |"
        )
    return "\n".join(lines)


def broker_of(address: str | None) -> Broker:
    """The one that runs at the address; else Apache Kafka; where that cannot be, the embedded one."""
    if address:
        return RunningBroker(address)
    if kraft.lacking():
        click.echo(f"{kraft.lacking()} Taking the embedded broker.", err=True)
        return EmbeddedBroker()
    return kraft.Cluster()


@click.command()
@click.option("--events", default=1_000_000, show_default=True, help="Events in the topic.")
@click.option("--slow-events", default=50_000, show_default=True, help="Events for the slow peers.")
@click.option("--seats", default=5_000, show_default=True, help="Agents on the floor.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each contender.")
@click.option("--quick", is_flag=True, help="callfunnel and the bare loop alone, fewer events.")
@click.option("--broker", metavar="HOST:PORT", help="A broker that runs already.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(
    events: int, slow_events: int, seats: int, rounds: int, quick: bool, broker: str | None, report: Path
) -> None:
    """callfunnel and its peers on one topic of one broker: CPU, rate, memory, once the totals are right."""
    contenders = []
    for one in CONTENDERS:
        if one.lacks:
            click.echo(f"{one.name} is left out: {one.lacks}", err=True)
        else:
            contenders.append(one)
    if tables_for("auto") is DefinedTables:
        contenders.remove(PLAIN)
        click.echo("no core here: callfunnel folds by the definition (make core)", err=True)
    if quick:
        events, rounds, slow_events = min(events, 250_000), 1, 20_000
        contenders = [one for one in contenders if one in (OURS, UNVIEWED, LOOP)]
    memory.prepare()
    with broker_of(broker) as running:
        prefix = f"bench-{os.getpid()}"
        settings = settings_of(running.address, prefix, clock="event", partitions=PARTITIONS, view=False)
        click.echo(f"filling a topic with {events:,} events …", err=True)
        records = floor(seats, events)
        few = msgspec.structs.replace(settings, app_id=f"{prefix}-few", source_topic=f"{prefix}-few")
        small = fill(few, records[:slow_events])
        with ThreadPoolExecutor(1) as aside:
            # While a broker that has just started does work of its own: nobody keeps these figures.
            warm_up = aside.submit(run_once, OURS, small)
            large = fill(settings, records)
            warm_up.result()
        runs = race(contenders, large, small, rounds)
    results = [summed_up(one, runs[one.name], (small if one.is_slow else large).events) for one in contenders]
    click.echo(table(results))
    if report:
        report.write_bytes(msgspec.json.format(msgspec.json.encode({"results": results, "runs": runs})))
    if any(one.wrong for one in results):
        sys.exit(1)
    cost = {one.name: one.cpu_s_per_million for one in results}
    for name, goal in GOALS.items():
        if name in cost:
            share = cost[name] / cost[LOOP.name]
            judged = f"goal {goal:.2f}: {'met' if share <= goal else 'missed'}"
            told = "not judged: the start weighs too much in so few events" if quick else judged
            click.echo(f"{name}: {share:.2f} of the bare msgspec loop ({told})")


if __name__ == "__main__":
    main()
