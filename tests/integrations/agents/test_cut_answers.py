"""Agents of every framework in this environment run nothing of an answer that `max_tokens` cut, and nothing that breaks its schema.

(FunctionAgent and ReActAgent: tests/integrations/llama_index/test_reasoning.py; clients of the server: tests/clients.)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, StructuredOutputValidationError
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool as langchain_tool
from pydantic import BaseModel
from smolagents import CodeAgent, ToolCallingAgent
from smolagents import tool as smol_tool

from eft_integrations.agents.smolagents import EFTModel
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import ChatResult
from eft_integrations.langchain import EFTChatModel
from tests.integrations.cuts import REASON, cut, unfit

ARGUMENTS = '{"place": "Paris"}'
VISIT = ToolCall("call_1", "visit", ARGUMENTS)
DONE = Message("assistant", "", (ToolCall("call_9", "final_answer", '{"answer": "done"}'),))

visited: list[str] = []


@pytest.fixture(autouse=True)
def nothing_visited() -> Iterator[None]:
    """Nothing is, neither before nor after a test."""
    visited.clear()
    yield
    assert visited == []


@langchain_tool("visit")
def visit_place(place: str = "") -> str:
    """Visit a place."""
    visited.append(place)
    return f"sunny in {place}"


@smol_tool
def visit(place: str) -> str:
    """Visit a place.

    Args:
        place: where to.
    """
    visited.append(place)
    return f"sunny in {place}"


def torn() -> list[ChatResult]:
    """A call, cut at every place, and one that breaks its schema."""
    places = range(len(ARGUMENTS) + 1)
    broken = [InvalidToolCall(ARGUMENTS[:end], REASON, "visit", "call_1", ARGUMENTS[:end]) for end in places]
    return [*(cut(Message("assistant", "I go."), own) for own in broken), unfit(VISIT)]


# ---- LangChain -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("streaming", [False, True])
def test_create_agent_ends_with_a_call_that_is_none(streaming: bool, version: str) -> None:
    answers = torn()
    llm = EFTChatModel(backend=ScriptedBackend(answers * 2), streaming=streaming, output_version=version)
    agent: Any = create_agent(llm, [visit_place])

    async def ask() -> Any:
        async for state in agent.astream({"messages": [HumanMessage("Go.")]}, stream_mode="values"):
            last = state
        return last

    for answer in answers:
        message = agent.invoke({"messages": [HumanMessage("Go.")]})["messages"][-1]
        assert isinstance(message, AIMessage)
        assert message.tool_calls == []
        assert [call["id"] for call in message.invalid_tool_calls] == ["call_1"]
        assert message.response_metadata["finish_reason"] == answer.finish_reason
    for _ in answers:
        assert asyncio.run(ask())["messages"][-1].tool_calls == []


@pytest.mark.parametrize("streaming", [False, True])
def test_create_agent_makes_no_object_of_a_stump(streaming: bool) -> None:
    class Person(BaseModel):
        name: str = ""

    written = '{"name": "Ann"}'
    for end in range(len(written)):
        reply = cut(Message("assistant", written[:end]), is_object=True)
        llm = EFTChatModel(backend=ScriptedBackend([reply]), streaming=streaming)
        agent: Any = create_agent(llm, [], response_format=ProviderStrategy(Person))
        with pytest.raises(StructuredOutputValidationError):
            agent.invoke({"messages": [HumanMessage("Who?")]})


# ---- smolagents ----------------------------------------------------------------------------------------------------------


def reads_of_the_cut(backend: ScriptedBackend) -> bool:
    """Whether the model is told in its next step."""
    return "[Not whole: " in "".join(message.content for message in backend.requests[1].messages)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calling_agent_goes_on_after_a_call_that_is_none(stream: bool) -> None:
    for answer in torn():
        backend = ScriptedBackend([answer, DONE])
        agent = ToolCallingAgent(
            tools=[visit], model=EFTModel(backend=backend), verbosity_level=0, stream_outputs=stream, max_steps=2
        )
        assert agent.run("Go.") == "done"
        assert reads_of_the_cut(backend)


CODE = "Thought: I go.\n<code>\nx = visit('a')\n# to \"b\"\nfor place in ['b', f'{x}']:\n    visit('''c\n''')\nprint(1, \\\n 2)\n"


@pytest.mark.parametrize("stream", [False, True])
def test_code_agent_runs_no_code_that_is_cut(stream: bool) -> None:
    for end in range(len(CODE.partition("<code>")[0]), len(CODE), 3):
        backend = ScriptedBackend(
            [cut(Message("assistant", CODE[:end])), "Thought: so.\n<code>\nfinal_answer('done')\n"]
        )
        agent = CodeAgent(
            tools=[visit], model=EFTModel(backend=backend), verbosity_level=0, stream_outputs=stream, max_steps=2
        )
        assert agent.run("Go.") == "done"
        assert reads_of_the_cut(backend)


@pytest.mark.parametrize("stream", [False, True])
def test_code_agent_runs_no_code_out_of_json_that_is_cut(stream: bool) -> None:
    written = json.dumps({"thought": "I go.", "code": "visit('a')\nvisit('b')"})
    for end in range(0, len(written), 3):
        backend = ScriptedBackend(
            [
                cut(Message("assistant", written[:end]), is_object=True),
                json.dumps({"thought": "so", "code": "final_answer('done')"}),
            ]
        )
        agent = CodeAgent(
            tools=[visit], model=EFTModel(backend=backend), verbosity_level=0, stream_outputs=stream, max_steps=2,
            use_structured_outputs_internally=True,
        )  # fmt: skip
        assert agent.run("Go.") == "done"
        assert reads_of_the_cut(backend)


def test_json_that_ends_with_its_budget_is_whole() -> None:
    model = EFTModel(backend=ScriptedBackend([cut(Message("assistant", '{"a": 1}'))]))
    question: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert model.generate(question, response_format={"type": "json_object"}).content == '{"a": 1}'


def test_options_of_the_model_and_of_a_call() -> None:
    backend = ScriptedBackend(["ok"] * 3)
    question: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    options: dict[str, Any] = {
        "reasoning": "high", "reasoning_budget": 5, "reasoning_tags": ("<a>", "</a>"), "strict": True, "tool_notation": "hermes",
        "lenient_tool_calls": False, "chat_template_kwargs": {"x": 1},
    }  # fmt: skip
    model = EFTModel(backend=backend, **options, temperature=0)
    model.generate(question, tools_to_call_from=[visit])
    model.generate(question, reasoning="off", strict=False, tools_to_call_from=[visit])
    list(EFTModel(backend=backend).generate_stream(question, **options, tools_to_call_from=[visit]))
    first, second, third = backend.requests
    for own in (first, third):
        assert (own.reasoning, own.reasoning_budget, own.reasoning_tags) == ("high", 5, ("<a>", "</a>"))
        assert (own.strict_response, own.tools[0].strict, own.tool_notation) == (True, True, "hermes")
        assert (own.lenient_tool_calls, own.template_variables) == (False, {"x": 1})
    assert (second.reasoning, second.tools[0].strict, second.tool_notation) == ("off", False, "hermes")
    with pytest.raises(ValueError, match="reasoning_budget"):
        EFTModel(backend=backend).generate(question, reasoning_budget=-1)
