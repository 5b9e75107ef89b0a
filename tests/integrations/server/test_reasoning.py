"""Thoughts over HTTP: fields of messages and items of responses, how thinking is asked for, and strict schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from eft_engine import TokenLogprobs
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.server.composition_settings import CompositionSettings
from eft_integrations.server.compositions import Composition
from eft_integrations.server.openai.response_items import Items
from tests.integrations.cuts import REASON, cut
from tests.integrations.server.serving import events_of, in_process

LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALLS = (ToolCall("call_1", "look", '{"a": 1}'), ToolCall("call_2", "look", "{}"))
ANSWER = Message("assistant", "Let me see.", CALLS, reasoning="Where is it?")
USER = {"role": "user", "content": "hi"}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def ask(backend: ScriptedBackend, path: str = "/v1/chat/completions", **body: Any) -> Any:
    """The reply, or the events without the last one, [DONE]."""
    asked = {"messages": [USER]} if path.endswith("completions") else {} if path == "/tokenize" else {"input": "hi"}
    async with in_process({"m": backend}) as client:
        response = await client.post(path, json={"model": "m", **asked, **body})
    found = [json.loads(event) for event in events_of(response.text) if event != "[DONE]"]
    return found or response.json()


async def asked_of(path: str = "/v1/chat/completions", **body: Any) -> ChatRequest:
    """What a body asks of a backend; nothing of it is ignored."""
    backend = ScriptedBackend(["{}"])
    reply = await ask(backend, path, **body)
    assert "ignored" not in reply["eft"]
    return backend.requests[0]


# ---- chat completions ----------------------------------------------------------------------------------------------------


async def test_message_has_the_thought_under_both_names_and_usage_counts_it() -> None:
    reply = await ask(ScriptedBackend([ANSWER, "Yes."]))
    message = reply["choices"][0]["message"]
    assert (message["reasoning_content"], message["reasoning"]) == ("Where is it?", "Where is it?")
    assert message["content"] == "Let me see."
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


async def test_message_without_a_thought_has_no_field_of_one() -> None:
    message = (await ask(ScriptedBackend(["Yes."])))["choices"][0]["message"]
    assert set(message) == {"role", "content", "refusal"}


async def test_stream_has_pieces_of_the_thought_before_the_text() -> None:
    chunks = await ask(ScriptedBackend([ANSWER]), stream=True, stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[1] == {"reasoning_content": "Where", "reasoning": "Where"}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Where is it?"
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    first_text = next(index for index, delta in enumerate(deltas) if delta.get("content"))
    assert not any("reasoning" in delta for delta in deltas[first_text:])
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "Yes.", "reasoning_content": "hm"},
        {"content": "Yes.", "reasoning": "hm"},
        {"content": "Yes.", "reasoning": "hm", "reasoning_content": "hm"},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Yes."}]},
        {"content": [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "Yes."}]},
        {"content": "Yes.", "reasoning_details": [{"type": "reasoning.text", "text": "hm", "signature": "s", "index": 0}]},
        {"content": "Yes.", "reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
        {"content": "Yes.", "reasoning_content": "hm", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
        {"content": "Yes.", "reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "others"}]},
    ],
    ids=[
        "reasoning_content", "reasoning", "both", "thinking part", "reasoning part", "details", "summary", "encrypted details",
        "details beside a text",
    ],
)  # fmt: skip
async def test_thought_of_history_is_the_turns(turn: dict[str, Any]) -> None:
    request = await asked_of(messages=[USER, {"role": "assistant", **turn}, USER])
    assert request.messages[1] == Message("assistant", "Yes.", reasoning="hm")


async def test_users_have_no_thoughts() -> None:
    assert (await asked_of(messages=[{**USER, "reasoning_content": "hm"}])).messages == (Message("user", "hi"),)


# ---- how thinking is asked for -------------------------------------------------------------------------------------------

ASKED: dict[str, tuple[dict[str, Any], tuple[str, int | None]]] = {
    "nothing": ({}, ("auto", None)),
    "effort": ({"reasoning_effort": "high"}, ("high", None)),
    "no effort": ({"reasoning_effort": "none"}, ("off", None)),
    "object": ({"reasoning": {"effort": "low", "max_tokens": 9}}, ("low", 9)),
    "object, off": ({"reasoning": {"effort": "none"}}, ("off", None)),
    "disabled": ({"reasoning": {"enabled": False}}, ("off", None)),
    "enabled": ({"reasoning": {"enabled": True}}, ("auto", None)),
    "summary": ({"reasoning": {"summary": "auto"}}, ("auto", None)),
    "budget": ({"eft_reasoning_budget": 0}, ("auto", 0)),
    "both": (
        {"reasoning": {"effort": "low", "max_tokens": 9}, "reasoning_effort": "high", "eft_reasoning_budget": 4},
        ("high", 4),
    ),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("name", ASKED)
async def test_thinking_is_asked_for(name: str, path: str) -> None:
    body, expected = ASKED[name]
    request = await asked_of(path, **body, chat_template_kwargs={"enable_thinking": False})
    assert (request.reasoning, request.reasoning_budget) == expected
    assert request.template_variables == {"enable_thinking": False}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_tags_and_strictness_are_asked_for(path: str) -> None:
    tools = [LOOK["function"] | {"type": "function"}] if path == "/v1/responses" else [LOOK]
    request = await asked_of(path, tools=tools, eft_reasoning_tags=["<a>", "</a>"], eft_strict=True)
    assert request.reasoning_tags == ("<a>", "</a>")
    assert request.tools[0].strict
    assert request.strict_response
    assert not (await asked_of(path, tools=tools)).tools[0].strict


async def test_function_and_format_may_say_that_they_are_strict_themselves() -> None:
    schema = {"type": "object", "properties": {}}
    strict: Any = {"type": "function", "function": {**LOOK["function"], "strict": True}}  # type: ignore[dict-item]
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    request = await asked_of(tools=[strict, {"type": "function", "function": {"name": "b"}}], response_format=wanted)
    assert [tool.strict for tool in request.tools] == [True, False]
    assert request.strict_response
    text = {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": schema}}
    assert (await asked_of("/v1/responses", text=text)).strict_response
    assert not (await asked_of(response_format={"type": "json_object"})).strict_response


async def test_unknown_option_of_thinking_is_named() -> None:
    reply = await ask(ScriptedBackend(["ok"]), reasoning={"exclude": True, "summary": "auto"})
    assert reply["eft"]["ignored"] == ["reasoning.exclude"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
        ({"eft_reasoning_budget": -1}, "eft_reasoning_budget"),
        ({"eft_reasoning_tags": ["<a>"]}, "eft_reasoning_tags.1"),
        ({"messages": [{"role": "assistant", "content": "x", "reasoning_content": 3}]}, "messages.0.reasoning_content"),
    ],
)
async def test_refusal_names_the_field(body: dict[str, Any], param: str) -> None:
    error = (await ask(ScriptedBackend(["ok"]), **body))["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value")


async def test_tokens_are_counted_of_the_prompt_as_it_is_asked_for() -> None:
    class Counting(ScriptedBackend):
        counted: ChatRequest | None = None

        def count_prompt_tokens(self, request: ChatRequest) -> int:
            self.counted = request
            return 5

    backend = Counting([])
    turns = [USER, {"role": "assistant", "content": "Yes.", "reasoning": "hm"}]
    body: dict[str, Any] = {"messages": turns, "reasoning_effort": "none", "eft_reasoning_tags": ["<a>", "</a>"]}
    assert (await ask(backend, "/tokenize", **body))["count"] == 5
    assert backend.counted is not None
    assert (backend.counted.reasoning, backend.counted.reasoning_tags) == ("off", ("<a>", "</a>"))
    assert backend.counted.messages[1].reasoning == "hm"


def test_tags_of_a_composition_hold_where_a_request_says_none() -> None:
    settings = CompositionSettings.model_validate({"name": "m", "preset": "p", "reasoning_tags": ["<a>", "</a>"]})
    served = Composition("m", ScriptedBackend([]), {}, reasoning_tags=settings.reasoning_tags)
    assert served.ask(ChatRequest()).reasoning_tags == ("<a>", "</a>")
    assert served.ask(ChatRequest(reasoning_tags=("<b>", "</b>"))).reasoning_tags == ("<b>", "</b>")


# ---- responses -----------------------------------------------------------------------------------------------------------


async def test_thought_is_the_first_item_and_openai_s_types_read_it() -> None:
    reply = await ask(ScriptedBackend([ANSWER]), "/v1/responses", reasoning={"effort": "high"})
    response = Response.model_validate(reply)
    thought, *rest = response.output
    assert [item.type for item in rest] == ["message", "function_call", "function_call"]
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert [(part.type, part.text) for part in thought.content] == [("reasoning_text", "Where is it?")]
    assert thought.id.startswith("rs_")
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 3
    assert response.reasoning is not None
    assert response.reasoning.effort == "high"


async def test_events_announce_fill_and_close_the_thought_before_the_message() -> None:
    found = [EVENT.validate_python(own) for own in await ask(ScriptedBackend([ANSWER]), "/v1/responses", stream=True)]
    kinds = [event.type.removeprefix("response.") for event in found]
    assert kinds[2:10] == [
        "output_item.added",
        "content_part.added",
        *["reasoning_text.delta"] * 3,
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert kinds[10:12] == ["output_item.added", "content_part.added"]
    assert [event.item.type for event in found if event.type == "response.output_item.done"] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert "".join(event.delta for event in found if event.type == "response.reasoning_text.delta") == "Where is it?"


async def test_thought_is_a_summary_where_one_is_asked_for() -> None:
    asked: dict[str, Any] = {"reasoning": {"summary": "auto"}}
    response = Response.model_validate(await ask(ScriptedBackend([ANSWER]), "/v1/responses", **asked))
    assert response.output[0].to_dict()["summary"] == [{"type": "summary_text", "text": "Where is it?"}]
    assert "content" not in response.output[0].to_dict()
    assert response.reasoning is not None
    assert response.reasoning.summary == "auto"
    found = [
        EVENT.validate_python(own)
        for own in await ask(ScriptedBackend([ANSWER]), "/v1/responses", stream=True, **asked)
    ]
    assert [event.type.removeprefix("response.") for event in found[2:10]] == [
        "output_item.added",
        "reasoning_summary_part.added",
        *["reasoning_summary_text.delta"] * 3,
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    assert [event.summary_index for event in found[3:9]] == [0] * 6


async def test_thought_belongs_to_the_message_or_the_calls_behind_it() -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}

    items = [
        {"role": "user", "content": "a"},
        thought("one"),
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "seen"},
        thought("two"),
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c2", "output": "seen"},
        {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "three"}]},
        {"type": "reasoning", "id": "rs_3", "summary": [], "encrypted_content": "x"},
        {"role": "assistant", "content": "c"},
        thought("four"),
        {"role": "user", "content": "d"},
    ]
    assert (await asked_of("/v1/responses", input=items)).messages == (
        Message("user", "a"),
        Message("assistant", "b", (ToolCall("c1", "look", "{}"),), reasoning="one"),
        Message("tool", "seen", tool_call_id="c1", name="look"),
        Message("assistant", "", (ToolCall("c2", "look", "{}"),), reasoning="two"),
        Message("tool", "seen", tool_call_id="c2", name="look"),
        Message("assistant", "c", reasoning="three"),
        Message("assistant", "", reasoning="four"),
        Message("user", "d"),
    )


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_answer_handed_back_as_input_is_the_turn_that_it_was(summary: str | None) -> None:
    reply = await ask(ScriptedBackend([ANSWER]), "/v1/responses", reasoning={"summary": summary})
    results = [{"type": "function_call_output", "call_id": own.call_id, "output": "seen"} for own in CALLS]
    request = await asked_of("/v1/responses", input=[{"role": "user", "content": "a"}, *reply["output"], *results])
    assert request.messages[1] == ANSWER


async def test_call_that_was_cut_is_no_part_of_the_conversation() -> None:
    broken = InvalidToolCall('{"a": [', REASON, "look", "call_2", '{"a": [')
    reply = await ask(ScriptedBackend([cut(Message("assistant", "", CALLS[:1]), broken)]), "/v1/responses")
    results = [{"type": "function_call_output", "call_id": "call_1", "output": "seen"}]
    request = await asked_of("/v1/responses", input=[{"role": "user", "content": "a"}, *reply["output"], *results])
    assert [message.role for message in request.messages] == ["user", "assistant", "tool"]
    assert request.messages[1].tool_calls == CALLS[:1]


def test_log_probabilities_whose_text_is_held_back_wait_for_it() -> None:
    """They must open no message before the thought."""
    token = [TokenLogprobs(index, f"t{index}", -1.0, (), {}) for index in range(4)]
    items = Items()
    deltas = [
        ChatDelta(logprobs=(token[0],)),
        ChatDelta(reasoning="hm"),
        ChatDelta(logprobs=(token[1],)),
        ChatDelta(text="Yes", logprobs=(token[2],)),
        ChatDelta(logprobs=(token[3],)),
    ]
    events = [event for delta in deltas for event in items.feed(delta)]
    events += items.finish(cut(Message("assistant", "Yes", reasoning="hm")))
    assert [item["type"] for item in items.output] == ["reasoning", "message"]
    (part,) = items.output[1]["content"]
    assert [own["token"] for own in part["logprobs"]] == ["t0", "t1", "t2", "t3"]
    streamed = [
        own["token"] for event in events for own in event.get("logprobs", ()) if event["type"].endswith("delta")
    ]
    assert streamed == ["t0", "t1", "t2", "t3"]
