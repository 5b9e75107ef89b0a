"""POST /v1/chat/completions: body to requests, answers to a reply or to chunks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from eft_engine.outputs import TokenLogprobs
from eft_integrations.chat.request import CallDelta, ChatDelta, ChatRequest, ChatResult
from eft_integrations.json_objects import breaking_end
from eft_integrations.json_types import JsonObject
from eft_integrations.server.answers import Answering, Asking, new_id, repeated, sampling_of
from eft_integrations.server.bodies.constraints import answer_format
from eft_integrations.server.bodies.protocol import ChatBody
from eft_integrations.server.streaming import Event
from eft_integrations.so_far import AnswerSoFar
from eft_integrations.wire.openai import (
    call_delta_form,
    logprobs_form,
    message_form,
    to_messages,
    to_tool_choice,
    to_tools,
    usage_form,
)
from eft_integrations.wire.reasoning import thought_form


def chat_answering(body: ChatBody, asking: Asking, *, default_max_tokens: int) -> Answering:
    """What is asked, checked as far as that needs no engine.

    Raises:
        InvalidOptionError: a field cannot be used.
    """
    tools = to_tools(body.tools or (), strict=body.eft_strict)
    choice, tools = to_tool_choice(body.tool_choice, tools, parallel=body.parallel_tool_calls is not False)
    sampling = sampling_of(body, default_max_tokens=default_max_tokens)
    if body.max_completion_tokens is not None:
        sampling["max_tokens"] = body.max_completion_tokens
    if body.logprobs or body.eft_token_rewards:
        sampling["logprobs"] = body.top_logprobs or 0 if body.logprobs else 0
    form = answer_format(body, body.response_format, strict=bool(body.eft_strict))
    request = ChatRequest(
        messages=to_messages([message.plain() for message in body.messages]),
        tools=tools,
        tool_choice=choice,
        response_schema=form.response_schema,
        strict_response=form.strict_response,
        response_grammar=form.response_grammar,
        **body.asked_reasoning(),
        sampling=sampling,
        **asking.chosen.steering.fields(),
        template_variables=body.chat_template_kwargs or {},
        documents=tuple(body.documents or ()),
        lenient_tool_calls=body.eft_lenient_tool_calls is not False,
        member_logprobs=bool(body.eft_token_rewards),
        progress=bool(body.eft_progress),
    )
    answering = asking.answering(repeated(request, body.n), body.ignored)
    return dataclasses.replace(
        answering, tells_logprobs=bool(body.logprobs), tells_rewards=bool(body.eft_token_rewards)
    )


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
        "choices": [_choice(index, result, answering) for index, result in enumerate(results)],
        "usage": usage_form([result.usage for result in results]),
        "eft": answering.eft(results, tokens=answering.tells_rewards),
    }


def _choice(index: int, result: ChatResult, answering: Answering) -> JsonObject:
    tokens = result.logprobs if answering.tells_logprobs else None
    return {
        "index": index,
        "message": message_form(result),
        "logprobs": None if tokens is None else logprobs_form(tokens),
        "finish_reason": result.finish_reason,
    }


async def chat_events(answering: Answering, *, include_usage: bool) -> AsyncGenerator[Event]:
    """Chunks: the role first, then pieces, then why it ended; a chunk with the usage if it is wanted, and [DONE].

    The chunk that says why it ended has a last piece for every call that was begun and is none: many clients do not ask why an
    answer ended, but mend what they have of a call, and behind this piece there is nothing to mend.
    """
    head = _head(answering, "chat.completion.chunk")
    if include_usage:
        head["usage"] = None
    results: dict[int, ChatResult] = {}
    begun: dict[int, AnswerSoFar] = {}
    async with aclosing(answering.deltas()) as deltas:
        async for index, delta in deltas:
            if index not in begun:
                begun[index] = AnswerSoFar()
                yield {**head, "choices": [_piece(index, {"role": "assistant"})]}
            begun[index].add(delta)
            if delta.text or delta.reasoning or delta.call is not None or delta.logprobs:
                tokens = delta.logprobs if answering.tells_logprobs else ()
                piece = {**head, "choices": [_piece(index, _delta(delta), tokens=tokens)]}
                if told := _told(delta, answering, progress=answering.requests[index].progress):
                    piece["eft"] = told
                yield piece
            if (result := delta.result) is not None:
                results[index] = result
                last = _piece(index, _ends(begun[index], result), finish_reason=result.finish_reason)
                yield {**head, "choices": [last], "eft": answering.eft([result])}
    if include_usage:
        usages = [results[index].usage for index in sorted(results)]
        yield {**head, "choices": [], "usage": usage_form(usages)}
    yield "[DONE]"


def _told(delta: ChatDelta, answering: Answering, *, progress: bool) -> JsonObject:
    """What was asked for of a piece, besides the piece."""
    told: JsonObject = {}
    if answering.tells_rewards and delta.logprobs:
        told["tokens"] = answering.rewards(delta.logprobs)
    if progress and delta.progress is not None:
        told["progress"] = dataclasses.asdict(delta.progress)
    return told


def _delta(delta: ChatDelta) -> JsonObject:
    if delta.call is not None:
        return {"tool_calls": [call_delta_form(delta.call)]}
    return thought_form(delta.reasoning) or {"content": delta.text}


def _ends(so_far: AnswerSoFar, result: ChatResult) -> JsonObject:
    """The last pieces of calls that are none."""
    broken = [so_far.index_of(call.call_id) for call in result.invalid_tool_calls]
    pieces = [
        CallDelta(index, arguments=breaking_end(so_far.calls[index].arguments)) for index in broken if index is not None
    ]
    return {"tool_calls": [call_delta_form(piece) for piece in pieces]} if pieces else {}


def _piece(
    index: int, delta: JsonObject, *, tokens: Sequence[TokenLogprobs] = (), finish_reason: str | None = None
) -> JsonObject:
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs_form(tokens) if tokens else None,
        "finish_reason": finish_reason,
    }
