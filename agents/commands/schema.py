"""`callfunnel schema`: the contract as JSON Schema and AsyncAPI, printed, written or compared with files."""

from pathlib import Path

import click

from callfunnel.agents import exit_codes

README = "README.md"
"""Where the folder has one: its catalogue is made, too."""


@click.command("schema")
@click.option(
    "--write", "write_to", type=click.Path(path_type=Path), metavar="DIR", help="Write all documents."
)
@click.option(
    "--check", type=click.Path(path_type=Path), metavar="DIR", help="Exit 1 if a file there differs."
)
def command(write_to: Path | None, check: Path | None) -> int:
    """Print the JSON Schema of the events.

    \b
    Example: check payloads in another language's tests
      callfunnel schema > event.schema.json
    """
    from callfunnel.schemas.documents import documents, with_catalogue

    texts = documents()
    readme = _read(folder / README) if (folder := write_to or check) else None
    if readme is not None:
        texts[README] = with_catalogue(readme)
    if write_to:
        for path, text in texts.items():
            (write_to / path).parent.mkdir(parents=True, exist_ok=True)
            (write_to / path).write_text(text, encoding="utf-8")
            click.echo(f"wrote {write_to / path}")
    if check:
        stale = [path for path, text in texts.items() if _read(check / path) != text]
        for path in stale:
            click.echo(f"{check / path} differs from the types: run callfunnel schema --write {check}")
        return exit_codes.NEGATIVE if stale else exit_codes.OK
    if not write_to:
        click.echo(texts["json/event.schema.json"], nl=False)
    return exit_codes.OK


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
