"""The events of the contract as frozen types: what a call system may say about a lead.

One class per type, tagged by the JSON field `type`. Instances come out of `schemas.codec`, which refuses
everything that breaks a rule, so the rest of the code never meets an invalid event.
"""

from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

Identity = Annotated[str, Meta(min_length=1, max_length=64)]
Dimension = Annotated[str, Meta(max_length=64)]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

NONE = "none"
"""The value of a dimension that an event does not carry."""


class Envelope(Struct, frozen=True, gc=False, kw_only=True, tag_field="type"):
    """The fields every event has. Times are event time, in the call system's own words."""

    rank: ClassVar[int]
    """Position of the type in the catalogue: breaks ties between events of the same millisecond."""
    stage: ClassVar[int | None] = None
    """The stage of the funnel at which the event arrives, as an index of `STAGES`."""

    event_id: Identity
    occurred_at: Annotated[datetime, Meta(tz=True)] | int
    lead_id: Identity
    campaign: Dimension | None = None
    source: Dimension | None = None
    agent: Dimension | None = None
    team: Dimension | None = None
    location: Dimension | None = None
    call_id: Dimension | None = None
    schema_version: int = 1

    @property
    def at_ms(self) -> int:
        """Event time in Unix milliseconds, rounded down: what is computed with."""
        at = self.occurred_at
        if isinstance(at, int):
            return at
        since = at - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


class LeadCreated(Envelope, frozen=True, gc=False, kw_only=True, tag="lead_created"):
    """A new lead entered: the response clock starts."""

    rank = 0
    stage = 0


class Dial(Envelope, frozen=True, gc=False, kw_only=True, tag="dial"):
    """An attempt to call the lead; every attempt counts as activity."""

    rank = 1
    stage = 1


class Connect(Envelope, frozen=True, gc=False, kw_only=True, tag="connect"):
    """The call was answered. Only a human answer is an arrival at the stage; machines are counted apart."""

    rank = 2
    stage = 2

    answered_by: Literal["human", "machine"] = "human"


class DmReached(Envelope, frozen=True, gc=False, kw_only=True, tag="dm_reached"):
    """The decision maker is on the line (a right-party contact); a gatekeeper is not."""

    rank = 3
    stage = 3


class Qualified(Envelope, frozen=True, gc=False, kw_only=True, tag="qualified"):
    """The verdict: worth selling to."""

    rank = 4
    stage = 4

    expected_amount: str | int | float | None = None
    currency: str | None = None


class Won(Envelope, frozen=True, gc=False, kw_only=True, tag="won"):
    """The sale is made."""

    rank = 5
    stage = 5

    amount: str | int | float | None = None
    currency: str | None = None


class CallEnded(Envelope, frozen=True, gc=False, kw_only=True, tag="call_ended"):
    """The call is over. Decides whether a decision maker hung up at once."""

    rank = 6

    talk_seconds: Annotated[float, Meta(ge=0)] | None = None
    hangup_by: Literal["customer", "agent", "system"] | None = None


class Disqualified(Envelope, frozen=True, gc=False, kw_only=True, tag="disqualified"):
    """The verdict: not worth selling to."""

    rank = 7

    reason: Dimension | None = None


class Lost(Envelope, frozen=True, gc=False, kw_only=True, tag="lost"):
    """The lead is given up."""

    rank = 8

    reason: Dimension | None = None


Event = LeadCreated | Dial | Connect | DmReached | Qualified | Won | CallEnded | Disqualified | Lost

TYPES: dict[str, type[Envelope]] = {
    cls.__struct_config__.tag: cls  # type: ignore[misc]
    for cls in (LeadCreated, Dial, Connect, DmReached, Qualified, Won, CallEnded, Disqualified, Lost)
}
"""Every type of the contract by its name on the wire, in catalogue order."""

STAGES = ("created", "dialed", "connected", "reached", "qualified", "won")
"""The ladder. Arriving at a stage implies the ones before it."""
