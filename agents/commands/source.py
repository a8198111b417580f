"""`callfunnel source`: what an operator decides about the source topic."""

import click

from agents import exit_codes


@click.group("source")
def command() -> None:
    """Decide about the source topic what no worker may decide.

    \b
    Example:
      callfunnel source resume --partition 3
    """


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

    from agents.config import Settings
    from agents.resume import resume

    settings = Settings.from_environ(os.environ, broker=broker)
    for partition, end in sorted(resume(settings, partitions).items()):
        click.echo(
            f"{settings.source_topic}/{partition} may go on: poison before offset {end} stops it no more."
        )
    return exit_codes.OK
