"""How old an event is when `/metrics` shows it, at a steady rate.

The law: one clock, the machine's, from `occurred_at` to the answer that shows the event. In every partition a
probe lead is dialed at short intervals, with a campaign of its own; its records keep their order, so a count
of n says that its first n dials are there. What is told is too old by up to the time between two answers,
never too young.
"""

import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from itertools import count, pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import click
import msgspec
from confluent_kafka import Producer

from bench import load, machine
from bench.starts import settings_of
from callfunnel.agents.config import Settings
from callfunnel.agents.kafka import topics
from deploy.kafka import kraft
from faults.stream import home
from integration.workers import PARTITIONS, Event, Worker, Workers, record

GOAL_MS = 1000
AT_RATE = 10_000
STEP_SECONDS = 0.01
PROBE_SECONDS = 0.02
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 60
COUNTED = 'callfunnel_events_total{campaign="probe-'

Dialed = list[list[int]]
"""By partition, when its probe was dialed, in Unix ms."""


class Run(msgspec.Struct):
    """What came of a rate. Times in ms; `published` and `lag` in events."""

    wanted_per_second: int
    per_second: float
    """What the publisher came to."""
    probes: int
    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0
    between_answers: float = 0.0
    """The median: so much of an age may be the method's."""
    lag: int = 0
    """What the worker was behind when the last event was published."""
    wrong: str = ""


def probe_lead(partition: int) -> str:
    return next(lead for n in count() if home(lead := f"probe-{n}", PARTITIONS) == partition)


def publish_steadily(broker: str, topic: str, per_second: int, seconds: float, back: Connection) -> None:
    """In a process of its own: what was dialed when, and how many events were acknowledged."""
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    failed: list[str] = []

    def send(event: Event) -> None:
        value, key, at_ms = record(event)
        told = lambda error, _: failed.append(str(error)) if error else None  # noqa: E731
        producer.produce(topic, value, key, timestamp=at_ms, on_delivery=told)

    probes = [probe_lead(partition) for partition in range(PARTITIONS)]
    dialed: Dialed = [[] for _ in probes]
    events = load.worked(int(per_second * seconds), agents=1_000)
    sent = turn = 0
    began = time.time()
    while (now := time.time()) < began + seconds:
        at_ms = int(now * 1000)
        due = min(int((now - began + STEP_SECONDS) * per_second), int(per_second * seconds))
        for _ in range(due - sent):
            send(next(events) | {"occurred_at": at_ms})
        sent = due
        while began + turn * PROBE_SECONDS <= now:
            partition, at_ms = turn % PARTITIONS, int(time.time() * 1000)
            lead = probes[partition]
            send(
                load.event(lead, 1, 0, 1, at_ms)
                | {"event_id": f"{lead}-{turn}", "campaign": f"probe-{partition}"}
            )
            dialed[partition].append(at_ms)
            turn += 1
        producer.poll(0)
        time.sleep(max(0.0, now + STEP_SECONDS - time.time()))
    took = time.time() - began
    left = producer.flush(PATIENCE_SECONDS)
    back.send((dialed, sent, took, f"{left} events were not acknowledged" if left else "".join(failed[:1])))


def shown(worker: Worker) -> tuple[float, list[int]]:
    """When the page had come, and how many dials of each probe it shows."""
    page = worker.get("/metrics")[1]
    at_ms = time.time() * 1000
    counts = [0] * PARTITIONS
    for line in page.splitlines():
        if line.startswith(COUNTED) and 'funnel_stage="dialed"' in line:
            counts[int(line.removeprefix(COUNTED).partition('"')[0])] = int(float(line.rsplit(" ", 1)[1]))
    return at_ms, counts


def measure(settings: Settings, per_second: int, seconds: float) -> Run:
    topics.create(settings)
    with (
        redirect_stdout(None),  # what the worker logged is told when it fails, and else not
        tempfile.TemporaryDirectory(prefix="latency-") as folder,
        Workers(settings, Path(folder)) as crew,
    ):
        worker = crew.start().wait_until_ready()
        here, there = get_context("spawn").Pipe()
        arguments = settings.broker, settings.source_topic, per_second, seconds, there
        publisher = get_context("spawn").Process(target=publish_steadily, args=arguments, daemon=True)
        publisher.start()
        arrived: list[list[float]] = [[] for _ in range(PARTITIONS)]
        answers: list[float] = []
        dialed: Dialed | None = None
        deadline = time.monotonic() + seconds + 2 * PATIENCE_SECONDS
        lag = 0
        while dialed is None or list(map(len, arrived)) != list(map(len, dialed)):
            at_ms, counts = shown(worker)
            answers.append(at_ms)
            for times, n in zip(arrived, counts, strict=True):
                times += [at_ms] * (n - len(times))
            if dialed is None and here.poll():
                dialed, sent, took, wrong = here.recv()
                lag = int(worker.metric("callfunnel_worker_consumer_lag"))
            if time.monotonic() > deadline:
                break
            time.sleep(max(0.0, POLL_SECONDS - (time.time() - at_ms / 1000)))
        publisher.join(PATIENCE_SECONDS)
    if dialed is None:
        return Run(per_second, 0.0, 0, wrong="the publisher did not end")
    run = Run(per_second, sent / took, sum(map(len, dialed)), lag=lag, wrong=wrong)
    if list(map(len, arrived)) != list(map(len, dialed)):
        run.wrong = f"of {run.probes} probes {sum(map(len, arrived))} were shown"
        return run
    ages = [
        came - went
        for times, whens in zip(arrived, dialed, strict=True)
        for came, went in zip(times, whens, strict=True)
    ]
    run.p50, run.p99, run.max = statistics.median(ages), statistics.quantiles(ages, n=100)[98], max(ages)
    run.between_answers = statistics.median(b - a for a, b in pairwise(answers))
    return run


def told(run: Run) -> str:
    if run.wrong:
        return f"{run.wanted_per_second:,} events/s: WRONG: {run.wrong}"
    line = (
        f"{run.wanted_per_second:,} events/s ({run.per_second:,.0f} published): p50 {run.p50:.0f} ms, "
        f"p99 {run.p99:.0f} ms, max {run.max:.0f} ms, {run.probes} probes, "
        f"an answer every {run.between_answers:.0f} ms"
    )
    if run.per_second < 0.95 * run.wanted_per_second:
        line += "; the publisher cannot send that fast here"
    if run.lag > run.wanted_per_second:
        line += f"; the worker cannot keep up here, it was {run.lag:,} events behind"
    if run.wanted_per_second == AT_RATE:
        line += f"  (goal p99 {GOAL_MS}: {'met' if run.p99 <= GOAL_MS else 'missed'})"
    return line


@click.command()
@click.option("--rate", "rates", type=int, multiple=True, default=(1_000, 10_000, 50_000), show_default=True)
@click.option("--seconds", default=30.0, show_default=True, help="How long each rate is held.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(rates: tuple[int, ...], seconds: float, report: Path | None) -> None:
    """From `occurred_at` of a published event to its presence in `/metrics`, on Apache Kafka.

    \b
      python -m bench.latency                   1,000, 10,000 and 50,000 events a second, 30 s each
      python -m bench.latency --rate 20000      one rate

    One worker with its view, as by default; publisher, broker, worker and reader share the machine. Ends
    with 1 when a probe was lost on the way.
    """
    runs = []
    with kraft.Cluster() as kafka:
        for rate in rates:
            settings = settings_of(kafka.address, f"latency-{rate}", partitions=PARTITIONS)
            click.echo(f"{rate:,} events/s for {seconds:g} s …", err=True)
            runs.append(measure(settings, rate, seconds))
            click.echo(told(runs[-1]))
    machine.write(report, runs=runs)
    if any(run.wrong for run in runs):
        sys.exit(1)


if __name__ == "__main__":
    main()
