"""The one seam between adapters and whatever answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Protocol

from eft_engine import EngineStats
from eft_engine.weights import Weight
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult


class ChatBackend(Protocol):
    """What adapters need of whatever answers. Errors are those of `eft_engine.errors`."""

    @property
    def model_name(self) -> str:
        """What reports and logs call the model."""

    @property
    def identity(self) -> str:
        """Differs between any two backends that may answer differently; caches rest on it."""

    @property
    def weights(self) -> Mapping[str, Weight]:
        """The pairs' own weights."""

    @property
    def context_len(self) -> int:
        """Most tokens of prompt and answer together."""

    def token_ids(self, text: str) -> list[int]:
        """The text as tokens."""

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt as it would be rendered."""

    def stats(self) -> EngineStats:
        """What runs and waits now, and totals."""

    def chat(self, request: ChatRequest) -> ChatResult:
        """The whole answer."""

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        """The answer in pieces; closing the iterator cancels the request."""

    async def achat(self, request: ChatRequest) -> ChatResult:
        """`chat` without blocking the event loop."""

    def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """`stream` without blocking the event loop."""


def last_result(results: Sequence[ChatResult | None]) -> ChatResult:
    """The result, which the last piece of a stream carries."""
    result = results[-1]
    assert result is not None, "the last piece of a stream carries the result"
    return result
