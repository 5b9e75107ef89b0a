"""langchain-openai over the newest client of OpenAI, by chat completions and by responses."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

HALF = {"eft_reward_weights": {"helpful": 0.5}}
ONE_LOOP = pytest.mark.asyncio(loop_scope="module")  # it keeps one asynchronous client for all models of an address
BOTH_ROUTES = pytest.mark.parametrize("use_responses_api", [False, True])


class Weather(BaseModel):
    """Weather somewhere."""

    city: str
    sunny: bool


class Place(BaseModel):
    """A place; the server's `tools` names one whenever it is asked for a call."""

    place: str


@tool
def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


def model(base_url: str, name: str = "eft", **how: Any) -> ChatOpenAI:
    """A model of the server."""
    return ChatOpenAI(model=name, base_url=base_url, api_key="none", max_retries=0, **how)


@pytest.mark.parametrize("use_responses_api", [False, True])
def test_chat_streams_and_counts(base_url: str, use_responses_api: bool) -> None:
    llm = ChatOpenAI(
        model="trio",
        base_url=base_url,
        api_key="none",
        temperature=0,
        stream_usage=True,
        use_responses_api=use_responses_api,
    )
    answer = llm.invoke("hello")
    whole = sum(llm.stream("hello"), AIMessageChunk(""))
    assert answer.text == whole.text == "Hello! How can I help?"
    assert whole.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"] > 0


def test_weights_travel_in_the_body(base_url: str) -> None:
    llm = ChatOpenAI(model="tools", base_url=base_url, api_key="none", extra_body={"eft_reward_weights": 0.5})
    assert llm.invoke("hi").content == 'hi {"scripted": 0.5}'


@BOTH_ROUTES
def test_tools_are_called_and_their_results_come_back(base_url: str, use_responses_api: bool) -> None:
    llm = model(base_url, extra_body=HALF, use_responses_api=use_responses_api).bind_tools([look])
    question = HumanMessage("Paris?")
    called = llm.invoke([question])
    streamed = sum(llm.stream([question]), AIMessageChunk(""))
    assert called.tool_calls[0]["args"] == streamed.tool_calls[0]["args"] == {"place": "Paris"}
    result = ToolMessage("sunny in Paris", tool_call_id=called.tool_calls[0]["id"])
    for first in (called, streamed):
        assert llm.invoke([question, first, result]).text == 'sunny in Paris {"helpful": 0.5, "harmless": 0.3}'


@pytest.mark.parametrize(
    ("use_responses_api", "method", "form"),
    [
        (False, "json_schema", Weather),
        (False, "function_calling", Place),
        (False, "json_mode", None),
        (True, "json_schema", Weather),
        (True, "function_calling", Place),
    ],
)
@ONE_LOOP
async def test_structured_output_by_every_method(
    base_url: str, use_responses_api: bool, method: Any, form: Any
) -> None:
    llm = model(base_url, use_responses_api=use_responses_api)
    structured = llm.with_structured_output(form, method=method, include_raw=True)
    answer = await structured.ainvoke("Paris, as JSON?")
    assert answer["parsing_error"] is None
    assert isinstance(answer["parsed"], form or dict)


@BOTH_ROUTES
@ONE_LOOP
async def test_batches_come_in_order_and_are_counted(base_url: str, use_responses_api: bool) -> None:
    llm = model(base_url, extra_body=HALF, use_responses_api=use_responses_api)
    asked = [f"question {number}" for number in range(12)]
    for answers in (llm.batch(asked), await llm.abatch(asked, config={"max_concurrency": 3})):
        assert [answer.text for answer in answers] == [f'{own} {{"helpful": 0.5, "harmless": 0.3}}' for own in asked]
        assert all(answer.usage_metadata["total_tokens"] > 0 for answer in answers)


@BOTH_ROUTES
def test_refusals_are_those_of_openai(base_url: str, use_responses_api: bool) -> None:
    forbidden = model(base_url, extra_body={"eft_reward_weights": -1}, use_responses_api=use_responses_api)
    with pytest.raises(openai.PermissionDeniedError, match="must be from 0 to 1.5 here"):
        forbidden.invoke("hi")
    with pytest.raises(openai.PermissionDeniedError):
        list(forbidden.stream("hi"))


def test_logprobs_and_thoughts(base_url: str) -> None:
    answer = model(base_url, "trio", temperature=0, logprobs=True, top_logprobs=2).invoke("hello")
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens).startswith("Hello! How can I help?")
    thought = model(base_url, "thinker", use_responses_api=True, output_version="responses/v1").invoke("hi")
    assert thought.content[0]["type"] == "reasoning"
