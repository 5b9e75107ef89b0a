"""POST /v1/responses: items in, items out, and the events of a stream; OpenAI's own types read all of them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from tests.integrations.server.serving import events_of, in_process

LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": True}
CALL = Message("assistant", "Let me see", (ToolCall("call_1", "look", '{"a": 1}'), ToolCall("call_2", "look", "{}")))
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def ask(backend: ScriptedBackend, **body: Any) -> httpx.Response:
    """One request to a server of a scripted backend called m."""
    async with in_process({"m": backend}) as client:
        return await client.post("/v1/responses", json={"model": "m", "input": "hi", **body})


async def events(backend: ScriptedBackend, **body: Any) -> list[Any]:
    """The events of a stream, read strictly by OpenAI's types."""
    response = await ask(backend, stream=True, **body)
    return [EVENT.validate_python(json.loads(event)) for event in events_of(response.text)]


async def test_reply_is_a_response_with_a_message() -> None:
    reply = Response.model_validate((await ask(ScriptedBackend(["one two"]))).json())
    assert reply.output_text == "one two"
    assert reply.status == "completed"
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (1, 2)


async def test_reply_has_text_and_calls_as_items_in_order() -> None:
    reply = (await ask(ScriptedBackend([CALL]), tools=[LOOK])).json()
    assert [item["type"] for item in reply["output"]] == ["message", "function_call", "function_call"]
    assert [item.get("call_id") for item in reply["output"]] == [None, "call_1", "call_2"]
    assert reply["output"][1]["arguments"] == '{"a": 1}'


async def test_stream_announces_fills_and_closes_every_item() -> None:
    got = await events(ScriptedBackend([CALL]), tools=[LOOK])
    assert [event.sequence_number for event in got] == list(range(len(got)))
    text = ["output_item.added", "content_part.added", *["output_text.delta"] * 3]
    text += ["output_text.done", "content_part.done", "output_item.done"]
    begun = ["output_item.added", "function_call_arguments.delta"]
    done = ["function_call_arguments.done", "output_item.done"]  # whether a call is one is known at the end
    assert [event.type.removeprefix("response.") for event in got] == [
        "created",
        "in_progress",
        *text,
        *begun * 2,
        *done * 2,
        "completed",
    ]
    assert [event.output_index for event in got if event.type == "response.output_item.done"] == [0, 1, 2]
    assert got[-1].response.output[0].content[0].text == "Let me see"


async def test_conversation_of_items_becomes_turns() -> None:
    backend = ScriptedBackend(["ok"])
    items = [
        {"role": "user", "content": "a"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": ""},
        {"type": "reasoning", "summary": []},
        {"type": "function_call_output", "call_id": "c1", "output": "seen"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "nothing"}]},
    ]
    await ask(backend, input=items, instructions="rules")
    assert backend.requests[0].messages == (
        Message("system", "rules"),
        Message("user", "a"),
        Message("assistant", "b", (ToolCall("c1", "look", '{"x": 1}'), ToolCall("c2", "look", "{}"))),
        Message("tool", "seen", tool_call_id="c1", name="look"),
        Message("tool", "nothing", tool_call_id="c2", name="look"),
    )


async def test_format_choice_weights_and_limits_reach_the_backend() -> None:
    backend = ScriptedBackend(["{}"])
    schema = {"type": "object", "properties": {}}
    await ask(
        backend,
        text={"format": {"type": "json_schema", "name": "x", "schema": schema}},
        tools=[LOOK],
        tool_choice={"type": "function", "name": "look"},
        max_output_tokens=5,
        temperature=0,
        eft_reward_weights=0.5,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    (request,) = backend.requests
    assert request.response_schema == schema
    assert (request.tool_choice.mode, request.tool_choice.name) == ("named", "look")
    assert request.sampling == {"max_tokens": 5, "temperature": 0, "logprobs": 2}
    assert request.reward_weights == {"scripted": 0.5}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, None),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
    ],
)
async def test_what_cannot_be_kept_or_read_is_refused(body: dict[str, Any], param: str | None) -> None:
    response = await ask(ScriptedBackend(["ok"]), **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
