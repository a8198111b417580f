"""How old an event is when `/metrics` shows it, at a steady rate.

The law: one clock, the machine's, from `occurred_at` to the answer that shows the event. In every partition a
probe lead is dialed at short intervals, with a campaign of its own; its records keep their order, so a count
of n says that its first n dials are there. What is told is too old by up to the time between two answers,
never too young.
"""

import re
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import cache
from itertools import count, islice, pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import click
import msgspec
from confluent_kafka import Producer

from bench import load, machine, wide
from bench.starts import settings_of
from callfunnel.agents.config import Settings
from callfunnel.agents.kafka import topics
from deploy.kafka import kraft
from faults.stream import home
from integration.workers import PARTITIONS, Event, Worker, Workers, publish, record

GOAL_MS = 1000
SEED = 7
STEP_SECONDS = 0.01
PROBE_SECONDS = 0.02
PATIENCE_SECONDS = 60
PROBES = 'callfunnel_events_total{campaign="probe-'
DIALS = re.compile(PROBES + r'(\d+)".*funnel_stage="dialed".* (\S+)')
CONSUMED = "callfunnel_worker_events_consumed_total"

Dialed = list[list[int]]
"""By partition, when its probe was dialed, in Unix ms."""


class Floor(msgspec.Struct, frozen=True):
    """Where events come from, and how they are measured."""

    rates: tuple[int, ...]
    """Events a second, unless others are asked for."""
    goal_rate: int
    poll_seconds: float
    is_wide: bool = False


USUAL = Floor((100, 1_000, 10_000, 50_000), 10_000, poll_seconds=0.02)
WIDE = Floor((5_000,), 5_000, poll_seconds=0.1, is_wide=True)
"""Its page has 9 MB. A worker that is asked for it every 20 ms makes pages and does little else."""


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


@cache
def probe_lead(partition: int) -> str:
    return next(lead for n in count() if home(lead := f"probe-{n}", PARTITIONS) == partition)


def probe_event(partition: int, step: int, number: int, at_ms: int) -> Event:
    lead = probe_lead(partition)
    own = {"event_id": f"{lead}-{number}", "campaign": f"probe-{partition}"}
    return load.event(lead, step, 0, 1, at_ms) | own


def publish_steadily(
    broker: str, topic: str, per_second: int, seconds: float, floor: Floor, back: Connection
) -> None:
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

    dialed: Dialed = [[] for _ in range(PARTITIONS)]
    events = load.worked(int(per_second * seconds), agents=1_000)
    if floor.is_wide:
        events = islice(wide.events(SEED), wide.WARM_EVENTS, None)
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
            send(probe_event(partition, 1, turn, at_ms))
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
    for partition, n in DIALS.findall(page):
        counts[int(partition)] = int(float(n))
    return at_ms, counts


def warm(worker: Worker) -> None:
    """Take in the hour before of the wide floor.

    The probes come first: a family shows the series that were there first, up to its limit.
    """
    began = time.time() - wide.WARM_SECONDS
    probes = [probe_event(partition, 0, -1, int(began * 1000)) for partition in range(PARTITIONS)]
    publish(worker.settings, map(record, probes))
    worker.wait_until(
        lambda: worker.metric(PROBES) == len(probes), PATIENCE_SECONDS, "does not show the probes"
    )
    before = wide.at(wide.events(SEED), wide.WARM_EVENTS, began, wide.WARM_SECONDS)
    publish(worker.settings, before)
    events = len(probes) + wide.WARM_EVENTS
    worker.wait_until(
        lambda: worker.metric(CONSUMED) == events,
        PATIENCE_SECONDS,
        "has not consumed them",
        every_seconds=1.0,
    )


def measure(settings: Settings, per_second: int, seconds: float, floor: Floor) -> Run:
    topics.create(settings)
    with (
        redirect_stdout(None),  # what the worker logged is told when it fails, and else not
        tempfile.TemporaryDirectory(prefix="latency-") as folder,
        Workers(settings, Path(folder)) as crew,
    ):
        worker = crew.start().wait_until_ready()
        if floor.is_wide:
            warm(worker)
        here, there = get_context("spawn").Pipe()
        arguments = settings.broker, settings.source_topic, per_second, seconds, floor, there
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
            time.sleep(max(0.0, floor.poll_seconds - (time.time() - at_ms / 1000)))
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


def told(run: Run, floor: Floor) -> str:
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
    if run.wanted_per_second == floor.goal_rate:
        line += f"  (goal p99 {GOAL_MS}: {'met' if run.p99 <= GOAL_MS else 'missed'})"
    return line


@click.command()
@click.option("--rate", "rates", type=int, multiple=True, help="Events a second; may be repeated.")
@click.option("--wide", "is_wide", is_flag=True, help="The floor of bench.wide, with an hour of it before.")
@click.option("--seconds", default=30.0, show_default=True, help="How long each rate is held.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(rates: tuple[int, ...], is_wide: bool, seconds: float, report: Path | None) -> None:
    """From `occurred_at` of a published event to its presence in `/metrics`, on Apache Kafka.

    \b
      python -m bench.latency                   100, 1,000, 10,000 and 50,000 events a second, 30 s each
      python -m bench.latency --rate 20000      one rate
      python -m bench.latency --wide            5,000 events a second of 10,000 segments

    One worker with its view, as by default; publisher, broker, worker and reader share the machine. Ends
    with 1 when a probe was lost on the way.
    """
    floor = WIDE if is_wide else USUAL
    runs = []
    with kraft.Cluster() as kafka:
        for rate in rates or floor.rates:
            settings = settings_of(kafka.address, f"latency-{rate}", partitions=PARTITIONS)
            click.echo(f"{rate:,} events/s for {seconds:g} s …", err=True)
            runs.append(measure(settings, rate, seconds, floor))
            click.echo(told(runs[-1], floor))
    machine.write(report, runs=runs)
    if any(run.wrong for run in runs):
        sys.exit(1)


if __name__ == "__main__":
    main()
