"""What each field of an event must be, read off the types: for refusals and for the JSON Schema."""

from functools import cache
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from callfunnel.schemas.events import TYPES, Envelope

_KINDS = {
    "string": {"a string"},
    "integer": {"an integer"},
    "number": {"a number", "an integer"},
    "boolean": {"a boolean"},
}


class Field(Struct, frozen=True):
    """One field of one event type."""

    schema: dict[str, Any]
    """The JSON Schema of its value, where the field is given."""
    required: bool
    kinds: frozenset[str]
    """The kinds of JSON values that it may have."""
    _shape: type[Struct]

    @property
    def must_be(self) -> str:
        """Completes "the field must be …"."""
        return str(self.schema["description"])

    def accepts(self, value: object) -> bool:
        try:
            msgspec.convert({"value": value}, self._shape)
        except msgspec.ValidationError:
            return False
        return True


@cache
def fields(cls: type[Envelope]) -> dict[str, Field]:
    """The fields of an event type by name, `type` first. Of `Envelope` itself: those that every type has."""
    hints = get_type_hints(cls, include_extras=True)
    names = [name for name, known in TYPES.items() if issubclass(known, cls)]
    tag = {"description": f"one of {', '.join(TYPES)}", "type": "string", "enum": names}
    return {"type": _field(str, tag, True)} | {
        field.name: _field(hints[field.name], _given(hints[field.name]), field.required)
        for field in msgspec.structs.fields(cls)
    }


def _field(annotation: Any, schema: dict[str, Any], required: bool) -> Field:
    branches = schema.get("anyOf", [schema])
    kinds = frozenset().union(*(_KINDS[branch.get("type", "string")] for branch in branches))
    return Field(schema, required, kinds, msgspec.defstruct("Shape", [("value", annotation)]))


def _given(annotation: Any) -> dict[str, Any]:
    schema = msgspec.json.schema(annotation)
    branches = [branch for branch in schema.get("anyOf", []) if branch != {"type": "null"}]
    return branches[0] if len(branches) == 1 else schema
