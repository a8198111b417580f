"""What `validate` and `publish` take as FILE: lines of JSON, one event each."""

import os
from typing import Any

import click

_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"


class EventFile(click.Path):
    """A file, or - for standard input. What cannot be lines of JSON is refused as a whole, with the cure."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, readable=True, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = os.fsdecode(super().convert(value, param, ctx))
        if path != "-":
            with open(path, "rb") as file:
                begins = file.read(3)
            command = ctx.info_name if ctx else "validate"
            if begins.startswith(_GZIP):
                self.fail(f"{path} is compressed: gunzip -c {path} | callfunnel {command} -", param, ctx)
            if begins == _BOM:
                self.fail(f"{path} begins with a byte order mark: save it as UTF-8 without one.", param, ctx)
        return path
