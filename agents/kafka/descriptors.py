"""How many files and sockets a worker needs at once, against what the system lets it have.

Without one left, a broker looks dead and nothing tells why: so it is settled before there is any work.
"""

import resource

from callfunnel.agents.config import Settings
from callfunnel.agents.errors import SettingError
from callfunnel.agents.kafka.producer import CONNECTIONS

OWN = 64
"""Files, pipes and event loops of the process, and room for what is opened for a moment."""

EACH_BROKER = 2 * CONNECTIONS + 6
"""Connections: of the producers, to the broker and to it as a coordinator; two each of the worker's consumer,
of the view's, and of those that look at what is in doubt."""


MOST = 65_536
"""What is asked for where the system sets no bound: programs may close all that they might have open."""


def needed(settings: Settings, brokers: int) -> int:
    """The most descriptors that a worker with these settings has open with so many brokers."""
    return OWN + EACH_BROKER * brokers + settings.http_connections


def require(needed: int) -> int:
    """Raise this process's limit as far as it may, and return it. Raises SettingError below `needed`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = max(soft, MOST) if hard == resource.RLIM_INFINITY else hard
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        raise SettingError(
            f"This worker may need {needed} file descriptors, and the system lets it have {allowed}. Nothing "
            f"is lost. Raise the limit (ulimit -n {needed}; systemd: LimitNOFILE={needed}; docker: --ulimit "
            f"nofile={needed}), or lower CALLFUNNEL_HTTP_CONNECTIONS."
        )
    return allowed
