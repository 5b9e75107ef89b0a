"""Chat and completion, sync and async, whole and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, MessageRole
from llama_index.core.prompts import PromptTemplate

from eft_integrations.testing.llama_index_suite.properties import SuiteProperties

QUESTION = "Hello"
T = TypeVar("T")


def user(text: str = QUESTION) -> list[ChatMessage]:
    """A conversation of one turn."""
    return [ChatMessage(role=MessageRole.USER, content=text)]


async def gather(stream: Awaitable[AsyncIterator[T]]) -> list[T]:
    """All pieces of `await llm.astream_...(...)`."""
    return [piece async for piece in await stream]


CHATS: dict[str, Callable[..., str | None]] = {
    "chat": lambda llm, messages, **keywords: llm.chat(messages, **keywords).message.content,
    "achat": lambda llm, messages, **keywords: asyncio.run(llm.achat(messages, **keywords)).message.content,
    "stream_chat": lambda llm, messages, **keywords: list(llm.stream_chat(messages, **keywords))[-1].message.content,
    "astream_chat": lambda llm, messages, **keywords: (
        asyncio.run(gather(llm.astream_chat(messages, **keywords)))[-1].message.content
    ),
}
"""Four ways to put a conversation; each gives the answer's text."""

COMPLETIONS: dict[str, Callable[..., str | None]] = {
    "complete": lambda llm, prompt, **keywords: llm.complete(prompt, **keywords).text,
    "acomplete": lambda llm, prompt, **keywords: asyncio.run(llm.acomplete(prompt, **keywords)).text,
    "stream_complete": lambda llm, prompt, **keywords: list(llm.stream_complete(prompt, **keywords))[-1].text,
    "astream_complete": lambda llm, prompt, **keywords: (
        asyncio.run(gather(llm.astream_complete(prompt, **keywords)))[-1].text
    ),
}
"""Four ways to put a text."""


async def _astream(llm: LLM, prompt: PromptTemplate) -> str:
    return "".join([token async for token in await llm.astream(prompt)])


PREDICTIONS: dict[str, Callable[[LLM, PromptTemplate], str]] = {
    "predict": lambda llm, prompt: llm.predict(prompt),
    "apredict": lambda llm, prompt: asyncio.run(llm.apredict(prompt)),
    "stream": lambda llm, prompt: "".join(llm.stream(prompt)),
    "astream": lambda llm, prompt: asyncio.run(_astream(llm, prompt)),
}
"""Four ways in which engines ask."""


class AskingTests(SuiteProperties):
    """Every way of asking gives the same answer, in pieces or whole, and leaves everything else alone."""

    def test_class_is_an_llm_with_a_name(self) -> None:
        llm = self.make_llm()
        assert isinstance(llm, BaseLLM)
        assert llm.class_name() not in ("", "LLM", "base_component")

    def test_metadata_describes_the_model(self) -> None:
        metadata = self.make_llm().metadata
        assert metadata.context_window > metadata.num_output > 0
        assert metadata.is_chat_model
        assert metadata.model_name not in ("", "unknown")
        assert metadata.is_function_calling_model == self.has_tools

    @pytest.mark.parametrize("way", CHATS)
    def test_every_way_to_chat_gives_the_same_answer(self, way: str) -> None:
        answer = self.make_llm().chat(user()).message
        assert answer.role == MessageRole.ASSISTANT
        assert answer.content
        assert CHATS[way](self.make_llm(), user()) == answer.content

    @pytest.mark.parametrize("way", COMPLETIONS)
    def test_every_way_to_complete_gives_the_same_answer(self, way: str) -> None:
        answer = self.make_llm().complete(QUESTION).text
        assert answer
        assert COMPLETIONS[way](self.make_llm(), QUESTION) == answer

    def test_text_is_a_users_turn(self) -> None:
        assert self.make_llm().complete(QUESTION).text == self.make_llm().chat(user()).message.content

    @pytest.mark.parametrize("way", PREDICTIONS)
    def test_every_way_to_predict_gives_the_answer_of_chat(self, way: str) -> None:
        answer = self.make_llm().chat(user()).message.content
        assert PREDICTIONS[way](self.make_llm(), PromptTemplate(QUESTION)) == answer

    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_chunks_of_a_chat_hold_what_is_new_and_all_so_far(self, is_async: bool) -> None:
        llm = self.make_llm()
        chunks = asyncio.run(gather(llm.astream_chat(user()))) if is_async else list(llm.stream_chat(user()))
        so_far = ""
        for chunk in chunks:
            so_far += chunk.delta or ""
            assert (chunk.message.content or "") == so_far
            assert chunk.message.role == MessageRole.ASSISTANT
        assert len(chunks) > 1

    @pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
    def test_chunks_of_a_completion_hold_what_is_new_and_all_so_far(self, is_async: bool) -> None:
        llm = self.make_llm()
        stream = llm.astream_complete
        chunks = asyncio.run(gather(stream(QUESTION))) if is_async else list(llm.stream_complete(QUESTION))
        so_far = ""
        for chunk in chunks:
            so_far += chunk.delta or ""
            assert chunk.text == so_far
        assert len(chunks) > 1

    def test_prompt_is_not_part_of_the_answer(self) -> None:
        question = "Hello, dear lighthouse keeper."
        for answer in (self.make_llm().chat(user(question)).message.content, self.make_llm().complete(question).text):
            assert question not in (answer or "")

    @pytest.mark.parametrize("way", CHATS)
    def test_conversation_of_all_roles_is_read_and_not_changed(self, way: str) -> None:
        conversation = [
            ChatMessage(role=MessageRole.SYSTEM, content="Be kind."),
            *user("Hello"),
            ChatMessage(role=MessageRole.ASSISTANT, content="Hello!"),
            *user("How are you?"),
            *user("Tell me."),
        ]
        before = [message.model_copy(deep=True) for message in conversation]
        CHATS[way](self.make_llm(), conversation)
        assert conversation == before

    @pytest.mark.parametrize("way", CHATS)
    def test_stop_of_a_call_ends_the_answer(self, way: str) -> None:
        self.needs(has=self.has_call_keywords, what="keywords of a call")
        answer = self.make_llm().chat(user()).message.content or ""
        stop = answer[3:6]
        assert CHATS[way](self.make_llm(), user(), stop=[stop]) == answer[: answer.index(stop)]

    @pytest.mark.parametrize("way", CHATS)
    def test_token_limit_of_a_call_ends_the_answer(self, way: str) -> None:
        self.needs(has=self.has_call_keywords, what="keywords of a call")
        answer = self.make_llm().chat(user()).message.content or ""
        cut = CHATS[way](self.make_llm(), user(), **self.max_tokens_keyword) or ""
        assert answer.startswith(cut)
        assert len(cut) < len(answer)

    @pytest.mark.parametrize("way", CHATS)
    def test_keyword_that_nobody_knows_is_an_error(self, way: str) -> None:
        with pytest.raises(Exception, match="temprature"):
            CHATS[way](self.make_llm(), user(), temprature=0.5)

    def test_event_loop_goes_on_while_an_answer_is_made(self) -> None:
        """A call that blocks the loop lets nothing happen between its first and its last token."""
        llm = self.make_llm()

        async def count_ticks() -> int:
            ticks = 0
            task = asyncio.create_task(llm.achat(user()))
            while not task.done():
                await asyncio.sleep(0)
                ticks += 1
            await task
            return ticks

        assert asyncio.run(count_ticks()) > 3

    def test_concurrent_answers_are_those_of_single_calls(self) -> None:
        llm = self.make_llm()
        questions = ["Hello", "Hello again", "Who are you?", "1 2 3"]
        alone = [llm.chat(user(question)).message.content for question in questions]

        async def together() -> list[ChatResponse]:
            return await asyncio.gather(*[llm.achat(user(question)) for question in questions])

        assert [answer.message.content for answer in asyncio.run(together())] == alone

    def test_streams_can_be_read_alternately(self) -> None:
        llm = self.make_llm()
        first, second = llm.stream_chat(user()), llm.stream_chat(user())
        answer = llm.chat(user()).message.content
        pieces = [(a.delta or "", b.delta or "") for a, b in zip(first, second, strict=True)]
        assert ["".join(column) for column in zip(*pieces, strict=True)] == [answer, answer]

    def test_stream_that_is_closed_leaves_the_llm_usable(self) -> None:
        llm = self.make_llm()
        answer = llm.chat(user()).message.content
        stream = llm.stream_chat(user())
        next(stream)
        stream.close()

        async def close_early() -> None:
            astream = await llm.astream_chat(user())
            await anext(astream)
            await astream.aclose()

        asyncio.run(close_early())
        assert llm.chat(user()).message.content == answer
