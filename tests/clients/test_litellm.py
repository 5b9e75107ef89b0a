"""LiteLLM against the server: the recipe, streams, tools, schemas, the other routes, and what its errors are."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest
from pydantic import BaseModel

from tests.clients.recipes import run

HELLO = [{"role": "user", "content": "hello"}]
HALF = {"eft_reward_weights": {"helpful": 0.5}}
SAID = 'hello {"helpful": 0.5, "harmless": 0.3}'
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


class Weather(BaseModel):
    """Weather somewhere."""

    city: str
    sunny: bool


@pytest.fixture
def server(base_url: str) -> dict[str, Any]:
    """Where and what."""
    return {"model": "openai/eft", "api_base": base_url, "api_key": "none", "messages": HELLO, "num_retries": 0}


def text(reply: Any) -> str:
    """Of the first choice."""
    return reply.choices[0].message.content


def joined(chunks: list[Any]) -> str:
    """The text of a stream; the last chunk has the usage and no choice."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_recipe(base_url: str) -> None:
    names: Any = run("LiteLLM", base_url)
    assert text(names["reply"]) == SAID
    assert names["reply"].eft["reward_weights"] == {"helpful": 0.5, "harmless": 0.3}
    assert names["replies"] == {
        name: f"hello {json.dumps({'helpful': weight, 'harmless': weight})}" for name, weight in names["dial"].items()
    }


@pytest.mark.parametrize(
    "how",
    [
        {"extra_body": HALF},
        HALF,
        {**HALF, "drop_params": True, "top_k": 3},
        {"extra_headers": {"X-EFT-Reward-Weights": "helpful=0.5"}},
        {"model": "openai/eft@helpful=0.5"},
        {"model": "hosted_vllm/eft", "extra_body": HALF},
    ],
)
def test_weights_travel_by_every_way(server: dict[str, Any], how: dict[str, Any]) -> None:
    assert text(litellm.completion(**{**server, **how})) == SAID


async def test_streams_are_whole_and_counted(server: dict[str, Any]) -> None:
    asked = {**server, "extra_body": HALF, "stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(**asked, stream=True))
    assert joined(chunks) == SAID
    assert chunks[-1].usage.total_tokens > 0
    assert joined([chunk async for chunk in await litellm.acompletion(**asked, stream=True)]) == SAID
    thought = litellm.completion(**{**server, "model": "openai/thinker"}).choices[0].message.reasoning_content
    assert thought == "I must look."


def test_tools_whole_and_streamed(server: dict[str, Any]) -> None:
    (call,) = litellm.completion(**server, tools=[LOOK]).choices[0].message.tool_calls
    chunks = list(litellm.completion(**server, tools=[LOOK], stream=True))
    (streamed,) = litellm.stream_chunk_builder(chunks, messages=HELLO).choices[0].message.tool_calls
    assert call.function.name == streamed.function.name == "look"
    assert json.loads(call.function.arguments) == json.loads(streamed.function.arguments) == {"place": "Paris"}


def test_schemas_and_other_routes(server: dict[str, Any], base_url: str) -> None:
    Weather.model_validate_json(text(litellm.completion(**server, response_format=Weather)))
    address = {"api_base": base_url, "api_key": "none"}
    answer = litellm.responses(model="openai/eft", input="hello", extra_body=HALF, **address)
    assert answer.output[0].content[0].text == SAID
    raw = litellm.text_completion(model="text-completion-openai/trio", prompt="hello", max_tokens=3, **address)
    assert raw.usage.completion_tokens <= 3


@pytest.mark.parametrize(
    ("how", "kind", "status"),
    [
        ({"extra_body": {"eft_reward_weights": -1}}, litellm.APIError, 403),
        ({"api_key": "bad"}, litellm.AuthenticationError, 401),
        ({"model": "openai/other"}, litellm.NotFoundError, 404),
        ({"messages": [{"role": "user", "content": "hello " * 5000}], "model": "openai/trio"},
         litellm.ContextWindowExceededError, 400),
    ],
)  # fmt: skip
def test_errors_are_of_their_kinds(server: dict[str, Any], how: dict[str, Any], kind: type, status: int) -> None:
    with pytest.raises(kind) as refused:
        litellm.completion(**{**server, **how})
    assert refused.value.status_code == status
