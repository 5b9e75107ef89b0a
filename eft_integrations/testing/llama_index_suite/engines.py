"""Query engines and chat engines run unchanged, whatever the model says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.llms import LLM
from llama_index.core.response_synthesizers import ResponseMode

from eft_integrations.testing.llama_index_suite.properties import SuiteProperties
from eft_integrations.testing.llama_index_suite.reporting import events_of_instrumentation
from eft_integrations.testing.llama_index_suite.scenarios import FERRY, NOTES, index_of

RESPONSE_MODES = [
    ResponseMode.COMPACT,
    ResponseMode.REFINE,
    ResponseMode.TREE_SUMMARIZE,
    ResponseMode.SIMPLE_SUMMARIZE,
    ResponseMode.ACCUMULATE,
]
CHAT_MODES = [ChatMode.SIMPLE, ChatMode.CONTEXT, ChatMode.CONDENSE_QUESTION, ChatMode.CONDENSE_PLUS_CONTEXT]


def _streamed(engine: Any) -> str:
    return "".join(engine.query(FERRY).response_gen)


async def _astreamed(engine: Any) -> str:
    response = await engine.aquery(FERRY)
    return "".join([token async for token in response.async_response_gen()])


QUERIES: dict[str, Callable[[LLM], str]] = {
    "query": lambda llm: str(index_of(NOTES).as_query_engine(llm=llm).query(FERRY)),
    "aquery": lambda llm: str(asyncio.run(index_of(NOTES).as_query_engine(llm=llm).aquery(FERRY))),
    "streaming": lambda llm: _streamed(index_of(NOTES).as_query_engine(llm=llm, streaming=True)),
    "async streaming": lambda llm: asyncio.run(
        _astreamed(index_of(NOTES).as_query_engine(llm=llm, streaming=True)),
    ),
}
"""Four ways to put one question to one engine."""


async def _achat_streamed(engine: Any, message: str) -> str:
    response = await engine.astream_chat(message)
    return "".join([token async for token in response.async_response_gen()])


CHAT_WAYS: dict[str, Callable[[Any, str], str]] = {
    "chat": lambda engine, message: str(engine.chat(message)),
    "achat": lambda engine, message: str(asyncio.run(engine.achat(message))),
    "stream_chat": lambda engine, message: "".join(engine.stream_chat(message).response_gen),
    "astream_chat": lambda engine, message: asyncio.run(_achat_streamed(engine, message)),
}


class EngineTests(SuiteProperties):
    """No words of the answers are asked for, only that there are some, and the same by every way."""

    @pytest.mark.parametrize("way", QUERIES)
    def test_every_way_to_query_gives_the_same_answer(self, way: str) -> None:
        answer = QUERIES["query"](self.make_llm())
        assert answer not in ("", "Empty Response")
        assert QUERIES[way](self.make_llm()) == answer

    @pytest.mark.parametrize("mode", RESPONSE_MODES, ids=lambda mode: mode.value)
    @pytest.mark.parametrize("use_async", [False, True], ids=["sync", "use_async"])
    def test_every_response_mode_answers(self, use_async: bool, mode: ResponseMode) -> None:
        engine = index_of(NOTES).as_query_engine(
            llm=self.make_llm(), response_mode=mode, use_async=use_async, similarity_top_k=3
        )
        with events_of_instrumentation() as seen:
            assert str(engine.query(FERRY)) not in ("", "Empty Response")
        asked = sum(isinstance(event, LLMChatStartEvent) for event in seen)
        assert asked == (3 if mode in (ResponseMode.REFINE, ResponseMode.ACCUMULATE) else 1)

    @pytest.mark.parametrize("mode", CHAT_MODES, ids=lambda mode: mode.value)
    @pytest.mark.parametrize("way", CHAT_WAYS)
    def test_every_chat_engine_keeps_a_conversation(self, way: str, mode: ChatMode) -> None:
        engine = index_of(NOTES).as_chat_engine(chat_mode=mode, llm=self.make_llm())
        answers = [CHAT_WAYS[way](engine, message) for message in ("Hello", FERRY)]
        assert all(answers)
        history = engine.chat_history
        assert [message.role.value for message in history] == ["user", "assistant"] * 2
        # streamed answers enter the history without the blanks around them
        assert [(message.content or "").strip() for message in history[1::2]] == [answer.strip() for answer in answers]
