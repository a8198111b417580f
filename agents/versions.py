"""Which callfunnel this is, and what it is made to run with."""

import shlex
import sys
from importlib import metadata

from packaging.requirements import Requirement


def installed_version() -> str:
    try:
        return metadata.version("callfunnel")
    except metadata.PackageNotFoundError:
        return "source"


def unsuitable() -> list[str]:
    """What this release needs and is here in another version, as requirements."""
    try:
        needed = [Requirement(line) for line in metadata.requires("callfunnel") or []]
    except metadata.PackageNotFoundError:
        return []
    return [
        f"{one.name}{one.specifier}"
        for one in needed
        if (one.marker is None or one.marker.evaluate({"extra": "engine"}))
        and not one.specifier.contains(metadata.version(one.name))
    ]


def pip_install(*requirements: str) -> str:
    """The command that installs them where this program runs."""
    return shlex.join([sys.executable, "-m", "pip", "install", *requirements])
