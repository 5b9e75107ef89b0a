"""CrewAI: the LLM alone, and a crew of one agent with a tool."""

from __future__ import annotations

import json

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


def test_crew_uses_its_tool(base_url: str) -> None:
    agent = Agent(
        role="observer", goal="look", backstory="You look.", llm=crewai_llm("tools", base_url=base_url), tools=[look]
    )
    task = Task(description="How is Paris?", expected_output="one line", agent=agent)
    result = Crew(agents=[agent], tasks=[task], verbose=False).kickoff()
    assert "sunny in Paris" in result.raw
