"""POST /v1/responses: the API that OpenAI's Agents SDK speaks by default. The whole conversation comes as input, or goes on from an
answer that was kept (`stored_responses`).

The items of an answer, in order: what was thought, a message if there is text, then one function call after another.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.server.answers import Answering, Asking, new_id, sampling_of
from eft_integrations.server.bodies.calls import made_of
from eft_integrations.server.bodies.constraints import answer_format
from eft_integrations.server.errors import error_fields
from eft_integrations.server.openai.response_items import Items
from eft_integrations.server.openai.responses_protocol import LOGPROBS, ResponsesBody, given_items, to_conversation
from eft_integrations.server.openai.stored_responses import Item, StoredResponses
from eft_integrations.server.seen.records import current
from eft_integrations.server.streaming import Event, StreamForm
from eft_integrations.wire.openai import to_tool_choice, to_tools, wrong
from eft_integrations.wire.reasoning import effort_of


def _failure(fields: Mapping[str, Json]) -> Event:
    return {**fields, "type": "error", "code": fields["code"] or fields["type"], "sequence_number": 0}


FORM = StreamForm(failure=_failure)
"""How a stream tells what failed before its first event."""


@dataclass(frozen=True)
class Exchange:
    """One call, and where its answer is kept.

    Attributes:
        inputs: the items of the whole conversation.
        store: where answers are kept.
    """

    answering: Answering
    body: ResponsesBody
    inputs: Sequence[Item]
    store: StoredResponses

    @property
    def is_kept(self) -> bool:
        """Whether the answer is kept."""
        return self.store.is_on and self.body.store is not False

    def keep(self, response: JsonObject) -> None:
        """Keep the answer, if answers are kept and nobody said otherwise."""
        if self.is_kept:
            self.store.add(self.answering.asking.caller, response, [_listed(item) for item in self.inputs])


def _listed(item: Item) -> Item:
    """An item as OpenAI lists it: with an id and a kind, and what a message says in parts."""
    form = {"id": new_id("msg_"), "type": "message", **{key: value for key, value in item.items() if value is not None}}
    if form["type"] == "message" and isinstance(form.get("content"), str):
        kind = "output_text" if form.get("role") == "assistant" else "input_text"
        form["content"] = [{"type": kind, "text": form["content"]}]
    return form


async def responses_exchange(
    body: ResponsesBody, asking: Asking, store: StoredResponses, *, default_max_tokens: int
) -> Exchange:
    """What is asked, checked as far as that needs no engine.

    Raises:
        InvalidOptionError: a field cannot be used.
        ApiError: it goes on from an answer that is not kept.
    """
    inputs = store.conversation(asking.caller, given_items(body), body.previous_response_id)
    answering = await made_of(_answering, body, asking, inputs, default_max_tokens=default_max_tokens)
    ignored = ["store"] if body.store and not store.is_on else []
    return Exchange(asking.answering(answering, [*body.ignored, *ignored]), body, inputs, store)


def _answering(
    body: ResponsesBody, asking: Asking, inputs: Sequence[Item], *, default_max_tokens: int
) -> list[ChatRequest]:
    tools = to_tools(body.functions, strict=body.eft_strict)
    choice, tools = to_tool_choice(body.tool_choice, tools, parallel=body.parallel_tool_calls is not False)
    messages = to_conversation(body.instructions, inputs)
    if not messages:
        raise wrong("input", "give at least one item", body.input)
    sampling = sampling_of(body, default_max_tokens=default_max_tokens)
    if body.max_output_tokens is not None:
        sampling["max_tokens"] = body.max_output_tokens
    if LOGPROBS in (body.include or ()):
        sampling["logprobs"] = body.top_logprobs or 0
    response_format = (body.text or {}).get("format")
    form = answer_format(body, response_format, option="text.format", strict=bool(body.eft_strict))
    request = ChatRequest(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        response_schema=form.response_schema,
        strict_response=form.strict_response,
        response_grammar=form.response_grammar,
        **body.asked_reasoning(),
        sampling=sampling,
        **asking.chosen.steering.fields(),
        template_variables=body.chat_template_kwargs or {},
        lenient_tool_calls=body.eft_lenient_tool_calls is not False,
    )
    return [request]


def _response(exchange: Exchange) -> JsonObject:
    """The response before there is an answer."""
    answering, body = exchange.answering, exchange.body
    echoed = {
        "instructions", "max_output_tokens", "metadata", "previous_response_id", "temperature", "tool_choice", "tools", "top_p",
    }  # fmt: skip
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "model": answering.chosen.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": effort_of(body.asked_reasoning()["reasoning"]), "summary": body.asked_summary},
        "service_tier": "default",
        "store": exchange.is_kept,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, **(body.model_dump(include={"text"})["text"] or {})},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": body.top_logprobs or 0,
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


async def responses_reply(exchange: Exchange) -> JsonObject:
    """The whole reply: what the events of a stream come to."""
    response: Mapping[str, Json] = {}
    async with aclosing(_checked(exchange)) as events:
        async for event in events:
            response = _response_of(event, response)
    return dict(response)


async def responses_events(exchange: Exchange) -> AsyncGenerator[Event]:
    """Events in the order in which OpenAI sends them, numbered. A failure later than the first one ends in `response.failed`."""
    number = 0
    response: Mapping[str, Json] = {}
    events = _checked(exchange)
    try:
        async for event in events:
            response = _response_of(event, response)
            yield {**event, "sequence_number": number}
            number += 1
    except Exception as error:
        if not response:
            raise
        current().fail(error)
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


async def _checked(exchange: Exchange) -> AsyncGenerator[JsonObject]:
    """All events without their numbers; none before the backend has begun to answer."""
    response = _response(exchange)
    items = Items(thoughts_as_summaries=exchange.body.asked_summary is not None)
    begun = False
    async with aclosing(exchange.answering.deltas()) as deltas:
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
                finished = _finished(response, exchange.answering, result, items.output)
                exchange.keep(finished)
                kind = "incomplete" if finished["status"] == "incomplete" else "completed"
                yield {"type": f"response.{kind}", "response": finished}
