"""`callfunnel topics`: create, list, check and fix the four topics."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from callfunnel.agents import exit_codes

if TYPE_CHECKING:
    from callfunnel.agents.config import Settings
    from callfunnel.agents.kafka.topics import Difference

_broker = click.option("--broker", metavar="HOST:PORT", help="Where Kafka listens.")
_profile = click.option(
    "--profile", type=click.Choice(["production", "development"]), help="development: one copy of everything."
)


@click.group("topics")
def command() -> None:
    """Create and check the topics: source, dead letters and the two changelogs.

    \b
    Example:
      callfunnel topics create --profile development
    """


@command.command()
@_broker
@_profile
@click.option("--partitions", type=int, metavar="N", help="Partitions of a source that does not exist yet.")
@click.option("--wait", metavar="SECONDS", type=float, help="How long to wait for a broker that is down.")
def create(broker: str | None, profile: str | None, partitions: int | None, wait: float | None) -> int:
    """Create the topics that are missing; safe to run again.

    An existing topic is left as it is. Where it is not as it has to be, that is told, with exit code 78.
    """
    from callfunnel.agents.kafka import topics

    settings = _settings(broker=broker, profile=profile, partitions=partitions, wait_seconds=wait)
    topics.wait_for_broker(settings, lambda message: click.echo(message, err=True))
    created = {change.topic for change in topics.create(settings)}
    for spec in topics.existing(settings):
        done = "created" if spec.name in created else "exists "
        click.echo(f"{done} {spec.name}: {_size(spec.partitions, spec.replication_factor)}")
    return _verdict(topics.compare(settings))


@command.command("list")
@_broker
def list_(broker: str | None) -> None:
    """Show the topics as they are on the broker."""
    from callfunnel.agents.kafka import topics
    from callfunnel.schemas.topics import WHY

    settings = _settings(broker=broker)
    found = {spec.name: spec for spec in topics.existing(settings)}
    for asked in topics.wanted(settings):
        spec = found.get(asked.name)
        if spec is None:
            click.echo(f"{asked.name}: missing")
            continue
        click.echo(f"{spec.name}: {_size(spec.partitions, spec.replication_factor)}")
        for key in asked.config:
            setting = f"{key}={spec.config.get(key, 'unknown')}"
            click.echo(f"  {setting:<44}{WHY[key]}")


@command.command()
@_broker
@_profile
def check(broker: str | None, profile: str | None) -> int:
    """Compare the topics with what they have to be; exit code 78 when they differ."""
    from callfunnel.agents.kafka import topics

    found = topics.compare(_settings(broker=broker, profile=profile))
    if not found:
        click.echo("All topics are as they have to be.")
    return _verdict(found)


@command.command()
@_broker
@_profile
def fix(broker: str | None, profile: str | None) -> int:
    """Set the settings of existing topics right; retention is never shortened."""
    from callfunnel.agents.kafka import topics

    settings = _settings(broker=broker, profile=profile)
    for change in topics.mend(settings):
        click.echo(f"set {change.topic}: {change.what}={change.value}")
    return _verdict(topics.compare(settings))


@command.command("rights")
@_broker
@click.option("--principal", default="User:NAME", show_default=True, help="Who gets them, as Kafka names it.")
def rights_(broker: str | None, principal: str) -> None:
    """Print the commands that grant what each kind of client needs, for a Kafka with ACLs.

    Nothing is asked of the broker. Create is only needed for `callfunnel topics create`, AlterConfigs for
    `callfunnel topics fix`.
    """
    from callfunnel.agents.kafka import rights

    settings = _settings(broker=broker)
    for role, needed in rights.needed(settings).items():
        click.echo(f"# {role}")
        for right in needed:
            click.echo(right.command(settings.broker, principal))


def _settings(**options: object) -> "Settings":
    import os

    from callfunnel.agents.config import Settings

    return Settings.from_environ(os.environ, **options)


def _verdict(found: Iterable["Difference"]) -> int:
    wrong = list(found)
    for difference in wrong:
        click.echo(f"wrong   {difference}", err=True)
    return exit_codes.CONFIG if wrong else exit_codes.OK


def _size(partitions: int, copies: int) -> str:
    return f"{partitions} partition{'s' * (partitions > 1)}, {copies} cop{'ies' if copies > 1 else 'y'}"
