"""`callfunnel view`: the live numbers without a worker."""

import click

from callfunnel.agents import exit_codes

_TELL_SECONDS = 5.0


@click.command("view")
@click.option("--broker", metavar="HOST:PORT", help="Where Kafka listens.")
@click.option("--http-host", metavar="ADDRESS", help="Where the pages listen.")
@click.option(
    "--http-port", type=int, metavar="PORT", help="Their port: 9464, or the next that is free; 0: any."
)
@click.option("--wait", type=float, metavar="SECONDS", help="How long to wait for a broker that is down.")
def command(broker: str | None, http_host: str | None, http_port: int | None, wait: float | None) -> int:
    """Serve the live funnel, /metrics and the API from the tables that the workers keep, until Ctrl-C.

    It reads the changelog of the funnel table and writes nothing, so any number of views may run beside the
    workers, and each shows the same numbers.

    \b
    Example:
      callfunnel view --broker kafka:9092 --http-port 9465
    """
    import os
    import signal
    import threading
    import time

    from callfunnel.agents import log
    from callfunnel.agents.config import Settings
    from callfunnel.agents.kafka import topics
    from callfunnel.agents.view.exposition import Exposition, new_registry
    from callfunnel.agents.view.http import Pages
    from callfunnel.agents.view.snapshot import View

    settings = Settings.from_environ(
        os.environ, broker=broker, http_host=http_host, http_port=http_port, wait_seconds=wait
    )
    log.set_up(settings.log_format, settings.log_level)
    view = View.of(settings)
    exposition = Exposition.of(settings, view, new_registry())
    pages = Pages.of(settings, view=view, exposition=exposition, not_ready=view.not_ready)
    pages.start()
    try:
        topics.wait_for_broker(settings, lambda message: click.echo(message, err=True))
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        view.start()
        click.echo(f"The funnel is served at {pages.url} (Ctrl-C ends it).")
        told_at, told = time.monotonic(), ""
        while not stopped.wait(0.2):
            if view.failure is not None:
                raise view.failure
            its = view.standing()
            news = its.reason if its.state == "catching_up" else its.verdict
            if news != told and time.monotonic() - told_at >= _TELL_SECONDS:
                told_at, told = time.monotonic(), news
                click.echo(f"{its.verdict.replace('_', ' ')}{': ' * bool(its.reason)}{its.reason}", err=True)
        return exit_codes.OK
    finally:
        view.stop()
        pages.stop()
