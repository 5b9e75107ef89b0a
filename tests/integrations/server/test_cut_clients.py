"""What clients of this environment make of calls that are none (docs/server_api.md, "Answers that are cut"), whole and streamed.

`cut` ends inside the arguments of a call, `late` behind them, and the call of `unfit` breaks its schema.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from langchain_core.messages import AIMessageChunk, message_chunk_to_message
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from smolagents import OpenAIServerModel, ToolCallingAgent
from smolagents import tool as smol_tool

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from tests.integrations.cuts import REASON, cut, unfit
from tests.integrations.server.serving import running

ARGUMENTS = '{"place": "Paris"}'
KINDS = pytest.mark.parametrize("kind", ["cut", "late", "unfit"])
ENDS = {"cut": "length", "late": "length", "unfit": "stop"}
seen: list[str] = []
"""With what tools were run."""


@tool
def look(place: str) -> str:
    """Look at a place."""
    seen.append(place)
    return place


@smol_tool
def visit(place: str) -> str:
    """Visit a place.

    Args:
        place: where to.
    """
    seen.append(place)
    return place


def torn(name: str, arguments: str) -> ScriptedBackend:
    """Calls a tool, and ends before the call does."""
    call = InvalidToolCall(arguments, REASON, name, "call_1", arguments)
    return ScriptedBackend(otherwise=cut(Message("assistant", ""), call))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of answers that are cut: for `look`, and behind `visit-` for `visit`."""
    served = {}
    for prefix, name in (("", "look"), ("visit-", "visit")):
        served[f"{prefix}cut"] = torn(name, ARGUMENTS[:14])
        served[f"{prefix}late"] = torn(name, ARGUMENTS)
        served[f"{prefix}unfit"] = ScriptedBackend(otherwise=unfit(ToolCall("call_1", name, ARGUMENTS)))
    with running(served) as url:
        yield f"{url}/v1"


@KINDS
def test_langchain_openai_has_no_call_to_run(url: str, kind: str) -> None:
    llm = ChatOpenAI(model=kind, base_url=url, api_key="none", max_retries=0).bind_tools([look])  # type: ignore[arg-type]
    whole = llm.invoke("Paris?")
    chunk = sum(llm.stream("Paris?"), AIMessageChunk(""))
    assert isinstance(chunk, AIMessageChunk)
    streamed = message_chunk_to_message(chunk)
    assert whole.tool_calls == streamed.tool_calls == []  # type: ignore[attr-defined]
    assert [call["name"] for call in streamed.invalid_tool_calls] == ["look"]  # type: ignore[attr-defined]
    assert whole.response_metadata["finish_reason"] == ENDS[kind]


@KINDS
def test_llama_index_makes_a_call_without_arguments_of_what_it_streams(url: str, kind: str) -> None:
    llm = OpenAILike(
        model=kind, api_base=url, api_key="none", max_retries=0, is_chat_model=True, is_function_calling_model=True
    )

    def place(place: str) -> str:
        """A place."""
        return place

    named = FunctionTool.from_defaults(place, name="look")
    whole = llm.chat_with_tools([named], "Paris?", allow_parallel_tool_calls=True)
    assert llm.get_tool_calls_from_response(whole, error_on_no_tool_call=False) == []
    assert whole.raw.choices[0].finish_reason == ENDS[kind]  # type: ignore[union-attr]
    *_, last = llm.stream_chat_with_tools([named], "Paris?")
    (call,) = llm.get_tool_calls_from_response(last)
    assert (call.tool_name, call.tool_kwargs) == ("look", {})
    assert isinstance(llm.chat([ChatMessage(role="user", content="hi")]).message.content, str | None)


@KINDS
@pytest.mark.parametrize("stream", [False, True])
def test_smolagents_client_takes_the_json_of_a_stream_for_the_text(url: str, kind: str, stream: bool) -> None:
    seen.clear()
    model = OpenAIServerModel(f"visit-{kind}", api_base=url, api_key="none")
    agent = ToolCallingAgent(tools=[visit], model=model, max_steps=1, verbosity_level=0, stream_outputs=stream)
    agent.run("Paris?")
    if not stream:
        assert seen == [], "there is no call in a whole answer"
    else:
        assert len(seen) == 1, "the tool is run"
        assert seen[0].startswith(ARGUMENTS[:14]), "with the JSON, and what makes it unreadable, as its text"
