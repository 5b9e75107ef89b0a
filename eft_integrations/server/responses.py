"""POST /v1/responses: the API that OpenAI's Agents SDK speaks by default. Nothing is stored; the whole conversation comes as input.

The items of an answer, in order: what was thought, a message if there is text, then one function call after another.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.server.answers import Answering, Asking, new_id, sampling_of
from eft_integrations.server.errors import error_fields
from eft_integrations.server.response_items import Items
from eft_integrations.server.responses_protocol import ResponsesBody, to_conversation
from eft_integrations.server.streaming import Event
from eft_integrations.wire.openai import is_strict, to_response_schema, to_tool_choice, to_tools, wrong
from eft_integrations.wire.reasoning import effort_of

LOGPROBS = "message.output_text.logprobs"
"""What `include` says to get log-probabilities."""


def responses_answering(body: ResponsesBody, asking: Asking, *, default_max_tokens: int) -> Answering:
    """What is asked, checked as far as that needs no engine.

    Raises:
        InvalidOptionError: a field cannot be used.
    """
    tools = to_tools(body.tools or (), strict=body.eft_strict)
    choice, tools = to_tool_choice(body.tool_choice, tools, parallel=body.parallel_tool_calls is not False)
    messages = to_conversation(body.instructions, body.input)
    if not messages:
        raise wrong("input", "give at least one item", body.input)
    sampling = sampling_of(body, default_max_tokens=default_max_tokens)
    if body.max_output_tokens is not None:
        sampling["max_tokens"] = body.max_output_tokens
    if LOGPROBS in (body.include or ()):
        sampling["logprobs"] = body.top_logprobs or 0
    response_format = (body.text or {}).get("format")
    request = ChatRequest(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        response_schema=to_response_schema(response_format, option="text.format"),
        strict_response=is_strict(response_format) or bool(body.eft_strict),
        **body.asked_reasoning(),
        sampling=sampling,
        reward_weights=asking.chosen.reward_weights,
        template_variables=body.chat_template_kwargs or {},
        lenient_tool_calls=body.eft_lenient_tool_calls is not False,
    )
    return asking.answering([request], body.ignored)


def _response(answering: Answering, body: ResponsesBody) -> JsonObject:
    """The response before there is an answer."""
    echoed = {"instructions", "max_output_tokens", "metadata", "temperature", "text", "tool_choice", "tools", "top_p"}
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": answering.chosen.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": effort_of(body.asked_reasoning()["reasoning"]), "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        **body.model_dump(include=echoed, exclude_none=True),
    }


def _finished(response: JsonObject, answering: Answering, result: ChatResult, output: Sequence[Json]) -> JsonObject:
    cut = result.finish_reason == "length"
    usage = result.usage
    return {
        **response,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_prompt_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.total_tokens,
        },
        "eft": answering.eft([result]),
    }


async def responses_reply(answering: Answering, body: ResponsesBody) -> JsonObject:
    """The whole reply: what the events of a stream come to."""
    response: Mapping[str, Json] = {}
    async with aclosing(_checked(answering, body)) as events:
        async for event in events:
            response = _response_of(event, response)
    return dict(response)


async def responses_events(answering: Answering, body: ResponsesBody) -> AsyncGenerator[Event]:
    """Events in the order in which OpenAI sends them, numbered. A failure later than the first one ends in `response.failed`."""
    number = 0
    response: Mapping[str, Json] = {}
    events = _checked(answering, body)
    try:
        async for event in events:
            response = _response_of(event, response)
            yield {**event, "sequence_number": number}
            number += 1
    except Exception as error:
        if not response:
            raise
        fields = error_fields(error)
        failed: JsonObject = {
            **response,
            "status": "failed",
            "error": {"code": fields["code"] or fields["type"], "message": fields["message"]},
        }
        yield {"type": "response.failed", "response": failed, "sequence_number": number}
    finally:
        await events.aclose()


def _response_of(event: JsonObject, before: Mapping[str, Json]) -> Mapping[str, Json]:
    """The response that an event carries, or else the last one's."""
    response = event.get("response")
    return response if isinstance(response, Mapping) else before


async def _checked(answering: Answering, body: ResponsesBody) -> AsyncGenerator[JsonObject]:
    """All events without their numbers; none before the backend has begun to answer."""
    response = _response(answering, body)
    items = Items()
    begun = False
    async with aclosing(answering.deltas()) as deltas:
        async for _, delta in deltas:
            if not begun:
                begun = True
                yield {"type": "response.created", "response": response}
                yield {"type": "response.in_progress", "response": response}
            for event in items.feed(delta):
                yield event
            if (result := delta.result) is not None:
                for event in items.finish(result):
                    yield event
                finished = _finished(response, answering, result, items.output)
                kind = "incomplete" if finished["status"] == "incomplete" else "completed"
                yield {"type": f"response.{kind}", "response": finished}
