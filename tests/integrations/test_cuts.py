"""An answer that `max_tokens` ended is told as cut by every adapter, at every place, whole and streamed: what was written is kept,
whole calls are calls, and what was cut of one is none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, message_chunk_to_message
from langchain_core.utils.json import parse_partial_json
from llama_index.core.base.llms.types import ChatResponse, MessageRole, ThinkingBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from smolagents.models import agglomerate_stream_deltas

from eft_integrations.agents.smolagents import EFTModel
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import ToolCall
from eft_integrations.chat.request import ChatResult
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.choice import thorough_but
from tests.integrations.cuts import ANSWERS, OTHER, PLACE, cuts, unfit
from tests.integrations.server.serving import events_of, in_process

QUESTION = [ChatMessage(role=MessageRole.USER, content="hi")]


@dataclass(frozen=True)
class Seen:
    """What a caller sees: calls that its libraries would run, and broken ones: id, name, arguments."""

    text: str
    thought: str
    calls: list[tuple[str, str, Any]]
    broken: list[tuple[str, str, str]]
    finish_reason: str


def expected(result: ChatResult) -> Seen:
    """What has to be seen of an answer."""
    return Seen(
        result.content,
        result.reasoning,
        [(call.call_id, call.name, json.loads(call.arguments)) for call in result.tool_calls],
        [(call.call_id, call.name, call.arguments) for call in result.invalid_tool_calls],  # type: ignore[misc]
        result.finish_reason,
    )


def reported(report: Any) -> list[tuple[str, str, str]]:
    """Broken calls as every report has them."""
    return [(call["call_id"], call["name"], call["arguments"]) for call in report.get("invalid_tool_calls", ())]


# ---- LangChain -----------------------------------------------------------------------------------------------------------


def of_langchain(message: AIMessage) -> Seen:
    """Blocks have to say the same as the fields."""
    thoughts = [block["reasoning"] for block in message.content_blocks if block["type"] == "reasoning"]
    assert [call["name"] for call in message.tool_calls] == [
        block["name"] for block in message.content_blocks if block["type"] == "tool_call"
    ]
    broken = reported(message.response_metadata["eft"])
    assert [(call["id"], call["name"]) for call in message.invalid_tool_calls] == [own[:2] for own in broken]
    for told, (_, _, written) in zip(message.invalid_tool_calls, broken, strict=True):
        assert str(told["args"]).startswith(written)
    calls = [(str(call["id"]), call["name"], call["args"]) for call in message.tool_calls]
    return Seen(message.text, "".join(thoughts), calls, broken, message.response_metadata["finish_reason"])


def merged(chunks: list[AIMessageChunk]) -> Seen:
    """Chunks as LangChain adds them up; the message that graphs make of them says the same."""
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    seen = of_langchain(whole)
    assert of_langchain(message_chunk_to_message(whole)) == seen  # type: ignore[arg-type]
    return seen


async def alangchain(backend: ScriptedBackend) -> Seen:
    """Streamed, without blocking."""
    return merged([chunk async for chunk in EFTChatModel(backend=backend).astream("hi")])


# ---- LlamaIndex ----------------------------------------------------------------------------------------------------------


def of_llama_index(response: ChatResponse) -> Seen:
    """Calls are told twice: as blocks, and in OpenAI's form."""
    message = response.message
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    extra = message.additional_kwargs
    assert [call.tool_call_id for call in calls] == [call["id"] for call in extra.get("tool_calls", ())]
    assert reported(extra) == reported(response.raw["eft"])
    thoughts = [block.content or "" for block in message.blocks if isinstance(block, ThinkingBlock)]
    selections = EFTLLM(backend=ScriptedBackend([])).get_tool_calls_from_response(response, error_on_no_tool_call=False)
    assert [call.tool_id for call in selections] == [call.tool_call_id for call in calls]
    return Seen(
        message.content or "",
        "".join(thoughts),
        [(str(call.tool_call_id), call.tool_name, call.tool_kwargs) for call in calls],
        reported(extra),
        response.raw["choices"][0]["finish_reason"],
    )


async def allama_index(backend: ScriptedBackend) -> Seen:
    """Streamed, without blocking."""
    return of_llama_index([chunk async for chunk in await EFTLLM(backend=backend).astream_chat(QUESTION)][-1])


# ---- HTTP ----------------------------------------------------------------------------------------------------------------


def post(backend: ScriptedBackend, path: str, **body: Any) -> Any:
    """The reply, or the events."""

    async def answered() -> Any:
        async with in_process({"m": backend}) as client:
            response = await client.post(path, json={"model": "m", **body})
        return [json.loads(own) for own in events_of(response.text) if own != "[DONE]"] or response.json()

    return asyncio.run(answered())


def of_chat(completion: ChatCompletion, report: Any) -> Seen:
    """OpenAI's client has what it knows no field for in `model_extra`."""
    (choice,) = completion.choices
    extra = choice.message.model_extra or {}
    assert extra.get("reasoning") == extra.get("reasoning_content")
    calls = [call for call in choice.message.tool_calls or () if call.type == "function"]
    runnable = [(call.id, call.function.name, mended(call.function.arguments)) for call in calls]
    return Seen(
        choice.message.content or "",
        extra.get("reasoning_content", ""),
        [call for call in runnable if call[2] is not None],
        reported(report),
        choice.finish_reason,
    )


def mended(text: str) -> Any:
    """What a client runs that mends JSON which breaks off, as LangChain's does; None where there is nothing to mend."""
    try:
        return parse_partial_json(text)
    except ValueError:
        return None


def chat(backend: ScriptedBackend) -> Seen:
    """A whole reply names no call that is none."""
    reply = post(backend, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
    seen = of_chat(ChatCompletion.model_validate(reply), reply["eft"]["choices"][0])
    assert len(reply["choices"][0]["message"].get("tool_calls", ())) == len(seen.calls)
    return seen


def streamed_chat(backend: ScriptedBackend) -> Seen:
    """Chunks as OpenAI's client adds them up."""
    chunks = post(backend, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], stream=True)
    state: ChatCompletionStreamState[Any] = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    return of_chat(state.current_completion_snapshot, chunks[-1]["eft"]["choices"][0])  # type: ignore[arg-type]


def of_response(response: Any) -> Seen:
    """Items; a call that is none is there, incomplete."""
    parts: dict[str, str] = {"message": "", "reasoning": ""}
    calls, broken = [], []
    for item in response["output"]:
        if item["type"] != "function_call":
            parts[item["type"]] += "".join(part["text"] for part in item["content"])
            continue
        written = (item["call_id"], item["name"], mended(item["arguments"]))
        (calls if item["status"] == "completed" else broken).append(written)
    told = reported(response["eft"]["choices"][0])
    assert broken == [(call_id, name, None) for call_id, name, _ in told]
    reason = "length" if response["status"] == "incomplete" else "tool_calls" if calls else "stop"
    return Seen(parts["message"], parts["reasoning"], calls, told, reason)


# ---- smolagents ----------------------------------------------------------------------------------------------------------


def of_smolagents(message: Any, result: ChatResult) -> Seen:
    """Its agents do not ask why an answer ended: the content says it."""
    is_whole = not result.invalid_tool_calls and bool(result.tool_calls)
    assert ("[Not whole: " in message.content) is not is_whole
    calls = [(call.id, call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
    end = message.content.find("\n[Not whole: ")
    return Seen(message.content[: end if end >= 0 else None], result.reasoning, calls, [], result.finish_reason)


WAYS: dict[str, Callable[[ScriptedBackend], Seen]] = {
    "EFTChatModel": lambda backend: of_langchain(EFTChatModel(backend=backend).invoke("hi")),
    "EFTChatModel, streamed": lambda backend: merged(list(EFTChatModel(backend=backend).stream("hi"))),  # type: ignore[arg-type]
    "EFTChatModel, streamed inside": lambda backend: of_langchain(
        EFTChatModel(backend=backend, streaming=True).invoke("hi")
    ),
    "EFTChatModel, astream": lambda backend: asyncio.run(alangchain(backend)),
    "EFTChatModel, blocks": lambda backend: of_langchain(
        EFTChatModel(backend=backend, output_version="v1").invoke("hi")
    ),
    "EFTChatModel, streamed blocks": lambda backend: merged(
        list(EFTChatModel(backend=backend, output_version="v1").stream("hi"))  # type: ignore[arg-type]
    ),
    "EFTLLM": lambda backend: of_llama_index(EFTLLM(backend=backend).chat(QUESTION)),
    "EFTLLM, streamed": lambda backend: of_llama_index(list(EFTLLM(backend=backend).stream_chat(QUESTION))[-1]),
    "EFTLLM, astream_chat": lambda backend: asyncio.run(allama_index(backend)),
    "chat completions": chat,
    "chat completions, streamed": streamed_chat,
    "responses": lambda backend: of_response(post(backend, "/v1/responses", input="hi")),
    "responses, streamed": lambda backend: of_response(
        post(backend, "/v1/responses", input="hi", stream=True)[-1]["response"]
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", thorough_but(ANSWERS, often=("thought, text and call",)))
def test_answer_that_is_cut_is_told_as_cut_at_every_place(form: str, way: str) -> None:
    results = list(cuts(ANSWERS[form]))
    backend = ScriptedBackend(results)
    for result in results:
        assert WAYS[way](backend) == expected(result)


@pytest.mark.parametrize("way", WAYS)
def test_call_that_breaks_its_schema_is_none_though_the_answer_is_whole(way: str) -> None:
    result = unfit(PLACE)
    assert WAYS[way](ScriptedBackend([result])) == expected(result)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ANSWERS)
def test_smolagents_gets_no_call_that_is_cut_and_reads_that_the_answer_is(form: str, stream: bool) -> None:
    results = list(cuts(ANSWERS[form]))
    model = EFTModel(backend=ScriptedBackend(results))
    question: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    for result in results:
        if stream:
            message = agglomerate_stream_deltas(list(model.generate_stream(question)))
        else:
            message = model.generate(question)
            assert message.raw["finish_reason"] == "length"
            assert message.raw["reasoning"] == result.reasoning
            assert reported(message.raw["eft"]) == expected(result).broken
        seen, wanted = of_smolagents(message, result), expected(result)
        assert (seen.text, seen.calls) == (wanted.text, wanted.calls)


def test_table_has_more_than_sixty_cuts_and_every_kind_of_them() -> None:
    results = [result for answer in ANSWERS.values() for result in cuts(answer)]
    assert len(results) > 60
    assert any(result.tool_calls and result.invalid_tool_calls for result in results)
    whole = [own.arguments for result in results for own in result.invalid_tool_calls]
    assert {PLACE.arguments, OTHER.arguments, ""} < set(whole)
    assert ToolCall("call_1", "visit", PLACE.arguments) == PLACE
