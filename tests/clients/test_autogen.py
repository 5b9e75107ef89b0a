"""AutoGen: an assistant with a tool, a structured answer, a stream, the real engine."""

from __future__ import annotations

import json

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import CreateResult, UserMessage
from autogen_core.tools import FunctionTool
from pydantic import BaseModel

from eft_integrations.agents.autogen import autogen_client


class Weather(BaseModel):
    """A structured answer."""

    city: str
    sunny: bool


async def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


async def test_assistant_uses_its_tool_with_the_client_s_weights(base_url: str) -> None:
    client = autogen_client("tools", base_url=base_url, reward_weights={"scripted": 0.25})
    agent = AssistantAgent("weather", model_client=client, tools=[look], reflect_on_tool_use=True)
    result = await agent.run(task="How is Paris?")
    assert result.messages[-1].content == f"sunny in Paris {json.dumps({'scripted': 0.25})}"
    await client.close()


async def test_client_answers_in_a_type_and_a_call_s_weights_go_first(base_url: str) -> None:
    client = autogen_client("tools", base_url=base_url, reward_weights=0.25)
    question = [UserMessage(content="How is Paris?", source="user")]
    typed = await client.create(question, json_output=Weather)
    assert Weather.model_validate_json(str(typed.content)) == Weather(city="Paris", sunny=True)
    extra = {"extra_body": {"eft_reward_weights": 0.75}}
    said = await client.create(question, extra_create_args=extra)
    assert said.content == f"How is Paris? {json.dumps({'scripted': 0.75})}"
    await client.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["cut", "late", "unfit"])
async def test_call_that_is_none_is_not_run(base_url: str, model: str, streamed: bool) -> None:
    looked: list[str] = []

    async def note(place: str) -> str:
        """Look at a place."""
        looked.append(place)
        return "sunny"

    client = autogen_client(model, base_url=base_url)
    tools = [FunctionTool(note, "Look at a place.", name="look")]
    await AssistantAgent("weather", model_client=client, tools=tools, model_client_stream=streamed).run(task="Paris?")
    assert looked == []
    await client.close()


async def test_real_engine_streams(base_url: str) -> None:
    client = autogen_client("trio", base_url=base_url)
    stream = client.create_stream(
        [UserMessage(content="hello", source="user")], extra_create_args={"temperature": 0}, include_usage=True
    )
    pieces = [piece async for piece in stream]
    assert isinstance(pieces[-1], CreateResult)
    assert pieces[-1].content == "".join(pieces[:-1]) == "Hello! How can I help?"
    assert pieces[-1].usage.completion_tokens > 0
    await client.close()
