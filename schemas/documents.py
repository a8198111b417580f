"""The contract as documents for other languages: JSON Schema and AsyncAPI, generated from the types.

The law: a value that the gate accepts is valid by the schema. What a schema cannot say (the key, the time
limits, the decimals of a currency) the descriptions say.
"""

import json
from collections.abc import Iterator
from typing import Any

from callfunnel.schemas.codec import REASONS, Limits
from callfunnel.schemas.events import TYPES, VERSION, Envelope
from callfunnel.schemas.fields import Field, fields
from callfunnel.schemas.money import DECIMALS

_NO_CONTROL = r"^[^\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*$"
_ABSENT = {"enum": [None, ""]}
_CURRENCY = {"$ref": "#/definitions/currency"}
_SCHEMA = "json/event.schema.json"


def documents() -> dict[str, str]:
    """The text of each document, by its path below `schemas`."""
    header = "# Generated from the types in schemas/events.py by `callfunnel schema --write schemas`.\n"
    return {
        _SCHEMA: json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        "asyncapi.yaml": header + "\n".join(_yaml(asyncapi())) + "\n",
    }


def with_catalogue(readme: str) -> str:
    """The README of the contract with the table of types as it is by now."""
    before, heading, rest = readme.partition("\n## Catalogue\n\n")
    _, end, after = rest.partition("\n\n")
    return before + heading + "\n".join(_catalogue()) + end + after


def _catalogue() -> Iterator[str]:
    yield "| type | own fields | what it says |"
    yield "|---|---|---|"
    for name, cls in TYPES.items():
        own = "; ".join(f"`{field}`: {known.must_be}" for field, known in _own(cls).items()) or "–"
        says, _, _ = _summary(cls).partition(". ")
        yield f"| `{name}` | {own} | {says[0].lower()}{says[1:].removesuffix('.')} |"


def json_schema() -> dict[str, Any]:
    """The value of one record: an event of the catalogue. Draft 7, which AsyncAPI's own schemas extend."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Call event",
        "description": "The value of one record. Unknown fields are allowed and ignored. Generated.",
        "oneOf": [{"$ref": f"#/definitions/{name}"} for name in TYPES],
        "definitions": {
            "envelope": _object(fields(Envelope)),
            "currency": {"type": "string", "enum": list(DECIMALS)},
            **{name: _event(name, cls) for name, cls in TYPES.items()},
        },
    }


def asyncapi() -> dict[str, Any]:
    """The topic that call systems publish to, with a message for each type of the catalogue."""
    limits = Limits()
    rules = [
        f"One JSON object a record, up to {limits.max_bytes} bytes, nested up to {limits.max_depth} deep.",
        "The key is lead_id in bare UTF-8, the partition murmur2 of the key, as in the Java client.",
        f"occurred_at may be {limits.future_ms // 60_000} minutes ahead of the record's own time,",
        f"and {limits.retention_ms // 86_400_000} days behind it.",
        "A refused record goes to the dead letters with one of the reasons in x-reject-reasons.",
    ]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "callfunnel call events",
            "version": f"{VERSION}.0.0",
            "description": " ".join(rules),
        },
        "defaultContentType": "application/json",
        "channels": {
            "callEvents": {
                "address": "call-events",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in TYPES},
            }
        },
        "operations": {
            "receiveCallEvents": {
                "action": "receive",
                "channel": {"$ref": "#/channels/callEvents"},
                "x-reject-reasons": REASONS,
            }
        },
        "components": {
            "messages": {
                name: {
                    "summary": _summary(cls),
                    "payload": {"$ref": f"./{_SCHEMA}#/definitions/{name}"},
                    "bindings": {"kafka": {"key": {"type": "string", "maxLength": 64}}},
                }
                for name, cls in TYPES.items()
            }
        },
    }


def _event(name: str, cls: type[Envelope]) -> dict[str, Any]:
    own = _own(cls)
    described = {
        "description": _summary(cls),
        "allOf": [{"$ref": "#/definitions/envelope"}],
        **_object({"type": fields(cls)["type"], **own}),
    }
    if cls.one_of:
        described["anyOf"] = [_given(name) for name in cls.one_of]
    if cls.together:
        amount, _ = cls.together
        described["if"] = {"properties": {amount: _ABSENT}}
        described["then"] = {"properties": {"currency": _ABSENT}}
        described["else"] = {"required": ["currency"], "properties": {"currency": _CURRENCY}}
    return described


def _given(name: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"not": _ABSENT}}}


def _own(cls: type[Envelope]) -> dict[str, Field]:
    return {field: known for field, known in fields(cls).items() if field not in fields(Envelope)}


def _object(known: dict[str, Field]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [name for name, field in known.items() if field.required],
        "properties": {name: _property(name, field) for name, field in known.items()},
    }


def _property(name: str, field: Field) -> dict[str, Any]:
    schema = dict(field.schema)
    description = schema.pop("description")
    if "maxLength" in schema:
        schema["pattern"] = _NO_CONTROL
    if name == "currency":
        schema = _CURRENCY
    return {"description": description, **(schema if field.required else {"anyOf": [schema, _ABSENT]})}


def _summary(cls: type[Envelope]) -> str:
    return (cls.__doc__ or "").strip()


def _yaml(tree: dict[str, Any], indent: str = "") -> list[str]:
    """Nested mappings as block YAML; anything else as JSON, which YAML contains."""
    lines = []
    for key, value in tree.items():
        name = key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_yaml(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}")
    return lines
