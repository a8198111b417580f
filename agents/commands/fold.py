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
    loses its partitions and ends with 75. Nothing is lost either way: rows follow from logs.

    Exit code 0, also where there is nothing to go back to.
    """
    import asyncio
    import os

    from callfunnel.agents import failpoints
    from callfunnel.agents.config import Settings
    from callfunnel.agents.engine.adopt import adopt_fold
    from callfunnel.agents.engine.transactions import Transactions
    from callfunnel.agents.engine.worker import fold_of
    from callfunnel.agents.errors import Failure
    from callfunnel.agents.kafka import topics
    from callfunnel.agents.kafka.connection import aiokafka_options
    from callfunnel.agents.kafka.read_committed import repair

    settings = Settings.from_environ(os.environ, broker=broker, profile=profile)
    failpoints.arm(settings.failpoint)
    count = topics.require(settings)
    repair()

    async def run() -> list[int]:
        from aiokafka.errors import KafkaError

        client = aiokafka_options(settings)
        transactions = Transactions(settings.app_id, client, settings.transaction_timeout_seconds)
        try:
            return await adopt_fold(transactions, client, settings.app_id, count, fold_of(settings))
        except (KafkaError, TimeoutError) as error:
            raise Failure(
                f"Kafka at {settings.broker} does not answer: {error!r}. Check the brokers and the "
                "permission to write the changelogs, then run this again: it goes on."
            ) from error
        finally:
            await transactions.close()

    if changed := asyncio.run(run()):
        told = ", ".join(map(str, changed))
        click.echo(f"Partitions {told} may go back to these settings. Start the workers with them.")
    else:
        click.echo("No partition was made with these settings before and with others since: nothing to do.")
    return exit_codes.OK
