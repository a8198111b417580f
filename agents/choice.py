"""Which tables fold events: compiled ones where they were built from these sources, else plain Python."""

from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from callfunnel.streams.tables import Tables

Choice = Literal["auto", "python", "compiled"]

_SOURCES = (
    *("streams/columns.py", "streams/compiled.hpp", "streams/compiled.pyx", "streams/counts.py"),
    *("streams/funnel.py", "streams/lead.py", "streams/tables.py"),
    *("schemas/codec.hpp", "schemas/codec.py", "schemas/events.py", "schemas/rows.py"),
)


SLOWER = 2.9
"""CPU of a worker with tables in plain Python, in that of one with compiled ones (README, How fast it is)."""


class NotBuilt(Exception):
    """Compiled tables were asked for, and there are none that can be used; the message says what to do."""


def digest() -> str:
    """The fingerprint of the sources of the tables; a build carries the one it was made from."""
    folder = Path(__file__).parents[1]
    return sha256(b"\0".join((folder / name).read_bytes() for name in _SOURCES)).hexdigest()


def not_built() -> str:
    """Why there are no compiled tables here that can be used, and what to do; empty where there are."""
    try:
        compiled = import_module("callfunnel.streams.compiled")
    except ImportError:
        wrong = "are not built"
    except AssertionError:  # what they know by name is not what there is
        wrong = "were built from other sources than these"
    else:
        if digest() == compiled.SOURCES:
            return ""
        wrong = "were built from other sources than these"
    return (
        f"the compiled tables {wrong}; in a clone with a C++ compiler (Debian: `apt-get install g++ "
        "python3-dev`) build them by `make compiled`, or install with them by "
        "`HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip install '.[engine]'`"
    )


def tables_for(choice: Choice) -> "type[Tables]":
    """Raises `NotBuilt` for the choice "compiled" alone: "auto" falls back on plain Python."""
    from callfunnel.streams.tables import Tables  # not where a build asks for the digest: there is no msgspec

    if choice == "python":
        return Tables
    if lacking := not_built():
        if choice == "auto":
            return Tables
        raise NotBuilt(f"{lacking}; CALLFUNNEL_TABLES=auto does without")
    return import_module("callfunnel.streams.compiled").Tables  # type: ignore[no-any-return]
