"""What a row costs a view that only holds it, and what it takes to have a year of them.

The changelog is written as workers leave it after 400 days: of every agent a row for each day, and for most
of the last 72 hours. A view starts on it, as `callfunnel view` does; beside it stands one without rows.
"""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen
from zoneinfo import ZoneInfo

import click
import msgspec
from confluent_kafka import Producer

from bench import machine
from callfunnel.agents.config import Settings
from callfunnel.agents.demo.broker import free_port
from callfunnel.agents.kafka import topics
from callfunnel.schemas.topics import funnel_changelog
from callfunnel.streams.panes import pane_start
from callfunnel.streams.rows import POSITION_KEY, Position, encode_columns, encode_key, encode_position
from deploy.kafka import kraft
from integration.workers import PROGRAM, ROOT, variables, with_only
from patience import Deadline

SEED = 7
PARTITIONS = 4
NOW_S = 1_780_300_800
DAYS, HOURS = 400, 72
BUSY = 0.6
"""The share of its hours in which an agent has a row."""
COLUMNS = (
    *("events_dialed", "events_connected", "events_reached"),
    *("leads_dialed", "leads_connected", "leads_reached", "leads_qualified"),
)
GOALS = {"resident_bytes_of_a_row": 150.0, "cpu_us_of_a_row": 2.0}
SECONDS_AT_MOST = 300.0
CURRENT = b'callfunnel_view_state{state="current"} 1.0'


class Start(msgspec.Struct):
    cpu_seconds: float
    seconds: float
    memory_mib: float


def rows(settings: Settings, agents: int) -> Iterator[tuple[bytes, bytes]]:
    """Oldest first, as they were written last."""
    chance, zone = random.Random(SEED), ZoneInfo(settings.timezone)
    for resolution, step, panes in (("1d", 86_400, DAYS), ("1h", 3_600, HOURS)):
        for back in reversed(range(panes)):
            pane = pane_start(resolution, NOW_S - back * step, zone)
            for agent in range(agents):
                if resolution == "1d" or chance.random() < BUSY:
                    key = (resolution, pane, "team+agent", f"team-{agent // 12}", f"agent-{agent}")
                    columns = {column: chance.randint(1, step // 400) for column in COLUMNS}
                    yield encode_key(key), encode_columns(columns)


def fill(settings: Settings, agents: int) -> int:
    """Write the changelog; how many rows."""
    topic, n = funnel_changelog(settings.app_id), 0
    producer = Producer({"bootstrap.servers": settings.broker, "linger.ms": 50, "compression.type": "zstd"})
    for n, (key, value) in enumerate(rows(settings, agents), start=1):
        producer.produce(topic, value, key, partition=n % PARTITIONS)
        if n % 10_000 == 0:
            producer.flush()
    position = encode_position(Position(offset=n, watermark_ms=NOW_S * 1000, fold="f"))
    for partition in range(PARTITIONS):
        producer.produce(topic, position, POSITION_KEY, partition=partition)
    producer.flush()
    return n


def start(settings: Settings) -> Start:
    """A view until it has numbers."""
    port, began = free_port(), time.monotonic()
    command = [sys.executable, *PROGRAM, "view", "--http-port", str(port)]
    view = subprocess.Popen(command, cwd=ROOT, env=with_only(variables(settings)))
    try:
        deadline = Deadline(SECONDS_AT_MOST)
        while not is_current(port):
            if deadline.is_over or view.poll() is not None:
                raise click.ClickException("the view has no numbers")
            time.sleep(0.1)
        seconds = time.monotonic() - began
        return Start(machine.cpu_seconds(view.pid), seconds, machine.memory_mib(view.pid, "VmRSS"))
    finally:
        view.terminate()
        view.wait()


def is_current(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return CURRENT in answer.read()
    except OSError:
        return False


@click.command(help=__doc__)
@click.option("--agents", default=5_000, show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(agents: int, report: Path | None) -> None:
    with kraft.Cluster() as kafka:
        found: dict[int, tuple[int, Start]] = {}
        for n in (0, agents):
            app_id = f"rows-{n}"
            settings = Settings.from_environ(
                {},
                broker=kafka.address,
                profile="development",
                clock="event",
                partitions=PARTITIONS,
                app_id=app_id,
                source_topic=app_id,
                dead_letter_topic=f"{app_id}.dlq",
            )
            topics.create(settings)
            click.echo(f"writing the changelog of {n:,} agents …", err=True)
            found[n] = fill(settings, n), start(settings)
    (_, empty), (written, full) = found.values()
    figures = {
        "rows": float(written),
        "seconds_to_numbers": full.seconds,
        "memory_mib": full.memory_mib,
        "resident_bytes_of_a_row": (full.memory_mib - empty.memory_mib) * 2**20 / written,
        "cpu_us_of_a_row": (full.cpu_seconds - empty.cpu_seconds) * 1e6 / written,
    }
    machine.tell(figures, GOALS, report)


if __name__ == "__main__":
    main()
