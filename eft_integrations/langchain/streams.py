"""The chunks of a streamed answer, which LangChain adds up to a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from eft_integrations.chat.messages import InvalidToolCall
from eft_integrations.chat.request import ChatDelta, ChatResult
from eft_integrations.json_objects import breaking_end
from eft_integrations.langchain.convert import THOUGHT, response_metadata, usage_metadata
from eft_integrations.so_far import AnswerSoFar


class Chunks:
    """The chunks of one answer.

    Args:
        model_name: tells how the call named the model; asked at the end.
        in_blocks: content is a list of LangChain's standard blocks (`output_version="v1"`). Chunks are added up by the index of
            their blocks, so blocks are numbered here, calls among them; LangChain's own numbers would add a call to a text.
    """

    def __init__(self, model_name: Callable[[], str], *, in_blocks: bool) -> None:
        self._model_name = model_name
        self._in_blocks = in_blocks
        self._so_far = AnswerSoFar()
        self._kind: str | None = None
        self._num_blocks = 0
        self._call_indices: list[int] = []

    def feed(self, delta: ChatDelta) -> list[ChatGenerationChunk]:
        """The chunks of one piece; the last one has the counts and the reports.

        Chunks are parsed by mending JSON that breaks off, which would make a call of one that was cut, with half its arguments. So
        what was streamed of a call that is none gets an end behind it that nothing can mend; the exact text is in the reports.
        """
        if delta.result is not None:
            return [*self._broken(delta.result), self._last(delta.result)]
        self._so_far.add(delta)
        if (call := delta.call) is not None:
            if call.call_id is not None:
                self._call_indices.append(self._begin("call", call.call_id))
            return [self._call_chunk(self._call_indices[call.index], call.name, call.arguments, call.call_id)]
        if delta.reasoning:
            return [self._chunk("reasoning", delta.reasoning, additional_kwargs={THOUGHT: delta.reasoning})]
        return [self._chunk("text", delta.text)]

    def _begin(self, kind: str, name: str = "") -> int:
        """The index of the block that a piece belongs to; calls have numbers of their own where there are no blocks."""
        if not self._in_blocks and kind == "call":
            return len(self._call_indices)
        if self._kind != f"{kind} {name}":
            self._kind = f"{kind} {name}"
            self._num_blocks += 1
        return self._num_blocks - 1

    def _chunk(self, kind: str, text: str, **fields: Any) -> ChatGenerationChunk:
        content: str | list[str | dict[str, Any]] = text if kind == "text" else ""
        if self._in_blocks:
            content = [{"type": kind, kind: text, "index": self._begin(kind)}] if text else []
        return self._made(AIMessageChunk(content=content, **fields))

    def _call_chunk(self, index: int, name: str | None, args: str, call_id: str | None) -> ChatGenerationChunk:
        piece = tool_call_chunk(name=name, args=args, id=call_id, index=index)
        content: str | list[str | dict[str, Any]] = [{**piece}] if self._in_blocks else ""
        return self._made(AIMessageChunk(content=content, tool_call_chunks=[piece]))

    def _made(self, message: AIMessageChunk) -> ChatGenerationChunk:
        if self._in_blocks:
            message.response_metadata["output_version"] = "v1"
        return ChatGenerationChunk(message=message)

    def _broken(self, result: ChatResult) -> Iterator[ChatGenerationChunk]:
        for call in result.invalid_tool_calls:
            index = self._so_far.index_of(call.call_id)
            if index is not None:
                end = breaking_end(self._so_far.calls[index].arguments)
                yield self._call_chunk(self._call_indices[index], None, end, None)
            else:
                yield self._unseen(call)

    def _unseen(self, call: InvalidToolCall) -> ChatGenerationChunk:
        """A call that is none and of which nothing was streamed."""
        written = call.text if call.arguments is None else call.arguments
        self._call_indices.append(self._begin("call", f"{len(self._call_indices)}"))
        return self._call_chunk(self._call_indices[-1], call.name, written + breaking_end(written), call.call_id)

    def _last(self, result: ChatResult) -> ChatGenerationChunk:
        message = AIMessageChunk(
            content=[] if self._in_blocks else "",
            usage_metadata=usage_metadata(result),
            response_metadata=response_metadata(result, self._model_name()),
            chunk_position="last",
        )
        return self._made(message)
