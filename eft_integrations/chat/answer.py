"""How a text becomes an answer: pieces while it comes, and the whole result at its end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Literal

from eft_engine import GenerationDelta, RequestOutput
from eft_engine.weights import weights_as_json
from eft_integrations.chat.loose import Unrecognised
from eft_integrations.chat.messages import InvalidToolCall, ToolCall
from eft_integrations.chat.prompt import Asked
from eft_integrations.chat.reading import CallReader, Piece
from eft_integrations.chat.request import CallDelta, ChatDelta, ChatResult
from eft_integrations.chat.schema_check import fault_of
from eft_integrations.chat.thought_reader import Thought, ThoughtReader
from eft_integrations.chat.thoughts import CHARACTERS_PER_TOKEN
from eft_integrations.json_types import JsonObject


class AnswerReader:
    """Turns an engine's deltas into a backend's, and gathers the result."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._thoughts = None if asked.thoughts is None else ThoughtReader(asked.thoughts)
        self._calls_of_text = None if asked.reading is None else CallReader(asked.reading)
        self._num_thought_tokens = self._num_tokens_inside = 0
        self._text: list[str] = []
        self._thought: list[str] = []
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []
        self._unrecognised: list[Unrecognised] = []

    def feed(self, delta: GenerationDelta) -> Iterator[ChatDelta]:
        """The pieces of one delta; the last one's end with the result."""
        logprobs = delta.logprobs
        is_cut = delta.output is not None and delta.output.finish_reason == "length"
        thinks = self._is_thinking
        pieces = list(self._read(delta.text_delta, ends=delta.output is not None, is_cut=is_cut))
        if thinks or self._is_thinking or any(piece.reasoning for piece in pieces):
            self._num_thought_tokens += len(delta.token_ids)
        if thinks and self._is_thinking:
            self._num_tokens_inside += len(delta.token_ids)
        for piece in pieces:
            yield dataclasses.replace(piece, logprobs=logprobs, progress=delta.progress)
            logprobs = ()
        if logprobs:  # the tokens' text is held back
            yield ChatDelta(logprobs=logprobs, progress=delta.progress)
        if delta.output is not None:
            yield ChatDelta(result=self._result(delta.output))

    def is_quick(self, delta: GenerationDelta) -> bool:
        """Whether reading a delta takes no longer than its text: no call and no answer is checked with it. What is not quick is
        nothing for an event loop.
        """
        if delta.output is not None:
            return self._calls_of_text is None and self._asked.response_schema is None
        return self._calls_of_text is None or self._calls_of_text.is_settled_by(delta.text_delta)

    @property
    def _is_thinking(self) -> bool:
        """Whether a thought has begun that is not over."""
        in_tags = self._thoughts is not None and self._thoughts.is_thinking
        return in_tags or (self._calls_of_text is not None and self._calls_of_text.is_thinking)

    def _read(self, text: str, *, ends: bool, is_cut: bool) -> Iterator[ChatDelta]:
        for piece in self._pieces(text, ends=ends, is_cut=is_cut):
            match piece:
                case str():
                    if said := self._shown(piece):
                        self._text.append(said)
                        yield ChatDelta(text=said)
                case Thought(text=thought):
                    if shown := self._shown(thought):
                        self._thought.append(shown)
                        yield ChatDelta(reasoning=shown)
                case CallDelta():
                    yield ChatDelta(call=piece)
                case ToolCall():
                    self._calls.append(piece)
                case InvalidToolCall():
                    self._invalid.append(piece)
                case Unrecognised():
                    self._unrecognised.append(piece)

    def _pieces(self, text: str, *, ends: bool, is_cut: bool) -> Iterator[Piece]:
        """First the thought is told from the rest, then calls from words."""
        told: list[Thought | str] = [text] if text else []
        if self._thoughts is not None:
            told = [*self._thoughts.feed(text), *(self._thoughts.finish() if ends else ())]
        for piece in told:
            if isinstance(piece, Thought) or self._calls_of_text is None:
                yield piece
            else:
                yield from self._calls_of_text.feed(piece)
        if ends and self._calls_of_text is not None:
            yield from self._calls_of_text.finish(is_cut=is_cut)

    def _shown(self, text: str) -> str:
        for token in self._asked.removed:
            text = text.replace(token, "")
        return text

    def _result(self, output: RequestOutput) -> ChatResult:
        if output.closed_within_budget and self._calls:
            call = self._calls.pop()
            reason = "the call was brought to an end only because max_tokens was reached"
            self._invalid.append(InvalidToolCall(call.arguments, reason, call.name, call.call_id, call.arguments))
        finish_reason: Literal["stop", "length", "tool_calls"] = output.finish_reason
        if self._calls and finish_reason == "stop":
            finish_reason = "tool_calls"
        content = "".join(self._text)
        return ChatResult(
            content=content,
            tool_calls=tuple(self._calls),
            invalid_tool_calls=tuple(self._invalid),
            finish_reason=finish_reason,
            usage=dataclasses.replace(output.usage, reasoning_tokens=self._num_thought_tokens),
            logprobs=output.logprobs,
            metadata=self._metadata(output, content),
            reasoning="".join(self._thought),
        )

    def _metadata(self, output: RequestOutput, content: str) -> JsonObject:
        metrics = output.metrics
        metadata: JsonObject = {
            "request_id": output.request_id,
            "reward_weights": weights_as_json(output.reward_weights),
            "intervention_rate": output.intervention_rate,
            "queue_s": metrics.queue_s,
            "total_s": metrics.total_s,
            "ttft_s": metrics.ttft_s,
            "tpot_s": metrics.tpot_s,
            "num_forwards": dict(metrics.num_forwards),
            "acceptance_rate": metrics.acceptance_rate,
            "mean_acceptance_length": metrics.mean_acceptance_length,
            **self._asked.metadata,
        }
        if metrics.num_redrawn:
            metadata["num_redrawn"] = metrics.num_redrawn
        if self._unrecognised:
            metadata["unrecognised_calls"] = [{"text": own.text, "reason": own.reason} for own in self._unrecognised]
        if isinstance(output.stop_reason, str):
            metadata["stop_sequence"] = output.stop_reason
        if output.closed_within_budget:
            metadata["closed_within_budget"] = True
        if self._has_reached_budget:
            metadata["reasoning_budget_reached"] = True
        if (error := self._format_error(content, is_cut=output.finish_reason == "length")) is not None:
            metadata["format_error"] = error
        return metadata

    @property
    def _has_reached_budget(self) -> bool:
        """Whether the thought ended because it had no more room."""
        budget, thoughts = self._asked.reasoning_budget, self._asked.thoughts
        if not budget or self._is_thinking:
            return False
        if self._thoughts is not None and thoughts is not None and thoughts.is_counted_in_characters:
            return self._thoughts.num_characters >= budget * CHARACTERS_PER_TOKEN
        return self._num_tokens_inside >= budget

    def _format_error(self, content: str, *, is_cut: bool) -> str | None:
        """Why an answer that should be JSON of a schema is not; None where it is, or where calls came instead."""
        schema = self._asked.response_schema
        if schema is None or self._calls or self._invalid:
            return None
        try:
            value = json.loads(content)
        except ValueError as error:
            cut = "max_tokens ended it; give it more" if is_cut else str(error)
            return f"the answer is no whole JSON: {cut}"
        if is_cut and isinstance(value, int | float) and not isinstance(value, bool):
            return "the answer is a number that may go on: max_tokens ended it; give it more"
        reason = fault_of(value, schema)
        return None if reason is None else f"the answer does not fit the schema: {reason}"
