"""`callfunnel config`: every setting, its value and where that comes from."""

import click


@click.command("config")
@click.option("--defaults", is_flag=True, help="Show the defaults, whatever is set.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(defaults: bool, as_json: bool) -> None:
    """Show every setting: its value, where it comes from, what it means and what it may be.

    Settings are environment variables. No secret is ever shown: a setting names the file that holds it.

    \b
    Example:
      CALLFUNNEL_PROFILE=development callfunnel config
    """
    import os

    from callfunnel.agents.config import in_force

    settings = in_force({} if defaults else os.environ)
    if as_json:
        import msgspec
        import orjson

        shown = {setting.name: msgspec.structs.asdict(setting) for setting in settings}
        click.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2))
        return
    for setting in settings:
        value = "" if setting.value is None else str(setting.value)
        if isinstance(setting.value, bool):
            value = value.lower()
        origin = "environment" if setting.origin == setting.variable else setting.origin
        click.echo(f"{click.style(f'{setting.variable}={value}', bold=True)}  ({origin})")
        click.echo(f"    {setting.meaning} [{setting.allowed}]")
