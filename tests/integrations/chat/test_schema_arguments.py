"""Arguments of tools whose schema is more than a list of properties, in every notation."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from eft_integrations.chat.grammar import answer_grammar
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations import NOTATIONS
from eft_integrations.chat.reading import CallReader, Reading
from eft_integrations.chat.request import ToolChoice
from eft_integrations.chat.schema import arguments_of, held
from eft_integrations.chat.schema_check import fault_of
from eft_integrations.chat.schemas.strings import text_expressions
from tests.integrations.chat.sentences import accepts, sentence

COLOUR = {"enum": ["red", "light green"], "type": "string"}
NODE = {
    "type": "object",
    "properties": {
        "v": {"type": "integer"},
        "kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "maxItems": 2},
    },
    "required": ["v"],
}
CIRCLE = {
    "type": "object",
    "properties": {"kind": {"const": "circle"}, "r": {"type": "integer"}},
    "required": ["kind", "r"],
}
WORDS = {"type": "string", "maxLength": 5}
TEXT = {"type": "object", "properties": {"kind": {"const": "text"}, "words": WORDS}, "required": ["kind"]}

PARAMETERS: dict[str, dict[str, Any]] = {
    "none": {},
    "a recursive definition": {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
    "inherited": {"allOf": [{"$ref": "#/$defs/Node"}], "properties": {"c": COLOUR}, "required": ["c"], "$defs": {"Node": NODE}},
    "alternatives": {"anyOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/T"}], "$defs": {"C": CIRCLE, "T": TEXT}},
    "one of them": {
        "oneOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/T"}],
        "discriminator": {"propertyName": "kind"},
        "$defs": {"C": CIRCLE, "T": TEXT},
    },
    "all optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"$ref": "#/$defs/Colour"}},
        "$defs": {"Colour": COLOUR},
    },
    "texts": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]/x$"},
            "short": {"type": "string", "minLength": 1, "maxLength": 3},
            "perhaps": {"anyOf": [{"type": "string", "pattern": "^[a-z]*$"}, {"type": "null"}]},
        },
        "required": ["day", "code", "short", "perhaps"],
    },
}  # fmt: skip


def read(name: str, text: str, tool: Tool) -> list[ToolCall]:
    """The calls in an answer."""
    reader = CallReader(Reading(NOTATIONS[name], [tool], demanded=True))
    return [piece for piece in (*reader.feed(text), *reader.finish()) if isinstance(piece, ToolCall)]


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=list(PARAMETERS))
@pytest.mark.parametrize("name", sorted(NOTATIONS))
def test_whatever_may_be_written_is_a_call_that_fits(name: str, parameters: dict[str, Any]) -> None:
    tool = Tool("do_it", "", parameters)
    choice = ToolChoice("named", "do_it")
    grammar = answer_grammar([tool], choice, NOTATIONS[name], {}, lenient=False, reasoning_budget=0)
    assert grammar is not None
    draw, seen = random.Random(0), set()
    for _ in range(12):
        text = sentence(grammar, draw, max_len=1500)
        assert text is not None
        (call,) = read(name, text, tool)
        assert fault_of(json.loads(call.arguments), {**parameters, "type": "object"}) is None, text
        seen.add(call.arguments)
    assert len(seen) > 1 or not parameters


def test_alternatives_are_told_apart_argument_by_argument() -> None:
    circle, text = arguments_of(PARAMETERS["alternatives"])
    assert [(own.name, own.is_required) for own in circle] == [("kind", True), ("r", True)]
    assert [(own.name, own.is_required) for own in text] == [("kind", True), ("words", False)]
    (inherited,) = arguments_of(PARAMETERS["inherited"])
    assert [(own.name, own.is_required) for own in inherited] == [("v", True), ("c", True), ("kids", False)]


@pytest.mark.parametrize(
    ("pattern", "fit", "do_not"),
    [
        ("^a$", "a", "ba"),
        ("^a", "ab", "ba"),
        ("a$", "ba", "ab"),
        (r"^a\$", "a$b", "a"),
        ("a", "bab", "b"),
        ("a|b", "cb", "c"),
        ("^(a|b(c|d))$", "bd", "b"),
        ("^[$^|]$", "^", "a"),
    ],
)
def test_patterns_of_texts_without_quotes(pattern: str, fit: str, do_not: str) -> None:
    (expression,) = text_expressions({"type": "string", "pattern": pattern})
    assert accepts(f"start: /{expression}/", fit)
    assert not accepts(f"start: /{expression}/", do_not)


def test_what_cannot_be_said_of_such_texts_is_left_to_the_check() -> None:
    assert text_expressions({"type": "string", "pattern": "^a|b$"}) == []
    assert text_expressions({"type": "string", "pattern": "(^a|b$)"}) == []
    assert held({"type": "string", "pattern": "^a|b$"}).unenforced == ()
