"""pydantic-ai: tools, structured answers in both of its modes, streams, weights by model and by call."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, Tool
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ThinkingPart

from eft_integrations.agents.pydantic_ai import pydantic_ai_model


class Weather(BaseModel):
    """A structured answer."""

    city: str
    sunny: bool


def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


async def test_agent_uses_its_tool_with_the_model_s_weights(base_url: str) -> None:
    agent = Agent(pydantic_ai_model("tools", base_url=base_url, reward_weights=0.25), tools=[look])
    result = await agent.run("How is Paris?")
    assert result.output == f"sunny in Paris {json.dumps({'scripted': 0.25})}"


async def test_streamed_agent_uses_its_tool_and_a_call_s_weights_go_first(base_url: str) -> None:
    agent = Agent(pydantic_ai_model("tools", base_url=base_url, reward_weights=0.25), tools=[look])
    settings = {"extra_body": {"eft_reward_weights": {"scripted": 0.75}}}
    async with agent.run_stream("How is Paris?", model_settings=settings) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True)]
    assert "".join(pieces) == f"sunny in Paris {json.dumps({'scripted': 0.75})}"


async def test_agent_answers_in_a_type_by_schema(base_url: str) -> None:
    agent = Agent(pydantic_ai_model("tools", base_url=base_url), output_type=NativeOutput(Weather))
    assert (await agent.run("How is Paris?")).output == Weather(city="Paris", sunny=True)


@pytest.mark.parametrize("weights", [0.0, 1.0])
async def test_agent_answers_in_a_type_by_a_demanded_call_of_the_real_engine(base_url: str, weights: float) -> None:
    class Switch(BaseModel):
        on: bool

    agent = Agent(pydantic_ai_model("trio", base_url=base_url, reward_weights=weights), output_type=Switch)
    assert isinstance((await agent.run("hello", model_settings={"max_tokens": 200})).output, Switch)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["cut", "late", "unfit"])
async def test_call_that_is_none_is_an_error_and_not_run(base_url: str, model: str, streamed: bool) -> None:
    looked: list[str] = []

    def note(place: str) -> str:
        """Look at a place."""
        looked.append(place)
        return "sunny"

    agent = Agent(pydantic_ai_model(model, base_url=base_url), tools=[Tool(note, name="look")])

    async def ask() -> None:
        if streamed:
            async with agent.run_stream("How is Paris?") as stream:
                await stream.get_output()
        else:
            await agent.run("How is Paris?")

    with pytest.raises(UnexpectedModelBehavior):
        await ask()
    assert looked == []


async def test_thoughts_are_parts_of_their_own(base_url: str) -> None:
    result = await Agent(pydantic_ai_model("thinker", base_url=base_url), tools=[look]).run("How is Paris?")
    thoughts = [part.content for own in result.all_messages() for part in own.parts if isinstance(part, ThinkingPart)]
    assert thoughts == ["I must look."] * 2


async def test_real_engine_answers_and_counts(base_url: str) -> None:
    result = await Agent(pydantic_ai_model("trio", base_url=base_url)).run("hello", model_settings={"temperature": 0})
    assert result.output == "Hello! How can I help?"
