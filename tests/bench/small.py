"""What a small floor costs: a worker with its view and a broker, at a few events a second and at none.

The law: CPU is what the operating system says of each process between two moments, both ready and warm.
"""

import sys
import tempfile
import threading
import time
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path

import click
import msgspec
from confluent_kafka import Producer

from bench import load, machine
from bench.starts import settings_of
from callfunnel.agents.config import Settings
from callfunnel.agents.kafka import topics
from deploy.kafka import kraft
from integration.workers import Worker, Workers, record

PARTITIONS = 8
SCRAPE_SECONDS = 15.0
WARM_SECONDS = 10.0
GOALS = {"worker": 10.0, "broker": 18.0, "idle worker": 1.5}
"""Percent of a core."""


class Span(msgspec.Struct):
    """What a stretch of time took. CPU in percent of a core."""

    events_per_second: float
    worker: float
    broker: float
    transactions_per_second: float


def publish_steadily(settings: Settings, per_second: int, ended: threading.Event) -> None:
    producer = Producer(
        {"bootstrap.servers": settings.broker, "partitioner": "murmur2_random", "linger.ms": 5}
    )
    events = load.worked(10_000_000, agents=20)
    began = time.monotonic()
    for sent in count(1):
        if ended.wait(max(0.0, began + sent / 10 - time.monotonic())):
            return
        now_ms = int(time.time() * 1000)
        due = int(sent * per_second / 10) - int((sent - 1) * per_second / 10)
        for _ in range(due):
            value, key, at_ms = record(next(events) | {"occurred_at": now_ms})
            producer.produce(settings.source_topic, value, key, timestamp=at_ms)
        producer.flush(10)


def spent(worker: Worker, broker_pid: int, seconds: float) -> Span:
    pids = worker.process.pid, broker_pid
    events, transactions = (
        f"callfunnel_worker_{name}" for name in ("events_consumed_total", "batch_seconds_count")
    )
    before = [worker.metric(name) for name in (events, transactions)]
    cpu, began = [machine.cpu_seconds(pid) for pid in pids], time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(left, SCRAPE_SECONDS))
        worker.get("/metrics")
    took = time.monotonic() - began
    shares = [(machine.cpu_seconds(pid) - was) / took * 100 for pid, was in zip(pids, cpu, strict=True)]
    gained = [
        (worker.metric(name) - was) / took for name, was in zip((events, transactions), before, strict=True)
    ]
    return Span(gained[0], *shares, gained[1])


@click.command()
@click.option("--rate", default=50, show_default=True, help="Events a second.")
@click.option("--seconds", default=60.0, show_default=True, help="How long each of the two is measured.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(rate: int, seconds: float, report: Path | None) -> None:
    """CPU of a worker with its view, and of its broker, on a small floor and without an event.

    Scraped every 15 s, as Prometheus does. Ends with 1 when an event was not counted.
    """
    with kraft.Cluster() as kafka, tempfile.TemporaryDirectory(prefix="small-") as folder:
        settings = settings_of(kafka.address, "small", partitions=PARTITIONS)
        topics.create(settings)
        with redirect_stdout(None), Workers(settings, Path(folder)) as crew:
            worker = crew.start().wait_until_ready()
            ended = threading.Event()
            publisher = threading.Thread(target=publish_steadily, args=(settings, rate, ended))
            publisher.start()
            try:
                time.sleep(WARM_SECONDS)
                busy = spent(worker, kafka.nodes[0].pid, seconds)
            finally:
                ended.set()
                publisher.join()
            time.sleep(WARM_SECONDS)
            idle = spent(worker, kafka.nodes[0].pid, seconds)
            behind = worker.metric("callfunnel_worker_consumer_lag")
    for name, one in (("at work", busy), ("idle", idle)):
        rates = f"{one.events_per_second:.1f} events/s, {one.transactions_per_second:.1f} transactions/s"
        click.echo(f"{name}: {rates}, worker {one.worker:.1f} %, broker {one.broker:.1f} % of a core")
    figures = {"worker": busy.worker, "broker": busy.broker, "idle worker": idle.worker}
    for name, goal in GOALS.items():
        click.echo(
            f"{name}: {figures[name]:.1f} %  (goal {goal:g}: {'met' if figures[name] <= goal else 'missed'})"
        )
    machine.write(report, at_work=busy, idle=idle)
    if behind:
        sys.exit(1)


if __name__ == "__main__":
    main()
