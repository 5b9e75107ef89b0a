"""Calls in forms that models write although their template shows another, and what only looks like a call."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from eft_integrations.backends.pool import backend_of
from tests.families.cells import WEATHER_CALL
from tests.families.imitations import WEATHER, Family
from tests.families.stand_in import NotAllowedError, StandIn
from tests.families.test_reading import REQUEST, each_notation, results

CALL = f'{{"name": "get_weather", "arguments": {WEATHER}}}'

CUTS = ("words", "pieces")
"""How the answers arrive; `test_reading` has more."""

FORMS = {
    "bare": CALL,
    "indented": json.dumps(json.loads(CALL), indent=2),
    "parameters": CALL.replace("arguments", "parameters"),
    "arguments as text": json.dumps({"name": "get_weather", "arguments": WEATHER}),
    "wrapped": f'{{"type": "function", "function": {CALL}}}',
    "fenced": f"```json\n{CALL}\n```",
    "fenced without a language": f"```\n{CALL}\n```",
    "in tools": f"<tools>\n{CALL}\n</tools>",
    "in function_call": f"<function_call>\n{CALL}\n</function_call>",
    "in tool_call": f"<tool_call>\n{CALL}\n</tool_call>",
    "list": f"[{CALL}]",
    "sentence before": f"Let me look.\n{CALL}",
    "sentence before a fence": f"Let me look.\n\n```json\n{CALL}\n```",
    "sentence behind": f"{CALL}\nThen I will tell you.",
}
"""Ways of writing `WEATHER_CALL`."""

NO_CALLS = {
    "inside a sentence": f"Write {CALL} to ask.",
    "explained before and after": f"One asks for the weather so:\n\n```json\n{CALL}\n```\n\nThe city is a name.",
    "unknown name": '{"name": "get_money", "arguments": {"amount": 5}}',
    "against the schema": '{"name": "get_weather", "arguments": {"city": "Paris", "days": "two"}}',
    "data": '{"city": "Paris", "days": 2}',
    "list of numbers": "[1, 2, 3]",
    "link": "[the weather](somewhere) is fine.",
    "code": "```python\nprint({1: 2})\n```",
    "tag": "<b>bold</b> words",
}

LISTED = frozenset({"inside a sentence", "explained before and after", "unknown name", "against the schema"})
"""Those that look so much like calls that the caller is told."""


@pytest.mark.parametrize("form", FORMS)
@each_notation
def test_call_is_recognised(family: Family, form: str, stand_ins: Callable[[Family], StandIn]) -> None:
    if form == "in tool_call" and family.one_call is not None and "<function=" in family.one_call:
        pytest.skip("the family's own tag holds another form")
    for found in results(stand_ins(family), family.answer.format(FORMS[form]), cuts=CUTS):
        assert [(call.name, json.loads(call.arguments)) for call in found.tool_calls] == [WEATHER_CALL]
        assert found.finish_reason == "tool_calls"
        assert not found.invalid_tool_calls
        words = "Let me look." if "before" in form else "Then I will tell you." if "behind" in form else ""
        assert found.content.strip() == words


@pytest.mark.parametrize("form", NO_CALLS)
@each_notation
def test_text_stays_text(family: Family, form: str, stand_ins: Callable[[Family], StandIn]) -> None:
    try:
        answers = results(stand_ins(family), family.answer.format(NO_CALLS[form]), cuts=CUTS)
    except NotAllowedError:
        assert form == "against the schema", "a grammar that holds calls to their schemas is better still"
        return
    for found in answers:
        assert not found.tool_calls
        assert found.content == NO_CALLS[form]
        assert found.finish_reason == "stop"
        unrecognised = found.metadata.get("unrecognised_calls") or ()
        assert bool(unrecognised) == (form in LISTED), unrecognised


@pytest.mark.parametrize("form", ["bare", "fenced", "in tools", "sentence before"])
@each_notation
def test_strict_reading_leaves_other_forms_alone(
    family: Family, form: str, stand_ins: Callable[[Family], StandIn]
) -> None:
    own = family.one_call or ""
    if (form == "in tool_call" and "<tool_call>" in own) or own.startswith("{") or family.one_call is None:
        pytest.skip("this is the family's own form")
    strict = dataclasses.replace(REQUEST, lenient_tool_calls=False)
    for found in results(stand_ins(family), family.answer.format(FORMS[form]), strict, cuts=CUTS):
        assert not found.tool_calls
        assert found.content == FORMS[form]


WORDS = "The sky is blue: it was so at 9, and it stays so; see (below) for more.\n\nAnd at night?\n"


@pytest.mark.parametrize("then", ["", "{", "```", "A <b> and {c} and [d]."])
@each_notation
def test_words_pass_at_once(family: Family, then: str, stand_ins: Callable[[Family], StandIn]) -> None:
    """Held back is only what may still become a call; whitespace waits for what follows it."""
    stand_in = stand_ins(family)
    stand_in.says, stand_in.cuts = family.answer.format(WORDS + then), "characters"
    header = len(family.answer.format(""))
    received = ""

    def look(sent: str) -> None:
        words = sent[header:]
        assert received.rstrip() == words.rstrip() or len(words) > len(WORDS)

    stand_in.watch = look
    try:
        for delta in backend_of(stand_in).stream(REQUEST):
            received += delta.text
    finally:
        stand_in.watch = None
    assert received == WORDS + then
