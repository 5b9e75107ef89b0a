"""Histories of other providers, documents and results, as `EFTLLM` reads them."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.base.llms.types import CacheControl as Cache
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.llms.llm import ToolSelection
from openai.types.chat import ChatCompletionMessageToolCall

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.llama_index import EFTLLM
from eft_integrations.llama_index.history import to_messages

CALL = ToolCall("1", "look", '{"place": "Oslo"}')
PLACE = {"place": "Oslo"}


@pytest.mark.parametrize(
    "kept",
    [
        {
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"place": "Oslo"}'}}
            ]
        },
        {
            "tool_calls": [
                ChatCompletionMessageToolCall.model_validate(
                    {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"place": "Oslo"}'}}
                )
            ]
        },
        {"tool_calls": [{"type": "function_call", "id": "fc_7", "call_id": "1", "name": "look", "arguments": PLACE}]},
        {"tool_calls": [{"type": "tool_use", "id": "1", "name": "look", "input": PLACE}]},
        {"tool_calls": [{"toolUse": {"toolUseId": "1", "name": "look", "input": PLACE}}]},
        {"tool_calls": [{"id": "1", "name": "look", "args": PLACE}]},
        {"tool_calls": [ToolSelection(tool_id="1", tool_name="look", tool_kwargs=PLACE)]},
    ],
    ids=["OpenAI", "OpenAI, object", "OpenAI, responses", "Anthropic", "Bedrock", "Gemini", "LlamaIndex"],
)
def test_calls_of_every_provider_are_read(kept: dict[str, Any]) -> None:
    message = ChatMessage(role="assistant", content="", additional_kwargs=kept)
    assert to_messages([message]) == (Message("assistant", "", tool_calls=(CALL,)),)


def test_calls_without_ids_and_the_first_form_of_openai_are_read() -> None:
    ollama = ChatMessage(
        role="assistant",
        content="",
        additional_kwargs={"tool_calls": [{"function": {"name": "look", "arguments": PLACE}}]},
    )
    first = ChatMessage(
        role="assistant", additional_kwargs={"function_call": {"name": "look", "arguments": '{"place": "Oslo"}'}}
    )
    result = ChatMessage(role="function", content="sun", additional_kwargs={"name": "look"})
    for message in (ollama, first):
        called, told = to_messages([message, result])
        assert called.tool_calls == (ToolCall("", "look", '{"place": "Oslo"}'),)
        assert told == Message("tool", "sun", name="look")


def test_call_that_nobody_can_read_is_an_error() -> None:
    message = ChatMessage(role="assistant", additional_kwargs={"tool_calls": [{"who": "knows"}]})
    with pytest.raises(errors.InvalidOptionError, match="messages.0.tool_calls.0: a call is written"):
        to_messages([message])


def test_arguments_that_json_cannot_hold_are_an_error_that_synthesizers_let_through() -> None:
    message = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="look", tool_kwargs={"when": object()})])
    with pytest.raises(errors.InvalidOptionError, match="the arguments of a call are no JSON"):
        to_messages([message])


@pytest.mark.parametrize("role", MessageRole)
def test_every_role_of_llama_index_has_a_meaning(role: MessageRole) -> None:
    meant = {"developer": "system", "model": "assistant", "chatbot": "assistant", "function": "tool"}
    assert to_messages([ChatMessage(role=role, content="x")])[0].role == meant.get(role.value, role.value)


@pytest.mark.parametrize("key", ["thinking", "reasoning_content"])
def test_thoughts_are_blocks_or_where_older_integrations_keep_them(key: str) -> None:
    old = ChatMessage(role="assistant", content="Yes.", additional_kwargs={key: "hm"})
    block = ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="Yes.")])
    redacted = ChatMessage(role="assistant", blocks=[ThinkingBlock(content=None), TextBlock(text="Yes.")])
    assert to_messages([old]) == to_messages([block]) == (Message("assistant", "Yes.", reasoning="hm"),)
    assert to_messages([redacted]) == (Message("assistant", "Yes."),)


# ---- blocks --------------------------------------------------------------------------------------------------------------


def text_of(*blocks: Any) -> str:
    """What a user's turn of these blocks says."""
    (message,) = to_messages([ChatMessage(role="user", blocks=list(blocks))])
    return message.content


def test_documents_that_are_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("# Pier fünf", encoding="utf-8")
    assert text_of(DocumentBlock(data=b"Pier four.", document_mimetype="text/plain")) == "Pier four."
    assert (
        text_of(DocumentBlock(data=b'{"pier": 4}', document_mimetype="application/json", title="Piers"))
        == 'Piers\n{"pier": 4}'
    )
    assert text_of(DocumentBlock(path=path, title="notes.md")) == "notes.md\n# Pier fünf"


@pytest.mark.skipif("IOBase" not in str(DocumentBlock.model_fields["data"].annotation), reason="came with a later core")
def test_document_may_be_an_open_file() -> None:
    assert text_of(DocumentBlock(data=io.BytesIO(b"Pier four."), document_mimetype="text/plain")) == "Pier four."


def test_citations_and_marks_of_caches_are_read_for_their_text() -> None:
    blocks = [
        TextBlock(text="Read this."),
        CitableBlock(title="t", source="s", content="Pier four."),
        CachePoint(cache_control=Cache(type="ephemeral")),
        CitationBlock(cited_content="four", source="s", title="t", additional_location_info={}),
    ]
    assert text_of(*blocks) == "Read this.\nPier four.\nfour"


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (ImageBlock(image=b"x"), "content of type 'image' is not text"),
        (AudioBlock(audio=b"x"), "content of type 'audio' is not text"),
        (
            CitableBlock(title="t", source="s", content=[ImageBlock(image=b"x")]),
            "blocks.1.blocks.0: content of type 'image'",
        ),
        (DocumentBlock(data=b"%PDF-1.4", document_mimetype="application/pdf"), "type 'application/pdf' is not text"),
        (DocumentBlock(data=b"\xff\xfe\x00a", document_mimetype="text/plain"), "no text in UTF-8"),
        (DocumentBlock(url="http://127.0.0.1:9/notes.txt"), "nothing is fetched from"),
        (DocumentBlock(path="nowhere.txt"), "the document cannot be read"),
    ],
)
def test_what_is_no_text_is_an_error_that_says_where_it_is(block: Any, reason: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=reason) as caught:
        text_of(TextBlock(text="look"), block)
    assert str(caught.value.option).startswith("messages.0.blocks.1")


# ---- results -------------------------------------------------------------------------------------------------------------


def test_agent_tells_results_under_the_ids_of_their_calls_however_late_they_come() -> None:
    order: list[str] = []

    async def wait(name: str, seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        order.append(name)
        return f"{name} done"

    calls = [("slow", 0.05), ("fast", 0.0)]
    asked = Message(
        "assistant",
        "",
        tool_calls=tuple(ToolCall(f"id-{name}", "wait", f'{{"name": "{name}", "seconds": {s}}}') for name, s in calls),
    )
    backend = ScriptedBackend([asked, "All done."])
    agent = FunctionAgent(tools=[wait], llm=EFTLLM(backend=backend), allow_parallel_tool_calls=True)

    async def run() -> str:
        return str(await agent.run("go"))

    assert asyncio.run(run()) == "All done."
    results = [message for message in backend.requests[1].messages if message.role == "tool"]
    assert order == ["fast", "slow"]
    assert {(result.tool_call_id, result.content) for result in results} == {
        ("id-fast", "fast done"),
        ("id-slow", "slow done"),
    }
    assert {result.name for result in results} == {"wait"}


def test_blocks_go_before_what_is_said_again_beside_them() -> None:
    block = ToolCallBlock(tool_call_id="1", tool_name="look", tool_kwargs='{"place": "Oslo"}')
    kept = {"tool_calls": [{"id": "other", "function": {"name": "other", "arguments": "{}"}}]}
    message = ChatMessage(role="assistant", blocks=[block], additional_kwargs=kept)
    assert to_messages([message])[0].tool_calls == (CALL,)


@pytest.mark.parametrize("arguments", ["not JSON", "[1]", '"text"'])
def test_call_whose_arguments_are_no_object_is_none(arguments: str) -> None:
    llm = EFTLLM(backend=ScriptedBackend([Message("assistant", "", tool_calls=(ToolCall("1", "look", arguments),))]))
    response = llm.chat([ChatMessage("hi")])
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    (broken,) = response.message.additional_kwargs["invalid_tool_calls"]
    assert (broken["name"], broken["reason"]) == ("look", "its arguments are no JSON object")
