"""The mark on an event that a worker sends to its lead's home partition: who sent it, one header each time.

A mark never makes an event count, nor keeps it from being sent home: copied or forged, it is harmless. It says
two things. With a publisher's transaction or with ours: `agents.undecided` asks that of what hangs in the
source. And what must not be sent on, so that it ends: an event that this app has sent home `LAPS` times and
that is away from home again is moved back by somebody, and with the partitioner `trust` an event that was
moved at all counts where it was published, which is not here. Both are refused, as dead letters.
"""

from agents.microbatch import Headers, MicroBatch

REROUTED = "callfunnel.rerouted"
"""The header's name."""

LAPS = 3
"""Copies of a topic keep the marks, so the first ones may be another topic's."""


class Mark:
    """What this app writes, and what it makes of the marks that it finds."""

    def __init__(self, app_id: str, partitioner: str, partitions: int) -> None:
        self._header = REROUTED, f"{app_id} {partitioner} {partitions}".encode()
        self._trusts = partitioner == "trust"

    def added_to(self, headers: Headers) -> list[tuple[str, bytes]]:
        return [*headers, self._header]

    def stuck(self, batch: MicroBatch) -> frozenset[int]:
        """The indices of the records that must not be sent on."""
        if not any(batch.headers):
            return frozenset()
        return frozenset(i for i, headers in enumerate(batch.headers) if self._ends(headers))

    def _ends(self, headers: Headers) -> bool:
        if self._trusts:
            return any(name == REROUTED for name, _ in headers)
        return sum(header == self._header for header in headers) >= LAPS
