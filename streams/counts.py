"""What a batch adds to the tables: by rollup, group, minute and column.

It is made for adding, which every event does several times: `counts.teams[team, agent][minute][column] += n`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial

Delta = dict[str, int]
"""By column."""

Group = tuple[str, ...]
"""The dimension values of a row."""

ByMinute = dict[int, Delta]


class Counts:
    """By group, minute and column; the attributes are the rollups."""

    def __init__(self) -> None:
        self.campaigns: dict[Group, ByMinute] = defaultdict(_by_minute)
        """Under (campaign, source)."""
        self.teams: dict[Group, ByMinute] = defaultdict(_by_minute)
        """Under (team, agent)."""
        self.locations: dict[Group, ByMinute] = defaultdict(_by_minute)

    def rollups(self) -> Iterable[tuple[str, Mapping[Group, ByMinute]]]:
        yield "campaign+source", self.campaigns
        yield "team+agent", self.teams
        yield "location", self.locations


_by_minute: Callable[[], ByMinute] = partial(
    defaultdict, partial(defaultdict, int)
)  # no lambda: it is called for most events
