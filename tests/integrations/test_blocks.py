"""`weights` blocks hold where their code runs and in what it started: in generators of either kind, under servers that run every
piece in another context, in threads and tasks; and they never reach what others ask in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from langchain_core.messages import AIMessageChunk
from starlette.responses import StreamingResponse

from eft_engine.errors import ConfigurationError
from eft_integrations import blocks, weights
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.langchain import EFTChatModel
from eft_integrations.weights import WeightsWarning, current_weights


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(["one two three"] * 40)


@pytest.fixture
def llm(backend: ScriptedBackend) -> EFTChatModel:
    return EFTChatModel(backend=backend)


@pytest.fixture(autouse=True)
def no_block_is_left_behind() -> Iterator[None]:
    yield
    assert not blocks._OF_GENERATORS
    assert current_weights() is None


def asked(backend: ScriptedBackend) -> list[Any]:
    """The weights of all requests."""
    return [request.reward_weights for request in backend.requests]


# ---- nesting ---------------------------------------------------------------------------------------------------------------


def test_inner_block_stands_in_place_of_the_outer_one_whole() -> None:
    with weights({"a": 1.0, "b": 2.0}):
        with weights({"a": 0.5}):
            assert current_weights() == {"a": 0.5}
        assert current_weights() == {"a": 1.0, "b": 2.0}
    assert current_weights() is None


def test_one_block_object_is_entered_once_at_a_time() -> None:
    """Entered by two threads or tasks, it could not know which of them leaves."""
    block = weights(0.5)
    for _ in range(2):
        with block:
            assert current_weights() == 0.5
            with pytest.raises(ConfigurationError, match="entered already"):
                block.__enter__()
    assert current_weights() is None


def test_blocks_that_are_left_in_another_order_than_they_were_entered() -> None:
    first, second = weights(0.1), weights(0.2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert current_weights() == 0.2
    second.__exit__(None, None, None)
    assert current_weights() is None


@contextlib.contextmanager
def tenant(reward_weights: float) -> Iterator[None]:
    """A helper of an application."""
    with weights(reward_weights):
        yield


@contextlib.asynccontextmanager
async def atenant(reward_weights: float) -> AsyncIterator[None]:
    """The same for coroutines."""
    with weights(reward_weights):
        yield


def test_context_managers_around_blocks_reach_what_is_inside_of_them() -> None:
    with tenant(0.5), contextlib.ExitStack() as stack:
        assert current_weights() == 0.5
        stack.enter_context(weights(0.2))
        assert current_weights() == 0.2
        with tenant(0.3):
            assert current_weights() == 0.3
        assert current_weights() == 0.2

    async def inside() -> RewardsSeen:
        async with atenant(0.5), contextlib.AsyncExitStack() as stack:
            seen = [current_weights()]
            await stack.enter_async_context(atenant(0.2))
            seen.append(current_weights())
            seen += await asyncio.gather(*[asyncio.to_thread(current_weights) for _ in range(2)])
        return [*seen, current_weights()]

    assert asyncio.run(inside()) == [0.5, 0.2, 0.2, 0.2, None]


RewardsSeen = list[Any]


@pytest.fixture
def dial() -> Iterator[None]:
    with weights(0.4):
        yield


def test_fixtures_with_a_block_reach_their_test(dial: None) -> None:
    assert current_weights() == 0.4


@pytest.fixture
async def adial() -> AsyncIterator[None]:
    with weights(0.4):
        yield


async def test_async_fixtures_with_a_block_reach_their_test(adial: None) -> None:
    assert current_weights() == 0.4


@pytest.mark.parametrize(
    "made", [int, property(current_weights), classmethod(current_weights), staticmethod(current_weights)]
)
def test_as_a_decorator_of_what_is_no_function(made: Any) -> None:
    with pytest.raises(ConfigurationError, match="below other decorators"):
        weights(0.5)(made)


def test_as_a_decorator_of_every_kind_of_function() -> None:
    @weights(0.5)
    def plain() -> Any:
        return current_weights()

    @weights(0.5)
    async def coroutine() -> Any:
        await asyncio.sleep(0)
        return current_weights()

    @weights(0.5)
    def generator() -> Iterator[Any]:
        yield current_weights()
        yield current_weights()

    @weights(0.5)
    async def agenerator() -> AsyncIterator[Any]:
        yield current_weights()
        await asyncio.sleep(0)
        yield current_weights()

    async def pieces() -> RewardsSeen:
        return [piece async for piece in agenerator()]

    assert plain() == asyncio.run(coroutine()) == 0.5
    stream = generator()
    assert [next(stream), current_weights(), next(stream)] == [0.5, None, 0.5]
    stream.close()
    assert asyncio.run(pieces()) == [0.5, 0.5]


# ---- generators ------------------------------------------------------------------------------------------------------------


def asking(llm: EFTChatModel, reward_weights: float) -> Iterator[str]:
    """Asks twice inside of its block, and once behind it."""
    with weights(reward_weights):
        for piece in llm.stream("first"):
            yield piece.text
        yield llm.invoke("second").text
    yield llm.invoke("third").text


async def aasking(llm: EFTChatModel, reward_weights: float) -> AsyncIterator[str]:
    """The same, asynchronously; what it waits for together has the weights too."""
    with weights(reward_weights):
        async for piece in llm.astream("first"):
            yield piece.text
        answers = await asyncio.gather(llm.ainvoke("second"), llm.ainvoke("second"))
        yield answers[0].text
    yield (await llm.ainvoke("third")).text


def test_generator_gives_its_weights_to_nobody_between_two_pieces(llm: EFTChatModel, backend: ScriptedBackend) -> None:
    for _ in asking(llm, 0.5):
        assert current_weights() is None
        llm.invoke("between")
    by_text: dict[str, set[Any]] = {}
    for request in backend.requests:
        by_text.setdefault(request.messages[0].content, set()).add(request.reward_weights)
    assert by_text == {"first": {0.5}, "between": {None}, "second": {0.5}, "third": {None}}


async def test_async_generator_gives_its_weights_to_nobody_between_two_pieces(
    llm: EFTChatModel, backend: ScriptedBackend
) -> None:
    async for _ in aasking(llm, 0.5):
        assert current_weights() is None
        await asyncio.gather(llm.ainvoke("between"), asyncio.to_thread(llm.invoke, "between"))
    by_text: dict[str, set[Any]] = {}
    for request in backend.requests:
        by_text.setdefault(request.messages[0].content, set()).add(request.reward_weights)
    assert by_text == {"first": {0.5}, "between": {None}, "second": {0.5}, "third": {None}}


def test_generators_that_are_read_in_turns_keep_their_own_weights(llm: EFTChatModel, backend: ScriptedBackend) -> None:
    streams = [asking(llm, 0.1), asking(llm, 0.2)]
    with weights(0.9):
        for _ in itertools.zip_longest(*streams):
            assert current_weights() == 0.9
    assert sorted(asked(backend)[:4]) == [0.1, 0.1, 0.2, 0.2]
    assert asked(backend)[4:] == [0.9, 0.9]


@pytest.mark.parametrize("leave", ["close", "drop", "throw"])
def test_generator_that_is_left_early_leaves_nothing(llm: EFTChatModel, leave: str) -> None:
    stream: Any = asking(llm, 0.5)
    next(stream)
    if leave == "close":
        stream.close()
    if leave == "throw":
        with pytest.raises(KeyError):
            stream.throw(KeyError())
    del stream
    gc.collect()
    assert current_weights() is None


async def test_async_generator_that_is_left_early_leaves_nothing(llm: EFTChatModel) -> None:
    stream = aasking(llm, 0.5)
    await anext(stream)
    assert current_weights() is None
    del stream
    gc.collect()
    await asyncio.sleep(0.01)
    assert current_weights() is None


def test_every_piece_in_another_context(llm: EFTChatModel, backend: ScriptedBackend) -> None:
    """As Starlette reads synchronous bodies."""
    stream = asking(llm, 0.5)
    done = object()
    while contextvars.copy_context().run(next, stream, done) is not done:
        pass
    assert asked(backend) == [0.5, 0.5, None]


def test_block_of_a_function_that_a_generator_calls(llm: EFTChatModel, backend: ScriptedBackend) -> None:
    def helper() -> None:
        with weights(0.1):
            llm.invoke("inner")
        llm.invoke("outer")

    def stream() -> Iterator[int]:
        with weights(0.5):
            yield 1
            helper()
            yield 2

    pieces = stream()
    while contextvars.copy_context().run(next, pieces, None) is not None:
        pass
    assert asked(backend) == [0.1, 0.5]


# ---- threads and tasks -----------------------------------------------------------------------------------------------------


async def test_what_starts_inside_of_a_block(llm: EFTChatModel) -> None:
    """Tasks and `to_thread` have its weights, also after it; threads and pools that copy no context have none, as Python has it."""
    loop = asyncio.get_running_loop()

    async def later() -> Any:
        await asyncio.sleep(0.01)
        return current_weights()

    with weights(0.5), ThreadPoolExecutor(1) as pool:
        task = asyncio.create_task(later())
        in_thread = await asyncio.to_thread(current_weights)
        in_executor = await loop.run_in_executor(None, current_weights)
        in_pool = pool.submit(current_weights).result()
        in_copy = pool.submit(contextvars.copy_context().run, current_weights).result()
        seen: RewardsSeen = []
        thread = threading.Thread(target=lambda: seen.append(current_weights()))
        thread.start()
        thread.join()
    assert (await task, in_thread, in_copy) == (0.5, 0.5, 0.5)
    assert (in_executor, in_pool, seen) == (None, None, [None])


# ---- under a server --------------------------------------------------------------------------------------------------------


def dependency_that_yields(weight: float) -> Iterator[None]:
    """FastAPI runs it in contexts of its own."""
    with weights(weight):
        yield


async def async_dependency_that_yields(weight: float) -> AsyncIterator[None]:
    """FastAPI runs it where the endpoint runs."""
    with weights(weight):
        yield


def application(llm: EFTChatModel) -> FastAPI:
    """Streams in every way, at the weight of the request."""
    app = FastAPI()

    @app.get("/sync")
    def sync(weight: float) -> StreamingResponse:
        return StreamingResponse(asking(llm, weight))

    @app.get("/async")
    async def asynchronous(weight: float) -> StreamingResponse:
        return StreamingResponse(aasking(llm, weight))

    @app.get("/made-inside")
    async def made_inside(weight: float) -> StreamingResponse:
        with weights(weight):
            return StreamingResponse(piece.text for piece in llm.stream("first"))

    @app.get("/dependency", dependencies=[Depends(async_dependency_that_yields)])
    async def with_dependency() -> str:
        return (await llm.ainvoke("first")).text

    @app.get("/dependency-of-a-thread", dependencies=[Depends(async_dependency_that_yields)])
    def in_thread_with_dependency() -> str:
        return llm.invoke("first").text

    @app.get("/sync-dependency", dependencies=[Depends(dependency_that_yields)])
    def with_sync_dependency() -> str:
        return llm.invoke("first").text

    return app


async def get(app: FastAPI, path: str, weight: float = 0.5) -> str:
    """The body of an answer."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        response = await client.get(path, params={"weight": weight})
        response.raise_for_status()
        return response.text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/sync", [0.5, 0.5, None]),
        ("/async", [0.5, 0.5, 0.5, None]),
        ("/made-inside", [0.5]),
        ("/dependency", [0.5]),
        ("/dependency-of-a-thread", [0.5]),
    ],
)
async def test_under_fastapi(llm: EFTChatModel, backend: ScriptedBackend, path: str, expected: RewardsSeen) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await get(application(llm), path)
    assert asked(backend) == expected


async def test_sync_dependency_that_cannot_reach_its_endpoint_says_so_once(
    llm: EFTChatModel, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_TOLD", set())
    app = application(llm)
    with pytest.warns(WeightsWarning, match=r"weights\(0\.5\) at .*test_blocks\.py.*async def"):
        await get(app, "/sync-dependency")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await get(app, "/sync-dependency")
    assert asked(backend) == [None, None]


async def test_many_streams_at_once_keep_their_weights(llm: EFTChatModel, backend: ScriptedBackend) -> None:
    app = application(llm)
    wanted = [0.1, 0.2, 0.3, 0.4]
    await asyncio.gather(*[get(app, path, weight) for weight in wanted for path in ("/sync", "/async")])
    seen = [weight for weight in asked(backend) if weight is not None]
    assert sorted(seen) == sorted(weight for weight in wanted for _ in range(5))


# ---- what is told ----------------------------------------------------------------------------------------------------------


def own_stream(llm: EFTChatModel) -> Iterator[AIMessageChunk]:
    """Begins when it is read, and belongs to no framework."""
    yield from llm.stream("late")  # type: ignore[misc]


async def own_coroutine(llm: EFTChatModel) -> object:
    return await llm.ainvoke("late")


LATE: dict[str, Callable[[EFTChatModel], Callable[[], object]]] = {
    "a generator": lambda llm: lambda stream=own_stream(llm): list(stream),  # type: ignore[misc]
    "a coroutine": lambda llm: lambda answer=own_coroutine(llm): asyncio.run(answer),  # type: ignore[misc]
}


@pytest.mark.parametrize("kind", LATE)
def test_block_in_which_nothing_was_asked_says_so_when_something_is_asked_behind_it(
    llm: EFTChatModel, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(blocks, "_TOLD", set())
    with weights(0.5):
        read = LATE[kind](llm)
    with pytest.warns(WeightsWarning, match=r"weights\(0\.5\) at .*left before anything was asked"):
        read()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.invoke("next")
    assert asked(backend) == [None, None]


def test_nothing_is_told_of_blocks_that_were_used_or_failed_or_never_mattered(llm: EFTChatModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with weights(0.5):
            llm.invoke("inside")
        llm.invoke("behind")
        with contextlib.suppress(KeyError), weights(0.5):
            raise KeyError
        llm.invoke("behind")
        with weights(0.5):
            pass
        llm.invoke("with its own", reward_weights=0.1)
        with weights(0.2):
            llm.invoke("inside of another")
