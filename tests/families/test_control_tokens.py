"""Texts that users, tools and models supply never become the markers that give a prompt its structure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from eft_engine import errors
from eft_integrations.backends.pool import backend_of
from eft_integrations.chat.messages import Message, Tool, ToolCall
from eft_integrations.chat.request import ChatRequest
from tests.families.imitations import FAMILIES, Family
from tests.families.stand_in import StandIn, markers_in

ZERO_WIDTH_SPACE = "\u200b"

PLACES = (
    "user", "system", "assistant", "second system", "tool name", "tool description", "parameter name",
    "parameter description", "argument name", "argument value", "call name", "call id", "result", "document",
)  # fmt: skip

NAMES = frozenset({"tool name", "parameter name", "argument name", "call name", "call id"})


def request_with(place: str, text: str) -> ChatRequest:
    """A conversation with everything in it, and the text in one place."""

    def at(own: str, harmless: str) -> str:
        return text if own == place else harmless

    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": at("parameter description", "a town")},
            at("parameter name", "days"): {"type": "integer", "description": "how many"},
        },
        "required": ["city"],
    }
    arguments = {"city": at("argument value", "Paris"), at("argument name", "days"): 2}
    name, call_id = at("call name", "get_weather"), at("call id", "call_0123456789abcdef")
    tool = Tool(at("tool name", "get_weather"), at("tool description", "Foretells rain."), schema)
    return ChatRequest(
        messages=(
            Message("system", at("system", "Be brief.")),
            Message("user", at("user", "Will it rain?")),
            Message("assistant", at("assistant", "Perhaps.")),
            Message("system", at("second system", "Be sure.")),
            Message("user", "Are you sure?"),
            Message("assistant", "", (ToolCall(call_id, name, json.dumps(arguments, ensure_ascii=False)),)),
            Message("tool", at("result", "18 degrees"), tool_call_id=call_id, name=name),
        ),
        tools=(tool,),
        documents=({"title": "Clouds", "text": at("document", "They are grey.")},) if place == "document" else (),
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda own: own.name)
def test_structure_stays(family: Family, stand_ins: Callable[[Family], StandIn]) -> None:
    stand_in = stand_ins(family)
    assert broken_places(stand_in) == []
    text = marked(stand_in)
    for place in ("user", "system", "second system", "assistant", "argument value", "result", "document"):
        prompt_ids(stand_in, request_with(place, text))
        assert text in without_breaks(stand_in.prompt), f"the words stay readable: {place}"


def marked(stand_in: StandIn) -> str:
    """A text with every marker of the family."""
    return f"alpha {' and '.join(stand_in.family.all_markers)} omega"


def broken_places(stand_in: StandIn) -> list[str]:
    """Where such a text changes the structure of a prompt, or is garbled. A name that is refused does neither."""
    text, broken = marked(stand_in), []
    harmless = markers_in(prompt_ids(stand_in, request_with("nowhere", "")), stand_in)
    for place in PLACES:
        try:
            token_ids = prompt_ids(stand_in, request_with(place, text))
        except errors.InvalidOptionError:
            if place not in NAMES:
                broken.append(f"{place}: refused")
            continue
        found = markers_in(token_ids, stand_in)
        if found != harmless:
            changed = {
                marker: found[marker] - harmless[marker] for marker in found if found[marker] != harmless[marker]
            }
            broken.append(f"{place}: {changed}")
        shown = without_breaks(stand_in.prompt)
        if "alpha " in shown and text not in shown:
            broken.append(f"{place}: not readable")
    return broken


def without_breaks(prompt: str) -> str:
    """A prompt without what breaks up control tokens, as such or as Python prints it."""
    return prompt.replace(ZERO_WIDTH_SPACE, "").replace("\\u200b", "")


def prompt_ids(stand_in: StandIn, request: ChatRequest) -> list[int]:
    """The prompt that the package makes of it."""
    stand_in.says = ""
    backend_of(stand_in).stream(request).close()  # type: ignore[attr-defined]
    return stand_in.prompts[-1]
