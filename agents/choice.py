"""Which tables fold events: those of the core where it is built from these sources, else the definition's."""

from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from callfunnel.streams.sums import Sums
    from callfunnel.streams.tables import Tables

Choice = Literal["auto", "definition", "core"]

BY_DEFINITION = "by the definition, which takes about ten times the CPU"
"""How a worker folds that found no core. The measured figure is in the README: How fast it is."""

_SOURCES = ("Cargo.lock", "Cargo.toml", "build.rs", "src/*.rs")


class NotBuilt(Exception):
    """The core was asked for, and there is none that can be used; the message says what to do."""


def digest() -> str:
    """The fingerprint of the core's sources; a build carries the one it was made from."""
    folder = Path(__file__).parents[1] / "streams/core"
    files = [file for name in _SOURCES for file in sorted(folder.glob(name))]
    return sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def not_built() -> str:
    """Why there is no core here that can be used, and what to do; empty where there is one."""
    try:
        core = import_module("callfunnel.streams._core")
    except ImportError:
        wrong = "is not built"
    else:
        if digest() == core.SOURCES:
            return ""
        wrong = "was built from other sources than these"
    return (
        f"the core {wrong}; in a clone with Rust (rustup, or Debian: `apt-get install cargo-web rustc-web "
        "gcc`) build it by `make core`, or install with it by "
        "`HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip install '.[engine]'`"
    )


def tables_for(choice: Choice) -> "type[Tables]":
    """Raises `NotBuilt` for the choice "core" alone: "auto" falls back on the definition."""
    from callfunnel.streams.by_definition import DefinedTables  # not where a build asks: there is no msgspec

    if choice == "definition":
        return DefinedTables
    if lacking := not_built():
        if choice == "auto":
            return DefinedTables
        raise NotBuilt(f"{lacking}; CALLFUNNEL_TABLES=auto does without")
    return import_module("callfunnel.streams.by_core").CoreTables  # type: ignore[no-any-return]


def sums_for(choice: Choice) -> "type[Sums]":
    """What adds up rows for a view. A view does its work without the core, too, and says nothing of it."""
    from callfunnel.streams.sums import PlainSums

    if choice == "definition" or not_built():
        return PlainSums
    return import_module("callfunnel.streams.by_core").CoreSums  # type: ignore[no-any-return]
