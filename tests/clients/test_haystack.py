"""Haystack against the server: the recipe, tools and agents, streams, schemas, by both of OpenAI's routes."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from pydantic import BaseModel

from tests.clients.recipes import run

HALF = {"eft_reward_weights": {"helpful": 0.5}}
HI = [ChatMessage.from_user("hi")]


class Weather(BaseModel):
    """Weather somewhere."""

    city: str
    sunny: bool


def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


LOOK = create_tool_from_function(look)


def generator(base_url: str, kind: Any = OpenAIChatGenerator, *, body: Any = HALF, **how: Any) -> Any:
    """A generator of the server."""
    asked = {"extra_body": body, **how.pop("asked", {})}
    return kind(
        model="eft",
        api_base_url=base_url,
        api_key=Secret.from_token("none"),
        max_retries=0,
        generation_kwargs=asked,
        **how,
    )


def test_recipe(base_url: str) -> None:
    assert run("Haystack", base_url)["reply"] == 'Is it sunny in Paris? {"helpful": 0.5, "harmless": 0.3}'


@pytest.mark.parametrize("kind", [OpenAIChatGenerator, OpenAIResponsesChatGenerator])
async def test_streams_agents_and_tasks(base_url: str, kind: Any) -> None:
    pieces: list[StreamingChunk] = []
    (reply,) = generator(base_url, kind, streaming_callback=pieces.append).run(HI)["replies"]
    assert reply.text == 'hi {"helpful": 0.5, "harmless": 0.3}'
    assert "".join(piece.content for piece in pieces) == reply.text
    agent = Agent(chat_generator=generator(base_url, kind), tools=[LOOK])
    assert agent.run(messages=HI)["messages"][-1].text == 'sunny in Paris {"helpful": 0.5, "harmless": 0.3}'
    (reply,) = (await generator(base_url, kind).run_async(HI))["replies"]
    assert reply.text == 'hi {"helpful": 0.5, "harmless": 0.3}'


def test_calls_and_schemas(base_url: str) -> None:
    (reply,) = generator(base_url, tools=[LOOK]).run(HI)["replies"]
    assert (reply.tool_calls[0].tool_name, reply.tool_calls[0].arguments) == ("look", {"place": "Paris"})
    (reply,) = generator(base_url, asked={"response_format": Weather}).run(HI)["replies"]
    Weather.model_validate_json(reply.text)


def test_forbidden_weight_is_a_permission_error(base_url: str) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="must be from 0 to 1.5 here"):
        generator(base_url, body={"eft_reward_weights": -1}).run(HI)
