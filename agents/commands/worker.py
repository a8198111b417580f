"""`callfunnel worker`: fold events into the tables."""

import click


@click.command("worker")
@click.option("--broker", metavar="HOST:PORT", help="Where Kafka listens.")
@click.option(
    "--profile", type=click.Choice(["production", "development"]), help="development: one copy of everything."
)
@click.option("--view/--no-view", default=None, help="Serve the business numbers from this process too.")
@click.option(
    "--instance", metavar="NAME", help="Static name in the group: a restart takes its partitions back."
)
@click.option("--http-host", metavar="ADDRESS", help="Where the pages listen.")
@click.option(
    "--http-port", type=int, metavar="PORT", help="Their port: 9464, or the next that is free; 0: any."
)
@click.option(
    "--wait",
    "wait_seconds",
    type=float,
    metavar="SECONDS",
    help="How long to wait for a broker that is down.",
)
def command(**options: str | float | bool | None) -> int:
    """Fold call events into the funnel tables until SIGTERM or Ctrl-C, and serve /metrics.

    Any number of workers with the same app id share the partitions of the source topic. A worker may be
    killed at any moment: the next one goes on exactly where its tables end. Every setting can also be a
    CALLFUNNEL_ variable; see `callfunnel config`.

    Exit codes: 0 stopped as told, 64 a setting is wrong, 69 no broker, 70 a write failed or the worker
    stalled, 75 another worker took over (start again), 78 topics or tables are not as they must be.

    \b
    Example:
      callfunnel topics create --profile development
      callfunnel worker --profile development
    """
    import os

    from callfunnel.agents.config import Settings
    from callfunnel.agents.engine import worker

    return worker.run(Settings.from_environ(os.environ, **options))
