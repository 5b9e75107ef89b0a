"""Reward weights reach the engine by every route, through every way of calling, and never from one call to another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tools import tool
from langgraph.prebuilt import create_react_agent

import eft_integrations
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.langchain import EFTChatModel
from tests.integrations.trained_trio import trained_engine

W = {"scripted": 0.3}
CONFIG = {"configurable": {"eft_reward_weights": W}}


@tool
def look(place: str) -> str:
    """Look at a place."""
    return place


def make() -> tuple[EFTChatModel, ScriptedBackend]:
    """A model that answers "ok" to everything, and what it was asked."""
    backend = ScriptedBackend(["ok"] * 10)
    return EFTChatModel(backend=backend), backend


async def collect(stream: Any) -> list[Any]:
    """All pieces."""
    return [piece async for piece in stream]


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda llm, config: llm.invoke("hi", config=config),
    "ainvoke": lambda llm, config: asyncio.run(llm.ainvoke("hi", config=config)),
    "stream": lambda llm, config: list(llm.stream("hi", config=config)),
    "astream": lambda llm, config: asyncio.run(collect(llm.astream("hi", config=config))),
    "batch": lambda llm, config: llm.batch(["hi"], config=config),
    "abatch": lambda llm, config: asyncio.run(llm.abatch(["hi"], config=config)),
    "chain": lambda llm, config: (RunnableLambda(lambda text: text) | llm).invoke("hi", config=config),
    "astream_events": lambda llm, config: asyncio.run(collect(llm.astream_events("hi", config=config, version="v2"))),
    "with tools": lambda llm, config: llm.bind_tools([look]).invoke("hi", config=config),
    "structured": lambda llm, config: llm.with_structured_output(
        {"title": "x", "type": "object"}, include_raw=True
    ).invoke("hi", config=config),
    "create_agent": lambda llm, config: create_agent(llm, [look]).invoke(
        {"messages": [HumanMessage("hi")]}, config=config
    ),
    "create_agent, async": lambda llm, config: asyncio.run(
        create_agent(llm, [look]).ainvoke({"messages": [HumanMessage("hi")]}, config=config)
    ),
    "create_react_agent": lambda llm, config: create_react_agent(llm, [look]).invoke(
        {"messages": [HumanMessage("hi")]}, config=config
    ),
}
ROUTES: dict[str, tuple[Callable[[EFTChatModel], Any], Any]] = {
    "field": (lambda llm: llm.model_copy(update={"reward_weights": W}), None),
    "with_weights": (lambda llm: llm.with_weights(W), None),
    "bind": (lambda llm: llm.bind(reward_weights=W), None),
    "config": (lambda llm: llm, CONFIG),
    "configurable field": (
        lambda llm: llm.configurable_fields(reward_weights=ConfigurableField(id="my_weights")),
        {"configurable": {"my_weights": W}},
    ),
}


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("call", CALLS)
def test_weights_of_every_route_survive_every_call(route: str, call: str) -> None:
    llm, backend = make()
    change, config = ROUTES[route]
    CALLS[call](change(llm), config)
    assert [request.reward_weights for request in backend.requests] == [W]


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize("call", CALLS)
def test_weights_of_a_surrounding_block_survive_every_call(call: str) -> None:
    llm, backend = make()
    with eft_integrations.weights(W):
        CALLS[call](llm, None)
    CALLS[call](llm, None)
    assert [request.reward_weights for request in backend.requests] == [W, None]


@pytest.mark.parametrize("call", ["invoke", "ainvoke", "stream", "astream"])
def test_weights_of_the_call_itself(call: str) -> None:
    llm, backend = make()
    calls: dict[str, Callable[[], Any]] = {
        "invoke": lambda: llm.invoke("hi", reward_weights=W),
        "ainvoke": lambda: asyncio.run(llm.ainvoke("hi", reward_weights=W)),
        "stream": lambda: list(llm.stream("hi", reward_weights=W)),
        "astream": lambda: asyncio.run(collect(llm.astream("hi", reward_weights=W))),
    }
    calls[call]()
    assert [request.reward_weights for request in backend.requests] == [W]


def test_middleware_of_an_agent_sets_weights() -> None:
    llm, backend = make()

    @wrap_model_call
    def weigh(request: Any, handler: Any) -> Any:
        return handler(request.override(model_settings={"reward_weights": W}))

    create_agent(llm, [look], middleware=[weigh]).invoke({"messages": [HumanMessage("hi")]})
    assert [request.reward_weights for request in backend.requests] == [W]


def test_weights_behind_the_name_of_the_model() -> None:
    llm, backend = make()
    answer = llm.invoke("hi", model="scripted@scripted=0.3")
    assert [request.reward_weights for request in backend.requests] == [W]
    assert answer.response_metadata["model_name"] == "scripted@scripted=0.3"


def test_precedence() -> None:
    """Call, block, config, name of the model, field."""
    llm, backend = make()
    llm = llm.with_weights(0.5)
    config: Any = {"configurable": {"eft_reward_weights": 0.3}}
    llm.invoke("hi")
    llm.invoke("hi", model="scripted@scripted=0.4")
    llm.invoke("hi", config=config, model="scripted@scripted=0.4")
    with eft_integrations.weights(0.2):
        llm.invoke("hi", config=config)
        llm.invoke("hi", config=config, reward_weights=0.1)
    assert [request.reward_weights for request in backend.requests] == [0.5, {"scripted": 0.4}, 0.3, 0.2, 0.1]


def test_stream_that_is_read_later_keeps_the_weights_of_its_call() -> None:
    llm, backend = make()
    with eft_integrations.weights(0.2):
        stream = llm.stream("hi")
    list(stream)
    assert [request.reward_weights for request in backend.requests] == [0.2]


def test_each_row_of_a_batch_has_its_config() -> None:
    llm, backend = make()
    llm.batch(["a", "b"], config=[{"configurable": {"eft_reward_weights": weight}} for weight in (0.1, 0.9)])
    asked = {request.messages[0].content: request.reward_weights for request in backend.requests}
    assert asked == {"a": 0.1, "b": 0.9}


def test_caches_never_mix_weights() -> None:
    backend = ScriptedBackend(["first", "second", "third", "fourth"])
    llm = EFTChatModel(backend=backend, cache=InMemoryCache())
    with eft_integrations.weights(0.7):
        in_block = llm.invoke("hi").content
    answers = [
        llm.invoke("hi").content,
        llm.invoke("hi", reward_weights=0.3).content,
        llm.with_weights(0.9).invoke("hi").content,
    ]
    assert [in_block, *answers] == ["first", "second", "third", "fourth"]
    assert llm.invoke("hi", reward_weights=0.3).content == "third"
    assert llm.with_weights(0.9).invoke("hi").content == "fourth"


def test_concurrent_calls_keep_their_weights_in_the_engine() -> None:
    """Eight at once, four weights: each answer is the one it gets alone, and tells its weights."""
    llm = EFTChatModel(engine=trained_engine(), temperature=0.0, max_tokens=12)
    weights = [0.0, 0.5, 1.0, 2.0] * 2
    alone = [llm.invoke("Hello", reward_weights=weight).content for weight in weights]

    async def together() -> list[Any]:
        return await asyncio.gather(*[llm.ainvoke("Hello", reward_weights=weight) for weight in weights])

    answers = asyncio.run(together())
    assert [answer.content for answer in answers] == alone
    assert [answer.response_metadata["eft"]["reward_weights"] for answer in answers] == [
        {"chat": own} for own in weights
    ]
    assert len(set(alone)) > 1
