"""Histories that other providers' models left, in the forms that LangChain keeps them in."""

from __future__ import annotations

import base64
import warnings
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.langchain import EFTChatModel
from eft_integrations.langchain.history import to_messages

CALL = {"name": "look", "args": {"place": "here"}, "id": "1", "type": "tool_call"}
ASKED = (ToolCall("1", "look", '{"place": "here"}'),)
TEXT = base64.b64encode(b"Mills grind.").decode()
PIXELS = base64.b64encode(b"\x89PNG").decode()


def answer(*blocks: Any, **fields: Any) -> AIMessage:
    """An assistant's message of these blocks."""
    return AIMessage(content=list(blocks), **fields)


ANSWERS: dict[str, tuple[AIMessage, Message]] = {
    "Anthropic": (
        answer(
            {"type": "thinking", "thinking": "Hm.", "signature": "xyz"},
            {"type": "redacted_thinking", "data": "abc"},
            {"type": "text", "text": "I look.", "citations": [{"type": "char_location", "cited_text": "no"}]},
            {"type": "tool_use", "id": "1", "name": "look", "input": {"place": "here"}},
            tool_calls=[CALL],
        ),
        Message("assistant", "I look.", ASKED, reasoning="Hm."),
    ),
    "Anthropic, from its JSON": (
        answer(
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "1", "name": "look", "input": {"place": "here"}},
        ),
        Message("assistant", "I look.", ASKED),
    ),
    "Anthropic, a refusal": (answer({"type": "refusal", "extras": {"category": "x"}}), Message("assistant", "")),
    "Anthropic, what is left of a long conversation": (
        answer({"type": "compaction", "content": "They met."}, {"type": "text", "text": "Yes."}),
        Message("assistant", "They met.\n\nYes."),
    ),
    "OpenAI, chat completions": (
        AIMessage(content="", tool_calls=[CALL], additional_kwargs={"refusal": None}),
        Message("assistant", "", ASKED),
    ),
    "OpenAI, a refusal": (
        AIMessage(content="", additional_kwargs={"refusal": "I may not."}),
        Message("assistant", "I may not."),
    ),
    "OpenAI, its old calls": (
        AIMessage(content="", additional_kwargs={"function_call": {"name": "look", "arguments": '{"place": "here"}'}}),
        Message("assistant", "", (ToolCall("", "look", '{"place": "here"}'),)),
    ),
    "OpenAI, responses": (
        answer(
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"type": "text", "text": "I look.", "annotations": [{"type": "url_citation", "url": "u"}], "id": "msg_1"},
            {"type": "function_call", "name": "look", "arguments": '{"place": "here"}', "call_id": "1", "id": "fc_1"},
            tool_calls=[CALL],
        ),
        Message("assistant", "I look.", ASKED, reasoning="Hm."),
    ),
    "OpenAI, responses, a refusal": (
        answer({"type": "refusal", "refusal": "I may not."}),
        Message("assistant", "I may not."),
    ),
    "Google": (
        answer(
            {"type": "thinking", "thinking": "Hm."},
            {"type": "text", "text": "I look.", "extras": {"signature": "s"}},
            {"type": "function_call_signature", "signature": "s", "index": 0},
            tool_calls=[CALL],
            additional_kwargs={"function_call": {"name": "look", "arguments": '{"place": "here"}'}},
        ),
        Message("assistant", "I look.", ASKED, reasoning="Hm."),
    ),
    "Bedrock": (
        answer(
            {"type": "reasoning_content", "reasoning_content": {"text": "Hm.", "signature": "s"}},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "name": "look", "input": {"place": "here"}, "id": "1"},
            {"cachePoint": {"type": "default"}},
            tool_calls=[CALL],
        ),
        Message("assistant", "I look.", ASKED, reasoning="Hm."),
    ),
    "Ollama": (
        AIMessage(content="I look.", tool_calls=[CALL], additional_kwargs={"reasoning_content": "Hm."}),
        Message("assistant", "I look.", ASKED, reasoning="Hm."),
    ),
    "LangChain's own": (
        AIMessage(
            content_blocks=[
                {"type": "reasoning", "reasoning": "Hm."},
                {"type": "text", "text": "I look."},
                {"type": "tool_call", "name": "look", "args": {"place": "here"}, "id": "1"},
                {"type": "non_standard", "value": {"type": "redacted_thinking", "data": "abc"}},
            ]
        ),
        Message("assistant", "I look.", ASKED, reasoning="Hm."),
    ),
    "a stream that was added up": (
        AIMessageChunk(content="I ") + AIMessageChunk(content="look."),  # type: ignore[dict-item]
        Message("assistant", "I look."),
    ),
    "a call that was none": (
        answer(
            {"type": "tool_use", "id": "1", "name": "look", "input": {}},
            invalid_tool_calls=[{"name": "look", "args": "{", "id": "1", "error": "cut", "type": "invalid_tool_call"}],
        ),
        Message("assistant", ""),
    ),
}


@pytest.mark.parametrize("provider", ANSWERS)
def test_answer_of_another_provider(provider: str) -> None:
    given, expected = ANSWERS[provider]
    before = given.model_copy(deep=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_messages([given]) == (expected,)
    assert given == before


SERVER_TOOLS: dict[str, list[dict[str, Any]]] = {
    "web_search_call": [{"type": "web_search_call", "id": "ws_1", "action": {"query": "q"}, "status": "completed"}],
    "code_interpreter_call": [{"type": "code_interpreter_call", "code": "1 + 1", "container_id": "c"}],
    "image_generation_call": [{"type": "image_generation_call", "id": "ig", "result": PIXELS}],
    "server_tool_use": [{"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "q"}}],
    "web_search_tool_result": [{"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"url": "u"}]}],
    "executable_code": [{"type": "executable_code", "executable_code": "1 + 1", "language": "PYTHON"}],
    "server_tool_call": [{"type": "server_tool_call", "id": "s1", "name": "web_search", "args": {"query": "q"}}],
    "server_tool_result": [{"type": "server_tool_result", "tool_call_id": "s1", "status": "success", "output": "o"}],
    "mcp_call": [{"type": "non_standard", "value": {"type": "mcp_call", "name": "n", "output": "o"}}],
}


@pytest.mark.parametrize("kind", SERVER_TOOLS)
def test_what_a_provider_ran_itself_is_left_out_and_named(kind: str) -> None:
    with pytest.warns(UserWarning, match=kind):
        assert to_messages([answer(*SERVER_TOOLS[kind], {"type": "text", "text": "Two."})]) == (
            Message("assistant", "Two."),
        )


DOCUMENTS: dict[str, Any] = {
    "Anthropic, a text": {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "Mills grind."},
    },
    "Anthropic, blocks": {
        "type": "document",
        "source": {"type": "content", "content": [{"type": "text", "text": "Mills grind."}]},
        "citations": {"enabled": True},
    },
    "Anthropic, base64": {"type": "document", "source": {"type": "base64", "media_type": "text/plain", "data": TEXT}},
    "Anthropic, found": {"type": "search_result", "source": "u", "content": [{"type": "text", "text": "Mills grind."}]},
    "OpenAI, chat completions": {
        "type": "file",
        "file": {"file_data": f"data:text/plain;base64,{TEXT}", "filename": "m.txt"},
    },
    "OpenAI, responses": {"type": "input_file", "file_data": f"data:text/markdown;base64,{TEXT}", "filename": "m.md"},
    "Google": {"type": "media", "mime_type": "text/plain", "data": b"Mills grind."},
    "Bedrock, bytes": {"document": {"format": "txt", "source": {"bytes": b"Mills grind."}}},
    "Bedrock, a text": {"document": {"format": "md", "source": {"text": "Mills grind."}}},
    "LangChain's own text": {"type": "text-plain", "text": "Mills grind.", "mime_type": "text/plain"},
    "LangChain's own file": {"type": "file", "base64": TEXT, "mime_type": "text/csv"},
    "LangChain's old text": {"type": "file", "source_type": "text", "text": "Mills grind.", "mime_type": "text/plain"},
    "LangChain's old file": {"type": "file", "source_type": "base64", "data": TEXT, "mime_type": "text/plain"},
}


@pytest.mark.parametrize("form", DOCUMENTS)
def test_document_that_is_text_is_read_apart_from_the_question(form: str) -> None:
    asked = HumanMessage([DOCUMENTS[form], {"type": "text", "text": "What do "}, "mills do?"])
    assert to_messages([asked]) == (Message("user", "Mills grind.\n\nWhat do mills do?"),)


def test_title_and_context_of_a_document_are_read() -> None:
    source = {"type": "text", "data": "Mills grind."}
    document = {"type": "document", "source": source, "title": "Mills", "context": "of 1900"}
    assert to_messages([HumanMessage([document])]) == (Message("user", "Mills\nof 1900\nMills grind."),)


MEDIA: dict[str, Any] = {
    "image_url": {"type": "image_url", "image_url": {"url": "x"}},
    "input_image": {"type": "input_image", "image_url": "x"},
    "image, Anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXELS}},
    "image, LangChain's": {"type": "image", "base64": PIXELS, "mime_type": "image/png"},
    "image, Bedrock": {"image": {"format": "png", "source": {"bytes": b"x"}}},
    "input_audio": {"type": "input_audio", "input_audio": {"data": PIXELS, "format": "wav"}},
    "video": {"type": "video", "url": "u"},
    "file": {"type": "file", "file_id": "f"},
    "application/pdf": {"type": "file", "base64": PIXELS, "mime_type": "application/pdf"},
    "application/pdf, Anthropic": {
        "type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PIXELS}
    },
    "pdf": {"document": {"format": "pdf", "name": "x", "source": {"bytes": b"x"}}},
    "text-plain": {"type": "text-plain", "url": "u", "mime_type": "text/plain"},
}  # fmt: skip


@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("message", [HumanMessage, AIMessage])
def test_what_is_no_text_is_an_error_that_names_the_place(message: Any, kind: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=r"messages\.1\.content\.1.*reads text only") as caught:
        to_messages([HumanMessage("Hi."), message([{"type": "text", "text": "See:"}, MEDIA[kind]])])
    assert kind.partition(",")[0] in str(caught.value)
    llm = EFTChatModel(backend=ScriptedBackend([]))
    with pytest.raises(exceptions.ModelInvalidRequestError, match="reads text only"):
        llm.invoke([message([MEDIA[kind]])])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (HumanMessage([{"type": "web_search_call"}]), "'web_search_call' is not text"),
        (HumanMessage([{"type": "text"}]), "needs a text"),
        (HumanMessage([{"words": "hi"}]), "a part is written"),
        (HumanMessage([{"type": "tool_result", "content": "x"}]), "needs a tool_use_id"),
        (HumanMessage([{"type": "file", "base64": "%%", "mime_type": "text/plain"}]), "UTF-8 in base64"),
        (ChatMessage("hi", role="narrator"), "got 'narrator'"),
        (RemoveMessage(id="1"), "got 'remove'"),
    ],
)
def test_malformed_message_is_an_error_that_names_the_place(message: BaseMessage, words: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=rf"messages\.0.*{words}"):
        to_messages([message])


def test_results_have_the_names_of_their_calls_in_every_form() -> None:
    called = AIMessage("", tool_calls=[CALL])
    blocks = [{"type": "text", "text": "sun"}, {"type": "json", "json": {"at": 3}}]
    results: list[BaseMessage] = [
        ToolMessage(blocks, tool_call_id="1"),
        ToolMessage([{"type": "tool_result", "tool_use_id": "1", "content": blocks}], tool_call_id="1"),
        HumanMessage([{"type": "tool_result", "tool_use_id": "1", "content": blocks}]),
    ]
    expected = Message("tool", 'sun{"at": 3}', tool_call_id="1", name="look")
    for result in results:
        assert to_messages([called, result])[1:] == (expected,)
    mixed = HumanMessage(
        [{"type": "tool_result", "tool_use_id": "1", "content": "sun"}, {"type": "text", "text": "So?"}]
    )
    told = (Message("tool", "sun", tool_call_id="1", name="look"), Message("user", "So?"))
    assert to_messages([called, mixed])[1:] == told
    assert to_messages([FunctionMessage("sun", name="look")]) == (Message("tool", "sun", name="look"),)


def test_history_of_chat_openai_itself() -> None:
    chat_openai = pytest.importorskip("langchain_openai.chat_models.base", exc_type=ImportError)
    form = {
        "role": "assistant", "content": "I look.",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"place": "here"}'}}],
    }  # fmt: skip
    history = [SystemMessage("Be kind."), HumanMessage("Where?"), chat_openai._convert_dict_to_message(form)]
    assert to_messages(history)[2] == Message("assistant", "I look.", ASKED)


def test_trimmed_history_is_asked_as_it_is() -> None:
    """What is left of it may begin with a result whose call is gone."""
    backend = ScriptedBackend(["ok"])
    llm = EFTChatModel(backend=backend)
    history = [
        HumanMessage("Where?"),
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("sun", tool_call_id="1"),
        HumanMessage("So?"),
    ]
    llm.invoke(trim_messages(history, max_tokens=2, token_counter=len, strategy="last"))
    assert [turn.role for turn in backend.requests[0].messages] == ["tool", "user"]
