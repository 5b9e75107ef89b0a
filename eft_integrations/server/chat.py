"""POST /v1/chat/completions: body to requests, answers to a reply or to chunks."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.json_types import JsonObject
from eft_integrations.server.answers import Answering, Observer, new_id, repeated, sampling_of
from eft_integrations.server.compositions import Chosen
from eft_integrations.server.protocol import ChatBody
from eft_integrations.server.streaming import Event
from eft_integrations.wire.openai import (
    call_delta_form,
    logprobs_form,
    message_form,
    to_messages,
    to_response_schema,
    to_tool_choice,
    to_tools,
    usage_form,
)


def chat_answering(body: ChatBody, chosen: Chosen, observer: Observer, *, default_max_tokens: int) -> Answering:
    """What is asked, checked as far as that needs no engine.

    Raises:
        InvalidOptionError: a field cannot be used.
    """
    tools = to_tools(body.tools or ())
    choice, tools = to_tool_choice(body.tool_choice, tools, parallel=body.parallel_tool_calls is not False)
    sampling = sampling_of(body, default_max_tokens=default_max_tokens)
    if body.max_completion_tokens is not None:
        sampling["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        sampling["logprobs"] = body.top_logprobs or 0
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    request = ChatRequest(
        messages=to_messages([message.model_dump(exclude_none=True) for message in body.messages]),
        tools=tools,
        tool_choice=choice,
        response_schema=to_response_schema(body.response_format),
        sampling=sampling,
        reward_weights=chosen.reward_weights,
        template_variables=variables,
        documents=tuple(body.documents or ()),
        lenient_tool_calls=body.eft_lenient_tool_calls is not False,
    )
    return Answering(chosen, tuple(repeated(request, body.n)), body.ignored, observer)


def _head(answering: Answering, kind: str) -> JsonObject:
    return {
        "id": new_id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": answering.chosen.model,
        "system_fingerprint": answering.chosen.composition.fingerprint,
    }


async def chat_reply(answering: Answering) -> JsonObject:
    """The whole reply."""
    head = _head(answering, "chat.completion")
    results = await answering.results()
    return {
        **head,
        "choices": [_choice(index, result) for index, result in enumerate(results)],
        "usage": usage_form([result.usage for result in results]),
        "eft": answering.eft(results),
    }


def _choice(index: int, result: ChatResult) -> JsonObject:
    return {
        "index": index,
        "message": message_form(result),
        "logprobs": None if result.logprobs is None else logprobs_form(result.logprobs),
        "finish_reason": result.finish_reason,
    }


async def chat_events(answering: Answering, *, include_usage: bool) -> AsyncGenerator[Event]:
    """Chunks: the role first, then pieces, then why it ended; a chunk with the usage if it is wanted, and [DONE]."""
    head = _head(answering, "chat.completion.chunk")
    if include_usage:
        head["usage"] = None
    results: dict[int, ChatResult] = {}
    begun: set[int] = set()
    async with aclosing(answering.deltas()) as deltas:
        async for index, delta in deltas:
            if index not in begun:
                begun.add(index)
                yield {**head, "choices": [_piece(index, {"role": "assistant"})]}
            if delta.text or delta.call is not None or delta.logprobs:
                yield {**head, "choices": [_piece(index, _delta(delta), logprobs=delta)]}
            if (result := delta.result) is not None:
                results[index] = result
                last = _piece(index, {}, finish_reason=result.finish_reason)
                yield {**head, "choices": [last], "eft": answering.eft([result])}
    if include_usage:
        usages = [results[index].usage for index in sorted(results)]
        yield {**head, "choices": [], "usage": usage_form(usages)}
    yield "[DONE]"


def _delta(delta: ChatDelta) -> JsonObject:
    if delta.call is not None:
        return {"tool_calls": [call_delta_form(delta.call)]}
    return {"content": delta.text}


def _piece(
    index: int, delta: JsonObject, *, logprobs: ChatDelta | None = None, finish_reason: str | None = None
) -> JsonObject:
    tokens = logprobs.logprobs if logprobs is not None else ()
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs_form(tokens) if tokens else None,
        "finish_reason": finish_reason,
    }
