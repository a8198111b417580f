"""`callfunnel remedies`: what can be done where a worker cannot go on, and what it costs."""

import click

from callfunnel.agents import exit_codes


@click.command("remedies")
@click.argument("ids", nargs=-1, metavar="[ID]…")
def command(ids: tuple[str, ...]) -> int:
    """Say what can be done where a worker cannot go on by itself, and what that costs in events.

    Messages of workers and `callfunnel check` name remedies by these ids. Each one was carried out and
    counted on Apache Kafka: no event is lost or counted twice beyond what is told here.

    \b
    Example:
      callfunnel remedies
      callfunnel remedies rebuild
    """
    from callfunnel.agents.remedies import REMEDIES

    if unknown := set(ids) - REMEDIES.keys():
        raise click.UsageError(
            f"no such remedy: {', '.join(sorted(unknown))}; there are {', '.join(REMEDIES)}"
        )
    for remedy in map(REMEDIES.__getitem__, ids or REMEDIES):
        click.echo(click.style(remedy.id, bold=True))
        for what, text in (("when", remedy.when), ("do", remedy.do), ("costs", remedy.cost)):
            click.echo(click.wrap_text(f"{what:<6}{text}.", 100, "  ", " " * 8))
    return exit_codes.OK
