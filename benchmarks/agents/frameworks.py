"""Four agents in this process, each as its own documentation sets it up; the fifth is in `openai_client.py`.

Each takes a conversation's questions one after another and gives the last answer, and whether it ran into the limit of steps.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.agents.tools import Desk

SYSTEM = (
    "You are the assistant of a small shop. Call a tool where one is needed, else answer yourself, in one sentence."
)
Model = Mapping[str, Any]
"""`{"engine": ...}` or `{"backend": ...}`."""
Answer = tuple[str, bool]


@dataclass(frozen=True)
class Limits:
    """What all agents share."""

    weight: float
    max_tokens: int
    max_steps: int

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of every model."""
        return {"reward_weights": self.weight, "temperature": 0.0, "max_tokens": self.max_tokens}


def langchain(model: Model, desk: Desk, questions: Sequence[str], limits: Limits) -> Answer:
    """`create_agent` over `EFTChatModel`."""
    from langchain.agents import create_agent
    from langchain_core.tools import StructuredTool
    from langgraph.errors import GraphRecursionError

    from eft_integrations.langchain import EFTChatModel

    tools = [StructuredTool.from_function(function, parse_docstring=True) for function in desk.tools]
    llm = EFTChatModel(**model, **limits.sampling)
    agent: Any = create_agent(llm, tools=tools, system_prompt=SYSTEM)
    messages: list[Any] = []
    for question in questions:
        asked = {"messages": [*messages, ("user", question)]}
        try:
            messages = agent.invoke(asked, {"recursion_limit": 2 * limits.max_steps})["messages"]
        except GraphRecursionError:
            return "", True
    return str(messages[-1].text), False


def llama_index(model: Model, desk: Desk, questions: Sequence[str], limits: Limits) -> Answer:
    """`FunctionAgent` over `EFTLLM`."""
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.memory import Memory
    from llama_index.core.tools import FunctionTool
    from workflows.errors import WorkflowRuntimeError

    from eft_integrations.llama_index import EFTLLM

    tools: list[Any] = [
        FunctionTool.from_defaults(function, description=inspect.getdoc(function)) for function in desk.tools
    ]
    llm = EFTLLM(**model, **limits.sampling)

    async def converse() -> Answer:
        memory = Memory.from_defaults()
        agent = FunctionAgent(tools=tools, llm=llm, system_prompt=SYSTEM)
        answer = ""
        for question in questions:
            try:
                answer = str(await agent.run(question, memory=memory, max_iterations=limits.max_steps))
            except WorkflowRuntimeError as error:
                if "ax iterations" in str(error):
                    return "", True
                raise
        return answer, False

    return asyncio.run(converse())


def smolagents_tools(model: Model, desk: Desk, questions: Sequence[str], limits: Limits) -> Answer:
    """`ToolCallingAgent` over `EFTModel`."""
    from smolagents import ToolCallingAgent

    return _smolagents(ToolCallingAgent, model, desk, questions, limits)


def smolagents_code(model: Model, desk: Desk, questions: Sequence[str], limits: Limits) -> Answer:
    """`CodeAgent` over `EFTModel`."""
    from smolagents import CodeAgent

    return _smolagents(CodeAgent, model, desk, questions, limits)


def _smolagents(kind: Any, model: Model, desk: Desk, questions: Sequence[str], limits: Limits) -> Answer:
    """At its limit it asks for a last answer without tools, which counts as an answer, and as the limit."""
    from smolagents import LogLevel, tool

    from eft_integrations.agents.smolagents import EFTModel

    agent = kind(
        tools=[tool(function) for function in desk.tools],
        model=EFTModel(**model, **limits.sampling),
        max_steps=limits.max_steps,
        verbosity_level=LogLevel.OFF,
        return_full_result=True,
    )
    answer, at_limit = "", False
    for index, question in enumerate(questions):
        result = agent.run(question, reset=index == 0)
        answer, at_limit = str(result.output), at_limit or result.state == "max_steps_error"
    return answer, at_limit


IN_PROCESS: dict[str, Callable[[Model, Desk, Sequence[str], Limits], Answer]] = {
    "langchain": langchain,
    "llama-index": llama_index,
    "smolagents-tools": smolagents_tools,
    "smolagents-code": smolagents_code,
}
OPENAI_AGENTS = "openai-agents"
FRAMEWORKS = (*IN_PROCESS, OPENAI_AGENTS)
MODULES = {
    "langchain": "langchain",
    "llama-index": "llama_index.core",
    "smolagents-tools": "smolagents",
    "smolagents-code": "smolagents",
}


def missing_module(framework: str) -> str | None:
    """The module that an agent of this process lacks, if it lacks one."""
    module = MODULES[framework]
    top = module.partition(".")[0]
    found = importlib.util.find_spec(top) is not None and importlib.util.find_spec(module) is not None
    return None if found else module
