"""POST /v1/messages: body to a request, the answer to a message of Anthropic's or to the events of one.

The blocks of an answer, in order: a thought, a text, then one tool_use after another. A tool_use is sent when the answer is
over and its call is known to be whole and to keep its schema, so that no client ever has a part of one that is none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from eft_engine.preparing import prepared
from eft_integrations.chat.messages import ToolCall
from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.server.answers import Answering, Asking, new_id, sampling_of
from eft_integrations.server.anthropic.messages_protocol import ConversationBody, MessagesBody
from eft_integrations.server.compositions import Chosen
from eft_integrations.server.streaming import Event
from eft_integrations.wire.anthropic import UNSIGNED, to_conversation, to_schema, to_tool_choice, to_tools
from eft_integrations.wire.openai import wrong


def conversation_request(body: ConversationBody, *, strict: bool | None = None) -> ChatRequest:
    """What both routes read of a conversation.

    Raises:
        InvalidOptionError: a field cannot be used.
    """
    tools = to_tools(body.tools or (), strict=strict)
    formats = {
        "output_config.format": None if body.output_config is None else body.output_config.format,
        "output_format": body.output_format,
    }
    schemas = [schema for option, value in formats.items() if (schema := to_schema(value, option)) is not None]
    if len(schemas) > 1:
        raise wrong("output_format", "output_config.format says it too; give one of them")
    return ChatRequest(
        messages=to_conversation(body.system, [turn.model_dump() for turn in body.messages]),
        tools=tools,
        tool_choice=to_tool_choice(body.tool_choice, tools),
        response_schema=schemas[0] if schemas else None,
        strict_response=bool(strict),
        **body.asked_reasoning(),
        template_variables=body.chat_template_kwargs or {},
    )


def messages_answering(body: MessagesBody, asking: Asking) -> Answering:
    """What is asked, checked as far as that needs no engine.

    Raises:
        InvalidOptionError: a field cannot be used.
    """
    if body.stop and body.stop_sequences:
        raise wrong("stop", "stop_sequences says it too; give one of them", body.stop)
    sampling = sampling_of(body, default_max_tokens=body.max_tokens)
    if body.stop_sequences:
        sampling["stop"] = body.stop_sequences
    asked = conversation_request(body, strict=body.eft_strict)
    request = dataclasses.replace(
        asked,
        sampling=sampling,
        **asking.chosen.steering.fields(),
        lenient_tool_calls=body.eft_lenient_tool_calls is not False,
    )
    return asking.answering([request], body.ignored)


async def input_tokens(request: ChatRequest, chosen: Chosen) -> int:
    """Tokens of the prompt as the chat template renders it."""
    return await prepared(chosen.composition.count_prompt_tokens, request)


def _message(answering: Answering) -> JsonObject:
    """The message before there is an answer."""
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": answering.chosen.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


async def messages_reply(answering: Answering) -> JsonObject:
    """The whole reply."""
    message = _message(answering)
    (result,) = await answering.results()
    thought: list[Json] = []
    if result.reasoning:
        thought.append({"type": "thinking", "thinking": result.reasoning, "signature": UNSIGNED})
    text: list[Json] = [{"type": "text", "text": result.content}] if result.content else []
    calls: list[Json] = [_call(call, json.loads(call.arguments)) for call in result.tool_calls]
    return {
        **message,
        "content": [*thought, *text, *calls],
        **_end(answering, result),
        "usage": _usage(result),
        "eft": answering.eft([result]),
    }


def _call(call: ToolCall, given: Json) -> JsonObject:
    return {"type": "tool_use", "id": call.call_id, "name": call.name, "input": given}


def _end(answering: Answering, result: ChatResult) -> JsonObject:
    """Why it ended. Of two reasons the calls count: they are whole, and a client has to answer them."""
    stops = answering.requests[0].sampling.get("stop") or ()
    sequence = result.metadata.get("stop_sequence")
    if result.finish_reason == "length":
        reason = "max_tokens"
    elif result.tool_calls:
        reason = "tool_use"
    elif sequence is not None and sequence in stops:
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    else:
        reason = "end_turn"
    return {"stop_reason": reason, "stop_sequence": None}


def _usage(result: ChatResult) -> JsonObject:
    """Token counts. As Anthropic counts, `input_tokens` are those that were not found in the cache."""
    usage = result.usage
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


class _Blocks:
    """The blocks of one answer while it is streamed; one is open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._kind: str | None = None

    def add(self, kind: str, piece: str) -> Iterator[JsonObject]:
        """A piece of a thought or of a text."""
        if self._kind != kind:
            yield from self.close()
            empty: JsonObject = {"type": kind, kind: ""}
            yield self._open(kind, {**empty, "signature": ""} if kind == "thinking" else empty)
        yield self._delta({"type": f"{kind}_delta", kind: piece})

    def call(self, call: ToolCall) -> Iterator[JsonObject]:
        """A whole call."""
        yield from self.close()
        yield self._open("tool_use", _call(call, {}))
        yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        yield from self.close()

    def close(self) -> Iterator[JsonObject]:
        """The end of the block that is open."""
        if self._kind == "thinking":
            yield self._delta({"type": "signature_delta", "signature": UNSIGNED})
        if self._kind is not None:
            yield {"type": "content_block_stop", "index": self._index}
        self._kind = None

    def _open(self, kind: str, block: JsonObject) -> JsonObject:
        self._index += 1
        self._kind = kind
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: JsonObject) -> JsonObject:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


async def messages_events(answering: Answering) -> AsyncGenerator[Event]:
    """Events in the order in which Anthropic sends them; none before the backend has begun to answer."""
    blocks = _Blocks()
    begun = False
    async with aclosing(answering.deltas()) as deltas:
        async for _, delta in deltas:
            if not begun:
                begun = True
                usage = await _first_usage(answering)
                yield {"type": "message_start", "message": {**_message(answering), "usage": usage}}
            for kind, piece in (("thinking", delta.reasoning), ("text", delta.text)):
                for event in blocks.add(kind, piece) if piece else ():
                    yield event
            if (result := delta.result) is not None:
                for event in _last(blocks, answering, result):
                    yield event


async def _first_usage(answering: Answering) -> JsonObject:
    """What is known at the beginning; the last event has what the cache spared."""
    return {
        "input_tokens": await input_tokens(answering.requests[0], answering.chosen),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }


def _last(blocks: _Blocks, answering: Answering, result: ChatResult) -> Iterator[JsonObject]:
    yield from blocks.close()
    for call in result.tool_calls:
        yield from blocks.call(call)
    delta: JsonObject = _end(answering, result)
    yield {"type": "message_delta", "delta": delta, "usage": _usage(result), "eft": answering.eft([result])}
    yield {"type": "message_stop"}
