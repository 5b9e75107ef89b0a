"""Every error of the engine is LangChain's own where LangChain asks, with the engine's as its cause."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.langchain import EFTChatModel
from eft_integrations.langchain.errors import LANGCHAINS_ERRORS, langchains_error

NUMBERS: dict[str, Any] = {
    "prompt_len": 9, "context_len": 8, "name": "p", "known": (), "value": 0, "position": 1, "needed_bytes": 2, "max_bytes": 1,
    "num_queued": 3, "limit": 2, "rank": 1, "status": 500, "token_id": 1, "member": "base", "differences": (),
    "num_differences": 0, "available_bytes": 1, "device": "cpu", "text": "x", "pid": 1,
}  # fmt: skip


def kinds(root: type[errors.EFTError] = errors.EFTError) -> Iterator[type[errors.EFTError]]:
    """All errors of the engine."""
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from kinds(kind)


def made(kind: type[Exception]) -> Exception:
    """One of this kind."""
    wanted = inspect.signature(kind.__init__).parameters
    return kind("it is wrong", **{name: NUMBERS[name] for name in wanted if name in NUMBERS})


class Failing(ScriptedBackend):
    """Fails at everything that it is asked, in the way that it is told to; of a stream at its second piece, if so."""

    def __init__(self, error: Exception, *, late: bool = False) -> None:
        super().__init__([])
        self._error, self._late = error, late

    def chat(self, request: ChatRequest) -> ChatResult:
        raise self._error

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        if not self._late:
            raise self._error
        return self._pieces()

    def _pieces(self) -> Iterator[ChatDelta]:
        yield ChatDelta(text="well")
        raise self._error

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        if self._late:
            yield ChatDelta(text="well")
        raise self._error

    def token_ids(self, text: str) -> list[int]:
        raise self._error

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        raise self._error


async def collect(stream: Any) -> list[Any]:
    """All pieces."""
    return [piece async for piece in stream]


ANSWERS: dict[str, Callable[[EFTChatModel], object]] = {
    "invoke": lambda llm: llm.invoke("hi"),
    "stream": lambda llm: list(llm.stream("hi")),
    "batch": lambda llm: llm.batch(["hi"]),
    "ainvoke": lambda llm: asyncio.run(llm.ainvoke("hi")),
    "astream": lambda llm: asyncio.run(collect(llm.astream("hi"))),
    "structured": lambda llm: llm.with_structured_output({"title": "x", "type": "object"}).invoke("hi"),
}
COUNTS: dict[str, Callable[[EFTChatModel], object]] = {
    "get_token_ids": lambda llm: llm.get_token_ids("hi"),
    "get_num_tokens": lambda llm: llm.get_num_tokens("hi"),
    "get_num_tokens_from_messages": lambda llm: llm.get_num_tokens_from_messages([HumanMessage("hi")]),
}


@pytest.mark.parametrize("kind", [*kinds(), TimeoutError])
def test_every_error_of_the_engine_is_one_of_langchains(kind: type[Exception]) -> None:
    error = made(kind)
    with pytest.raises(exceptions.ModelError, match="it is wrong") as caught:
        EFTChatModel(backend=Failing(error)).invoke("hi")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("call", ANSWERS)
def test_errors_are_translated_in_every_way_of_asking(call: str, late: bool) -> None:
    error = made(errors.ContextOverflowError)
    with pytest.raises(exceptions.ContextOverflowError) as caught:
        ANSWERS[call](EFTChatModel(backend=Failing(error, late=late)))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("call", COUNTS)
def test_errors_are_translated_in_every_way_of_counting(call: str) -> None:
    with pytest.raises(exceptions.ModelError):
        COUNTS[call](EFTChatModel(backend=Failing(errors.EngineClosedError("closed"))))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (made(errors.KVCacheBudgetError), exceptions.ContextOverflowError),
        (made(errors.ModelNotFoundError), exceptions.ModelNotFoundError),
        (made(errors.CorruptWeightsError), exceptions.ModelError),
        (made(errors.EngineClosedError), exceptions.ModelError),
        (made(errors.QueueFullError), exceptions.ModelRateLimitError),
        (made(errors.EngineStepError), exceptions.ModelAPIError),
        (made(errors.NonFiniteLogitsError), exceptions.ModelError),
        (made(errors.InvalidOptionError), exceptions.ModelInvalidRequestError),
        (made(errors.UnknownPairError), exceptions.ModelInvalidRequestError),
        (errors.RemoteServerError("x", status=None), exceptions.ModelConnectionError),
        (errors.RemoteServerError("x", status=401), exceptions.ModelAuthenticationError),
        (errors.RemoteServerError("x", status=403), exceptions.ModelPermissionDeniedError),
        (errors.RemoteServerError("x", status=429), exceptions.ModelRateLimitError),
        (errors.RemoteServerError("x", status=400), exceptions.ModelInvalidRequestError),
        (errors.RemoteServerError("x", status=503), exceptions.ModelAPIError),
    ],
)
def test_kinds(error: Exception, expected: type[exceptions.ModelError]) -> None:
    assert type(langchains_error(error)) is expected


def test_what_may_go_away_may_be_asked_again() -> None:
    retryable = {kind for kind, own in LANGCHAINS_ERRORS.items() if own.is_retryable}
    assert retryable == {TimeoutError, errors.QueueFullError, errors.GenerationError}


@pytest.mark.parametrize("cache", [None, InMemoryCache()])
@pytest.mark.parametrize("call", ["invoke", "ainvoke", "stream", "astream"])
def test_server_that_is_not_there_is_langchains_error_and_nobody_asks_it_for_a_name(call: str, cache: Any) -> None:
    llm = EFTChatModel(base_url="http://127.0.0.1:9/v1", cache=cache)
    assert llm._get_ls_params()["ls_model_name"] == "http://127.0.0.1:9/v1"
    assert llm.asdict()["model_name"] == "http://127.0.0.1:9/v1"
    with pytest.raises(exceptions.ModelConnectionError) as caught:
        ANSWERS[call](llm)
    assert isinstance(caught.value.__cause__, errors.RemoteServerError)


def test_closed_model_says_so_in_every_way_of_asking() -> None:
    llm = EFTChatModel(backend=ScriptedBackend(["ok"]), cache=InMemoryCache())
    assert llm.invoke("hi").content == "ok"
    llm.close()
    assert llm.profile is not None
    for call in (*ANSWERS.values(), *COUNTS.values()):
        with pytest.raises(exceptions.ModelError, match="was closed") as caught:
            call(llm)
        assert isinstance(caught.value.__cause__, errors.EngineClosedError)


@pytest.mark.parametrize("tool", [3, {"a": 1}, {"type": "web_search"}, int, [1]])
def test_what_is_no_tool_or_schema_is_named(tool: Any) -> None:
    llm = EFTChatModel(backend=ScriptedBackend([]))
    with pytest.raises(exceptions.ModelInvalidRequestError, match="tool"):
        llm.bind(tools=[tool]).invoke("hi")
    with pytest.raises(exceptions.ModelInvalidRequestError, match="schema"):
        llm.invoke("hi", response_format=tool)
    with pytest.raises(errors.InvalidOptionError, match="schema"):
        llm.with_structured_output(tool)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"base": "a", "tuned": "t"},
        {"preset": "atlas", "base": "a"},
        {"preset": "atlas", "base_url": "http://host/v1"},
        {"preset": "atlas", "served_name": "x"},
        {"preset": "nobody", "validate_model_on_init": True},
        {"preset": "atlas", "engine_config": {"max_contxt_len": 3}},
        {"preset": "atlas", "keep_alive": "soon"},
        {"base": "a", "pairs": {"p": "t"}},
    ],
)
def test_wrong_constructors_say_what_is_wrong(fields: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidOptionError):
        EFTChatModel(**fields)
