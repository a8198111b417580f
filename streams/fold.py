"""The settings that say what a number means."""

from functools import cached_property

from msgspec import Struct
from msgspec.json import encode
from msgspec.structs import replace
from xxhash import xxh3_64_hexdigest

from callfunnel.streams.panes import Resolution


class Fold(Struct, frozen=True, dict=True):
    """The settings that say what a number means: tables made under different ones must not be mixed."""

    hangup_ms: int
    late_ms: int
    """An event is late when its record is younger by more than this. Late events are counted like all."""
    lead_events: int
    """The most events one lead may have; more is a placeholder in place of a lead id."""
    timezone: str
    partitioner: str
    resolutions: tuple[Resolution, ...]
    event_days: int = 400
    """For how many days at least an event is known."""
    version: int = 7
    """Raised whenever the code means something else by the same settings."""

    @cached_property
    def id(self) -> str:
        """The fingerprint by which tables say under which settings they were made; late is not in them."""
        return xxh3_64_hexdigest(encode(replace(self, late_ms=0)))

    @property
    def days_kept(self) -> int:
        """How many days day rows are kept."""
        return next(each.kept // 86_400 for each in self.resolutions if each.name == "1d")
