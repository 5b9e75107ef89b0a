"""Thoughts and cut answers in LlamaIndex: blocks of their own, pieces where agents look for them, and no object that is a stump."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import StopEvent
from pydantic import BaseModel

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import ChatResult
from eft_integrations.llama_index import EFTLLM
from eft_integrations.llama_index.react import WholeCallsParser
from eft_integrations.testing.llama_index_suite.asking import gather, user
from eft_integrations.testing.llama_index_suite.structured import PROMPT
from tests.integrations.cuts import REASON, cut

CALL = ToolCall("call_1", "visit", '{"place": "here"}')
ANSWER = Message("assistant", "I shall look.", (CALL,), reasoning="Where is it?")


def make(*replies: str | Message | ChatResult, **fields: Any) -> tuple[EFTLLM, ScriptedBackend]:
    """An LLM that answers by a script, and what it was asked."""
    backend = ScriptedBackend(list(replies))
    return EFTLLM(backend=backend, **fields), backend


CHATS: dict[str, Callable[[EFTLLM], Any]] = {
    "chat": lambda llm: llm.chat(user("Where?")),
    "achat": lambda llm: asyncio.run(llm.achat(user("Where?"))),
    "stream_chat": lambda llm: list(llm.stream_chat(user("Where?")))[-1],
    "astream_chat": lambda llm: asyncio.run(gather(llm.astream_chat(user("Where?"))))[-1],
}
COMPLETIONS: dict[str, Callable[[EFTLLM], Any]] = {
    "complete": lambda llm: llm.complete("Where?"),
    "acomplete": lambda llm: asyncio.run(llm.acomplete("Where?")),
    "stream_complete": lambda llm: list(llm.stream_complete("Where?"))[-1],
    "astream_complete": lambda llm: asyncio.run(gather(llm.astream_complete("Where?")))[-1],
}


@pytest.mark.parametrize("way", CHATS)
def test_thought_is_a_block_of_its_own_with_its_tokens(way: str) -> None:
    llm, _ = make(ANSWER)
    message = CHATS[way](llm).message
    assert message.blocks == [
        ThinkingBlock(content="Where is it?", num_tokens=3),
        TextBlock(text="I shall look."),
        ToolCallBlock(tool_call_id="call_1", tool_name="visit", tool_kwargs={"place": "here"}),
    ]
    assert message.content == "I shall look."


@pytest.mark.parametrize("way", COMPLETIONS)
def test_completion_is_what_was_said(way: str) -> None:
    llm, _ = make(ANSWER)
    response = COMPLETIONS[way](llm)
    assert response.text == "I shall look."
    assert response.raw["choices"][0]["message"]["reasoning_content"] == "Where is it?"
    assert response.raw["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


def test_chunks_hold_the_thought_so_far_and_what_is_new_of_it() -> None:
    llm, _ = make(ANSWER)
    chunks = list(llm.stream_chat(user("Where?")))
    pieces = [chunk.additional_kwargs.get("thinking_delta") for chunk in chunks]
    assert [piece for piece in pieces if piece is not None] == ["Where", " is", " it?"]
    assert [chunk.message.blocks[0].content for chunk in chunks[:3]] == ["Where", "Where is", "Where is it?"]  # type: ignore[union-attr]
    assert [chunk.delta for chunk in chunks[:4]] == ["", "", "", "I"]


def test_answer_without_a_thought_has_no_block_of_one() -> None:
    llm, _ = make("Yes.", "Yes.")
    for response in (llm.chat(user()), list(llm.stream_chat(user()))[-1]):
        assert response.message.blocks == [TextBlock(text="Yes.")]


def test_thoughts_of_history_are_the_turns() -> None:
    llm, backend = make(ANSWER, "ok")
    first = llm.chat(user("Where?")).message
    result = ChatMessage(role="tool", content="seen", additional_kwargs={"tool_call_id": "call_1"})
    llm.chat([*user("Where?"), first, result])
    assert backend.requests[1].messages[1] == ANSWER


async def test_agent_streams_the_thought_and_hands_it_back() -> None:
    llm, backend = make(ANSWER, Message("assistant", "Here.", reasoning="I know."))
    agent = FunctionAgent(tools=[visiting([])], llm=llm)
    running = agent.run("Where?")
    events = [event async for event in running.stream_events()]
    assert isinstance(events[-1], StopEvent)
    thoughts = [event.thinking_delta for event in events if isinstance(event, AgentStream) and event.thinking_delta]
    assert "".join(thoughts) == "Where is it?I know."
    assert str(await running) == "Here."
    assert backend.requests[1].messages[1] == ANSWER


# ---- cut answers ---------------------------------------------------------------------------------------------------------


def visiting(visited: list[Any]) -> FunctionTool:
    """A tool that notes where it was sent."""

    def visit(place: str = "", days: Any = None) -> str:
        visited.append((place, days))
        return f"sunny in {place}"

    return FunctionTool.from_defaults(visit, name="visit", description="Visit a place.")


@pytest.mark.parametrize("streaming", [False, True])
async def test_function_agent_runs_no_call_that_is_cut(streaming: bool) -> None:
    visited: list[Any] = []
    for place in range(len(CALL.arguments) + 1):
        written = CALL.arguments[:place]
        broken = InvalidToolCall(written, REASON, "visit", "call_1", written)
        llm, backend = make(cut(Message("assistant", ""), broken))
        output = await FunctionAgent(tools=[visiting(visited)], llm=llm, streaming=streaming).run("Go.")
        assert output.tool_calls == []
        assert output.response.additional_kwargs["invalid_tool_calls"][0]["arguments"] == written
        assert output.raw["choices"][0]["finish_reason"] == "length"
        assert len(backend.requests) == 1
    assert visited == []


@pytest.mark.parametrize("streaming", [False, True])
async def test_react_agent_runs_no_call_that_is_cut(streaming: bool) -> None:
    visited: list[Any] = []
    text = 'Thought: I go.\nAction: visit\nAction Input: {"place": "a {", "days": {"a": [1, {"b": 2}], "c": {}}}'
    for place in range(text.index("Action:"), len(text)):
        llm, backend = make(cut(Message("assistant", text[:place])), "Thought: I know.\nAnswer: Nowhere.")
        agent = ReActAgent(tools=[visiting(visited)], llm=llm, streaming=streaming, output_parser=WholeCallsParser())
        output = await agent.run("Go.")
        assert str(output) == "Nowhere."
        assert len(backend.requests) == 2
    assert visited == []
    llm, _ = make(text, "Thought: I know.\nAnswer: Here.")
    agent = ReActAgent(tools=[visiting(visited)], llm=llm, streaming=streaming, output_parser=WholeCallsParser())
    assert str(await agent.run("Go.")) == "Here."
    assert visited == [("a {", {"a": [1, {"b": 2}], "c": {}})]


class Person(BaseModel):
    """Everything may be missing, so that any stump would do."""

    name: str = ""
    tags: list[str] = []


WRITTEN = '{"name": "Ann", "tags": ["a", "b"]}'
PREDICTIONS: dict[str, Callable[[EFTLLM], Any]] = {
    "structured_predict": lambda llm: llm.structured_predict(Person, PROMPT, who="Ann"),
    "astructured_predict": lambda llm: asyncio.run(llm.astructured_predict(Person, PROMPT, who="Ann")),
    "stream_structured_predict": lambda llm: list(llm.stream_structured_predict(Person, PROMPT, who="Ann"))[-1],
    "astream_structured_predict": lambda llm: asyncio.run(
        gather(llm.astream_structured_predict(Person, PROMPT, who="Ann"))
    )[-1],
    "structured llm": lambda llm: llm.as_structured_llm(Person).chat(user("Who?")).raw,
    "structured llm, streamed": lambda llm: list(llm.as_structured_llm(Person).stream_chat(user("Who?")))[-1].raw,
}


@pytest.mark.parametrize("way", PREDICTIONS)
def test_object_that_is_cut_anywhere_is_an_error(way: str) -> None:
    llm, _ = make(
        *[cut(Message("assistant", WRITTEN[:place]), is_object=True) for place in range(len(WRITTEN))], WRITTEN
    )
    for _ in range(len(WRITTEN)):
        with pytest.raises(errors.IncompleteOutputError, match="max_tokens before the JSON of Person was whole"):
            PREDICTIONS[way](llm)
    assert PREDICTIONS[way](llm) == Person(name="Ann", tags=["a", "b"])


@pytest.mark.parametrize("way", PREDICTIONS)
def test_object_that_breaks_its_schema_is_an_error(way: str) -> None:
    reply = cut(Message("assistant", WRITTEN))
    unfit = dataclasses.replace(reply, finish_reason="stop", metadata={"format_error": "tags: non-unique elements"})
    llm, _ = make(unfit)
    with pytest.raises(errors.OutputError, match="tags: non-unique elements, so it is no Person"):
        PREDICTIONS[way](llm)


@pytest.mark.parametrize("way", PREDICTIONS)
def test_object_that_ends_with_its_budget_is_whole(way: str) -> None:
    llm, _ = make(cut(Message("assistant", WRITTEN)))
    assert PREDICTIONS[way](llm) == Person(name="Ann", tags=["a", "b"])


def test_options_of_thinking_and_strictness_are_the_llms_and_a_calls() -> None:
    llm, backend = make("ok", "ok", "{}", reasoning="high", strict=True)
    llm.chat(user())
    llm.chat(user(), reasoning="off", reasoning_budget=7, strict=False)
    llm.structured_predict(Person, PROMPT, {"reasoning": "low"}, who="Ann")
    assert [(own.reasoning, own.reasoning_budget) for own in backend.requests] == [
        ("high", None),
        ("off", 7),
        ("low", None),
    ]
    assert [own.strict_response for own in backend.requests] == [True, False, True]
