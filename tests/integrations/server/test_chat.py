"""POST /v1/chat/completions: the exact shapes, what six clients send, weights by every carrier, and fields that are refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from tests.integrations.server.serving import events_of, in_process

HELLO = [{"role": "user", "content": "hi"}]
CALL = Message("assistant", "", (ToolCall("call_1", "look", '{"place": "here"}'), ToolCall("call_2", "look", "{}")))
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
SMELL = {"type": "function", "function": {"name": "smell"}}


async def ask(backend: ScriptedBackend, *, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    """One request to a server of a scripted backend called m."""
    async with in_process({"m": backend}) as client:
        return await client.post(
            "/v1/chat/completions", json={"model": "m", "messages": HELLO, **body}, headers=headers
        )


async def chunks(backend: ScriptedBackend, **body: Any) -> list[Any]:
    """The chunks of a stream, without the last event, which must be [DONE]."""
    response = await ask(backend, stream=True, **body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = events_of(response.text)
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


async def test_reply_has_openai_s_shape() -> None:
    reply = (await ask(ScriptedBackend(["one two"]))).json()
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "m"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert reply["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert reply["eft"]["reward_weights"] == {"scripted": 1.0}


async def test_reply_with_calls_has_null_content() -> None:
    (choice,) = (await ask(ScriptedBackend([CALL]), tools=[LOOK])).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0] == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"place": "here"}'},
    }


async def test_stream_is_role_then_text_then_reason() -> None:
    got = await chunks(ScriptedBackend(["one two"]))
    assert [chunk["choices"][0]["delta"] for chunk in got] == [
        {"role": "assistant"},
        {"content": "one"},
        {"content": " two"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in got] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in got} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in got}) == 1
    assert not any("usage" in chunk for chunk in got)
    assert got[-1]["eft"]["reward_weights"] == {"scripted": 1.0}


async def test_line_separators_in_a_text_do_not_break_the_stream_s_lines() -> None:
    text = "a\u2028b\u2029c\u0085d\x0be"
    got = await chunks(ScriptedBackend([text]))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got) == text


async def test_usage_chunk_has_no_choices_and_the_others_say_null() -> None:
    got = await chunks(ScriptedBackend(["one two"]), stream_options={"include_usage": True})
    assert [chunk["usage"] is None for chunk in got] == [True] * (len(got) - 1) + [False]
    assert got[-1]["choices"] == []
    assert got[-1]["usage"]["total_tokens"] == 3


async def test_streamed_call_gives_id_and_name_once_and_then_arguments() -> None:
    got = await chunks(ScriptedBackend([CALL]), tools=[LOOK])
    deltas = [delta for chunk in got for delta in chunk["choices"][0]["delta"].get("tool_calls", [])]
    first = {"name": "look", "arguments": ""}
    assert deltas == [
        {"index": 0, "id": "call_1", "type": "function", "function": first},
        {"index": 0, "function": {"arguments": '{"place": "here"}'}},
        {"index": 1, "id": "call_2", "type": "function", "function": first},
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    assert got[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_n_answers_are_numbered_and_counted_together() -> None:
    reply = (await ask(ScriptedBackend(["one", "two words"]), n=2)).json()
    assert [(choice["index"], choice["message"]["content"]) for choice in reply["choices"]] == [
        (0, "one"),
        (1, "two words"),
    ]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (1, 3)


async def test_n_streamed_answers_each_have_a_role_and_a_reason() -> None:
    got = await chunks(ScriptedBackend(["one", "two words"]), n=2, stream_options={"include_usage": True})
    for index, text in enumerate(("one", "two words")):
        own = [chunk["choices"][0] for chunk in got if chunk["choices"] and chunk["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant"}
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]
    assert got[-1]["usage"]["completion_tokens"] == 3


async def test_each_of_n_answers_has_its_own_seed() -> None:
    backend = ScriptedBackend(["one", "two", "three"])
    await ask(backend, n=3, seed=7)
    assert [request.sampling["seed"] for request in backend.requests] == [7, 8, 9]


# ---- what is asked -------------------------------------------------------------------------------------------------------


async def test_every_sampling_field_reaches_the_backend() -> None:
    backend = ScriptedBackend(["ok"])
    fields = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "seed": 3, "stop": ["a", "b"], "stop_token_ids": [4], "ignore_eos": True, "max_tokens": 9,
    }  # fmt: skip
    await ask(backend, **fields, logit_bias={"12": -100}, logprobs=True, top_logprobs=2)
    assert backend.requests[0].sampling == {**fields, "logit_bias": {12: -100.0}, "logprobs": 2}


async def test_max_completion_tokens_goes_before_max_tokens_and_both_before_the_server_s_default() -> None:
    backend = ScriptedBackend(["ok"] * 3)
    await ask(backend, max_tokens=5, max_completion_tokens=7)
    await ask(backend, max_tokens=5)
    await ask(backend)
    assert [request.sampling["max_tokens"] for request in backend.requests] == [7, 5, 1024]


async def test_roles_parts_calls_and_results_become_neutral_messages() -> None:
    backend = ScriptedBackend(["ok"])
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"place": "x"}'}}
    messages = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
    ]
    await ask(backend, messages=messages)
    assert backend.requests[0].messages == (
        Message("system", "rules"),
        Message("user", "ab", name="ann"),
        Message("assistant", "", (ToolCall("c1", "look", '{"place": "x"}'),)),
        Message("tool", "seen", tool_call_id="c1"),
    )


@pytest.mark.parametrize(
    ("choice", "mode", "name", "left"),
    [
        (None, "auto", None, ["look", "smell"]),
        ("none", "none", None, ["look", "smell"]),
        ("required", "required", None, ["look", "smell"]),
        ({"type": "function", "function": {"name": "smell"}}, "named", "smell", ["look", "smell"]),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [SMELL]}},
            "required",
            None,
            ["smell"],
        ),
    ],
)
async def test_tool_choice_is_understood(choice: Any, mode: str, name: str | None, left: list[str]) -> None:
    backend = ScriptedBackend(["ok"])
    await ask(backend, tools=[LOOK, SMELL], tool_choice=choice, parallel_tool_calls=False)
    (request,) = backend.requests
    assert (request.tool_choice.mode, request.tool_choice.name) == (mode, name)
    assert [tool.name for tool in request.tools] == left
    assert not request.tool_choice.parallel or mode == "none"


async def test_response_format_becomes_a_schema() -> None:
    backend = ScriptedBackend(["{}"] * 3)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    for response_format in (wanted, {"type": "json_object"}, {"type": "text"}):
        await ask(backend, response_format=response_format)
    assert [request.response_schema for request in backend.requests] == [schema, {"type": "object"}, None]


CLIENTS: dict[str, dict[str, Any]] = {
    "smolagents ToolCallingAgent": {"tool_choice": "required", "stop": ["Observation:"], "tools": [LOOK]},
    "smolagents CodeAgent": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "code", "schema": {"type": "object"}}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["Observation:", "Calling tools:"],
    },
    "pydantic-ai": {"tool_choice": "auto", "tools": [LOOK], "stream": False},
    "openai-agents": {"tool_choice": "auto", "tools": [LOOK], "logprobs": True, "top_logprobs": 3, "stream": True},
    "autogen": {"tool_choice": "auto", "tools": [LOOK], "stream": False},
    "langchain-openai": {
        "tools": [LOOK],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "max_completion_tokens": 12,
    },
    "llama-index OpenAILike": {
        "temperature": 0.1,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "tools": [LOOK],
    },
}


@pytest.mark.parametrize("client", CLIENTS)
async def test_what_a_client_sends_is_answered_with_its_weights_and_nothing_is_ignored(client: str) -> None:
    backend = ScriptedBackend(["ok"])
    response = await ask(backend, eft_reward_weights={"scripted": 0.25}, user="u", store=False, **CLIENTS[client])
    assert response.status_code == 200
    assert backend.requests[0].reward_weights == {"scripted": 0.25}
    assert "ignored" not in response.text


# ---- weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "header", "model", "weight"),
    [
        (0.1, "0.2", "m@scripted=0.3", 0.1),
        ({"scripted": 0.0}, "0.2", "m@scripted=0.3", 0.0),
        (None, "scripted=0.2", "m@scripted=0.3", 0.2),
        (None, None, "m@scripted=0.3", 0.3),
        (None, None, "m", 1.0),
    ],
)
async def test_weights_body_goes_before_header_header_before_alias_alias_before_the_composition(
    body: Any, header: str | None, model: str, weight: float
) -> None:
    backend = ScriptedBackend(["ok"])
    headers = {} if header is None else {"X-EFT-Reward-Weights": header}
    reply = (await ask(backend, model=model, eft_reward_weights=body, headers=headers)).json()
    assert reply["eft"]["reward_weights"] == {"scripted": weight}
    assert backend.requests[0].reward_weights == {"scripted": weight}
    assert reply["model"] == model


# ---- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"model": "m@scripted"}, 400, "model", "invalid_value"),
        ({"messages": []}, 400, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "messages.0.content.0",
            "invalid_value",
        ),
        ({"n": 0}, 400, "n", "invalid_value"),
        ({"top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, 400, "tools.0", "invalid_value"),
        ({"tools": [LOOK], "tool_choice": "no such tool"}, 400, "tool_choice", "invalid_value"),
        ({"tool_choice": "required"}, 400, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format", "invalid_value"),
        ({"response_format": {"type": "yaml"}}, 400, "response_format", "invalid_value"),
        ({"functions": [{"name": "f"}]}, 400, None, "invalid_value"),
        ({"modalities": ["text", "audio"]}, 400, None, "invalid_value"),
        ({"eft_reward_weight": 1.0}, 400, None, "invalid_value"),
        ({"eft_reward_weights": {"other": 1.0}}, 400, "eft_reward_weights", "unknown_pair"),
    ],
)
async def test_refusal_names_the_field(body: dict[str, Any], status: int, param: str | None, code: str) -> None:
    response = await ask(ScriptedBackend(["ok"]), **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"


async def test_unknown_field_is_ignored_and_named_in_the_reply() -> None:
    reply = (await ask(ScriptedBackend(["ok"]), flavour=2, user="ann", metadata={"a": "b"})).json()
    assert reply["eft"]["ignored"] == ["flavour"]


async def test_failure_that_nobody_foresaw_is_a_server_error_that_tells_nothing() -> None:
    response = await ask(ScriptedBackend([IndexError("lost")]))
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "the server failed; its log says why",
        "type": "server_error",
        "param": None,
        "code": None,
    }
