"""What a row costs a view that only holds it, and what it takes to have a year of them.

The changelog is written as workers leave it after 400 days: of every agent a row for each day, and for most
of the last 72 hours. A view starts on it, as `callfunnel view` does; beside it stands one without rows.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import click

from bench import machine
from bench.starts import Start, settings_of, start, write
from callfunnel.agents.config import Settings
from callfunnel.agents.kafka import topics
from callfunnel.schemas.topics import funnel_changelog
from callfunnel.streams.funnel import Change
from callfunnel.streams.panes import pane_start
from callfunnel.streams.rows import POSITION_KEY, Position, encode_columns, encode_key, encode_position
from deploy.kafka import kraft

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


def rows(settings: Settings, agents: int) -> Iterator[Change]:
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
    """Make the topics and write the changelog; how many rows."""
    topics.create(settings)
    written = 0

    def changes() -> Iterator[tuple[int, Change]]:
        nonlocal written
        for change in rows(settings, agents):
            yield written % PARTITIONS, change
            written += 1
        position = encode_position(Position(offset=written, watermark_ms=NOW_S * 1000, fold="f"))
        for partition in range(PARTITIONS):
            yield partition, (POSITION_KEY, position)

    write(settings, funnel_changelog(settings.app_id), changes())
    return written


@click.command(help=__doc__)
@click.option("--agents", default=5_000, show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(agents: int, report: Path | None) -> None:
    with kraft.Cluster() as kafka:
        found: dict[int, tuple[int, Start]] = {}
        for n in (0, agents):
            settings = settings_of(kafka.address, f"rows-{n}", clock="event", partitions=PARTITIONS)
            click.echo(f"writing the changelog of {n:,} agents …", err=True)
            found[n] = fill(settings, n), start(settings, "view")
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
