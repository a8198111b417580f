"""The golden examples: what an integrator may copy, and what comes of each mistake.

A file in `rejected` is named `<reason>-<case>`. Its content is the value of a record, byte for byte; a
`.record.json` describes a record whose key, time or limits matter as well.
"""

import json
from pathlib import Path

import pytest

from callfunnel.schemas.codec import NOT_OF_THE_GATE, REASONS, Decoder, Limits, Rejected
from callfunnel.schemas.events import TYPES, Dial
from callfunnel.schemas.fields import fields
from contract.records import ACCEPTED, REJECTED


def judged(path: Path):
    if not path.name.endswith(".record.json"):
        return Decoder(Limits()).decode(path.read_bytes(), None, -1)
    record = json.loads(path.read_text("utf-8"))
    value = None if record["value"] is None else json.dumps(record["value"]).encode()
    key = record["key"].encode() if "key" in record else None
    return Decoder(Limits(**record.get("limits", {}))).decode(value, key, record.get("timestamp_ms", -1))


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_an_accepted_example_is_accepted_as_its_type(path):
    event = judged(path)
    assert not isinstance(event, Rejected), event
    assert isinstance(event, TYPES[path.stem.split("-")[0]])
    at_its_own_time = Decoder(Limits()).decode(path.read_bytes(), event.lead_id.encode(), event.at_ms)
    assert at_its_own_time == event


@pytest.mark.parametrize("path", REJECTED, ids=lambda path: path.stem)
def test_a_rejected_example_is_refused_for_the_reason_in_its_name(path):
    refused = judged(path)
    assert isinstance(refused, Rejected)
    assert refused.reason == path.name.split("-")[0]


def test_every_type_with_fields_of_its_own_and_every_reason_has_an_example():
    """The others differ from `dial.json` in a word."""
    with_own = {name for name, cls in TYPES.items() if set(fields(cls)) > set(fields(Dial))}
    assert with_own <= {path.stem.split("-")[0] for path in ACCEPTED} <= TYPES.keys()
    assert {path.name.split("-")[0] for path in REJECTED} == REASONS.keys() - NOT_OF_THE_GATE
