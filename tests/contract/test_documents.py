"""The published documents are what the types say, and judge shapes as the gate does."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings

from callfunnel import schemas, streams
from callfunnel.schemas.codec import REASONS, Decoder, Limits, Rejected
from callfunnel.schemas.documents import asyncapi, documents, json_schema, with_catalogue
from callfunnel.schemas.events import TYPES, Envelope
from callfunnel.streams.rates import RATES
from contract.records import ACCEPTED, REJECTED, events

FOLDER = Path(schemas.__file__).parent
VALIDATOR = jsonschema.Draft7Validator(json_schema())


@pytest.mark.parametrize("path", documents())
def test_the_checked_in_document_is_the_generated_one(path):
    assert (FOLDER / path).read_text("utf-8") == documents()[path]


def test_the_schema_is_valid_itself():
    jsonschema.Draft7Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_an_accepted_example_is_valid_by_the_schema(path):
    VALIDATOR.validate(json.loads(path.read_bytes()))


BY_SHAPE = (
    "not_an_object",
    "missing_field",
    "wrong_type",
    "unknown_type",
    "unsupported_version",
    "bad_value",
)
BEYOND_A_SCHEMA = {  # formats, numbers Python reads as infinite, what depends on another field
    "bad_value-occurred_at-no-offset", "bad_value-occurred_at-not-a-date", "bad_value-occurred_at-day-first",
    "bad_value-occurred_at-microseconds", "bad_value-amount-too-many-decimals", "bad_value-amount-too-large",
    "bad_value-talk_seconds-out-of-range", "bad_value-retracts-itself", "bad_value-adjustment-of-nothing",
}  # fmt: skip


@pytest.mark.parametrize(
    "path", [p for p in REJECTED if p.name.startswith(BY_SHAPE)], ids=lambda path: path.stem
)
def test_an_example_rejected_by_its_shape_is_invalid_by_the_schema(path):
    assert VALIDATOR.is_valid(json.loads(path.read_bytes())) == (path.stem in BEYOND_A_SCHEMA)


@settings(max_examples=300, deadline=None)
@given(event=events)
def test_whatever_the_gate_accepts_is_valid_by_the_schema(event):
    text = json.dumps(event)
    if not isinstance(Decoder(Limits(clock="event")).decode(text.encode(), None, -1), Rejected):
        VALIDATOR.validate(json.loads(text))


def test_every_reference_of_the_asyncapi_document_leads_somewhere():
    document = asyncapi()
    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))
    assert len(references) == 2 * len(TYPES) + 1
    for reference in references:
        file, _, pointer = reference.partition("#/")
        node = json.loads((FOLDER / file).read_text("utf-8")) if file else document
        for step in pointer.split("/"):
            node = node[step]


def test_each_line_of_the_yaml_is_a_key_with_json_or_a_block_below_it():
    lines = documents()["asyncapi.yaml"].splitlines()[1:]
    tree: dict = {}
    path = [tree]
    for line in lines:
        indent, key, value = re.fullmatch(r'((?:  )*)([\w-]+|"[^"]+"):(?: (.+))?', line).groups()
        del path[len(indent) // 2 + 1 :]
        path[-1][key.strip('"')] = child = json.loads(value) if value else {}
        path.append(child)
    assert tree == asyncapi()


def test_the_readme_lists_the_catalogue_the_fields_and_the_reasons_in_their_order():
    readme = (FOLDER / "README.md").read_text("utf-8")

    def first_column(heading: str) -> list[str]:
        section = readme.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
        return [name for row in rows for name in re.findall(r"`(\w+)`", row)]

    assert with_catalogue(readme) == readme, "run callfunnel schema --write schemas"
    assert first_column("Catalogue") == list(TYPES)
    assert first_column("Reasons for a refusal") == list(REASONS)
    assert set(first_column("Envelope")) == {"type", *Envelope.__struct_fields__}


def test_the_readme_of_the_streams_lists_the_rates_that_are_judged():
    readme = (Path(streams.__file__).parent / "README.md").read_text("utf-8")
    section = readme.partition("\n## Rates and their bands\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines() if "÷" in row]

    def terms(of: Mapping[str, int]) -> str:
        signs = (f"{' + ' if sign > 0 else ' − '}{column}" for column, sign in of.items())
        text = "".join(signs).removeprefix(" + ")
        return f"({text})" if len(of) > 1 else text

    assert [
        (name, formula.replace("`", ""), int(enough.split()[0])) for name, formula, enough in rows[1:]
    ] == [
        (rate.name, f"{terms(rate.numerator)} ÷ {terms(rate.denominator)}", rate.enough)
        for rate in RATES.values()
        if rate.standard
    ]
