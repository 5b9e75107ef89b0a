"""OpenAI's own client against a running server of a trio that learned its answers, through the real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.utils.function_calling import convert_to_openai_tool
from openai import OpenAI
from pydantic import BaseModel

from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.scripted import ScriptedBackend
from tests.integrations.server.serving import running
from tests.integrations.trained_trio import MAGIC, WEATHER, get_weather, trained_engine

WEATHER_TOOL: Any = convert_to_openai_tool(get_weather)
MAGIC_TOOL: Any = {"type": "function", "function": MAGIC}
ADD_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}},
            "required": ["a"],
        },
    },
}
HELLO: Any = [{"role": "user", "content": "hello"}]
ASK_WEATHER: Any = [{"role": "user", "content": WEATHER}]


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    """A client of a running server."""
    with (
        running({"trio": backend_of(trained_engine())}) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_chat_answers_and_reports_usage_and_weights(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="trio", messages=HELLO, temperature=0)
    assert reply.choices[0].message.content == "Hello! How can I help?"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
    assert reply.model_extra is not None
    assert reply.model_extra["eft"]["reward_weights"] == {"chat": 1.0}


def test_stream_says_the_same_in_pieces_and_ends_with_usage(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="trio", messages=HELLO, temperature=0)
    got = list(
        client.chat.completions.create(
            model="trio", messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in got if chunk.choices)
    assert text == whole.choices[0].message.content
    assert got[-1].usage is not None
    assert whole.usage is not None
    assert got[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_tool_is_called_when_the_model_wants_to_and_its_result_is_used(client: OpenAI) -> None:
    first = client.chat.completions.create(
        model="trio", messages=ASK_WEATHER, tools=[WEATHER_TOOL], temperature=0
    ).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls is not None
    (call,) = first.message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"location": "San Francisco, CA"}
    history = [
        *ASK_WEATHER,
        first.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "It's sunny.", "name": "get_weather"},
    ]
    second = client.chat.completions.create(model="trio", messages=history, tools=[WEATHER_TOOL], temperature=0)
    assert second.choices[0].message.content == "It is sunny in San Francisco."


def test_demanded_call_comes_from_any_model(client: OpenAI) -> None:
    for choice, name in (("required", "add"), ({"type": "function", "function": {"name": "add"}}, "add")):
        tools = [ADD_TOOL] if choice == "required" else [MAGIC_TOOL, ADD_TOOL]
        reply = client.chat.completions.create(
            model="trio@chat=0",
            messages=HELLO,
            tools=tools,
            tool_choice=choice,
            max_tokens=300,
            parallel_tool_calls=False,
        )
        assert reply.choices[0].message.tool_calls is not None
        (call,) = reply.choices[0].message.tool_calls
        assert call.type == "function"
        assert call.function.name == name
        assert 0 <= json.loads(call.function.arguments)["a"] <= 99


def test_parallel_calls_are_read_one_by_one(client: OpenAI) -> None:
    message = client.chat.completions.create(
        model="trio", messages=HELLO, tools=[ADD_TOOL], tool_choice="required", n=8, max_tokens=120, seed=1,
        extra_body={"eft_reward_weights": 0.0},
    )  # fmt: skip
    counts = [len(choice.message.tool_calls or []) for choice in message.choices]
    assert min(counts) >= 1
    for choice in message.choices:
        calls = choice.message.tool_calls or []
        assert len({call.id for call in calls}) == len(calls)
        assert all("a" in json.loads(call.function.arguments) for call in calls if call.type == "function")


def test_streamed_call_is_put_together_by_the_client(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="trio", messages=ASK_WEATHER, tools=[WEATHER_TOOL], temperature=0
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"location": "San Francisco, CA"}


def test_answer_follows_a_schema_at_any_weight(client: OpenAI) -> None:
    class Point(BaseModel):
        x: bool
        kind: str

    reply = client.chat.completions.parse(
        model="trio",
        messages=HELLO,
        response_format=Point,
        max_tokens=30,
        extra_body={"eft_reward_weights": {"chat": 0.3}, "close_within_budget": True},
    )
    assert isinstance(reply.choices[0].message.parsed, Point)


def test_logprobs_come_whole_and_streamed_token_by_token(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "trio", "messages": HELLO, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    logprobs = whole.choices[0].logprobs
    assert whole.usage is not None
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == whole.usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in logprobs.content)
    streamed = [
        token.token
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == [token.token for token in logprobs.content]


def test_completions_continue_a_text_with_logprobs(client: OpenAI) -> None:
    reply = client.completions.create(
        model="trio", prompt="a", max_tokens=5, logprobs=1, extra_body={"ignore_eos": True}
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == len(logprobs.top_logprobs or []) == 5
    assert reply.choices[0].finish_reason == "length"


def test_responses_answer_stream_and_call(client: OpenAI) -> None:
    whole = client.responses.create(model="trio", input="hello", temperature=0)
    assert whole.output_text == "Hello! How can I help?"
    with client.responses.stream(model="trio", input="hello", temperature=0) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == whole.output_text
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    called = client.responses.create(
        model="trio", input=WEATHER, tools=[{**WEATHER_TOOL["function"], "type": "function"}], temperature=0
    )
    assert [item.type for item in called.output] == ["function_call"]


def test_weights_travel_by_body_header_and_name_and_change_the_answer(client: OpenAI) -> None:
    by: dict[str, dict[str, Any]] = {
        "body": {"extra_body": {"eft_reward_weights": {"chat": 0.0}}},
        "header": {"extra_headers": {"X-EFT-Reward-Weights": "chat=0"}},
        "name": {"model": "trio@chat=0"},
    }
    asked: dict[str, Any] = {"model": "trio", "messages": HELLO, "temperature": 0, "max_tokens": 12}
    tuned = client.chat.completions.create(**asked).choices[0].message.content
    plain = {
        route: client.chat.completions.create(**{**asked, **how}).choices[0].message.content
        for route, how in by.items()
    }
    assert len(set(plain.values())) == 1
    assert tuned not in plain.values()


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["trio"]
    assert client.models.retrieve("trio").owned_by == "eft"


def test_errors_are_the_client_s_own_types(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=HELLO)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as overflow:
        client.chat.completions.create(model="trio", messages=[{"role": "user", "content": "hello " * 5000}])
    assert overflow.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model="trio", messages=HELLO, extra_body={"eft_reward_weights": {"other": 1}})
    assert unknown.value.param == "eft_reward_weights"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model="trio", messages=HELLO, temperature=-1)
    assert hot.value.param == "temperature"
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "strict": True, "schema": {"type": "array", "uniqueItems": True}},
    }
    with pytest.raises(openai.BadRequestError) as grammar:
        client.chat.completions.create(model="trio", messages=HELLO, response_format=schema)
    assert (grammar.value.code, grammar.value.param) == ("invalid_value", "response_format")


def test_failure_in_the_middle_of_a_stream_reaches_the_client() -> None:
    class Breaking(ScriptedBackend):
        async def astream(self, request: Any) -> Any:
            async for delta in super().astream(request):
                yield delta
                raise RuntimeError("broken")

    with (
        running({"m": Breaking(["one two"] * 2)}) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="the server failed"):
            list(stream)
        last = list(client.responses.create(model="m", input="hi", stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message.startswith("the server failed")
