"""Random events and records: plausible ones, broken ones, and where the golden examples are."""

import json
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import strategies as st

from callfunnel import schemas
from callfunnel.schemas.events import TYPES, Envelope

EXAMPLES = Path(schemas.__file__).parent / "examples"
ACCEPTED = sorted((EXAMPLES / "accepted").iterdir())
REJECTED = sorted((EXAMPLES / "rejected").iterdir())


def fields_of(cls: type[Envelope]) -> tuple[str, ...]:
    return ("type", *cls.__struct_fields__)


names = st.text(st.characters(codec="utf-8"), max_size=66)
numbers = st.integers() | st.floats() | st.sampled_from([1_740_830_400_000, 10**18, 1e300])
json_values = st.recursive(
    st.none() | st.booleans() | numbers | names,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
FIELDS = sorted({field for cls in TYPES.values() for field in fields_of(cls)})
plausible = {
    "type": st.sampled_from([*TYPES, "demo"]),
    "occurred_at": st.just(1_740_830_400_000) | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    "currency": st.sampled_from(["EUR", "JPY", "eur"]),
    "answered_by": st.sampled_from(["human", "machine", "dog"]),
    "hangup_by": st.sampled_from(["customer", "agent", "system"]),
}
REQUIRED = ["event_id", "lead_id", "occurred_at", "type"]
events = st.fixed_dictionaries(
    {field: plausible.get(field, names) for field in REQUIRED},
    optional={field: plausible.get(field, names) for field in FIELDS if field not in REQUIRED},
) | st.dictionaries(st.sampled_from([*FIELDS, "unknown"]), names | json_values)


@st.composite
def mutated(draw) -> bytes:
    """A plausible event as text, some of its bytes replaced."""
    text = bytearray(
        json.dumps(draw(events), ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 3))] = draw(
            st.sampled_from([b"", b"\xff", b"\\u", b'"', b"{", b"[", b"9"])
        )
    return bytes(text)
