"""Small, adversarial inputs: few leads, few calls, few values and few moments, so that events collide.

The moments sit on the edges the definitions name (the same millisecond, the hang-up threshold, the response
bounds, the ends of panes, the ends of what is kept), around a change of the clocks.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any, TypeVar

from hypothesis import strategies as st

from callfunnel.schemas.events import TYPES, Event

T = TypeVar("T")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000

bases_ms = st.sampled_from(
    (
        1_238_288_400_000,  # 2009-03-29T01:00Z: the clocks of Berlin go from 02:00 to 03:00
        1_238_281_200_000,  # midnight in Berlin before it
        1_238_364_000_000,  # midnight in Berlin after it
        1_238_284_800_000,  # midnight in UTC
    )
)

near_ms = st.sampled_from(
    (0, 0, 0, 1, -1, 999, 5 * SECOND, 14_999, 15 * SECOND, 15_001, MINUTE - 1, MINUTE, 5 * MINUTE)
)

far_ms = st.sampled_from(
    (
        *(-MINUTE, -HOUR, HOUR - 1, HOUR, 4 * HOUR, 6 * HOUR, 6 * HOUR + MINUTE),
        *(DAY - 1, DAY, DAY + 1, 3 * DAY, 3 * DAY + HOUR, 400 * DAY, 401 * DAY),
    )
)

steps_ms = st.sampled_from((0, 0, 1, -1, 14_999, 15_000, MINUTE, 5 * MINUTE, 5 * MINUTE + 1))

lead_ids = st.sampled_from(("a", "b", "ü"))
call_ids = st.sampled_from((None, "c", "c", "d"))


def or_none(*values: T) -> st.SearchStrategy[T | None]:
    return st.sampled_from((None, *values))


dimensions = st.fixed_dictionaries(
    {},
    optional={
        "campaign": or_none("spring", "autumn"),
        "source": or_none("web", "none"),
        "team": or_none("north"),
        "agent": or_none("ann", "bo"),
        "location": or_none("Bonn", "Ulm"),
    },
)

money = st.fixed_dictionaries(
    {"amount": st.sampled_from(("0", "19.90", 90_071_992_547_409.91)), "currency": st.just("EUR")}
) | st.fixed_dictionaries({"amount": st.sampled_from((1, 500)), "currency": st.just("JPY")})

own_fields: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "lead_created": st.fixed_dictionaries({"imported": or_none(False, True)}),
    "connect": st.fixed_dictionaries(
        {
            "answered_by": or_none("human", "human", "machine", "unknown"),
            "direction": or_none("outbound", "inbound"),
        }
    ),
    "won": st.just({})
    | money
    | st.fixed_dictionaries({"sale_kind": or_none("new", "upsell"), "product": or_none("line")}),
    "appointment_held": st.fixed_dictionaries({"outcome": or_none("held", "no_show", "cancelled")}),
    "proposal_sent": st.just({}) | money,
    "touch": st.fixed_dictionaries(
        {"channel": st.sampled_from(("email", "visit")), "automated": or_none(False, True)}
    ),
    "revenue_adjusted": st.fixed_dictionaries(
        {
            "amount": st.sampled_from(("-19.90", 1)),
            "currency": st.just("EUR"),
            "adjusts": or_none("e1", "e2"),
        }
    ),
    "retracted": st.fixed_dictionaries(
        {
            "retracts": or_none("e1", "e2", "e3", "e4", "e9"),
            "retracts_type": or_none("dial", "connect", "dm_reached", "won", "lead_created", "call_ended"),
        }
    ),
    "call_ended": st.fixed_dictionaries(
        {
            "talk_seconds": or_none(0.0, 14.999, 15.0, 3_000.0),
            "hangup_by": or_none("customer", "agent", "system"),
        }
    ),
}


def spelled(at_ms: int) -> st.SearchStrategy[int | datetime]:
    """The same millisecond as an integer, or as a time with an offset and some microseconds more."""
    exact = EPOCH + timedelta(milliseconds=at_ms)
    zones = st.sampled_from((UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=3))))
    times = st.builds(
        lambda us, zone: (exact + timedelta(microseconds=us)).astimezone(zone),
        st.sampled_from((0, 1, 999)),
        zones,
    )
    return st.just(at_ms) | times


Sketch = tuple[str, str, str | None, int]
"""Type, lead, call and moment of an event to be."""


STORIES = (
    ("lead_created",),
    ("lead_created", "lost"),
    ("lead_created", "dial"),
    ("lead_created", "dial", "connect", "dm_reached", "call_ended"),
    ("dial", "connect"),
    ("dm_reached", "call_ended"),
    ("dm_reached", "dm_reached", "call_ended"),
    ("dial", "retracted", "dial"),
    ("lead_created", "dial", "retracted", "retracted"),
    ("won", "retracted", "lost", "lead_recycled", "won"),
    ("lost", "dial", "lead_created", "lead_recycled", "dial"),
    ("lead_created", "lead_recycled", "lost", "lead_created", "dial"),
    ("connect", "dm_reached", "call_ended", "qualified"),
)

parts_of_stories = (
    st.sampled_from(sorted(TYPES)).map(lambda kind: (kind,))
    | st.sampled_from(STORIES)
    | st.sampled_from(STORIES)
    | st.lists(st.sampled_from(("dm_reached", "call_ended", "call_ended", "won", "disqualified")), max_size=4)
)
"""From a single event to a whole call, with parts missing or repeated."""


@st.composite
def stories(draw: st.DrawFn, base_ms: int) -> list[Sketch]:
    """Some events of one call, each at the moment of the one before or a step away."""
    lead_id, call_id = draw(lead_ids), draw(call_ids)
    at_ms = base_ms + draw(near_ms | near_ms | far_ms)
    sketches = []
    for kind in draw(parts_of_stories):
        sketches.append((kind, lead_id, call_id, at_ms))
        at_ms += draw(steps_ms)
    return sketches


@st.composite
def event_sets(draw: st.DrawFn, max_stories: int = 12) -> list[Event]:
    """Accepted events of one partition, in no order. Some of a lead have an id that others have, too."""
    told = draw(st.lists(stories(draw(bases_ms)), max_size=max_stories))
    sketches = draw(st.permutations([sketch for story in told for sketch in story]))
    used: Counter[str] = Counter()
    events = []
    for kind, lead_id, call_id, at_ms in sketches:
        used[lead_id] += draw(st.sampled_from((1, 1, 1, 1, 0)))
        own = draw(own_fields.get(kind, st.just({})))
        # Leads share ids, for which ids of other leads mean nothing.
        event_id = f"e{used[lead_id]}"
        if kind == "retracted" and own["retracts"] in (None, event_id):
            own = {"retracts": None, "retracts_type": own["retracts_type"] or "dial"}
        event = TYPES[kind](
            event_id=event_id,
            occurred_at=draw(spelled(at_ms)),
            lead_id=lead_id,
            call_id=call_id,
            **draw(dimensions),
            **own,
        )
        events.append(event)
    return events


def deliveries(events: Sequence[Event]) -> st.SearchStrategy[list[Event]]:
    """The events in any order, each at least once."""
    again = st.lists(st.sampled_from(events), max_size=6) if events else st.just([])
    return again.flatmap(lambda copies: st.permutations([*events, *copies]))


def batches(items: Sequence[T]) -> st.SearchStrategy[list[list[T]]]:
    """The items in their order, cut into batches anywhere; none is empty."""
    inner = st.sets(st.integers(1, len(items) - 1)) if len(items) > 1 else st.just(set())
    return inner.map(
        lambda cuts: [list(items[a:b]) for a, b in pairwise([0, *sorted(cuts), len(items)]) if a < b]
    )


settings: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "hangup_ms": st.sampled_from((15_000, 5_000, 0)),
        "timezone": st.sampled_from(("UTC", "Europe/Berlin", "Asia/Kolkata")),
        "minute_hours": st.sampled_from((1, 6)),
        "hour_days": st.sampled_from((1, 3)),
        "day_days": st.sampled_from((1, 400)),
    },
)
"""What `streams.oracle.tables` takes besides events, all of it optional."""

keep_everything = {
    "minute_hours": 10**6,
    "minute_hours_of_people": 10**6,
    "hour_days": 10**6,
    "day_days": 10**6,
}
"""Settings under which no pane is dropped."""
