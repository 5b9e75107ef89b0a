"""OpenAI's Agents SDK over both of its transports: a tool is called, its result used, streamed and not, with weights."""

from __future__ import annotations

import contextlib
import json
from typing import Literal

import pytest
from agents import Agent, AgentsException, ModelSettings, Runner, function_tool, set_tracing_disabled
from agents.result import RunResultBase
from pydantic import BaseModel

from eft_integrations.agents.openai_agents import agents_model

set_tracing_disabled(True)


class Weather(BaseModel):
    """A structured answer."""

    city: str
    sunny: bool


@function_tool
def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
async def test_agent_uses_its_tool_with_the_model_s_weights(base_url: str, api: str) -> None:
    model = agents_model("tools", base_url=base_url, api=api, reward_weights={"scripted": 0.25})
    agent = Agent(name="weather", instructions="Look.", model=model, tools=[look])
    result = await Runner.run(agent, "How is Paris?")
    assert result.final_output == f"sunny in Paris {json.dumps({'scripted': 0.25})}"


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
async def test_streamed_agent_uses_its_tool_and_a_call_s_weights_go_first(base_url: str, api: str) -> None:
    model = agents_model("tools", base_url=base_url, api=api, reward_weights=0.25)
    settings = ModelSettings(extra_body={"eft_reward_weights": {"scripted": 0.75}})
    agent = Agent(name="weather", model=model, tools=[look], model_settings=settings)
    running = Runner.run_streamed(agent, "How is Paris?")
    deltas = [
        event.data.delta
        async for event in running.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert running.final_output == "".join(deltas) == f"sunny in Paris {json.dumps({'scripted': 0.75})}"


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
async def test_agent_answers_in_a_type(base_url: str, api: str) -> None:
    model = agents_model("tools", base_url=base_url, api=api)
    agent = Agent(name="weather", model=model, output_type=Weather)
    assert (await Runner.run(agent, "How is Paris?")).final_output == Weather(city="Paris", sunny=True)


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
async def test_real_engine_answers_an_agent(base_url: str, api: str) -> None:
    agent = Agent(
        name="plain",
        model=agents_model("trio", base_url=base_url, api=api),
        model_settings=ModelSettings(temperature=0),
    )
    result = await Runner.run(agent, "hello")
    assert result.final_output == "Hello! How can I help?"
    assert result.context_wrapper.usage.output_tokens > 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("api", ["responses", "chat_completions"])
@pytest.mark.parametrize("model", ["cut", "late", "unfit"])
async def test_call_that_is_none_is_not_run(base_url: str, model: str, api: str, streamed: bool) -> None:
    looked: list[str] = []

    @function_tool(name_override="look")
    def note(place: str) -> str:
        """Look at a place."""
        looked.append(place)
        return "sunny"

    agent = Agent(name="weather", model=agents_model(model, base_url=base_url, api=api), tools=[note])
    with contextlib.suppress(AgentsException):  # most of these are errors, but for a whole reply that is empty
        if streamed:
            running = Runner.run_streamed(agent, "How is Paris?", max_turns=2)
            async for _ in running.stream_events():
                pass
        else:
            await Runner.run(agent, "How is Paris?", max_turns=2)
    assert looked == []


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("api", ["responses", "chat_completions"])
async def test_thoughts_are_items_of_their_own(base_url: str, api: str, streamed: bool) -> None:
    agent = Agent(name="weather", model=agents_model("thinker", base_url=base_url, api=api), tools=[look])
    if streamed:
        result: RunResultBase = Runner.run_streamed(agent, "How is Paris?")
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(agent, "How is Paris?")
    kinds = [type(item).__name__ for item in result.new_items]
    assert kinds == ["ReasoningItem", "ToolCallItem", "ToolCallOutputItem", "ReasoningItem", "MessageOutputItem"]
    assert result.final_output.startswith("sunny in Paris")


@function_tool
def turn(way: Literal["left", "right"]) -> str:
    """Turn around."""
    return f"turned {way}"


async def test_demanded_tool_is_called_whatever_the_model_says(base_url: str) -> None:
    agent = Agent(
        name="forced",
        model=agents_model("trio", base_url=base_url, reward_weights=0.0),
        tools=[turn],
        model_settings=ModelSettings(tool_choice="required", max_tokens=200),
        tool_use_behavior="stop_on_first_tool",
    )
    assert (await Runner.run(agent, "hello")).final_output.startswith("turned ")
