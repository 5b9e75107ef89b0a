"""A trio that knows the scenarios of the LlamaIndex suite: each is run once with a script, and what was said there is learned."""

from __future__ import annotations

import asyncio
import functools
import json

from eft_engine import Engine
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.chat.request import ChatRequest
from eft_integrations.llama_index import EFTLLM
from eft_integrations.testing.llama_index_suite.scenarios import SCRIPTS
from tests.integrations.trained_trio import Learned, TrainedTrio, call, train

GREETING = "Hello! How can I help you today?"


def scripted(reply: str | tuple[str, str]) -> Message:
    """A reply of a script as a turn."""
    if isinstance(reply, str):
        return Message("assistant", reply)
    return Message("assistant", "", tool_calls=(ToolCall("1", *reply),))


def recorded() -> list[Learned]:
    """Every scenario's requests with the replies of its script, each request once."""
    learned: dict[str, Learned] = {}
    for scenario, replies in SCRIPTS.values():
        backend = ScriptedBackend([scripted(reply) for reply in replies])
        asyncio.run(scenario(EFTLLM(backend=backend)))
        for request, reply in zip(backend.requests, replies, strict=True):
            answer = reply if isinstance(reply, str) else call(*reply)
            learned.setdefault(repr((request.messages, request.tools)), Learned(request, answer))
    return list(learned.values())


@functools.cache
def trained_trio() -> TrainedTrio:
    """Learned once for all tests of LlamaIndex. The vocabulary is large enough for most words to be one token."""
    greeting = Learned(ChatRequest((Message("user", "Hello"),)), GREETING)
    learned = [greeting, *recorded()]
    texts = [message.content for own in learned for message in own.request.messages] + [own.answer for own in learned]
    tools = [json.dumps(tool.as_openai(), ensure_ascii=False) for own in learned for tool in own.request.tools]
    return train(learned, [*texts, *tools], vocab_size=2000)


@functools.cache
def trained_engine() -> Engine:
    """One engine for all tests of LlamaIndex."""
    return trained_trio().engine()
