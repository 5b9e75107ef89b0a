"""Small tasks for agents, engines and judges; each needs a model that follows simple instructions.

A scenario takes an LLM and gives back what happened. `SCRIPTS` says what a model that understands the task would answer, turn by
turn: a test fixture can learn a scenario by running it with an LLM that reads its script.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.evaluation import FaithfulnessEvaluator
from llama_index.core.llms import LLM
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import TextNode

WEATHER = "What is the weather in Oslo? Use the tool, then tell me."
NOTES = [
    "The museum opens at ten and shows the silver watch of the lighthouse keeper.",
    "The ferry to Tarn Bay leaves every two hours from pier four.",
    "Bread is sold until noon at the corner of Mill Street.",
]
FERRY = "From which pier does the ferry leave?"


@dataclass
class Outcome:
    """What a scenario led to: the final text, and every tool call as it arrived in the tool."""

    text: str = ""
    calls: list[tuple[str, object]] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    extra: Any = None


def _weather_tool(outcome: Outcome) -> Callable[[str], str]:
    def get_weather(city: str) -> str:
        """Tell the weather in a city."""
        outcome.calls.append(("get_weather", city))
        return f"It is sunny in {city}."

    return get_weather


async def function_agent(llm: LLM, *, streaming: bool = True, initial_tool_choice: str | None = None) -> Outcome:
    """One agent, one tool."""
    outcome = Outcome()
    agent = FunctionAgent(
        tools=[_weather_tool(outcome)],
        llm=llm,
        system_prompt="You help.",
        streaming=streaming,
        initial_tool_choice=initial_tool_choice,
    )
    outcome.text = str(await agent.run(WEATHER))
    return outcome


async def react_agent(llm: LLM, *, streaming: bool = True) -> Outcome:
    """The same task for an agent that writes its calls as text."""
    outcome = Outcome()
    agent = ReActAgent(tools=[_weather_tool(outcome)], llm=llm, streaming=streaming)
    outcome.text = str(await agent.run(WEATHER))
    return outcome


async def code_act_agent(llm: LLM, *, streaming: bool = True) -> Outcome:
    """An agent that writes code. The code is not run here: what it would print is given."""
    outcome = Outcome()

    async def execute(code: str) -> str:
        """Run code and give back what it prints."""
        outcome.calls.append(("execute", code))
        return "42"

    agent = CodeActAgent(code_execute_fn=execute, llm=llm, streaming=streaming)
    outcome.text = str(await agent.run("What is 6 * 7? Write code that prints it, then tell me."))
    return outcome


async def hand_off(llm: LLM) -> Outcome:
    """The first agent knows no weather and hands over to the second, which does."""
    outcome = Outcome()
    clerk = FunctionAgent(
        name="clerk",
        description="Receives everyone and knows nothing.",
        llm=llm,
        system_prompt="Hand over to the forecaster.",
        can_handoff_to=["forecaster"],
    )
    forecaster = FunctionAgent(
        name="forecaster",
        description="Knows the weather.",
        llm=llm,
        tools=[_weather_tool(outcome)],
        system_prompt="You know the weather.",
        can_handoff_to=[],
    )
    workflow = AgentWorkflow(agents=[clerk, forecaster], root_agent="clerk")
    handler = workflow.run(WEATHER)
    async for event in handler.stream_events():
        name = getattr(event, "current_agent_name", None)
        if name and name not in outcome.agents:
            outcome.agents.append(name)
    outcome.text = str(await handler)
    return outcome


def index_of(notes: list[str]) -> VectorStoreIndex:
    """An index that finds every note, always in the same order: its vectors are all alike, and ties are broken by id."""
    nodes = [TextNode(text=note, id_=f"note-{place}") for place, note in enumerate(notes)]
    return VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))


async def question_of_notes(llm: LLM) -> Outcome:
    """A question whose answer is in one of the notes."""
    response = await index_of(NOTES).as_query_engine(llm=llm, similarity_top_k=3).aquery(FERRY)
    return Outcome(text=str(response), extra=response)


async def reranked(llm: LLM) -> Outcome:
    """The LLM chooses the note that matters, and answers from it."""
    engine = RetrieverQueryEngine(
        retriever=index_of(NOTES).as_retriever(similarity_top_k=3),
        response_synthesizer=get_response_synthesizer(llm=llm),
        node_postprocessors=[LLMRerank(llm=llm, top_n=1)],
    )
    response = await engine.aquery(FERRY)
    return Outcome(text=str(response), extra=response)


async def judge(llm: LLM) -> Outcome:
    """Whether a sentence is supported by its context."""
    result = await FaithfulnessEvaluator(llm=llm).aevaluate(
        response="The ferry leaves from pier four.", contexts=[NOTES[1]]
    )
    return Outcome(text=result.feedback or "", extra=result)


WEATHER_CALL = ("get_weather", '{"city": "Oslo"}')
SUNNY = "It is sunny in Oslo."
PIER = "The ferry leaves from pier four."

SCRIPTS: dict[str, tuple[Callable[[LLM], Coroutine[object, object, Outcome]], list[str | tuple[str, str]]]] = {
    "function agent": (function_agent, [WEATHER_CALL, SUNNY]),
    "react agent": (
        react_agent,
        [
            "Thought: I need to use a tool to help me answer the question.\n"
            'Action: get_weather\nAction Input: {"city": "Oslo"}',
            "Thought: I can answer without using any more tools.\nAnswer: It is sunny in Oslo.",
        ],
    ),
    "code act agent": (code_act_agent, ["<execute>\nprint(6 * 7)\n</execute>", "It is 42."]),
    "hand-off": (
        hand_off,
        [("handoff", '{"to_agent": "forecaster", "reason": "It knows."}'), WEATHER_CALL, SUNNY],
    ),
    "question of notes": (question_of_notes, [PIER]),
    "reranker": (reranked, ["Doc: 2, Relevance: 9", PIER]),
    "judge": (judge, ["YES"]),
}
"""By name: the scenario, and what the model says in it; a pair is a tool call, its name and its arguments."""
