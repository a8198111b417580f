"""`callfunnel demo`: see the whole product work."""

from typing import Any

import click


@click.command("demo")
@click.option(
    "--broker", metavar="HOST:PORT", help="A running Kafka; without it, the embedded broker is started."
)
@click.option(
    "--once", is_flag=True, help="End when all bundled events are in the tables, compared with the oracle."
)
@click.option("--json", "as_json", is_flag=True, help="With --once: print the verdict as one JSON line.")
@click.option("--workers", type=click.IntRange(1, 8), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--partitions", type=click.IntRange(1, 64), default=4, show_default=True, help="Partitions of the source."
)
@click.option(
    "--seats", type=click.IntRange(1, 2000), default=100, show_default=True, help="Agents on the live floor."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the live floor.")
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Where the funnel is served: 9464, or the next port that is free; 0: any.",
)
def command(as_json: bool, once: bool, **options: Any) -> int:
    """Replay a real campaign through Kafka, then run a live floor; serve the funnel until Ctrl-C.

    Starts a broker and workers, publishes 265,878 events of 45,211 real leads (UCI Bank Marketing), shows the
    funnel, and goes on with a realistic live stream. Kill a worker with -9 whenever you like: it is started
    again, and no number changes.

    \b
    Examples:
      callfunnel demo
      callfunnel demo --once --json
      callfunnel demo --broker localhost:9092 --workers 2
    """
    from callfunnel.agents.demo import run as demo

    if as_json and not once:
        raise click.UsageError("--json goes with --once")
    return demo.run(demo.Options(once=once, as_json=as_json, **options))
