"""POST /v1/responses: the API that OpenAI's Agents SDK speaks by default. Nothing is stored; the whole conversation comes as input.

The items of an answer, in order: a message if there is text, then one function call after another.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing

from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.server.answers import Answering, Observer, new_id, sampling_of
from eft_integrations.server.compositions import Chosen
from eft_integrations.server.errors import error_fields
from eft_integrations.server.responses_protocol import ResponsesBody, to_conversation
from eft_integrations.server.streaming import Event
from eft_integrations.wire.openai import logprob_form, to_response_schema, to_tool_choice, to_tools, wrong

LOGPROBS = "message.output_text.logprobs"
"""What `include` says to get log-probabilities."""


def responses_answering(
    body: ResponsesBody, chosen: Chosen, observer: Observer, *, default_max_tokens: int
) -> Answering:
    """What is asked, checked as far as that needs no engine.

    Raises:
        InvalidOptionError: a field cannot be used.
    """
    tools = to_tools(body.tools or ())
    choice, tools = to_tool_choice(body.tool_choice, tools, parallel=body.parallel_tool_calls is not False)
    messages = to_conversation(body.instructions, body.input)
    if not messages:
        raise wrong("input", "give at least one item", body.input)
    sampling = sampling_of(body, default_max_tokens=default_max_tokens)
    if body.max_output_tokens is not None:
        sampling["max_tokens"] = body.max_output_tokens
    if LOGPROBS in (body.include or ()):
        sampling["logprobs"] = body.top_logprobs or 0
    variables = dict(body.chat_template_kwargs or {})
    if (effort := (body.reasoning or {}).get("effort")) is not None:
        variables.setdefault("reasoning_effort", effort)
    request = ChatRequest(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        response_schema=to_response_schema((body.text or {}).get("format"), option="text.format"),
        sampling=sampling,
        reward_weights=chosen.reward_weights,
        template_variables=variables,
        lenient_tool_calls=body.eft_lenient_tool_calls is not False,
    )
    return Answering(chosen, (request,), body.ignored, observer)


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
        "reasoning": {"effort": None, "summary": None},
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
            "output_tokens_details": {"reasoning_tokens": 0},
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
    items = _Items()
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


class _Items:
    """The items of an answer while it arrives. One is open at a time; the next one closes it."""

    def __init__(self) -> None:
        self.output: list[JsonObject] = []
        self._open: _TextItem | _CallItem | None = None

    def feed(self, delta: ChatDelta) -> Iterator[JsonObject]:
        """Events of one piece."""
        if delta.call is not None and delta.call.call_id is not None:
            call = _CallItem(len(self.output), delta.call.call_id, str(delta.call.name))
            yield from self._close("completed", before=call)
        if delta.call is not None and isinstance(self._open, _CallItem):
            if delta.call.arguments:
                yield self._open.add(delta.call.arguments)
        elif delta.text or (delta.logprobs and delta.call is None):
            if not isinstance(self._open, _TextItem):
                yield from self._close("completed", before=_TextItem(len(self.output)))
            assert isinstance(self._open, _TextItem)
            yield self._open.add(delta)

    def finish(self, result: ChatResult) -> Iterator[JsonObject]:
        """Events of the end; an item that was cut off is incomplete. An answer without anything is an empty message."""
        if self._open is None:
            yield from self._close("completed", before=_TextItem(0))
        yield from self._close("incomplete" if result.finish_reason == "length" else "completed", before=None)

    def _close(self, status: str, *, before: _TextItem | _CallItem | None) -> Iterator[JsonObject]:
        if self._open is not None:
            yield from self._open.close(status)
            self.output[-1] = self._open.form(status)
        self._open = before
        if before is not None:
            before.index = len(self.output)
            self.output.append(before.form("in_progress"))
            yield from before.open()


class _TextItem:
    """A message."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._id = new_id("msg_")
        self._text = ""
        self._logprobs: list[JsonObject] = []

    def form(self, status: str) -> JsonObject:
        """The item; without content while it is only announced."""
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": content}

    def open(self) -> Iterator[JsonObject]:
        """Events of its beginning."""
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.form("in_progress")}
        yield {"type": "response.content_part.added", **self._where(), "part": self._part()}

    def add(self, delta: ChatDelta) -> JsonObject:
        """The event of a piece."""
        logprobs = [logprob_form(token) for token in delta.logprobs]
        self._text += delta.text
        self._logprobs += logprobs
        return {"type": "response.output_text.delta", **self._where(), "delta": delta.text, "logprobs": logprobs}

    def close(self, status: str) -> Iterator[JsonObject]:
        """Events of its end."""
        done: JsonObject = {"text": self._text, "logprobs": self._logprobs}
        yield {"type": "response.output_text.done", **self._where(), **done}
        yield {"type": "response.content_part.done", **self._where(), "part": self._part()}
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.form(status)}

    def _where(self) -> JsonObject:
        return {"item_id": self._id, "output_index": self.index, "content_index": 0}

    def _part(self) -> JsonObject:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}


class _CallItem:
    """A function call."""

    def __init__(self, index: int, call_id: str, name: str) -> None:
        self.index = index
        self._id = new_id("fc_")
        self._call_id = call_id
        self._name = name
        self._arguments = ""

    def form(self, status: str) -> JsonObject:
        """The item."""
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self._arguments,
        }

    def open(self) -> Iterator[JsonObject]:
        """Events of its beginning."""
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.form("in_progress")}

    def add(self, arguments: str) -> JsonObject:
        """The event of a piece."""
        self._arguments += arguments
        return {"type": "response.function_call_arguments.delta", **self._where(), "delta": arguments}

    def close(self, status: str) -> Iterator[JsonObject]:
        """Events of its end."""
        done = {"name": self._name, "arguments": self._arguments}
        yield {"type": "response.function_call_arguments.done", **self._where(), **done}
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.form(status)}

    def _where(self) -> JsonObject:
        return {"item_id": self._id, "output_index": self.index}
