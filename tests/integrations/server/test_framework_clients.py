"""Frameworks of this environment against a running server: langchain-openai, LlamaIndex's OpenAILike and smolagents' client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent
from smolagents import tool as smol_tool

from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.callers.callers import KeySettings
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import running
from tests.integrations.server.tool_user import OBJECT, ToolUser
from tests.integrations.trained_trio import WEATHER, get_weather, trained_engine

WEIGHTS = {"eft_reward_weights": {"scripted": 0.25}}


class Weather(BaseModel):
    """Weather somewhere."""

    city: str
    sunny: bool


@tool
def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


@smol_tool
def visit(place: str) -> str:
    """Visit a place.

    Args:
        place: where to.
    """
    return f"sunny in {place}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A trio that learned its answers, a model that uses tools, and one that writes code for smolagents."""
    code = json.dumps({"thought": "done", "code": "final_answer(6 * 7)"})
    served = {"trio": backend_of(trained_engine()), "tools": ToolUser(), "code": ScriptedBackend([code])}
    key = KeySettings.model_validate({"name": "clients", "key": "none", "max_requests": 8, "weight_policy": [0, 1]})
    with running(served, ServerSettings(keys=[key])) as url:
        yield f"{url}/v1"


def langchain(url: str, model: str, **options: Any) -> ChatOpenAI:
    """ChatOpenAI of the server."""
    return ChatOpenAI(model=model, base_url=url, api_key="none", max_retries=0, temperature=0, **options)


def test_langchain_openai_chats_streams_and_counts(url: str) -> None:
    llm = langchain(url, "trio", stream_usage=True)
    answer = llm.invoke("hello")
    assert answer.content == "Hello! How can I help?"
    whole = sum(llm.stream("hello"), AIMessageChunk(""))
    assert whole.content == answer.content
    assert whole.usage_metadata == answer.usage_metadata


def test_langchain_openai_calls_tools_and_reads_schemas(url: str) -> None:
    called = langchain(url, "trio").bind_tools([get_weather]).invoke(WEATHER)
    assert called.tool_calls[0]["args"] == {"location": "San Francisco, CA"}
    demanded = langchain(url, "trio", max_completion_tokens=60).bind_tools([look], tool_choice="look").invoke("hello")
    assert demanded.tool_calls[0]["name"] == "look"
    for method in ("json_schema", "function_calling", "json_mode"):
        structured = langchain(url, "tools", extra_body=WEIGHTS).with_structured_output(Weather, method=method)
        if method != "function_calling":
            assert structured.invoke("Paris, as JSON?") == Weather(city="Paris", sunny=True)


def test_langchain_openai_agent_runs_with_its_weights(url: str) -> None:
    agent: Any = create_agent(langchain(url, "tools", extra_body=WEIGHTS), [look])
    last = agent.invoke({"messages": [HumanMessage("Paris?")]})["messages"][-1]
    assert last.content == 'sunny in Paris {"scripted": 0.25}'


def test_langchain_openai_recognises_an_overflow(url: str) -> None:
    with pytest.raises(ContextOverflowError):
        langchain(url, "trio").invoke("hello " * 5000)


def llama_index(url: str, model: str, **options: Any) -> OpenAILike:
    """OpenAILike of the server."""
    return OpenAILike(
        model=model, api_base=url, api_key="none", max_retries=0, temperature=0, is_chat_model=True,
        is_function_calling_model=True, **options,
    )  # fmt: skip


async def test_llama_index_chats_streams_and_completes(url: str) -> None:
    llm = llama_index(url, "trio")
    message = ChatMessage(role="user", content="hello")
    assert llm.chat([message]).message.content == "Hello! How can I help?"
    assert list(llm.stream_chat([message]))[-1].message.content == "Hello! How can I help?"
    assert (await llm.achat([message])).message.content == "Hello! How can I help?"
    completing = OpenAILike(
        model="trio", api_base=url, api_key="none", is_chat_model=False, max_tokens=3, temperature=0
    )
    assert completing.complete("a", logprobs=0).raw.usage.completion_tokens <= 3
    assert [*completing.stream_complete("a")][-1].text == completing.complete("a").text


def test_llama_index_calls_tools_and_reads_schemas(url: str) -> None:
    def see(place: str) -> str:
        """See a place."""
        return place

    llm = llama_index(url, "tools", additional_kwargs={"extra_body": WEIGHTS})
    response = llm.chat_with_tools([FunctionTool.from_defaults(see)], "Paris?")
    (call,) = llm.get_tool_calls_from_response(response)
    assert (call.tool_name, call.tool_kwargs) == ("see", {"place": "Paris"})
    structured = llama_index(url, "tools", should_use_structured_outputs=True).as_structured_llm(Weather)
    assert structured.chat([ChatMessage(role="user", content="Paris?")]).raw == Weather(**OBJECT)
    asked = llama_index(url, "tools", should_use_structured_outputs=True)
    assert asked.structured_predict(Weather, PromptTemplate("{place}?"), place="Paris") == Weather(**OBJECT)


def test_smolagents_client_runs_both_agents(url: str) -> None:
    model = OpenAIServerModel("tools", api_base=url, api_key="none", extra_body=WEIGHTS)
    step = model.generate(
        [{"role": "user", "content": [{"type": "text", "text": "Paris?"}]}], tools_to_call_from=[visit]
    )
    assert step.tool_calls is not None
    assert step.tool_calls[0].function.name == "visit"
    agent = ToolCallingAgent(tools=[visit], model=model, max_steps=1, verbosity_level=0)
    agent.run("Paris?")
    assert "sunny in Paris" in str(agent.memory.steps[1].observations)  # type: ignore[union-attr]
    coder = CodeAgent(
        tools=[], model=OpenAIServerModel("code", api_base=url, api_key="none"), max_steps=1, verbosity_level=0,
        use_structured_outputs_internally=True, stream_outputs=True,
    )  # fmt: skip
    assert coder.run("What is 6 times 7?") == 42
