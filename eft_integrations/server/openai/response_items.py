"""The items of an answer to POST /v1/responses, while it arrives: a thought, a message, function calls.

One thought or message is open at a time, and the next item closes it. Calls stay open until the answer is over, because only then
it is known which of them are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from eft_engine import TokenLogprobs
from eft_integrations.chat.request import ChatDelta, ChatResult
from eft_integrations.json_objects import breaking_end
from eft_integrations.json_types import JsonObject
from eft_integrations.server.answers import new_id
from eft_integrations.wire.openai import logprob_form

Status = Literal["in_progress", "completed", "incomplete"]


class Items:
    """All items of one answer; `output` has their forms in order.

    `thoughts_as_summaries`: thoughts are told where many clients look for them, in the summary.
    """

    def __init__(self, *, thoughts_as_summaries: bool = False) -> None:
        self.output: list[JsonObject] = []
        self._thought = _SummaryItem if thoughts_as_summaries else _ThoughtItem
        self._open: _TextItem | _ThoughtItem | None = None
        self._calls: dict[int, _CallItem] = {}
        self._waiting: tuple[TokenLogprobs, ...] = ()

    def feed(self, delta: ChatDelta) -> Iterator[JsonObject]:
        """Events of one piece. Log-probabilities of tokens whose text is held back wait for the text."""
        if (call := delta.call) is not None:
            if call.call_id is not None:
                yield from self._close("completed")
                self._calls[call.index] = _CallItem(len(self.output), call.call_id, str(call.name))
                yield from self._begin(self._calls[call.index])
            if call.arguments:
                yield self._calls[call.index].add(call.arguments)
        elif delta.reasoning:
            if not isinstance(self._open, _ThoughtItem):
                yield from self._close("completed")
                self._open = self._thought(len(self.output))
                yield from self._begin(self._open)
            yield self._open.add(delta.reasoning)
        elif delta.text:
            if not isinstance(self._open, _TextItem):
                yield from self._close("completed")
                self._open = _TextItem(len(self.output))
                yield from self._begin(self._open)
            yield self._open.add(delta.text, (*self._waiting, *delta.logprobs))
            self._waiting = ()
        else:
            self._waiting += delta.logprobs

    def finish(self, result: ChatResult) -> Iterator[JsonObject]:
        """Events of the end; what was cut off is incomplete. An answer without anything is an empty message."""
        if not self.output:
            self._open = _TextItem(0)
            yield from self._begin(self._open)
        if isinstance(self._open, _TextItem) and self._waiting:
            yield self._open.add("", self._waiting)
        yield from self._close("incomplete" if result.finish_reason == "length" else "completed")
        broken = {call.call_id for call in result.invalid_tool_calls}
        for call in self._calls.values():
            status: Status = "incomplete" if call.call_id in broken else "completed"
            yield from call.close(status)
            self.output[call.index] = call.form(status)

    def _begin(self, item: _TextItem | _ThoughtItem | _CallItem) -> Iterator[JsonObject]:
        self.output.append(item.form("in_progress"))
        yield from item.open()

    def _close(self, status: Status) -> Iterator[JsonObject]:
        if self._open is not None:
            yield from self._open.close(status)
            self.output[self._open.index] = self._open.form(status)
        self._open = None


class _ContentItem:
    """An item whose content is one text."""

    PART = "content_part"
    PLACE = "content_index"

    def __init__(self, index: int, prefix: str) -> None:
        self.index = index
        self._id = new_id(prefix)
        self._text = ""

    def form(self, status: Status) -> JsonObject:
        """The item; without content while it is only announced."""
        raise NotImplementedError

    def open(self) -> Iterator[JsonObject]:
        """Events of its beginning."""
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.form("in_progress")}
        yield {"type": f"response.{self.PART}.added", **self._where(), "part": self._part()}

    def close(self, status: Status) -> Iterator[JsonObject]:
        """Events of its end."""
        yield self._done()
        yield {"type": f"response.{self.PART}.done", **self._where(), "part": self._part()}
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.form(status)}

    def _where(self) -> JsonObject:
        return {"item_id": self._id, "output_index": self.index, self.PLACE: 0}

    def _part(self) -> JsonObject:
        raise NotImplementedError

    def _done(self) -> JsonObject:
        raise NotImplementedError


class _TextItem(_ContentItem):
    """A message."""

    def __init__(self, index: int) -> None:
        super().__init__(index, "msg_")
        self._logprobs: list[JsonObject] = []

    def form(self, status: Status) -> JsonObject:
        """See `_ContentItem`."""
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": content}

    def add(self, text: str, tokens: tuple[TokenLogprobs, ...]) -> JsonObject:
        """The event of a piece."""
        logprobs = [logprob_form(token) for token in tokens]
        self._text += text
        self._logprobs += logprobs
        return {"type": "response.output_text.delta", **self._where(), "delta": text, "logprobs": logprobs}

    def _part(self) -> JsonObject:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}

    def _done(self) -> JsonObject:
        return {
            "type": "response.output_text.done",
            **self._where(),
            "text": self._text,
            "logprobs": self._logprobs,
        }


class _ThoughtItem(_ContentItem):
    """What the model thought."""

    def __init__(self, index: int) -> None:
        super().__init__(index, "rs_")

    def form(self, status: Status) -> JsonObject:
        """See `_ContentItem`."""
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self._id, "type": "reasoning", "status": status, "summary": [], "content": content}

    def add(self, text: str) -> JsonObject:
        """The event of a piece."""
        self._text += text
        return {"type": "response.reasoning_text.delta", **self._where(), "delta": text}

    def _part(self) -> JsonObject:
        return {"type": "reasoning_text", "text": self._text}

    def _done(self) -> JsonObject:
        return {"type": "response.reasoning_text.done", **self._where(), "text": self._text}


class _SummaryItem(_ThoughtItem):
    """What the model thought, told whole where a summary is asked for: nobody here makes a shorter one."""

    PART = "reasoning_summary_part"
    PLACE = "summary_index"

    def form(self, status: Status) -> JsonObject:
        """See `_ContentItem`."""
        summary = [] if status == "in_progress" else [self._part()]
        return {"id": self._id, "type": "reasoning", "status": status, "summary": summary}

    def add(self, text: str) -> JsonObject:
        """The event of a piece."""
        return {**super().add(text), "type": "response.reasoning_summary_text.delta"}

    def _part(self) -> JsonObject:
        return {"type": "summary_text", "text": self._text}

    def _done(self) -> JsonObject:
        return {**super()._done(), "type": "response.reasoning_summary_text.done"}


class _CallItem:
    """A function call."""

    def __init__(self, index: int, call_id: str, name: str) -> None:
        self.index = index
        self.call_id = call_id
        self._id = new_id("fc_")
        self._name = name
        self._arguments = ""

    def form(self, status: Status) -> JsonObject:
        """The item."""
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
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

    def close(self, status: Status) -> Iterator[JsonObject]:
        """Events of its end. One that is none gets an end that no client can mend: not all of them look at the status."""
        if status == "incomplete":
            yield self.add(breaking_end(self._arguments))
        done = {"name": self._name, "arguments": self._arguments}
        yield {"type": "response.function_call_arguments.done", **self._where(), **done}
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.form(status)}

    def _where(self) -> JsonObject:
        return {"item_id": self._id, "output_index": self.index}
