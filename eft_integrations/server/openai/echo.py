"""Prompts that stand before their answers, and how probable their tokens are under the composition.

A prompt is scored by the engine beside whatever else it works on, some tokens a step; so its logits are never held as a whole.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from eft_engine import TextToken, Usage
from eft_engine.outputs import ScoreOutput
from eft_engine.preparing import prepared
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.server.compositions import Composition
from eft_integrations.server.openai.logprob_lists import ListedToken, Places
from eft_integrations.wire.openai import wrong


@dataclass(frozen=True)
class EchoedPrompt:
    """A prompt as it stands before its answer; `tokens` are None where nothing was asked of them."""

    text: str
    num_tokens: int = 0
    tokens: tuple[ListedToken, ...] | None = None


def engine_of(composition: Composition, option: str) -> EngineBackend:
    """The engine of a composition.

    Raises:
        InvalidOptionError: another server answers for it.
    """
    if not isinstance(composition.backend, EngineBackend):
        raise wrong(
            option,
            f"token ids and log-probabilities of given texts need an engine of this server, and {composition.name!r} is answered "
            "by another one; send text, and ask it without this option",
        )
    return composition.backend


class Echo:
    """The prompts of one call; `answer_one` of its answers.

    Args:
        composition: whom the call asks.
        num_top: most probable tokens at each position; None: no log-probabilities.
    """

    def __init__(self, composition: Composition, *, num_top: int | None) -> None:
        self._composition = composition
        self._num_top = num_top
        self._known: dict[object, EchoedPrompt] = {}
        self._turns: defaultdict[object, asyncio.Lock] = defaultdict(asyncio.Lock)

    def of(self, request: ChatRequest) -> EchoedPrompt:
        """A prompt whose answer has begun."""
        return self._known[_key(request)]

    async def answer(self, request: ChatRequest) -> AsyncGenerator[ChatDelta]:
        """An empty piece once the prompt is known, then those of the answer, if one is to be written."""
        async with self._turns[_key(request)]:  # answers to one prompt are scored once
            if _key(request) not in self._known:
                self._known[_key(request)] = await self._read(request)
        yield ChatDelta()
        if request.sampling["max_tokens"] == 0:
            yield ChatDelta(result=self._nothing(request))
            return
        stream = self._composition.backend.astream(self._composition.ask(request))
        async with aclosing(stream):  # type: ignore[type-var]
            async for delta in stream:
                yield delta

    def _nothing(self, request: ChatRequest) -> ChatResult:
        weights = self._composition.settle(request.reward_weights)
        return ChatResult(
            content="",
            tool_calls=(),
            invalid_tool_calls=(),
            finish_reason="length",
            usage=Usage(self.of(request).num_tokens, 0),
            logprobs=None if self._num_top is None else (),
            metadata={"reward_weights": weights},
        )

    async def _read(self, request: ChatRequest) -> EchoedPrompt:
        if request.prompt is not None and self._num_top is None and request.sampling["max_tokens"] != 0:
            return EchoedPrompt(request.prompt)
        engine = engine_of(self._composition, "echo")
        sampling = {**request.sampling, "max_tokens": request.sampling["max_tokens"] or 1}  # it is checked too
        asked = self._composition.ask(dataclasses.replace(request, sampling=sampling))
        token_ids = await prepared(engine.prompt_ids, asked, must_fit=True)
        text = request.prompt
        if text is None:
            text = await prepared(engine.decode, token_ids)
        if self._num_top is None:
            return EchoedPrompt(text, len(token_ids))
        tokens = await prepared(engine.text_tokens, token_ids)
        scores = None
        if len(token_ids) > 1:
            first = dataclasses.replace(asked, prompt=None, prompt_ids=(token_ids[0],))
            scores = await engine.ascore(first, token_ids[1:], num_top=self._num_top)
        return EchoedPrompt(text, len(token_ids), tuple(_listed(text, tokens, scores)))


def _listed(text: str, tokens: Sequence[TextToken], scores: ScoreOutput | None) -> list[ListedToken]:
    """A control token is a part of the text where it is written in it, and not where it was put before it."""
    listed: list[ListedToken] = []
    places = Places()
    for token, score in zip(tokens, [None, *(scores.tokens if scores else ())], strict=True):
        own = ListedToken(
            token.token,
            token.utf8,
            None if score is None else score.composed,
            () if score is None else score.top,
            own_text=token.token if text.startswith(token.token, places.place) else "",
        )
        places.take(own)
        listed.append(own)
    return listed


def _key(request: ChatRequest) -> object:
    return request.prompt if request.prompt_ids is None else request.prompt_ids
