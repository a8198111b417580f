"""`callfunnel validate`: the engine's verdict on a file of events, before anything is published."""

import click


@click.command("validate")
def command() -> None:
    """Check a file of events against the contract."""
