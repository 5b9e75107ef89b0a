"""Texts that users, tools and models supply never become the markers that give a prompt its structure."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from eft_engine import errors
from eft_integrations.backends.pool import backend_of
from eft_integrations.chat.messages import Message, Tool, ToolCall
from eft_integrations.chat.request import ChatRequest
from tests.families.imitations import BY_NAME, FAMILIES, Family
from tests.families.stand_in import StandIn, markers_in

ZERO_WIDTH_SPACE = "\u200b"

PLACES = (
    "user", "system", "assistant", "second system", "tool name", "tool description", "parameter name",
    "parameter description", "argument name", "argument value", "call name", "call id", "result", "document",
)  # fmt: skip


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


@pytest.fixture(scope="session")
def harmless(stand_ins: Callable[[Family], StandIn]) -> Callable[[Family], Mapping[str, int]]:
    """The markers in a family's prompt without any text of that kind."""

    @functools.cache
    def find(name: str) -> Mapping[str, int]:
        stand_in = stand_ins(BY_NAME[name])
        return markers_in(prompt_ids(stand_in, request_with("nowhere", "")), stand_in)

    return lambda family: find(family.name)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda own: own.name)
def test_structure_stays(
    family: Family,
    place: str,
    stand_ins: Callable[[Family], StandIn],
    harmless: Callable[[Family], Mapping[str, int]],
) -> None:
    stand_in = stand_ins(family)
    text = f"alpha {' and '.join(family.all_markers)} omega"
    expected = harmless(family)
    try:
        token_ids = prompt_ids(stand_in, request_with(place, text))
    except errors.InvalidOptionError:
        assert place in ("tool name", "parameter name", "call name", "call id", "argument name")
        return
    assert markers_in(token_ids, stand_in) == expected
    shown = stand_in.prompt.replace(ZERO_WIDTH_SPACE, "").replace("\\u200b", "")
    if "alpha " in shown:  # some templates show no descriptions, and none shows ids in full
        assert text in shown, "the words stay readable"
    else:
        assert place not in ("user", "system", "second system", "assistant", "argument value", "result", "document")


def prompt_ids(stand_in: StandIn, request: ChatRequest) -> list[int]:
    """The prompt that the package makes of it."""
    stand_in.says = ""
    backend_of(stand_in).stream(request).close()  # type: ignore[attr-defined]
    return stand_in.prompts[-1]
