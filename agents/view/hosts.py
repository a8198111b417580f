"""The names by which a client may ask for the pages.

The law: a page of another site cannot read ours. It could by DNS rebinding, where its own name comes to lead
here; but the browser sends that name as `Host`, and it is none of ours. What sends no `Host` is no browser:
it is answered.
"""

import asyncio
import ipaddress
import re
import socket
from contextlib import suppress

from callfunnel.agents.config import variable

_HOST = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(:[0-9]*)?")
_SHOWN = 100


class Hosts:
    """IP addresses, localhost, `bound` and what is `given`; beyond loopback also the machine's own names.

    `given` has commas between names; one that begins with a dot stands for all below it, * for any.
    """

    def __init__(self, given: str, bound: str, *, is_loopback: bool) -> None:
        names = {"localhost", bound.lower(), *filter(None, given.lower().split(","))}
        self._any = "*" in names
        self._below = (".localhost", *(name for name in names if name.startswith(".")))
        self._names = names
        self._is_loopback = is_loopback
        self._own: asyncio.Task[set[str]] | None = None

    async def why_not(self, host: str) -> str | None:
        """Why this value of the header `Host` is refused; None if it is not."""
        if self._any:
            return None
        parts = _HOST.fullmatch(host)
        name = parts[1].strip("[]").lower().removesuffix(".") if parts else ""
        if name in self._names or name.endswith(self._below) or _is_address(name):
            return None
        if not self._is_loopback:
            self._own = self._own or asyncio.create_task(asyncio.to_thread(_own_names))
            if name in await asyncio.shield(self._own):
                return None
        return (
            f"This process does not answer to the host name {host[:_SHOWN]!r}. "
            f"If the name is meant to lead here, add it to {variable('http_names')}; "
            "IP addresses are always answered."
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names() -> set[str]:
    """What this machine calls itself, short and in full. May wait for the DNS."""
    own = socket.gethostname()
    names = {own, own.partition(".")[0]}
    with suppress(OSError):  # it has no address under its own name
        names |= {found[3] for found in socket.getaddrinfo(own, None, flags=socket.AI_CANONNAME)}
    return {name.lower() for name in names if name}
