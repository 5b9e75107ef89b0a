"""How a text becomes an answer: pieces while it comes, and the whole result at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from eft_engine import GenerationDelta, RequestOutput
from eft_integrations.chat.loose import Unrecognised
from eft_integrations.chat.messages import InvalidToolCall, ToolCall
from eft_integrations.chat.prompt import Asked
from eft_integrations.chat.reading import CallReader, Piece
from eft_integrations.chat.request import CallDelta, ChatDelta, ChatResult
from eft_integrations.json_types import JsonObject


class AnswerReader:
    """Turns an engine's deltas into a backend's, and gathers the result."""

    def __init__(self, asked: Asked) -> None:
        self._reader = None if asked.reading is None else CallReader(asked.reading)
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []
        self._unrecognised: list[Unrecognised] = []

    def feed(self, delta: GenerationDelta) -> Iterator[ChatDelta]:
        """The pieces of one delta; the last one's end with the result."""
        logprobs = delta.logprobs
        is_cut = delta.output is not None and delta.output.finish_reason == "length"
        for piece in self._read(delta.text_delta, ends=delta.output is not None, is_cut=is_cut):
            yield dataclasses.replace(piece, logprobs=logprobs) if logprobs else piece
            logprobs = ()
        if logprobs:  # the tokens' text is held back
            yield ChatDelta(logprobs=logprobs)
        if delta.output is not None:
            yield ChatDelta(result=self._result(delta.output))

    def _read(self, text: str, *, ends: bool, is_cut: bool) -> Iterator[ChatDelta]:
        pieces: list[Piece] = [text] if text else []
        if self._reader is not None:
            pieces = [*self._reader.feed(text), *(self._reader.finish(is_cut=is_cut) if ends else ())]
        for piece in pieces:
            match piece:
                case str():
                    self._text.append(piece)
                    yield ChatDelta(text=piece)
                case CallDelta():
                    yield ChatDelta(call=piece)
                case ToolCall():
                    self._calls.append(piece)
                case InvalidToolCall():
                    self._invalid.append(piece)
                case Unrecognised():
                    self._unrecognised.append(piece)

    def _result(self, output: RequestOutput) -> ChatResult:
        finish_reason: Literal["stop", "length", "tool_calls"] = output.finish_reason
        if self._calls and finish_reason == "stop":
            finish_reason = "tool_calls"
        metrics = output.metrics
        metadata: JsonObject = {
            "request_id": output.request_id,
            "reward_weights": dict(output.reward_weights),
            "queue_s": metrics.queue_s,
            "total_s": metrics.total_s,
            "ttft_s": metrics.ttft_s,
            "tpot_s": metrics.tpot_s,
            "num_forwards": dict(metrics.num_forwards),
            "acceptance_rate": metrics.acceptance_rate,
            "mean_acceptance_length": metrics.mean_acceptance_length,
        }
        if self._unrecognised:
            metadata["unrecognised_calls"] = [{"text": own.text, "reason": own.reason} for own in self._unrecognised]
        return ChatResult(
            content="".join(self._text),
            tool_calls=tuple(self._calls),
            invalid_tool_calls=tuple(self._invalid),
            finish_reason=finish_reason,
            usage=output.usage,
            logprobs=output.logprobs,
            metadata=metadata,
        )
