"""callfunnel: call events in, an exact live funnel out.

What an application imports of it is here, and takes neither Faust nor a compiler:

    from callfunnel import Publisher

The folders beside this file are links to those of the project, which are installed below this name.
"""

from importlib import import_module

_PUBLIC = {
    "Acknowledged": "callfunnel.agents.publish.destination",
    "Publisher": "callfunnel.agents.publish.publisher",
    "Refused": "callfunnel.agents.publish.publisher",
    "Rejected": "callfunnel.schemas.codec",
}

__all__ = ["Acknowledged", "Publisher", "Refused", "Rejected"]


def __getattr__(name: str) -> object:
    """A name of the public ones, loaded where it is used: a command line pays for what it needs alone."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
