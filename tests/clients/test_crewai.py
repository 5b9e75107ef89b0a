"""CrewAI: the LLM alone, and a crew of one agent with a tool."""

from __future__ import annotations

import json

import pytest
from crewai import Agent, Crew, Task
from crewai.tools import tool

from eft_integrations.agents.crewai import crewai_llm


@tool("look")
def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


def test_real_engine_answers(base_url: str) -> None:
    llm = crewai_llm("trio", base_url=base_url, temperature=0)
    assert llm.call([{"role": "user", "content": "hello"}]) == "Hello! How can I help?"


def test_weights_travel_with_every_request(base_url: str) -> None:
    llm = crewai_llm("tools", base_url=base_url, reward_weights={"scripted": 0.25})
    assert llm.call([{"role": "user", "content": "hi"}]) == f"hi {json.dumps({'scripted': 0.25})}"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["cut", "late", "unfit"])
def test_call_that_is_none_is_an_error_and_not_run(base_url: str, model: str, streamed: bool) -> None:
    looked: list[str] = []

    @tool("look")
    def note(place: str) -> str:
        """Look at a place."""
        looked.append(place)
        return "sunny"

    llm = crewai_llm(model, base_url=base_url, stream=streamed)
    agent = Agent(
        role="observer", goal="look", backstory="You look.", llm=llm, tools=[note], max_iter=2, max_retry_limit=0
    )
    task = Task(description="How is Paris?", expected_output="one line", agent=agent)
    with pytest.raises(ValueError):
        Crew(agents=[agent], tasks=[task], verbose=False).kickoff()
    assert looked == []


def test_crew_uses_its_tool(base_url: str) -> None:
    agent = Agent(
        role="observer", goal="look", backstory="You look.", llm=crewai_llm("tools", base_url=base_url), tools=[look]
    )
    task = Task(description="How is Paris?", expected_output="one line", agent=agent)
    result = Crew(agents=[agent], tasks=[task], verbose=False).kickoff()
    assert "sunny in Paris" in result.raw
