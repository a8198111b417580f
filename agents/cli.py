"""The `callfunnel` command line: every file in `agents/commands` is a command, imported only when it is used.

The law: the exit code says whose turn it is (`agents.exit_codes`). A command returns its code, or nothing for
OK. A caller's mistake is a `click.UsageError`, another failure a `click.ClickException` with an `exit_code`.
"""

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from callfunnel.agents import exit_codes, memory

_COMMANDS = Path(__file__).parent / "commands"


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules([str(_COMMANDS)]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"callfunnel.agents.commands.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"callfunnel {version('callfunnel')}")
    except PackageNotFoundError:
        click.echo("callfunnel (not installed: runs from its source tree)")
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version)
def callfunnel() -> None:
    """Telesales call events in, an exact live funnel out."""


def _not_installed(error: Exception) -> str:
    """The package of another project that an import did not find; empty for any other error."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    package = name.partition(".")[0]
    return "" if package == "callfunnel" else package


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code."""
    memory.prepare()
    try:
        code = callfunnel.main(arguments, prog_name="callfunnel", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        code = exit_codes.USAGE
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = exit_codes.INTERRUPTED
    except Exception as error:
        if lacking := _not_installed(error):
            click.echo(
                f"Error: {lacking} is not installed. This command takes the engine: install callfunnel with "
                "it (in a clone: `pip install '.[engine]'`).",
                err=True,
            )
            code = exit_codes.UNAVAILABLE
        else:
            traceback.print_exc()  # a bug; Python would leave with 1, which is a verdict here
            code = exit_codes.SOFTWARE
    sys.exit(code if isinstance(code, int) else exit_codes.OK)


if __name__ == "__main__":
    main()
