"""`callfunnel source`: which topic the tables are made from, and what an operator decides about it."""

from typing import TYPE_CHECKING

import click

from callfunnel.agents import exit_codes

if TYPE_CHECKING:
    from callfunnel.agents.config import Settings
    from callfunnel.agents.engine.adopt import Adopted


@click.group("source")
def command() -> None:
    """Decide about the source topic what no worker may decide.

    \b
    Example:
      callfunnel source adopt --broker kafka-1:9092 --dry-run
      callfunnel source resume --partition 3
    """


@command.command()
@click.option("--broker", metavar="HOST:PORT", help="Where Kafka listens.")
@click.option(
    "--profile", type=click.Choice(["production", "development"]), help="development: one copy of everything."
)
@click.option("--dry-run", is_flag=True, help="Compare and tell; change nothing, and leave workers alone.")
def adopt(broker: str | None, profile: str | None, dry_run: bool) -> int:
    """Let the tables go on with another topic that holds the same records at the same offsets.

    For a source that was restored, mirrored with its offsets, or moved to another cluster together with the
    changelogs: a worker ends with 78 then, because a topic with another id or name may hold anything.

    Compared is, for each partition, one record: the last that the tables took in. Its offset, time, key and
    value must be the same in the topic that CALLFUNNEL_SOURCE_TOPIC names. The records before it are taken
    for the same; those behind it will be counted. If one partition differs, nothing is changed.

    Stop all workers first. A worker that runs all the same loses its partitions and ends with 75; if it takes
    one back in the middle, this command ends with 75. Run it again then, or after a crash: it goes on.

    Exit code 0 when the tables go on with the topic, 78 when they cannot.
    """
    import asyncio
    import os

    from callfunnel.agents import failpoints
    from callfunnel.agents.config import Settings
    from callfunnel.agents.kafka import topics

    settings = Settings.from_environ(os.environ, broker=broker, profile=profile)
    failpoints.arm(settings.failpoint)
    count = topics.require(settings)
    asyncio.run(_adopt(settings, count, dry_run))
    click.echo("Nothing was changed." if dry_run else "The tables go on with this topic. Start the workers.")
    return exit_codes.OK


async def _adopt(settings: "Settings", count: int, dry_run: bool) -> None:
    from callfunnel.agents.engine.adopt import adopt, writing
    from callfunnel.agents.engine.source import Source

    def tell(partition: "Adopted") -> None:
        click.echo(_line(f"{settings.source_topic}/{partition.number}", partition, dry_run))

    async with writing(settings, "read the source and write the changelogs") as (transactions, client):
        source = Source(client, settings.source_topic, settings.transaction_timeout_seconds)
        try:
            await adopt(transactions, source, client, settings.app_id, count, only_compare=dry_run, tell=tell)
        finally:
            await source.close()


def _line(at: str, partition: "Adopted", dry_run: bool) -> str:
    old, new = partition.old, partition.new
    if old is None:
        return f"none    {at}: no tables yet"
    if new is None:
        return f"same    {at}: the tables are made from this topic already"
    last = "its offset" if old.witness is None else f"the record at offset {old.witness.offset}"
    return f"{'would  ' if dry_run else 'adopted'} {at}: {last} fits, goes on at offset {new.offset}"


@command.command()
@click.option("--broker", metavar="HOST:PORT", help="Where Kafka listens.")
@click.option(
    "--partition",
    "partitions",
    type=click.IntRange(min=0),
    multiple=True,
    required=True,
    metavar="N",
    help="A stopped partition; may be given several times.",
)
def resume(broker: str | None, partitions: tuple[int, ...]) -> int:
    """Let a partition go on that stands still because it is poisoned (CALLFUNNEL_DLQ_STOP).

    Its worker notices within seconds and goes on where it stopped: what is rejected goes to the dead letters,
    the rest is counted. It stops again when it has been clean and is poisoned by records that are published
    later. On a partition that is not stopped the command changes nothing.

    \b
    Example:
      callfunnel source resume --partition 3 --partition 5
    """
    import os

    from callfunnel.agents.config import Settings
    from callfunnel.agents.engine.resume import resume

    settings = Settings.from_environ(os.environ, broker=broker)
    for partition, end in sorted(resume(settings, partitions).items()):
        click.echo(
            f"{settings.source_topic}/{partition} may go on: poison before offset {end} stops it no more."
        )
    return exit_codes.OK
