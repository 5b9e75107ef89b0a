"""Streams of adapters that nobody reads: whatever stands in between, closing or dropping them ends the request of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from eft_engine import Engine
from eft_integrations.agents.smolagents import EFTModel
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from eft_integrations.pieces import Pieces
from eft_integrations.question import Question
from tests.toy import make_trio

MAX_TOKENS = 100_000
"""A request that nobody ends would run on for many minutes."""
REQUEST = ChatRequest((Message("user", "abc"),), sampling={"max_tokens": MAX_TOKENS, "ignore_eos": True})


class Answer(BaseModel):
    """What LlamaIndex is to predict."""

    text: str


def look(word: str) -> str:
    """A tool."""
    return word


def of_backend(engine: Engine) -> Iterator[Any]:
    """What everything else reads from."""
    return EngineBackend.of(engine, model_name="toy").stream(REQUEST)


def of_question(engine: Engine) -> Iterator[Any]:
    """What LangChain and LlamaIndex read from."""
    return Question(EngineBackend.of(engine, model_name="toy"), REQUEST, "toy").stream(lambda delta: delta)


def of_langchain(engine: Engine) -> Iterator[Any]:
    """LangChain asks when the first piece is asked for."""
    return EFTChatModel(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True).stream([HumanMessage("abc")])


def of_llama_index(engine: Engine) -> Iterator[Any]:
    """Inside of LlamaIndex's own generator."""
    return EFTLLM(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True).stream_chat([ChatMessage("abc")])


def of_prediction(engine: Engine) -> Iterator[Any]:
    """Two of them."""
    llm = EFTLLM(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True)
    return llm.stream_structured_predict(Answer, PromptTemplate("abc"))


def of_completion(engine: Engine) -> Iterator[Any]:
    """Inside of LlamaIndex's generator of completions."""
    return EFTLLM(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True).stream_complete("abc")


def of_predicted_text(engine: Engine) -> Iterator[Any]:
    """What query engines stream."""
    return EFTLLM(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True).stream(PromptTemplate("abc"))


def of_structured_llm(engine: Engine) -> Iterator[Any]:
    """Three of them."""
    llm = EFTLLM(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True)
    return llm.as_structured_llm(Answer).stream_chat([ChatMessage("abc")])


def of_tools(engine: Engine) -> Iterator[Any]:
    """With tools."""
    llm = EFTLLM(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True)
    return llm.stream_chat_with_tools([FunctionTool.from_defaults(fn=look)], "abc")


def of_bound(engine: Engine) -> Iterator[Any]:
    """Of a model that tools are bound to, behind a prompt."""
    llm = EFTChatModel(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True)
    return llm.bind_tools([Answer]).stream([HumanMessage("abc")])


def of_timed(engine: Engine) -> Iterator[Any]:
    """Read in a thread of its own, since its time is bounded."""
    return EFTChatModel(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True, timeout=600).stream("abc")


def of_timed_llm(engine: Engine) -> Iterator[Any]:
    """The same in LlamaIndex, where the request is made at once."""
    llm = EFTLLM(engine=engine, max_tokens=MAX_TOKENS, ignore_eos=True, timeout=600)
    return llm.stream_chat([ChatMessage("abc")])


def of_smolagents(engine: Engine) -> Iterator[Any]:
    """Of a model."""
    return EFTModel(backend=EngineBackend.of(engine, model_name="toy")).generate_stream(
        [{"role": "user", "content": "abc"}], max_tokens=MAX_TOKENS, ignore_eos=True
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Keeps nothing."""
    with make_trio("llama", context_len=200_000).engine(max_warm_prefixes=0) as engine:
        yield engine


def drop(streams: list[Any]) -> None:
    """The last reference goes."""
    streams.clear()


def close(streams: list[Any]) -> None:
    """While it is held."""
    streams[0].close()


@pytest.mark.parametrize("leave", [drop, close])
@pytest.mark.parametrize(
    "ask",
    [
        of_backend, of_question, of_langchain, of_bound, of_timed, of_llama_index, of_timed_llm, of_completion, of_predicted_text,
        of_prediction, of_structured_llm, of_tools, of_smolagents,
    ],
)  # fmt: skip
@pytest.mark.parametrize("num_read", [0, 1])
def test_stream_is_left(
    engine: Engine, ask: Callable[[Engine], Iterator[Any]], leave: Callable[[list[Any]], None], num_read: int
) -> None:
    streams = [ask(engine)]
    for _ in range(num_read):
        next(streams[0])
    leave(streams)
    deadline = time.monotonic() + 30
    while engine.stats().num_running or engine.stats().num_waiting:
        assert time.monotonic() < deadline, "a request runs on that nobody reads"
        time.sleep(0.001)
    for network in engine._trio.networks:
        assert not any(slot is not None for slot in network.kv_cache._slots)


def test_pieces_end_their_source_once_they_end_themselves() -> None:
    closed: list[str] = []

    def words() -> Generator[ChatDelta]:
        yield ChatDelta(text="one")
        raise KeyError("broken")

    pieces = Pieces(words(), lambda: closed.append("closed"))
    assert next(pieces).text == "one"
    assert not closed
    with pytest.raises(KeyError):
        next(pieces)
    assert closed
    with pytest.raises(ValueError, match="thrown"):
        Pieces(words(), lambda: closed.append("thrown at")).throw(ValueError("thrown"))
    assert "thrown at" in closed
