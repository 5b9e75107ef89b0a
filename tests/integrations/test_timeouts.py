"""Times that requests may take: they end on time wherever the request is then, and nothing of it runs on."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.exceptions import ModelTimeoutError
from llama_index.core.llms import ChatMessage

from eft_engine import Engine
from eft_integrations.backends.connection import Connection, hang_up
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.engine.gate import Gate
from tests.integrations.test_keep_alive import until
from tests.toy import ToyTrio, make_trio, wait_until_idle

LATE = (TimeoutError, ModelTimeoutError)
USER = [ChatMessage("abc")]


def answer_of(model: Any, **keywords: Any) -> Any:
    """A whole answer."""
    return model.chat(USER, **keywords) if isinstance(model, EFTLLM) else model.invoke("abc", **keywords)


def streamed(model: Any, **keywords: Any) -> list[Any]:
    """An answer in pieces."""
    if isinstance(model, EFTLLM):
        return list(model.stream_chat(USER, **keywords))
    return list(model.stream("abc", **keywords))


def completed(model: Any, **keywords: Any) -> Any:
    """A text that is continued; LangChain's chat models have no such thing."""
    return model.complete("abc", **keywords) if isinstance(model, EFTLLM) else model.invoke("abc", **keywords)


def awaited(model: Any, **keywords: Any) -> Any:
    """A whole answer in an event loop."""
    asked = model.achat(USER, **keywords) if isinstance(model, EFTLLM) else model.ainvoke("abc", **keywords)
    return asyncio.run(_value(asked))


async def _value(asked: Any) -> Any:
    return await asked


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Keeps nothing."""
    with make_trio("llama", context_len=200_000).engine(max_warm_prefixes=0) as engine:
        yield engine


@pytest.mark.parametrize("ask", [answer_of, streamed, completed, awaited])
@pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
def test_request_whose_first_piece_is_late_ends_on_time(
    adapter: Any, ask: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = engine.stats().num_cancelled
    model = adapter(engine=engine, max_tokens=100_000, ignore_eos=True, timeout=0.02)
    with monkeypatch.context() as patch:
        gate = Gate(patch, engine._trio.networks[0])
        with pytest.raises(LATE, match=r"within 0.02 s"):  # behind the gate nothing ever comes
            ask(model)
        until(
            lambda: all(thread.name != "eft-in-time" for thread in threading.enumerate())
        )  # nobody waits behind the gate
        gate.open()
        wait_until_idle(engine)
    assert engine.stats().num_cancelled == before + 1


@pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
def test_answer_in_time_is_the_same_as_without_a_time(adapter: Any, engine: Engine) -> None:
    model = adapter(engine=engine, max_tokens=6, temperature=0.0)
    timed, untimed = answer_of(model, timeout=600), answer_of(model)
    text = (lambda answer: answer.message.content) if adapter is EFTLLM else (lambda answer: answer.content)
    assert text(timed) == text(untimed) != ""


@pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
def test_error_of_a_timed_request_is_the_requests_own(adapter: Any, engine: Engine) -> None:
    with pytest.raises(Exception, match="there is no pair 'none'"):
        answer_of(adapter(engine=engine), reward_weights={"none": 1.0}, timeout=600)


def test_loading_counts_and_what_was_loaded_too_late_answers_nobody(toy_trio: ToyTrio) -> None:
    may_load = threading.Event()

    def load() -> Engine:
        assert may_load.wait(60)
        return toy_trio.engine()

    backend = EngineBackend(load, model_name="toy")
    with pytest.raises(ModelTimeoutError):
        EFTChatModel(backend=backend, timeout=0.02, max_tokens=8).invoke("abc")
    may_load.set()
    wait_until_idle(backend.engine)
    assert backend.engine.stats().num_finished == 0
    backend.close()


class Silent(ScriptedBackend):
    """Has begun to answer and says nothing more, and nobody can interrupt it."""

    def __init__(self) -> None:
        super().__init__([])
        self.may_go_on = threading.Event()
        self.was_closed = threading.Event()

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        """One word, and then only silence."""
        try:
            yield ChatDelta(text="well")
            assert self.may_go_on.wait(60)
            yield ChatDelta(text="then")
        finally:
            self.was_closed.set()


@pytest.mark.parametrize("adapter", [EFTChatModel, EFTLLM])
def test_backend_that_cannot_be_interrupted_is_left(adapter: Any) -> None:
    backend = Silent()
    with pytest.raises(LATE):
        streamed(adapter(backend=backend), timeout=0.02)
    backend.may_go_on.set()
    assert backend.was_closed.wait(60)


def test_answer_of_a_server_that_another_thread_waits_for_is_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connection = Connection(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", api_key=None, connect_timeout_s=10)
        accepted: list[socket.socket] = []

        def serve() -> None:
            accepted.append(listening.accept()[0])
            accepted[0].recv(10_000)
            accepted[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")

        serving = threading.Thread(target=serve)
        serving.start()
        response = connection.open(f"{connection.url}/x", {})
        began, ended = threading.Event(), threading.Event()

        def read() -> None:
            try:
                for _ in response.iter_bytes():
                    began.set()
            except httpx.TransportError:
                ended.set()

        reading = threading.Thread(target=read)
        reading.start()
        assert began.wait(60)
        hang_up(response)
        assert ended.wait(60), "the thread still waits"
        reading.join()
        serving.join()
        accepted[0].settimeout(60)
        while accepted[0].recv(100):  # until the server sees that the client is gone
            pass
        accepted[0].close()
        connection.close()
