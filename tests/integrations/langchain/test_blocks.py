"""Weights of a block reach streams that LangChain begins when they are read; what is bound is kept, in whatever order."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import pickle
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from weakref import WeakSet

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.documents import Document
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.load import dumpd
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, Runnable, RunnableConfig, RunnableLambda, RunnableParallel
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import create_react_agent

from eft_integrations import blocks, lazy, weights
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.langchain import EFTChatModel
from eft_integrations.weights import WeightsWarning
from tests.integrations.langchain.test_weights import W, look, make

PROMPT = ChatPromptTemplate.from_template("{x}")
MESSAGES = {"messages": [("user", "hi")]}


def graph(llm: Any) -> Any:
    """One node that asks."""
    built = StateGraph(MessagesState)
    built.add_node("answer", lambda state: {"messages": [llm.invoke(state["messages"])]})
    built.add_edge(START, "answer")
    built.add_edge("answer", END)
    return built.compile()


class Own(Runnable[Any, Any]):
    """A runnable of an application."""

    def __init__(self, llm: EFTChatModel) -> None:
        self.llm = llm

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self.llm.invoke(input, config)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        yield from self.llm.stream(input, config)


STREAMS: dict[str, Callable[[EFTChatModel], Any]] = {
    "model": lambda llm: llm.stream("hi"),
    "bound model": lambda llm: llm.bind(temperature=0.5).stream("hi"),
    "model with tools": lambda llm: llm.bind_tools([look]).stream("hi"),
    "with_retry": lambda llm: llm.with_retry().stream("hi"),
    "with_config": lambda llm: llm.with_config(tags=["a"]).stream("hi"),
    "with_fallbacks": lambda llm: llm.with_fallbacks([llm]).stream("hi"),
    "chain": lambda llm: (PROMPT | llm).stream({"x": "hi"}),
    "chain with a parser": lambda llm: (PROMPT | llm | StrOutputParser()).stream({"x": "hi"}),
    "chain, transform": lambda llm: (PROMPT | llm).transform(iter([{"x": "hi"}])),
    "parallel": lambda llm: RunnableParallel(a=PROMPT | llm).stream({"x": "hi"}),
    "lambda": lambda llm: RunnableLambda(lambda text: llm.invoke(text)).stream("hi"),
    "structured": lambda llm: llm.with_structured_output({"title": "x", "type": "object"}, include_raw=True).stream(
        "hi"
    ),
    "batch_as_completed": lambda llm: (PROMPT | llm).batch_as_completed([{"x": "hi"}]),
    "create_agent": lambda llm: create_agent(llm, [look]).stream(MESSAGES),
    "create_agent, messages": lambda llm: create_agent(llm, [look]).stream(MESSAGES, stream_mode="messages"),
    "graph": lambda llm: graph(llm).stream(MESSAGES),
    "own runnable": lambda llm: Own(llm).stream("hi"),
}
ASYNC_STREAMS: dict[str, Callable[[EFTChatModel], Any]] = {
    "model": lambda llm: llm.astream("hi"),
    "with_retry": lambda llm: llm.with_retry().astream("hi"),
    "chain": lambda llm: (PROMPT | llm).astream({"x": "hi"}),
    "chain with a parser": lambda llm: (PROMPT | llm | StrOutputParser()).astream({"x": "hi"}),
    "chain, events": lambda llm: (PROMPT | llm).astream_events({"x": "hi"}, version="v2"),
    "chain, log": lambda llm: (PROMPT | llm).astream_log({"x": "hi"}),
    "parallel": lambda llm: RunnableParallel(a=PROMPT | llm).astream({"x": "hi"}),
    "abatch_as_completed": lambda llm: (PROMPT | llm).abatch_as_completed([{"x": "hi"}]),
    "create_agent": lambda llm: create_agent(llm, [look]).astream(MESSAGES),
    "create_agent, events": lambda llm: create_agent(llm, [look]).astream_events(MESSAGES, version="v2"),
    "graph": lambda llm: graph(llm).astream(MESSAGES),
}


def asked(backend: ScriptedBackend) -> list[Any]:
    """The weights of all requests."""
    return [request.reward_weights for request in backend.requests]


def returned(llm: EFTChatModel, make_stream: Callable[[EFTChatModel], Any]) -> Any:
    """Made inside of a block in which something else was asked too."""
    with weights(W):
        llm.invoke("first")
        return make_stream(llm)


@pytest.mark.parametrize("kind", STREAMS)
def test_stream_that_is_made_inside_and_read_behind_it(kind: str) -> None:
    llm, backend = make()
    stream = returned(llm, STREAMS[kind])
    for _ in stream:
        llm.invoke("between")
    by_text = {request.messages[-1].content: request.reward_weights for request in backend.requests}
    assert by_text == {"first": W, "hi": W, "between": None}


@pytest.mark.parametrize("kind", ASYNC_STREAMS)
async def test_async_stream_that_is_made_inside_and_read_behind_it(kind: str) -> None:
    backend = ScriptedBackend(["ok"] * 30)
    llm = EFTChatModel(backend=backend)
    stream = returned(llm, ASYNC_STREAMS[kind])
    async for _ in stream:
        await llm.ainvoke("between")
    by_text = {request.messages[-1].content: request.reward_weights for request in backend.requests}
    assert by_text == {"first": W, "hi": W, "between": None}


def test_stream_that_is_read_inside_of_another_block_keeps_its_own() -> None:
    llm, backend = make()
    with weights(0.5):
        stream = (PROMPT | llm).stream({"x": "hi"})

    def reading() -> Iterator[Any]:
        with weights(0.2):
            yield from stream
            yield llm.invoke("x")

    with weights(0.1):
        list(reading())
    assert asked(backend) == [0.5, 0.2]


def test_streams_that_are_never_read_or_left_early_end_what_they_hold() -> None:
    llm, backend = make()
    with weights(0.5):
        unread = (PROMPT | llm).stream({"x": "hi"})
        left = (PROMPT | llm).stream({"x": "hi"})
    del unread
    next(left)
    left.close()  # type: ignore[attr-defined]
    llm.invoke("after")
    assert asked(backend) == [0.5, None]
    assert not blocks._OF_GENERATORS


def test_outside_of_blocks_streams_are_what_they_were() -> None:
    llm, backend = make()
    with weights(0.5):
        llm.invoke("a block was used")
    stream = (PROMPT | llm).stream({"x": "hi"})
    assert stream.gi_code.co_filename.endswith("base.py")  # type: ignore[attr-defined]
    list(stream)
    assert asked(backend) == [0.5, None]


# ---- what runs on between two pieces ---------------------------------------------------------------------------------------


def asking_twice(llm: EFTChatModel) -> Any:
    """A graph whose node asks again while the pieces of its first answer are read."""

    async def node(state: MessagesState) -> MessagesState:
        first = await llm.ainvoke("first")
        await asyncio.sleep(0.005)
        return {"messages": [first, await llm.ainvoke("second")]}

    return StateGraph(MessagesState).add_node(node).add_edge(START, "node").compile()


async def test_a_slow_reader_changes_nothing() -> None:
    llm, backend = make()

    async def body() -> AsyncIterator[Any]:
        with weights(W):
            async for piece in asking_twice(llm).astream(MESSAGES, stream_mode="messages"):
                yield piece

    async for _ in body():
        await asyncio.sleep(0.02)
    assert asked(backend) == [W, W]


async def test_a_task_that_a_generator_began_runs_on_between_its_pieces() -> None:
    llm, backend = make()

    async def body() -> AsyncIterator[int]:
        with weights(W):
            task = asyncio.create_task(asking_twice(llm).ainvoke(MESSAGES))
            yield 1
            await task

    async for _ in body():
        while len(asked(backend)) < 2:
            await asyncio.sleep(0.001)
        await llm.ainvoke("between")
    assert asked(backend) == [W, W, None]


async def test_every_piece_in_a_task_of_its_own() -> None:
    """As `asyncio.wait_for` asks for them."""
    llm, backend = make()

    async def body() -> AsyncIterator[int]:
        with weights(W):
            for piece in range(3):
                await (PROMPT | llm).ainvoke({"x": "hi"})
                yield piece

    pieces = body()
    for _ in range(3):
        await asyncio.create_task(anext(pieces))  # type: ignore[arg-type]
    await pieces.aclose()  # type: ignore[attr-defined]
    assert asked(backend) == [W] * 3


def test_threads_of_every_piece() -> None:
    """Pieces in contexts of their own, as Starlette reads them, and a chain that asks in threads."""
    llm, backend = make()

    def body() -> Iterator[int]:
        with weights(W):
            for piece in range(2):
                RunnableParallel(a=llm, b=llm).invoke("hi")
                yield piece

    pieces = body()
    for _ in range(2):
        contextvars.copy_context().run(next, pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert asked(backend) == [W] * 4


COROUTINES: dict[str, Callable[[EFTChatModel], Any]] = {
    "model": lambda llm: llm.ainvoke("hi"),
    "chain": lambda llm: (PROMPT | llm).ainvoke({"x": "hi"}),
    "batch": lambda llm: (PROMPT | llm).abatch([{"x": "hi"}]),
    "agent": lambda llm: create_agent(llm, [look]).ainvoke(MESSAGES),
    "agent, events": lambda llm: create_agent(llm, [look]).astream_events(MESSAGES, version="v3"),
}


@pytest.mark.filterwarnings("ignore:.*v3")
@pytest.mark.parametrize("kind", COROUTINES)
async def test_coroutine_that_is_made_inside_and_awaited_behind_it(kind: str) -> None:
    llm, backend = make()
    answer = await returned(llm, COROUTINES[kind])
    if kind == "agent, events":
        async for _ in answer:
            pass
    assert asked(backend) == [W, W]


async def test_coroutine_that_is_cancelled_before_it_begins() -> None:
    llm, backend = make()
    gc.collect()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with weights(W):
            task = asyncio.create_task((PROMPT | llm).ainvoke({"x": "hi"}))
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
    assert not [warning for warning in told if "never awaited" in str(warning.message)]
    assert not backend.requests


# ---- methods stay what they are --------------------------------------------------------------------------------------------


def test_methods_of_runnables_stay_what_they_are() -> None:
    """LangChain makes a step that streams of a generator function only."""

    class Loud(Runnable[Any, Any]):
        def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
            return input

        def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
            yield from (piece.text.upper() for piece in input)

        @staticmethod
        def stream(text: str) -> list[str]:  # type: ignore[override]
            return [text]

    llm, _ = make()
    with weights(0.5):
        llm.invoke("a block was used")
    assert "".join((llm | Loud().transform).stream("hi")) == llm.invoke("hi").text.upper()
    assert Loud.stream("a") == Loud().stream("a") == ["a"]
    assert inspect.iscoroutinefunction(Runnable.ainvoke)
    assert inspect.isasyncgenfunction(Runnable.astream)
    assert pickle.loads(pickle.dumps(Runnable.stream)) is Runnable.stream


def test_block_that_another_thread_enters_while_classes_are_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def enter() -> None:
        with weights(0.5):
            pass

    other = threading.Thread(target=enter)

    class Interrupted(WeakSet[type]):
        def __iter__(self) -> Iterator[type]:
            for kind in super().__iter__():
                if other.ident is None:
                    other.start()
                    other.join(0.05)
                yield kind

    monkeypatch.setattr(lazy, "_KNOWN", Interrupted([Runnable]))
    enter()
    other.join()


# ---- bound weights ---------------------------------------------------------------------------------------------------------

BOUND: dict[str, Callable[[EFTChatModel], Any]] = {
    "before tools": lambda llm: llm.bind(reward_weights=W).bind_tools([look]),
    "after tools": lambda llm: llm.bind_tools([look]).bind(reward_weights=W),
    "with tools": lambda llm: llm.bind_tools([look], reward_weights=W),
    "bound again": lambda llm: llm.bind(reward_weights=0.9).bind(reward_weights=W).bind_tools([look]),
    "before a schema": lambda llm: llm.bind(reward_weights=W).with_structured_output(
        {"title": "x", "type": "object"}, include_raw=True
    ),
    "in an agent": lambda llm: RunnableLambda(lambda _: MESSAGES) | create_agent(llm.bind(reward_weights=W), [look]),
    "in the older agent": lambda llm: (
        RunnableLambda(lambda _: MESSAGES) | create_react_agent(llm.bind(reward_weights=W), [look])
    ),
    "with_retry": lambda llm: llm.bind(reward_weights=W).with_retry(),
    "with_config": lambda llm: llm.bind(reward_weights=W).with_config(tags=["a"]).bind_tools([look]),
}


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize("kind", BOUND)
def test_bound_weights_are_as_good_as_given_with_the_call(kind: str) -> None:
    """They go before the block and the config, in whatever order things were bound."""
    llm, backend = make()
    with weights(0.2):
        BOUND[kind](llm.with_weights(0.1)).invoke("hi", config={"configurable": {"eft_reward_weights": 0.3}})
    assert asked(backend) == [W]


def test_config_and_keywords_that_were_bound_survive_tools_and_schemas() -> None:
    llm, backend = make()
    config: RunnableConfig = {"configurable": {"eft_reward_weights": W}}
    llm.with_config(config).bind_tools([look]).invoke("hi")
    llm.bind(temperature=0.25).with_structured_output({"title": "x", "type": "object"}, include_raw=True).invoke("hi")
    with_both = (
        llm.bind_tools([look])
        .with_config(config)
        .with_structured_output({"title": "x", "type": "object"}, include_raw=True)
    )
    with_both.invoke("hi")
    first, second, third = backend.requests
    assert (first.reward_weights, bool(first.tools)) == (W, True)
    assert second.sampling["temperature"] == 0.25
    assert (third.reward_weights, third.tools, third.response_schema is not None) == (W, (), True)


def test_a_copy_with_other_weights_forgets_those_that_were_bound() -> None:
    llm, backend = make()
    bound: Any = llm.bind(reward_weights=0.9, temperature=0.5)
    bound.with_weights(W).bind_tools([look]).invoke("hi")
    with weights(0.2):
        bound.with_weights(W).invoke("hi")
    bound.invoke("hi", reward_weights=0.1)
    assert asked(backend) == [W, 0.2, 0.1]
    assert {request.sampling["temperature"] for request in backend.requests} == {0.5}


def test_middleware_goes_before_block_and_config() -> None:
    llm, backend = make()

    @wrap_model_call
    def weigh(request: Any, handler: Any) -> Any:
        return handler(request.override(model_settings={"reward_weights": W}))

    agent = create_agent(llm.with_weights(0.1), [look], middleware=[weigh])
    config: RunnableConfig = {"configurable": {"eft_reward_weights": 0.3}}
    with weights(0.2):
        agent.invoke(MESSAGES, config=config)  # type: ignore[call-overload]
        list(agent.stream(MESSAGES, config=config))  # type: ignore[call-overload]
    assert asked(backend) == [W] * 2


# ---- keywords that a chain drops -------------------------------------------------------------------------------------------

DROPPING: dict[str, tuple[Callable[[EFTChatModel], Any], str]] = {
    "chain": (lambda llm: (PROMPT | llm).invoke({"x": "a"}, reward_weights=0.3), "RunnableSequence.invoke"),
    "stream": (lambda llm: list((PROMPT | llm).stream({"x": "a"}, reward_weights=0.3)), "RunnableSequence.stream"),
    "batch": (lambda llm: (PROMPT | llm).batch([{"x": "a"}], reward_weights=0.3), "RunnableSequence.batch"),
    "bound": (lambda llm: (PROMPT | llm).bind(reward_weights=0.3).invoke({"x": "a"}), "RunnableSequence.invoke"),
    "agent": (lambda llm: create_agent(llm, []).invoke(MESSAGES, reward_weights=0.3), "CompiledStateGraph.invoke"),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("kind", DROPPING)
def test_weights_that_a_chain_drops_are_an_error_that_says_what_to_write(kind: str) -> None:
    llm, backend = make()
    call, method = DROPPING[kind]
    with pytest.raises(ModelInvalidRequestError, match=rf"{method}.*reward_weights=0\.3.*eft_reward_weights"):
        call(llm)
    assert not backend.requests


def test_weights_for_the_first_step_are_its_own() -> None:
    llm, backend = make()
    (llm | StrOutputParser() | llm).invoke("hi", reward_weights=0.3)
    (llm.bind_tools([look]) | RunnableLambda(lambda _: "x") | llm).invoke("hi", reward_weights=0.3)
    assert asked(backend) == [0.3, None, 0.3, None]


# ---- what LangChain is told ------------------------------------------------------------------------------------------------


def test_a_function_that_takes_the_weights_may_ask_other_models() -> None:
    llm, backend = make()

    def answer(question: str, reward_weights: float) -> Any:
        llm.invoke("which department?")
        return llm.invoke(question, reward_weights=reward_weights)

    RunnableLambda(answer).invoke("hi", reward_weights=W)
    assert asked(backend) == [None, W]


def test_config_reaches_models_of_retrievers_which_hand_on_none() -> None:
    llm, backend = make()

    class Rewriting(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return [Document(llm.invoke(query).text)]

    config: RunnableConfig = {"configurable": {"eft_reward_weights": W}}
    Rewriting().invoke("hi", config)
    assert asked(backend) == [W]


def test_listeners_survive_tools_and_schemas() -> None:
    llm, _ = make()
    seen: list[str] = []
    heard = llm.bind(temperature=0.5).with_listeners(on_start=lambda run: seen.append(run.run_type))
    heard.bind_tools([look]).invoke("hi")
    llm.with_listeners(on_start=lambda run: seen.append(run.run_type)).bind_tools([look]).invoke("hi")
    heard.with_structured_output({"title": "x", "type": "object"}, include_raw=True).invoke("hi")
    assert seen == ["chat_model", "chat_model", "chain"]


def test_the_dial_is_among_the_config_specs_of_a_chain() -> None:
    llm, _ = make()
    (spec,) = (PROMPT | llm | StrOutputParser()).config_specs
    assert (spec.id, spec.default) == ("eft_reward_weights", None)
    assert "eft_reward_weights" in str((PROMPT | llm | (lambda m: m.text) | llm).get_config_jsonschema())


def test_bound_model_of_a_named_trio_is_serialised_as_langchains_own_binding() -> None:
    llm = EFTChatModel(base="a", tuned="t", reference="r")
    form = dumpd(llm.bind(reward_weights=0.5))
    assert form["id"][-1] == "RunnableBinding"
    assert form["kwargs"]["kwargs"] == {"reward_weights": 0.5}


def test_generator_of_an_application_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_TOLD", set())
    llm, _ = make()

    def own() -> Iterator[Any]:
        yield from (PROMPT | llm).stream({"x": "hi"})

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with weights(0.5):
            stream = own()
    with pytest.warns(WeightsWarning, match="langchain/test_blocks.py"):
        list(stream)


def test_fixed_weights_stay_in_blocks_and_under_configs_and_give_way_to_the_call() -> None:
    llm, backend = make()
    at_0 = llm.with_weights(0.0, fixed=True)
    config: RunnableConfig = {"configurable": {"eft_reward_weights": 0.3}}
    with weights(0.5):
        at_0.invoke("hi", config=config)
        at_0.bind_tools([look]).invoke("hi", config=config)
        at_0.invoke("hi", reward_weights=0.1)
        at_0.with_weights(0.2).invoke("hi")
        llm.bind(temperature=0.5).with_weights(0.0, fixed=True).invoke("hi")  # type: ignore[attr-defined]
        at_0.configurable_fields(temperature=ConfigurableField(id="heat")).invoke("hi")
    assert asked(backend) == [0.0, 0.0, 0.1, 0.5, 0.0, 0.0]
