"""langchain-anthropic's ChatAnthropic."""

from __future__ import annotations

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

SAID = "Hello! How can I help?"


@tool
def look(place: str) -> str:
    """Looks."""
    return f"sunny in {place}"


class City(BaseModel):
    """A city."""

    place: str


def chat(base_url: str, model: str) -> ChatAnthropic:
    """A model at the server."""
    return ChatAnthropic(
        model=model, base_url=base_url.removesuffix("/v1"), api_key="none", temperature=0, max_tokens=64
    )


def test_answers_and_streams(base_url: str) -> None:
    llm = chat(base_url, "trio")
    answer = llm.invoke("hello")
    whole = sum(llm.stream("hello"), AIMessageChunk(""))
    assert answer.text == whole.text == SAID
    assert whole.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"] > 0


def test_tools_and_thoughts(base_url: str) -> None:
    llm = chat(base_url, "thinker").bind_tools([look])
    asked = HumanMessage("hello")
    first = llm.invoke([asked])
    (call,) = first.tool_calls
    assert call["args"] == {"place": "Paris"}
    assert first.content[0]["thinking"] == "I must look."
    second = llm.invoke([asked, first, ToolMessage(look.invoke(call["args"]), tool_call_id=call["id"])])
    assert second.text.startswith("sunny in Paris")
    streamed = sum(llm.stream([asked]), AIMessageChunk(""))
    assert streamed.tool_calls[0]["args"] == {"place": "Paris"}


def test_structured_output(base_url: str) -> None:
    assert chat(base_url, "tools").with_structured_output(City).invoke("hello") == City(place="Paris")
