"""`callfunnel top`: the live funnel in the terminal."""

import click

from callfunnel.agents import exit_codes


class _Window(click.ParamType):
    """One of the declared windows, which only this command's own help and use import."""

    name = "window"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(self._choice().convert(value, param, ctx))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._choice().get_metavar(param, ctx)

    @staticmethod
    def _choice() -> "click.Choice[str]":
        from callfunnel.streams.windows import WINDOWS_AND_ALL

        return click.Choice(list(WINDOWS_AND_ALL))


@click.command("top")
@click.option(
    "--url",
    default="http://127.0.0.1:9464",
    show_default=True,
    help="Where a worker or view serves its pages.",
)
@click.option(
    "--window",
    type=_Window(),
    default="1h",
    show_default=True,
    help="Which window to show.",
)
@click.option("--campaign", help="Only this campaign.")
@click.option("--source", help="Only this source.")
@click.option("--once", is_flag=True, help="Print it once and leave.")
def command(url: str, window: str, campaign: str | None, source: str | None, once: bool) -> int:
    """Show the live funnel in the terminal, coloured by the standards, anew each second until Ctrl-C.

    \b
    Example:
      callfunnel top --window today --campaign spring
    """
    import time
    from urllib.parse import urlencode

    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

    from callfunnel.agents.view.terminal import funnel_table

    asked = {"window": window, "campaign": campaign, "source": source}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    address = f"{url.rstrip('/')}/api/v1/funnel?{query}"
    console = Console()
    table = funnel_table(_fetch(url, address))
    if once:
        console.print(table)
        return exit_codes.OK
    try:
        with Live(table, console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(1)
                try:
                    shown: RenderableType = funnel_table(_fetch(url, address))
                except click.ClickException as failure:
                    if failure.exit_code != exit_codes.UNAVAILABLE:
                        raise
                    shown = Text(failure.message, style="bold yellow")  # no numbers for now
                live.update(shown, refresh=True)
    except KeyboardInterrupt:
        return exit_codes.OK


def _fetch(url: str, address: str) -> dict[str, object]:
    """One funnel document; a failure that says whether nobody answers or the answer is no."""
    from urllib.error import HTTPError
    from urllib.request import ProxyHandler, build_opener

    import msgspec

    try:
        with build_opener(ProxyHandler({})).open(address, timeout=5) as answer:
            document = msgspec.json.decode(answer.read(), type=dict[str, object])
        if "stages" not in document:
            raise ValueError("what answers is no callfunnel")
        return document
    except HTTPError as error:
        code = exit_codes.USAGE if error.code < 500 else exit_codes.UNAVAILABLE
        raise _failure(f"{url} answers: {_reason(error.read()) or error.reason}", code) from None
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        message = (
            f"No callfunnel page answers at {url} ({getattr(error, 'reason', error)}). "
            "Start `callfunnel worker` or `callfunnel view`, or name the right address with --url."
        )
        raise _failure(message, exit_codes.UNAVAILABLE) from None


def _reason(body: bytes) -> str:
    import msgspec

    try:
        return str(msgspec.json.decode(body)["error"])
    except (msgspec.MsgspecError, LookupError, TypeError):
        return ""


def _failure(message: str, code: int) -> click.ClickException:
    failure = click.ClickException(message)
    failure.exit_code = code
    return failure
