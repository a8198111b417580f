"""When a partition counts as poisoned: so much of what arrives there is rejected that a sender must be wrong.

The law: this is a function of the partition's records and two settings. It is kept in the position, so a
restart and another worker say the same. No number depends on it.
"""

from collections.abc import Sequence

from msgspec import Struct

from callfunnel.schemas.codec import ARCHIVED, CROWDED
from callfunnel.streams.rows import Poison

EXCUSED = frozenset({CROWDED, ARCHIVED, "misrouted"})
"""Reasons that poison no partition: one lead's trouble, history that is sent again, workers that disagree."""


class Tolerance(Struct, frozen=True):
    """A partition is poisoned when more than `max_share` of its last `window` records were rejected."""

    window: int = 1_000
    max_share: float = 0.5

    def share(self, before: float, records: int, rejected: Sequence[int]) -> float:
        """The rejected share of the last `window` records, after a batch of `records` more.

        `rejected` are indices in that batch. The records before it count with the share `before`, however the
        rejected ones are spread among them; where there were none, they count as clean.
        """
        taken = min(records, self.window)
        of_these = sum(index >= records - taken for index in rejected)
        return (of_these + (self.window - taken) * before) / self.window

    def poison(self, before: Poison, share: float) -> Poison:
        """Whether the partition is poisoned: until half of `max_share`, so that it does not flicker."""
        if share > self.max_share and before == "none":
            return "found"
        return before if share > max(self.max_share, 1 / self.window) / 2 else "none"
