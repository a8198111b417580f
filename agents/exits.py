"""How a process ends: the exit codes (sysexits.h) and the one exception that carries a reason to the surface."""

EX_USAGE = 64
"""A setting or an argument is wrong."""
EX_UNAVAILABLE = 69
"""The broker, or another service, does not answer."""
EX_SOFTWARE = 70
"""A write failed or a bug showed: the memory may be ahead of the tables."""
EX_TEMPFAIL = 75
"""Another worker took over; starting again is right."""
EX_CONFIG = 78
"""Topics or tables are not as they must be; a person has to decide."""


class Stop(Exception):  # noqa: N818  (it is an order, not an error of the code)
    """End the process with this exit code and this reason; the reason says who is to blame and what to do."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
