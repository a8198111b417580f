"""Which callfunnel this is."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    try:
        return version("callfunnel")
    except PackageNotFoundError:
        return "source"
