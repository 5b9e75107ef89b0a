"""Schemas as grammars read them."""

from __future__ import annotations

from eft_integrations.chat.schema import close_schema


def test_objects_that_name_their_properties_are_closed() -> None:
    schema = {
        "type": "object",
        "properties": {"type": {"type": "object", "properties": {}}, "free": {"type": "object"}},
        "$defs": {"properties": {"type": "object", "properties": {}, "additionalProperties": True}},
        "anyOf": [{"type": "object", "properties": {}}],
        "enum": [{"type": "object", "properties": {}}],
    }
    closed = close_schema(schema)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["type"]["additionalProperties"] is False
    assert closed["properties"]["free"] == {"type": "object"}
    assert closed["$defs"]["properties"]["additionalProperties"] is True
    assert closed["anyOf"][0]["additionalProperties"] is False
    assert closed["enum"] == schema["enum"]
