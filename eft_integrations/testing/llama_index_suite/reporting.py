"""What is told besides the text: token counts, log-probabilities, events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.llms import LLM
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base.event import BaseEvent

from eft_integrations.testing.llama_index_suite.asking import CHATS, COMPLETIONS, QUESTION, gather, user
from eft_integrations.testing.llama_index_suite.properties import SuiteProperties


class _Events(BaseEventHandler):
    """Remembers what was told."""

    seen: list[BaseEvent] = []  # noqa: RUF012  a pydantic field, copied for each instance

    @classmethod
    def class_name(cls) -> str:
        """See `BaseEventHandler`."""
        return "suite_events"

    def handle(self, event: BaseEvent, **kwargs: object) -> None:
        """See `BaseEventHandler`."""
        self.seen.append(event)


@contextmanager
def events_of_instrumentation() -> Iterator[list[BaseEvent]]:
    """What LlamaIndex' instrumentation tells inside the block."""
    handler = _Events()
    root = get_dispatcher()
    root.add_event_handler(handler)
    try:
        yield handler.seen
    finally:
        root.event_handlers.remove(handler)


class _HasRaw(Protocol):
    raw: Any


class ReportingTests(SuiteProperties):
    """Counts are true, and everything that happens can be observed."""

    def _responses(self) -> dict[str, _HasRaw]:
        llm = self.make_llm()
        return {
            "chat": llm.chat(user()),
            "achat": asyncio.run(llm.achat(user())),
            "stream_chat": list(llm.stream_chat(user()))[-1],
            "astream_chat": asyncio.run(gather(llm.astream_chat(user())))[-1],
            "complete": llm.complete(QUESTION),
            "stream_complete": list(llm.stream_complete(QUESTION))[-1],
        }

    def test_raw_is_plain_json_with_token_counts(self) -> None:
        self.needs(has=self.reports_usage, what="token counts")
        for way, response in self._responses().items():
            usage = json.loads(json.dumps(response.raw))["usage"]
            assert usage["prompt_tokens"] > 0, way
            assert usage["completion_tokens"] > 0, way
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], way

    @pytest.mark.parametrize("way", CHATS | COMPLETIONS)
    def test_token_counting_handler_counts_the_models_own_tokens(self, way: str) -> None:
        self.needs(has=self.reports_usage, what="token counts")
        usage = self.make_llm().chat(user()).raw["usage"]  # type: ignore[index]
        counter = TokenCountingHandler(tokenizer=lambda text: [0] * 10_000)
        llm = self.make_llm(callback_manager=CallbackManager([counter]))
        _ask(llm, way)
        assert counter.prompt_llm_token_count == usage["prompt_tokens"]
        assert counter.completion_llm_token_count == usage["completion_tokens"]

    @pytest.mark.parametrize("way", CHATS | COMPLETIONS)
    def test_callbacks_see_one_call_begin_and_end(self, way: str) -> None:
        handler = LlamaDebugHandler(print_trace_on_end=False)
        llm = self.make_llm(callback_manager=CallbackManager([handler]))
        _ask(llm, way)
        pairs = handler.get_event_pairs(CBEventType.LLM)
        assert [len(pair) for pair in pairs] == [2]

    @pytest.mark.parametrize("way", CHATS | COMPLETIONS)
    def test_instrumentation_sees_one_call_begin_and_end(self, way: str) -> None:
        llm = self.make_llm()
        with events_of_instrumentation() as seen:
            _ask(llm, way)
        kinds = (
            [LLMChatStartEvent, LLMChatEndEvent] if way in CHATS else [LLMCompletionStartEvent, LLMCompletionEndEvent]
        )
        counted = (LLMChatStartEvent, LLMChatEndEvent, LLMCompletionStartEvent, LLMCompletionEndEvent)
        assert [type(event) for event in seen if isinstance(event, counted)] == kinds

    def test_logprobs_belong_to_the_tokens_of_the_answer(self) -> None:
        self.needs(has=self.has_logprobs, what="log-probabilities")
        response = self.make_llm().chat(user(), **self.logprobs_keywords)
        tokens = response.logprobs
        assert tokens
        text = "".join(alternatives[0].token for alternatives in tokens)
        assert text.startswith(response.message.content or "")
        for alternatives in tokens:
            values = [alternative.logprob for alternative in alternatives]
            assert len(values) >= 2
            assert max(values) <= 0
            assert values[0] == max(values), "a greedy token is the most probable one"


def _ask(llm: LLM, way: str) -> None:
    if way in CHATS:
        CHATS[way](llm, user())
    else:
        COMPLETIONS[way](llm, QUESTION)
