"""What families write comes to the same whatever the pieces are in which it arrives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from jsonschema import validate

from eft_integrations.backends.pool import backend_of
from eft_integrations.chat.messages import Message, Tool, ToolCall
from eft_integrations.chat.notations import notation_of
from eft_integrations.chat.request import ChatRequest, ChatResult, ToolChoice
from tests.families.cells import DESCRIPTIONS, PARAMETERS, TIME_CALL, WEATHER_CALL
from tests.families.imitations import FAMILIES, Family
from tests.families.stand_in import StandIn

REQUEST = ChatRequest(
    messages=(Message("user", "Will it rain?"),),
    tools=tuple(Tool(name, DESCRIPTIONS[name], PARAMETERS[name]) for name in PARAMETERS),
)
CALLS = [ToolCall("abcdef123", name, json.dumps(arguments)) for name, arguments in (WEATHER_CALL, TIME_CALL)]
ALIKE = frozenset(
    {
        "granite3", "granite4", "smollm3", "llama4-pythonic", "mistral-v11", "mistral-v13", "deepseek-r1", "deepseek-v3.1", "phi4",
        "phi4-mini", "lfm2",
    }
)  # fmt: skip
"""Families whose notation is of a kind that others have too, which is all that is of interest here."""
each_notation = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.name not in ALIKE], ids=lambda own: own.name
)

CUTS = ("words", "characters", *["pieces"] * 4)


def results(
    stand_in: StandIn, text: str, request: ChatRequest = REQUEST, cuts: Sequence[str] = CUTS
) -> list[ChatResult]:
    """The answer to a text, in many ways of cutting it; the pieces of each say together what the whole does."""
    stand_in.says = text
    found = []
    for stand_in.cuts in cuts:
        *pieces, last = backend_of(stand_in).stream(request)
        assert last.result is not None
        assert "".join(piece.text for piece in pieces) == last.result.content, stand_in.cuts
        calls: dict[int, list[str]] = {}
        for delta in (piece.call for piece in pieces):
            if delta is not None and delta.name is not None:
                calls[delta.index] = [delta.call_id or "", delta.name, ""]
            if delta is not None:
                calls[delta.index][2] += delta.arguments
        if not last.result.invalid_tool_calls:
            assert [ToolCall(*call) for call in calls.values()] == list(last.result.tool_calls)
        found.append(last.result)
    stand_in.cuts = "words"
    return found


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda own: own.name)
def test_calls_in_the_familys_notation(family: Family, number: int, stand_ins: Callable[[Family], StandIn]) -> None:
    text = family.one_call if number == 1 else family.two_calls
    if text is None and "parallel calls" in family.cannot:
        pytest.skip(family.cannot["parallel calls"])
    for found in results(stand_ins(family), text or notation_of(family.template).write(CALLS[:number])):
        called = [(call.name, json.loads(call.arguments)) for call in found.tool_calls]
        assert called == [WEATHER_CALL, TIME_CALL][:number]
        assert not found.content
        assert found.finish_reason == "tool_calls"
        assert not found.invalid_tool_calls
        assert "unrecognised_calls" not in found.metadata


@pytest.mark.parametrize("family", FAMILIES, ids=lambda own: own.name)
def test_call_behind_words(family: Family, stand_ins: Callable[[Family], StandIn]) -> None:
    if family.answer != "{}":
        pytest.skip("words and calls are messages of their own")
    call = family.one_call or notation_of(family.template).write(CALLS[:1])
    for found in results(stand_ins(family), f"Let me look.\n{call}"):
        assert [(own.name, json.loads(own.arguments)) for own in found.tool_calls] == [WEATHER_CALL]
        assert found.content.strip() == "Let me look."
        assert not found.invalid_tool_calls


@pytest.mark.parametrize("family", FAMILIES, ids=lambda own: own.name)
def test_call_that_is_cut_off_is_no_call(family: Family, stand_ins: Callable[[Family], StandIn]) -> None:
    """Where the answer ends inside of a call, for `max_tokens` or whatever reason, nothing may be run."""
    call = family.one_call or notation_of(family.template).write(CALLS[:1])
    stand_in = stand_ins(family)
    stand_in.checks_grammars = False
    try:
        answers = results(stand_in, call[: call.index("Paris") + 2])
    finally:
        stand_in.checks_grammars = True
    for found in answers:
        assert not found.tool_calls
        assert found.finish_reason == "stop"
        assert found.invalid_tool_calls or found.content or found.metadata.get("unrecognised_calls")


# ---- demanded calls ------------------------------------------------------------------------------------------------------

NOTE = Tool(
    "note",
    "Keeps a text.",
    {
        "type": "object",
        "properties": {
            "text": {"type": "string", "maxLength": 20},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
            "options": {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]},
        },
        "required": ["text", "tags", "options"],
    },
)


def demanded(stand_in: StandIn, *, max_tokens: int) -> ChatResult:
    """What the random network makes of a demanded call with free text in it."""
    stand_in.says = None
    request = ChatRequest(
        messages=(Message("user", "Keep it."),),
        tools=(NOTE,),
        tool_choice=ToolChoice("required", parallel=False),
        sampling={"max_tokens": max_tokens, "seed": 0},
        reasoning_budget=8,
    )
    return backend_of(stand_in).chat(request)


@each_notation
def test_demanded_call_with_free_text_comes(family: Family, stand_ins: Callable[[Family], StandIn]) -> None:
    found = demanded(stand_ins(family), max_tokens=320)
    (call,) = found.tool_calls
    validate(json.loads(call.arguments, strict=False), dict(NOTE.parameters))
    assert found.finish_reason == "tool_calls"


@each_notation
def test_demanded_call_that_has_no_room_is_reported(family: Family, stand_ins: Callable[[Family], StandIn]) -> None:
    found = demanded(stand_ins(family), max_tokens=40)
    assert not found.tool_calls
    assert found.finish_reason == "length"
    assert found.invalid_tool_calls, found.content
