"""`EFTChatModel(base_url=...)` and `EFTLLM(base_url=...)` on plain `eft serve` say what they say over the engine in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel, Field

from eft_integrations.backends.pool import backend_of
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.integrations.server.serving import running
from tests.integrations.trained_trio import WEATHER, get_weather, trained_engine

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the engine that is asked in process too."""
    with running({"trio": backend_of(trained_engine())}) as address:
        yield f"{address}/v1"


class Mood(BaseModel):
    """What babble is held to."""

    mood: str = Field(max_length=5)
    score: int = Field(ge=0, le=9)


def said(message: Any) -> Any:
    """What an answer of LangChain says, without what differs by run."""
    assert isinstance(message, AIMessage)
    eft = message.response_metadata["eft"]
    calls = [(call["name"], call["args"]) for call in message.tool_calls]
    broken = [call["args"] for call in message.invalid_tool_calls]
    usage = {key: (message.usage_metadata or {}).get(key) for key in ("input_tokens", "output_tokens")}
    logprobs = [token["token"] for token in (message.response_metadata.get("logprobs") or {}).get("content", ())]
    return message.text, calls, broken, usage, eft["reward_weights"], logprobs


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm: said(llm.invoke("Hello")),
        lambda llm: said(llm.invoke("Hello", reward_weights={"chat": 0.4}, temperature=1.0, seed=7)),
        lambda llm: said(llm.invoke("Hello", logprobs=True, top_logprobs=2)),
        lambda llm: said(llm.bind_tools([get_weather]).invoke(WEATHER)),
        lambda llm: said(llm.with_weights(0.0).bind_tools([get_weather], tool_choice="any").invoke(WEATHER)),
        lambda llm: said(llm.bind_tools([get_weather]).invoke(WEATHER, stop=["Francisco"])),
        lambda llm: llm.with_weights(0.0).with_structured_output(Mood).invoke("Hello"),
        lambda llm: llm.with_structured_output(Mood, method="function_calling", max_tokens=300).invoke("Hello"),
        lambda llm: [chunk.text for chunk in llm.stream("Hello")],
        lambda llm: asyncio.run(astreamed(llm)),
        lambda llm: llm.get_num_tokens_from_messages([AIMessage("Hello")]),
        lambda llm: llm.get_token_ids("Hello"),
    ],
    ids=[
        "text", "weights", "logprobs", "call", "demanded call", "broken call", "schema", "schema by call", "stream",
        "async stream", "count", "tokens",
    ],
)  # fmt: skip
def test_langchain_model_says_the_same_here_and_there(ask: Callable[[EFTChatModel], Any], url: str) -> None:
    assert ask(EFTChatModel(base_url=url, **GREEDY)) == ask(EFTChatModel(engine=trained_engine(), **GREEDY))


async def astreamed(llm: EFTChatModel) -> list[Any]:
    """Chunks of text and of calls."""
    return [
        (chunk.text, [call["args"] for call in chunk.tool_call_chunks])
        async for chunk in llm.bind_tools([get_weather]).astream(WEATHER)
    ]


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm: llm.chat([ChatMessage(content="Hello")]).message.content,
        lambda llm: llm.complete("Hello", reward_weights=0.2).text,
        lambda llm: llm.complete("<|user|>Hello<|end|><|assistant|>", formatted=True).text,
        lambda llm: [chunk.delta for chunk in llm.stream_chat([ChatMessage(content="Hello")])],
        lambda llm: llm.with_weights(0.0).as_structured_llm(Mood).chat([ChatMessage(content="Hello")]).raw,
        lambda llm: (llm.metadata.context_window, llm.token_ids("Hello")),
    ],
    ids=["chat", "weights", "raw text", "stream", "schema", "metadata"],
)
def test_llama_index_model_says_the_same_here_and_there(ask: Callable[[EFTLLM], Any], url: str) -> None:
    assert ask(EFTLLM(base_url=url, **GREEDY)) == ask(EFTLLM(engine=trained_engine(), **GREEDY))
