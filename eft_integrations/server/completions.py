"""POST /v1/completions: raw texts are continued, without a chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from eft_engine import TokenLogprobs
from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.json_types import JsonObject
from eft_integrations.server.answers import Answering, Asking, new_id, repeated, sampling_of
from eft_integrations.server.protocol import CompletionBody
from eft_integrations.server.streaming import Event
from eft_integrations.wire.openai import to_response_schema, usage_form, wrong


def completion_answering(body: CompletionBody, asking: Asking) -> Answering:
    """What is asked, checked as far as that needs no engine: every prompt `n` times, in the order of OpenAI's choices.

    Raises:
        InvalidOptionError: a field cannot be used.
    """
    if body.best_of not in (None, body.n):
        raise wrong("best_of", f"answers are not ranked; it may only equal n ({body.n})", body.best_of)
    if body.echo and body.logprobs is not None:
        raise wrong("echo", "log-probabilities of a prompt are not reported; leave out echo or logprobs", body.echo)
    if body.prompt == []:
        raise wrong("prompt", "give at least one text", body.prompt)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    sampling = sampling_of(body, default_max_tokens=16)
    if body.logprobs is not None:
        sampling["logprobs"] = body.logprobs
    requests: list[ChatRequest] = []
    for prompt in prompts:
        request = ChatRequest(
            prompt=prompt,
            response_schema=to_response_schema(body.response_format),
            sampling=sampling,
            reward_weights=asking.chosen.reward_weights,
        )
        requests += repeated(request, body.n)
    return asking.answering(requests, body.ignored)


def _head(answering: Answering) -> JsonObject:
    return {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": answering.chosen.model,
        "system_fingerprint": answering.chosen.composition.fingerprint,
    }


async def completion_reply(answering: Answering, *, n: int, echo: bool) -> JsonObject:
    """The whole reply."""
    head = _head(answering)
    results = await answering.results()
    texts = [_echoed(answering, index, echo) + result.content for index, result in enumerate(results)]
    return {
        **head,
        "choices": [
            _piece(index, text, result.logprobs, finish_reason=result.finish_reason)
            for index, (text, result) in enumerate(zip(texts, results, strict=True))
        ],
        "usage": usage_form([result.usage for result in results], n=n),
        "eft": answering.eft(results),
    }


async def completion_events(answering: Answering, *, n: int, echo: bool, include_usage: bool) -> AsyncGenerator[Event]:
    """Chunks of text, then why it ended; a chunk with the usage if it is wanted, and [DONE]."""
    head = _head(answering)
    if include_usage:
        head["usage"] = None
    results: dict[int, ChatResult] = {}
    begun: set[int] = set()
    offsets: dict[int, int] = {}
    async with aclosing(answering.deltas()) as deltas:
        async for index, delta in deltas:
            text = delta.text
            if index not in begun:
                begun.add(index)
                text = _echoed(answering, index, echo) + text
            if text or delta.logprobs:
                piece = _piece(index, text, delta.logprobs or None, offset=offsets.get(index, 0))
                offsets[index] = offsets.get(index, 0) + len(text)
                yield {**head, "choices": [piece]}
            if (result := delta.result) is not None:
                results[index] = result
                last = _piece(index, "", None, finish_reason=result.finish_reason)
                yield {**head, "choices": [last], "eft": answering.eft([result])}
    if include_usage:
        usages = [results[index].usage for index in sorted(results)]
        yield {**head, "choices": [], "usage": usage_form(usages, n=n)}
    yield "[DONE]"


def _echoed(answering: Answering, index: int, echo: bool) -> str:
    return (answering.requests[index].prompt or "") if echo else ""


def _piece(
    index: int,
    text: str,
    logprobs: Sequence[TokenLogprobs] | None,
    *,
    offset: int = 0,
    finish_reason: str | None = None,
) -> JsonObject:
    listed = None if logprobs is None else _logprobs(logprobs, offset)
    return {"index": index, "text": text, "logprobs": listed, "finish_reason": finish_reason}


def _logprobs(tokens: Sequence[TokenLogprobs], offset: int) -> JsonObject:
    """The form of completions: parallel lists."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{top.token: top.logprob for top in token.top} for token in tokens],
        "text_offset": offsets,
    }
