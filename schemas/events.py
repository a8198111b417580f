"""The events of the contract as frozen types: what a call system may say about a lead.

One class per type, tagged by the JSON field `type`. Instances come out of `schemas.codec`, which refuses
everything that breaks a rule, so the rest of the code never meets an invalid event.
"""

from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal, get_args

from msgspec import Meta, Struct

from callfunnel.schemas.money import PLAIN_DECIMAL, SIGNED_DECIMAL, minor_units

VERSION = 1
"""The major version of the contract that this code speaks."""

NONE = "none"
"""The value of a dimension that an event does not carry."""

# Each description completes the sentence "the field must be …", in refusals and in the published schemas.
Identity = Annotated[
    str, Meta(min_length=1, max_length=64, description="a string of 1 to 64 characters, no control character")
]
EventId = Annotated[
    str,
    Meta(min_length=1, max_length=128, description="a string of 1 to 128 characters, no control character"),
]
Dimension = Annotated[
    str,
    Meta(min_length=1, max_length=64, description="a string of up to 64 characters, no control character"),
]
FIRST_MS = 100_000_000_000
"""The least whole number that is a time. Smaller ones are seconds: in milliseconds they end in March 1973."""

Time = Annotated[
    Annotated[datetime, Meta(tz=True)] | Annotated[int, Meta(ge=FIRST_MS)],
    Meta(
        description="an RFC 3339 time with an offset, like 2025-03-01T09:30:00Z, or whole Unix milliseconds"
    ),
]
Amount = Annotated[
    Annotated[str, Meta(pattern=PLAIN_DECIMAL)] | Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)],
    Meta(description="a decimal string or a number, 0 or more, no more decimals than the currency has"),
]
SignedAmount = Annotated[
    Annotated[str, Meta(pattern=SIGNED_DECIMAL)] | int | float,
    Meta(description="a decimal string or a number, not 0, no more decimals than the currency has"),
]
Currency = Annotated[str, Meta(description="an ISO 4217 code, like EUR")]
Flag = Annotated[bool, Meta(description="true or false")]

Party = Annotated[Literal["customer", "agent", "system"], Meta(description="customer, agent or system")]
Answerer = Annotated[Literal["human", "machine", "unknown"], Meta(description="human, machine or unknown")]
Direction = Annotated[Literal["outbound", "inbound"], Meta(description="outbound or inbound")]
SaleKind = Annotated[
    Literal["new", "upsell", "cross_sell", "renewal"],
    Meta(description="new, upsell, cross_sell or renewal"),
]
Meeting = Annotated[Literal["held", "no_show", "cancelled"], Meta(description="held, no_show or cancelled")]
Channel = Annotated[
    Literal["email", "sms", "chat", "meeting", "mail", "video", "social", "visit"],
    Meta(description="email, sms, chat, meeting, mail, video, social or visit"),
]
Retractable = Annotated[
    Literal[
        "lead_created",
        "dial",
        "connect",
        "dm_reached",
        "qualified",
        "won",
        "call_ended",
        "disqualified",
        "lost",
        "lead_recycled",
        "appointment_set",
        "appointment_held",
        "demo_held",
        "proposal_sent",
        "touch",
        "revenue_adjusted",
    ],
    Meta(description="a type of the catalogue other than retracted"),
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _check_money(field: str, amount: str | int | float | None, currency: str | None) -> None:
    if (amount is None) != (currency is None):
        raise ValueError(f"`$.{field}` and `$.currency` go together, and one of them is missing")
    if amount is not None and currency is not None:
        minor_units(amount, currency)


class Envelope(Struct, frozen=True, gc=False, kw_only=True, tag_field="type"):
    """The fields every event has. Times are event time, in the call system's own words."""

    rank: ClassVar[int]
    """Position of the type in the catalogue: breaks ties between events of the same millisecond."""
    stage: ClassVar[int | None] = None
    """The stage of the funnel at which the event arrives, as an index of `STAGES`."""
    together: ClassVar[tuple[str, ...]] = ()
    """Optional fields that are all given, or none of them."""
    one_of: ClassVar[tuple[str, ...]] = ()
    """Optional fields of which at least one is given."""

    event_id: EventId
    occurred_at: Time
    lead_id: Identity
    campaign: Dimension | None = None
    source: Dimension | None = None
    agent: Dimension | None = None
    team: Dimension | None = None
    location: Dimension | None = None
    call_id: Dimension | None = None
    schema_version: Annotated[int, Meta(ge=1, le=VERSION, description="the contract's major version")] = 1

    @property
    def at_ms(self) -> int:
        """Event time in Unix milliseconds, rounded down: what is computed with."""
        at = self.occurred_at
        if isinstance(at, int):
            return at
        since = at - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


class LeadCreated(Envelope, frozen=True, gc=False, kw_only=True, tag="lead_created"):
    """A new lead entered: the response clock starts. `imported`: it was loaded from a list."""

    rank = 0
    stage = 0

    imported: Flag | None = None


class Dial(Envelope, frozen=True, gc=False, kw_only=True, tag="dial"):
    """An attempt to call the lead; every attempt counts as activity."""

    rank = 1
    stage = 1


class Connect(Envelope, frozen=True, gc=False, kw_only=True, tag="connect"):
    """The call was answered. Only a human answer is an arrival at the stage; machines are counted apart."""

    rank = 2
    stage = 2

    answered_by: Answerer | None = None
    direction: Direction | None = None


class DmReached(Envelope, frozen=True, gc=False, kw_only=True, tag="dm_reached"):
    """The decision maker is on the line (a right-party contact); a gatekeeper is not."""

    rank = 3
    stage = 3


class Priced(Envelope, frozen=True, gc=False, kw_only=True):
    """An event that may name a sum."""

    together = ("amount", "currency")

    amount: Amount | None = None
    currency: Currency | None = None

    def __post_init__(self) -> None:
        _check_money("amount", self.amount, self.currency)


class Qualified(Envelope, frozen=True, gc=False, kw_only=True, tag="qualified"):
    """The verdict: worth selling to."""

    rank = 4
    stage = 4
    together = ("expected_amount", "currency")

    expected_amount: Amount | None = None
    currency: Currency | None = None

    def __post_init__(self) -> None:
        _check_money("expected_amount", self.expected_amount, self.currency)


class Won(Priced, frozen=True, gc=False, kw_only=True, tag="won"):
    """The sale is made."""

    rank = 5
    stage = 5

    sale_kind: SaleKind | None = None
    product: Dimension | None = None
    segment: Dimension | None = None


class CallEnded(Envelope, frozen=True, gc=False, kw_only=True, tag="call_ended"):
    """The call is over. Decides whether a decision maker hung up at once."""

    rank = 6

    talk_seconds: Annotated[float, Meta(ge=0, description="a number of seconds, 0 or more")] | None = None
    hangup_by: Party | None = None


class Disqualified(Envelope, frozen=True, gc=False, kw_only=True, tag="disqualified"):
    """The verdict: not worth selling to."""

    rank = 7

    reason: Dimension | None = None


class Lost(Envelope, frozen=True, gc=False, kw_only=True, tag="lost"):
    """The lead is given up."""

    rank = 8

    reason: Dimension | None = None


class LeadRecycled(Envelope, frozen=True, gc=False, kw_only=True, tag="lead_recycled"):
    """The lead is worked anew: what came before is a cycle of its own."""

    rank = 9


class Retracted(Envelope, frozen=True, gc=False, kw_only=True, tag="retracted"):
    """Events of the lead are taken back for good. Those of an id, or the latest of a type."""

    rank = 10
    one_of = ("retracts", "retracts_type")

    retracts: EventId | None = None
    retracts_type: Retractable | None = None

    def __post_init__(self) -> None:
        if self.retracts is None and self.retracts_type is None:
            raise ValueError("`$.retracts` or `$.retracts_type` must be given, and both are missing")
        if self.retracts == self.event_id:
            raise ValueError("`$.retracts` must be the event_id of another event, and is its own")


class AppointmentSet(Envelope, frozen=True, gc=False, kw_only=True, tag="appointment_set"):
    """A meeting is agreed: a verdict of its call."""

    rank = 11


class AppointmentHeld(Envelope, frozen=True, gc=False, kw_only=True, tag="appointment_held"):
    """The meeting took place, or did not."""

    rank = 12

    outcome: Meeting | None = None


class DemoHeld(Envelope, frozen=True, gc=False, kw_only=True, tag="demo_held"):
    """A presentation was given."""

    rank = 13


class ProposalSent(Priced, frozen=True, gc=False, kw_only=True, tag="proposal_sent"):
    """An offer is out; its amount is the latest expected value."""

    rank = 14


class Touch(Envelope, frozen=True, gc=False, kw_only=True, tag="touch"):
    """Somebody, or a machine, turned to the lead other than by a call. A call is a dial."""

    rank = 15

    channel: Channel
    automated: Flag | None = None


class RevenueAdjusted(Envelope, frozen=True, gc=False, kw_only=True, tag="revenue_adjusted"):
    """A refund, a chargeback, a discount: changes money, never the fact that a sale was made."""

    rank = 16

    amount: SignedAmount
    currency: Currency
    adjusts: EventId | None = None

    def __post_init__(self) -> None:
        if minor_units(self.amount, self.currency, is_signed=True) == 0:
            raise ValueError("`$.amount` must be other than 0, and is 0")


Event = (
    LeadCreated
    | Dial
    | Connect
    | DmReached
    | Qualified
    | Won
    | CallEnded
    | Disqualified
    | Lost
    | LeadRecycled
    | Retracted
    | AppointmentSet
    | AppointmentHeld
    | DemoHeld
    | ProposalSent
    | Touch
    | RevenueAdjusted
)

TYPES: dict[str, type[Envelope]] = {cls.__struct_config__.tag: cls for cls in get_args(Event)}
"""Every type of the contract by its name on the wire, in catalogue order."""

STAGES = ("created", "dialed", "connected", "reached", "qualified", "won")
"""The ladder. Arriving at a stage implies the ones before it."""
