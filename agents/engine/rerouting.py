"""The mark on an event that a worker sends to its lead's home partition: one header each time.

A mark never makes an event count, so a copied or forged one is harmless. It has two uses:

* `agents.engine.in_doubt` tells by it whether a transaction that hangs in the source may be ours.
* It ends the moving of events. Two apps with different partitioners send the same event to and fro; after
  `LAPS` times an app refuses it as a dead letter. With the partitioner `trust` an event counts where it was
  published; a moved record was published elsewhere and is refused.
"""

from callfunnel.agents.kafka.batches import Headers
from callfunnel.agents.kafka.microbatch import MicroBatch

REROUTED = "callfunnel.rerouted"
"""The header's name."""

LAPS = 3
"""More than one: in a copy of a topic, the marks are those of the original."""


class Mark:
    """The mark of one app."""

    def __init__(self, app_id: str, partitioner: str, partitions: int) -> None:
        self._header = REROUTED, f"{app_id} {partitioner} {partitions}".encode()
        self._trusts = partitioner == "trust"

    def added_to(self, headers: Headers) -> list[tuple[str, bytes | None]]:
        return [*headers, self._header]

    def stuck(self, batch: MicroBatch) -> frozenset[int]:
        """The indices of the records that this app must not send home."""
        if not any(batch.headers):
            return frozenset()
        return frozenset(i for i, headers in enumerate(batch.headers) if self._ends(headers))

    def _ends(self, headers: Headers) -> bool:
        if self._trusts:
            return any(name == REROUTED for name, _ in headers)
        return sum(header == self._header for header in headers) >= LAPS
