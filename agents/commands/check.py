"""`callfunnel check`: one line per thing a worker needs, with the remedy where something is wrong."""

import click

from callfunnel.agents import exit_codes


@click.command("check")
@click.option("--broker", metavar="HOST:PORT", help="Where Kafka listens.")
@click.option(
    "--profile", type=click.Choice(["production", "development"]), help="development: one copy of everything."
)
def command(broker: str | None, profile: str | None) -> int:
    """Check everything a worker needs: versions, tables, broker, topics, dead letters, routing.

    Prints one line each: `ok`, or `warn` or `FAIL` with the remedy. Nothing is changed. Exit code 0 when
    nothing fails, 69 when no broker answers, 78 when something has to be set right.

    \b
    Example:
      callfunnel check --broker kafka-1:9092
    """
    import os

    from callfunnel.agents.config import Settings
    from callfunnel.agents.engine import checks

    all_well = True
    for finding in checks.run(Settings.from_environ(os.environ, broker=broker, profile=profile)):
        if not finding.ok:
            mark = click.style("FAIL", fg="red", bold=True)
        elif finding.remedy:
            mark = click.style("warn", fg="yellow")
        else:
            mark = click.style("ok  ", fg="green")
        remedy = f"\n     remedy: {finding.remedy}" if finding.remedy else ""
        click.echo(f"{mark} {finding.what}: {finding.told}{remedy}")
        all_well &= finding.ok
    return exit_codes.OK if all_well else exit_codes.CONFIG
