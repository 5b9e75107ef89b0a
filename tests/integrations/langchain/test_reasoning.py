"""Thoughts in LangChain: a part of their own in messages, chunks and events, counted, switched, and handed back in history."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage, message_chunk_to_message

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import CallDelta, ChatDelta
from eft_integrations.langchain import EFTChatModel
from eft_integrations.langchain.streams import Chunks
from tests.integrations.cuts import cut

CALL = ToolCall("call_1", "look", '{"place": "here"}')
OTHER = ToolCall("call_2", "look", '{"place": "there"}')
ANSWER = Message("assistant", "I shall look.", (CALL, OTHER), reasoning="Where is it?")
BLOCKS = [
    {"type": "reasoning", "reasoning": "Where is it?"},
    {"type": "text", "text": "I shall look."},
    {"type": "tool_call", "id": "call_1", "name": "look", "args": {"place": "here"}},
    {"type": "tool_call", "id": "call_2", "name": "look", "args": {"place": "there"}},
]
VERSIONS = pytest.mark.parametrize("version", ["v0", "v1"])


def model(*replies: Any, **fields: Any) -> EFTChatModel:
    """Over a script."""
    return EFTChatModel(backend=ScriptedBackend(list(replies)), **fields)


def merged(llm: EFTChatModel) -> Any:
    """A stream, added up."""
    whole: Any = None
    for chunk in llm.stream("Where?"):
        whole = chunk if whole is None else whole + chunk
    return whole


def without_indices(blocks: Any) -> list[dict[str, Any]]:
    """Blocks without their places in the stream."""
    return [{name: value for name, value in block.items() if name != "index"} for block in blocks]


@VERSIONS
def test_thought_is_a_block_and_content_is_what_was_said(version: str) -> None:
    llm = model(ANSWER, ANSWER, output_version=version)
    whole, streamed = llm.invoke("Where?"), merged(llm)
    for message in (whole, streamed, message_chunk_to_message(streamed)):
        assert without_indices(message.content_blocks) == BLOCKS
        assert message.text == "I shall look."
        assert (message.content == "I shall look.") is (version == "v0")
        assert isinstance(message.content, list) is (version == "v1")
        assert message.additional_kwargs["reasoning_content"] == "Where is it?"
        assert message.usage_metadata["output_token_details"] == {"reasoning": 3}
        assert [call["id"] for call in message.tool_calls] == ["call_1", "call_2"]


def test_answer_without_a_thought_has_no_block_of_one() -> None:
    for message in (model("Yes.").invoke("?"), merged(model("Yes."))):
        assert message.content_blocks == [{"type": "text", "text": "Yes."}]
        assert message.usage_metadata["output_token_details"] == {"reasoning": 0}


def test_text_behind_calls_is_a_block_of_its_own() -> None:
    """LangChain numbers blocks by their kind alone, and would add such a text to a call."""
    chunks = Chunks(lambda: "m", in_blocks=True)
    deltas = [
        ChatDelta(reasoning="hm"),
        *(ChatDelta(call=CallDelta(index, f"call_{index}", "look", "{}")) for index in range(3)),
        ChatDelta(text="Then"),
        ChatDelta(text="."),
    ]
    whole: Any = None
    for delta in deltas:
        for chunk in chunks.feed(delta):
            whole = chunk.message if whole is None else whole + chunk.message
    assert [block["type"] for block in whole.content_blocks] == ["reasoning", *["tool_call_chunk"] * 3, "text"]
    assert whole.text == "Then."
    assert [call["id"] for call in whole.tool_calls] == ["call_0", "call_1", "call_2"]


@VERSIONS
@pytest.mark.parametrize("events", ["v2", "v3"])
def test_events_have_the_thought_apart_and_no_call_that_is_cut(events: Any, version: str) -> None:
    broken = InvalidToolCall('{"place": ["he', "the text ended inside the call", "look", "call_1", '{"place": ["he')
    llm = model(ANSWER, cut(Message("assistant", "", reasoning="Where?"), broken), output_version=version)

    async def last() -> Any:
        if events == "v3":
            stream = llm.stream_events("?", version="v3")
            list(stream)
            return stream.output
        found = [event async for event in llm.astream_events("?", version="v2")]
        return found[-1]["data"]["output"]

    whole, torn = asyncio.run(last()), asyncio.run(last())
    assert without_indices(whole.content_blocks) == BLOCKS
    assert torn.tool_calls == []
    (told,) = torn.invalid_tool_calls
    assert (told["id"], told["name"]) == ("call_1", "look")
    assert told["args"].startswith('{"place": ["he')
    assert torn.content_blocks[0] == {"type": "reasoning", "reasoning": "Where?"} | (
        {"index": 0} if "index" in torn.content_blocks[0] else {}
    )


def test_callbacks_do_not_take_a_thought_for_text() -> None:
    class Tokens(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            self.seen.append(token)

    tokens = Tokens()
    list(model(ANSWER).stream("?", config={"callbacks": [tokens]}))
    assert "".join(tokens.seen) == "I shall look."


HISTORIES: dict[str, Any] = {
    "blocks": [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Yes."}],
    "thinking blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "Yes."}],
    "a summary": [{"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}, "Yes."],
    "texts": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}, "Yes."],
    "Bedrock": [{"type": "reasoning_content", "reasoning_content": {"text": "hm", "signature": "x"}}, "Yes."],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_thought_in_the_content_of_history_is_the_turns(name: str) -> None:
    llm = model("ok")
    llm.invoke([HumanMessage("?"), AIMessage(HISTORIES[name]), HumanMessage("So?")])
    assert llm._backend.requests[0].messages[1] == Message("assistant", "Yes.", reasoning="hm")


@pytest.mark.parametrize(
    "extra", [{"reasoning_content": "hm"}, {"reasoning": "hm"}, {"reasoning": {"summary": ["hm"]}}]
)
def test_thought_beside_the_content_of_history_is_the_turns(extra: dict[str, Any]) -> None:
    llm = model("ok")
    llm.invoke([HumanMessage("?"), AIMessage("Yes.", additional_kwargs=extra), HumanMessage("So?")])
    assert llm._backend.requests[0].messages[1] == Message("assistant", "Yes.", reasoning="hm")


@VERSIONS
@pytest.mark.parametrize("stream", [False, True])
def test_thought_is_handed_back_in_a_tool_loop(stream: bool, version: str) -> None:
    llm = model(ANSWER, "Here.", output_version=version)
    first: BaseMessage = message_chunk_to_message(merged(llm)) if stream else llm.invoke("Where?")
    results = [ToolMessage("seen", tool_call_id=call.call_id) for call in ANSWER.tool_calls]
    llm.invoke([HumanMessage("Where?"), first, *results])
    assert llm._backend.requests[1].messages[1] == ANSWER


def test_options_of_thinking_are_the_models_and_a_calls() -> None:
    options: dict[str, Any] = {"reasoning": "high", "reasoning_budget": 5, "reasoning_tags": ("<a>", "</a>")}
    llm = model("ok", "ok", "ok", **options)
    llm.invoke("?")
    llm.invoke("?", reasoning="off", reasoning_budget=None, reasoning_tags=("<b>", "</b>"))
    model_without = EFTChatModel(backend=llm._backend)
    model_without.invoke("?", **options)
    asked = [(own.reasoning, own.reasoning_budget, own.reasoning_tags) for own in llm._backend.requests]
    assert asked == [("high", 5, ("<a>", "</a>")), ("off", None, ("<b>", "</b>")), ("high", 5, ("<a>", "</a>"))]
    assert llm._identifying_params != model_without._identifying_params


def test_profile_says_that_thoughts_are_told() -> None:
    profile = model().profile
    assert profile is not None
    assert profile["reasoning_output"]
