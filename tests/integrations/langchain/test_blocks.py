"""Weights of a block reach streams that LangChain begins when they are read; what is bound is kept, in whatever order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.load import dumpd
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableConfig, RunnableLambda, RunnableParallel
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import create_react_agent

from eft_integrations import blocks, weights
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
