"""POST /v1/completions: raw texts are continued, without a chat template."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from eft_engine import PromptOptions
from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.server.answers import Answering, Asking, new_id, repeated, sampling_of
from eft_integrations.server.bodies.constraints import answer_format
from eft_integrations.server.openai.completions_protocol import CompletionBody
from eft_integrations.server.openai.echo import Echo, engine_of
from eft_integrations.server.openai.logprob_lists import ListedToken, Places, lists_form
from eft_integrations.server.streaming import Event
from eft_integrations.wire.openai import usage_form, wrong


def completion_answering(body: CompletionBody, asking: Asking) -> tuple[Answering, Echo | None]:
    """What is asked, checked as far as that needs no engine: every prompt `n` times, in the order of OpenAI's choices;
    and what stands before the answers, if anything does.

    Raises:
        InvalidOptionError: a field cannot be used.
    """
    if body.best_of not in (None, body.n):
        raise wrong("best_of", f"answers are not ranked; it may only equal n ({body.n})", body.best_of)
    composition = asking.chosen.composition
    if body.max_tokens == 0 and not body.echo:
        raise wrong("max_tokens", "0 tokens are no answer; with echo they score the prompt", body.max_tokens)
    if body.echo and (body.logprobs is not None or body.max_tokens == 0):
        engine_of(composition, "echo")
        if body.eft_prompt_pairs or composition.prompt_pairs:
            raise wrong(
                "echo",
                "a prompt is scored by itself, and prompt pairs have prompts of their own; POST /v1/score scores with them",
            )
    echo = Echo(composition, num_top=body.logprobs) if body.echo else None
    sampling = sampling_of(body, default_max_tokens=16)
    if body.logprobs is not None:
        sampling["logprobs"] = body.logprobs
    form = answer_format(body, body.response_format)
    options = PromptOptions(add_special_tokens=body.add_special_tokens is not False)
    if not options.add_special_tokens:
        engine_of(composition, "add_special_tokens")
    requests: list[ChatRequest] = []
    for prompt in body.prompts:
        if not isinstance(prompt, str):
            engine_of(composition, "prompt")
        request = ChatRequest(
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=None if isinstance(prompt, str) else prompt,
            prompt_options=options,
            response_schema=form.response_schema,
            strict_response=form.strict_response,
            response_grammar=form.response_grammar,
            sampling=sampling,
            **asking.chosen.steering.fields(),
        )
        requests += repeated(request, body.n)
    answering = asking.answering(requests, body.ignored)
    if echo is None:
        return answering, None
    return dataclasses.replace(answering, answer_one=echo.answer), echo


def _head(answering: Answering) -> JsonObject:
    return {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": answering.chosen.model,
        "system_fingerprint": answering.chosen.composition.fingerprint,
    }


async def completion_reply(answering: Answering, echo: Echo | None, *, n: int) -> JsonObject:
    """The whole reply."""
    head = _head(answering)
    results = await answering.results()
    choices: list[Json] = []
    for index, result in enumerate(results):
        text, listed = _echoed(answering, echo, index)
        listed += [ListedToken.of(token) for token in result.logprobs or ()]
        tokens = None if result.logprobs is None else listed
        choices.append(_piece(index, text + result.content, tokens, finish_reason=result.finish_reason))
    return {
        **head,
        "choices": choices,
        "usage": usage_form([result.usage for result in results], n=n),
        "eft": answering.eft(results),
    }


async def completion_events(
    answering: Answering, echo: Echo | None, *, n: int, include_usage: bool
) -> AsyncGenerator[Event]:
    """Chunks of text, then why it ended; a chunk with the usage if it is wanted, and [DONE]."""
    head = _head(answering)
    if include_usage:
        head["usage"] = None
    results: dict[int, ChatResult] = {}
    places: defaultdict[int, Places] = defaultdict(Places)
    async with aclosing(answering.deltas()) as deltas:
        async for index, delta in deltas:
            text, listed = ("", []) if index in places else _echoed(answering, echo, index)
            text += delta.text
            listed += [ListedToken.of(token) for token in delta.logprobs]
            own = places[index]
            if text or listed:
                yield {**head, "choices": [_piece(index, text, listed or None, places=own)]}
            if (result := delta.result) is not None:
                results[index] = result
                last = _piece(index, "", None, finish_reason=result.finish_reason)
                yield {**head, "choices": [last], "eft": answering.eft([result])}
    if include_usage:
        usages = [results[index].usage for index in sorted(results)]
        yield {**head, "choices": [], "usage": usage_form(usages, n=n)}
    yield "[DONE]"


def _echoed(answering: Answering, echo: Echo | None, index: int) -> tuple[str, list[ListedToken]]:
    """What stands before an answer that has begun."""
    if echo is None:
        return "", []
    prompt = echo.of(answering.requests[index])
    return prompt.text, [*(prompt.tokens or ())]


def _piece(
    index: int,
    text: str,
    tokens: Sequence[ListedToken] | None,
    *,
    places: Places | None = None,
    finish_reason: str | None = None,
) -> JsonObject:
    listed = None if tokens is None else lists_form(tokens, places or Places())
    return {"index": index, "text": text, "logprobs": listed, "finish_reason": finish_reason}
