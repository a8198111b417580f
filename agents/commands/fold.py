"""`callfunnel fold`: which settings make the rows, and what an operator decides about them."""

import click

from callfunnel.agents import exit_codes


@click.group("fold")
def command() -> None:
    """Decide about the settings of the fold what no worker may decide.

    \b
    Example:
      CALLFUNNEL_HANGUP_SECONDS=15 callfunnel fold adopt --broker kafka-1:9092
    """


@command.command()
@click.option("--broker", metavar="HOST:PORT", help="Where Kafka listens.")
@click.option(
    "--profile", type=click.Choice(["production", "development"]), help="development: one copy of everything."
)
def adopt(broker: str | None, profile: str | None) -> int:
    """Let workers with the settings in force here derive the rows anew, although others replaced these.

    Where the hang-up threshold, the time zone or the retention changes, workers derive the rows anew from the
    logs of the leads, by themselves. They do not go back by themselves: a worker with former settings ends
    with 78, so that two workers never derive against each other. This command says that going back is meant.

    Stop all workers first, and start them with these settings afterwards. A worker that runs all the same
    loses its partitions and ends with 75. Nothing is lost either way: rows follow from logs. What a shorter
    retention has archived in the meantime stays archived.

    Exit code 0, also where there is nothing to go back to.
    """
    import asyncio
    import os

    from callfunnel.agents import failpoints
    from callfunnel.agents.config import Settings
    from callfunnel.agents.engine.adopt import adopt_fold, writing
    from callfunnel.agents.engine.worker import fold_of
    from callfunnel.agents.kafka import topics

    settings = Settings.from_environ(os.environ, broker=broker, profile=profile)
    failpoints.arm(settings.failpoint)
    count = topics.require(settings)

    async def run() -> list[int]:
        async with writing(settings, "write the changelogs") as (transactions, client):
            return await adopt_fold(transactions, client, settings.app_id, count, fold_of(settings))

    if changed := asyncio.run(run()):
        told = ", ".join(map(str, changed))
        click.echo(f"Partitions {told} may go back to these settings. Start the workers with them.")
    else:
        click.echo("No partition was made with these settings before and with others since: nothing to do.")
    return exit_codes.OK
