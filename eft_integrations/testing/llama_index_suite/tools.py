"""Tools: what is demanded is called, with arguments of the tool's schema, and read back in every form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatResponse, ToolCallBlock
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import FunctionTool

from eft_engine.errors import EFTError
from eft_integrations.testing.llama_index_suite.asking import gather, user
from eft_integrations.testing.llama_index_suite.properties import SuiteProperties


def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


def is_open(shop: str, on_sunday: bool) -> str:
    """Whether a shop is open."""
    return f"{shop}: {on_sunday}"


def ring() -> str:
    """Ring the bell."""
    return "rung"


ADD, IS_OPEN, RING = (FunctionTool.from_defaults(function) for function in (add, is_open, ring))
TYPES = {"add": {"first": int, "second": int}, "is_open": {"shop": str, "on_sunday": bool}, "ring": {}}

WAYS: dict[str, Callable[..., ChatResponse]] = {
    "chat": lambda llm, tools, **keywords: llm.chat_with_tools(tools, "Hello", **keywords),
    "achat": lambda llm, tools, **keywords: asyncio.run(llm.achat_with_tools(tools, "Hello", **keywords)),
    "stream_chat": lambda llm, tools, **keywords: list(llm.stream_chat_with_tools(tools, "Hello", **keywords))[-1],
    "astream_chat": lambda llm, tools, **keywords: asyncio.run(
        gather(llm.astream_chat_with_tools(tools, "Hello", **keywords))
    )[-1],
}
"""Four ways to ask with tools; each gives the whole answer."""


class ToolTests(SuiteProperties):
    """Function calling."""

    def _calling_llm(self) -> FunctionCallingLLM:
        self.needs(has=self.has_tools, what="tools")
        llm = self.make_llm()
        assert isinstance(llm, FunctionCallingLLM), f"LLM must be a FunctionCallingLLM, not {type(llm).__name__}"
        return llm

    @pytest.mark.parametrize("way", WAYS)
    def test_required_call_comes_and_fits_its_schema(self, way: str) -> None:
        llm = self._calling_llm()
        response = WAYS[way](llm, [ADD, IS_OPEN], tool_required=True)
        calls = llm.get_tool_calls_from_response(response)
        assert len(calls) == 1, "one call, unless parallel calls are allowed"
        assert calls[0].tool_id
        assert {name: type(value) for name, value in calls[0].tool_kwargs.items()} == TYPES[calls[0].tool_name]

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("name", ["add", "is_open"])
    def test_tool_that_is_named_is_called(self, name: str, way: str) -> None:
        llm = self._calling_llm()
        calls = llm.get_tool_calls_from_response(WAYS[way](llm, [ADD, IS_OPEN], tool_choice=name))
        assert [call.tool_name for call in calls] == [name]

    def test_tool_without_arguments_is_called_with_none(self) -> None:
        llm = self._calling_llm()
        calls = llm.get_tool_calls_from_response(llm.chat_with_tools([RING], "Hello", tool_required=True))
        assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("ring", {})]

    @pytest.mark.parametrize("way", WAYS)
    def test_tools_that_are_forbidden_are_not_called(self, way: str) -> None:
        llm = self._calling_llm()
        response = WAYS[way](llm, [ADD], tool_choice="none")
        assert response.message.content
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        with pytest.raises((ValueError, EFTError)):
            llm.get_tool_calls_from_response(response)

    @pytest.mark.parametrize("way", WAYS)
    def test_call_is_told_as_a_block_and_in_openais_form(self, way: str) -> None:
        llm = self._calling_llm()
        message = WAYS[way](llm, [ADD], tool_required=True).message
        blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
        assert [block.tool_name for block in blocks] == ["add"]
        forms = message.additional_kwargs["tool_calls"]
        assert [form["function"]["name"] for form in forms] == ["add"]
        assert [form["id"] for form in forms] == [blocks[0].tool_call_id]

    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_call_grows_while_it_streams_under_one_id_and_name(self, is_async: bool) -> None:
        llm = self._calling_llm()
        chunks = (
            asyncio.run(gather(llm.astream_chat_with_tools([ADD], "Hello", tool_required=True)))
            if is_async
            else list(llm.stream_chat_with_tools([ADD], "Hello", tool_required=True))
        )
        seen = [
            call for chunk in chunks for call in llm.get_tool_calls_from_response(chunk, error_on_no_tool_call=False)
        ]
        assert len(seen) > 1
        assert {(call.tool_id, call.tool_name) for call in seen} == {(seen[-1].tool_id, "add")}
        sizes = [len(call.tool_kwargs) for call in seen]
        assert sizes == sorted(sizes)
        assert sizes[-1] == 2

    @pytest.mark.parametrize("way", WAYS)
    def test_history_is_not_changed(self, way: str) -> None:
        llm = self._calling_llm()
        history = user("Hello")
        before = [message.model_copy(deep=True) for message in history]
        WAYS[way](llm, [ADD], chat_history=history, tool_required=True)
        assert history == before

    @pytest.mark.parametrize("form", ["blocks", "additional_kwargs"])
    def test_earlier_calls_and_results_are_read(self, form: str) -> None:
        llm = self._calling_llm()
        call = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={"first": 1, "second": 2})
        openai = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"first": 1, "second": 2}'}}
        turn: dict[str, object] = (
            {"blocks": [call]} if form == "blocks" else {"additional_kwargs": {"tool_calls": [openai]}}
        )
        history = [
            *user("What is 1 + 2?"),
            ChatMessage(role=MessageRole.ASSISTANT, **turn),
            ChatMessage(role=MessageRole.TOOL, content="3", additional_kwargs={"tool_call_id": "1"}),
        ]
        response = llm.chat_with_tools([ADD], chat_history=history, tool_choice="none")
        assert response.message.content

    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_predict_and_call_runs_the_tool(self, is_async: bool) -> None:
        llm = self._calling_llm()
        keywords: dict[str, Any] = {"user_msg": "Hello", "tool_required": True}
        output = (
            asyncio.run(llm.apredict_and_call([RING], **keywords))
            if is_async
            else llm.predict_and_call([RING], **keywords)
        )
        assert output.response == "rung"
        assert [source.tool_name for source in output.sources] == ["ring"]
