"""Answers that `max_tokens` ends: none is told as whole, no call that was cut is run, and what was written is kept."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool

from eft_integrations.backends.pool import backend_of
from eft_integrations.chat.request import ChatRequest
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from eft_integrations.wire.openai import to_messages, to_response_schema, to_tool_choice, to_tools
from tests.choice import thorough_but
from tests.families.adapters import ADAPTERS
from tests.families.conftest import Desks
from tests.families.cuts import CUTS, QUESTIONS, Cut
from tests.families.imitations import BY_NAME, Family
from tests.families.stand_in import StandIn
from tests.families.test_cuts_everywhere import streamed, told


@contextmanager
def cutting(stand_in: StandIn, cut: Cut) -> Iterator[None]:
    """Whatever is asked meanwhile gets this answer."""
    stand_in.says = cut.text
    stand_in.cut_at = len(stand_in.own_tokenizer.encode(cut.written, add_special_tokens=False)) + cut.further
    try:
        yield
    finally:
        stand_in.says, stand_in.cut_at, stand_in.cuts = None, None, "words"


def request_of(cut: Cut) -> ChatRequest:
    """What is asked, for a backend."""
    question = QUESTIONS[cut.asked]
    choice, tools = to_tool_choice(question.tool_choice, to_tools(question.tools))
    schema = to_response_schema(question.response_format)
    return ChatRequest(to_messages(question.messages), tools=tools, tool_choice=choice, response_schema=schema)


def is_broken_format(cut: Cut) -> bool:
    """Whether JSON was asked for, and neither that nor calls came."""
    return QUESTIONS[cut.asked].response_format is not None and not (cut.fits or cut.calls or cut.invalid)


@pytest.mark.parametrize("place", CUTS)
def test_answer_is_told_as_cut(place: str, stand_ins: Callable[[Family], StandIn]) -> None:
    cut = CUTS[place]
    stand_in, request = stand_ins(BY_NAME[cut.family]), request_of(cut)
    with cutting(stand_in, cut):
        result = backend_of(stand_in).chat(request)
        for stand_in.cuts in ("words", "characters", "pieces"):
            assert told(streamed(stand_in, request)) == told(result), stand_in.cuts
    assert result.finish_reason == "length"
    assert (result.content.rstrip(), result.reasoning) == (cut.content, cut.reasoning)
    assert [(call.name, json.loads(call.arguments)) for call in result.tool_calls] == [
        (name, json.loads(arguments)) for name, arguments in cut.calls
    ]
    known = [(call.name, call.arguments) for call in result.invalid_tool_calls]
    if isinstance(cut.invalid, tuple):
        assert known == [cut.invalid]
        assert result.invalid_tool_calls[0].call_id
    else:
        assert known == ([] if cut.invalid is None else [(None, None)])
        assert [call.text for call in result.invalid_tool_calls] == ([] if cut.invalid is None else [cut.invalid])
    assert ("format_error" in result.metadata) == is_broken_format(cut)
    assert "unrecognised_calls" not in result.metadata


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("place", thorough_but(CUTS, often=2))
def test_every_adapter_tells_it(place: str, adapter: str, desks: Desks) -> None:
    cut = CUTS[place]
    desk = desks(BY_NAME[cut.family], adapter)
    with cutting(desk.stand_in, cut):
        desk.stand_in.cuts = "pieces"
        answers = [desk.adapter.ask(QUESTIONS[cut.asked], stream=stream) for stream in (False, True)]
    for answer in answers:
        assert dataclasses.replace(answer, text=answer.text.rstrip()).everything == everything(cut)
        assert ("format_error" in answer.metadata) == is_broken_format(cut)
        assert all(call_id for name, call_id, _ in answer.invalid if name)


def everything(cut: Cut) -> tuple[object, ...]:
    """`Answer.everything` of the answer that a cut leaves."""
    invalid = (
        [cut.invalid if isinstance(cut.invalid, tuple) else (None, cut.invalid)] if cut.invalid is not None else []
    )
    calls = [(name, json.loads(arguments)) for name, arguments in cut.calls]
    return cut.content, calls, "length", cut.reasoning, invalid


# ---- agents --------------------------------------------------------------------------------------------------------------

AGENTS_CUTS = (
    "inside a number", "between two arguments", "in front of the last brace", "inside the second call", "bare, number",
    "channel, behind the arguments", "tags, between arguments", "Python, number", "Python in tags, true", "list, id",
)  # fmt: skip
"""Somebody who closes what is left of these calls has one that fits its schema."""


class Desk:
    """Books and clocks, and what was run of them."""

    def __init__(self) -> None:
        self.run: list[str] = []

    def book(
        self,
        guest: str,
        nights: int,
        paid: bool = False,
        note: str | None = None,
        rooms: list[dict[str, object]] | None = None,
    ) -> str:
        """Books rooms."""
        self.run.append("book")
        return "booked"

    def clock(self, zone: str) -> str:
        """Reads a clock."""
        self.run.append("clock")
        return "noon"


@contextmanager
def answering(stand_in: StandIn, cut: Cut) -> Iterator[None]:
    """The first answer is cut, those behind results are words. Tools of agents have schemas of their own."""
    stand_in.checks_grammars = False
    first_prompts = len(stand_in.prompts)

    def follow(_: str) -> None:
        if len(stand_in.prompts) > first_prompts:
            stand_in.says, stand_in.cut_at = stand_in.family.answer.format("Done."), None

    with cutting(stand_in, cut):
        stand_in.watch = follow
        try:
            yield
        finally:
            stand_in.watch, stand_in.checks_grammars = None, True


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("place", AGENTS_CUTS)
def test_langchains_agent_runs_only_what_is_whole(
    place: str, streams: bool, stand_ins: Callable[[Family], StandIn]
) -> None:
    cut, desk = CUTS[place], Desk()
    stand_in = stand_ins(BY_NAME[cut.family])
    tools = [StructuredTool.from_function(desk.book), StructuredTool.from_function(desk.clock)]
    with answering(stand_in, cut):
        agent = create_agent(EFTChatModel(engine=stand_in, streaming=streams), tools)
        turns = agent.invoke({"messages": [{"role": "user", "content": "A room, please."}]})["messages"]
    assert desk.run == [name for name, _ in cut.calls]
    told = next(turn for turn in turns if isinstance(turn, AIMessage))
    invalid = [cut.invalid] if isinstance(cut.invalid, tuple) else []
    assert [call["name"] for call in told.invalid_tool_calls] == [name for name, _ in invalid]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("place", AGENTS_CUTS)
def test_llama_indexs_agent_runs_only_what_is_whole(
    place: str, streams: bool, stand_ins: Callable[[Family], StandIn]
) -> None:
    cut, desk = CUTS[place], Desk()
    stand_in = stand_ins(BY_NAME[cut.family])
    tools = [FunctionTool.from_defaults(desk.book), FunctionTool.from_defaults(desk.clock)]

    async def ask() -> object:
        return await FunctionAgent(tools=tools, llm=EFTLLM(engine=stand_in), streaming=streams).run("A room, please.")

    with answering(stand_in, cut):
        asyncio.run(ask())
    assert desk.run == [name for name, _ in cut.calls]
