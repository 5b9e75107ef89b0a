"""One request in flight: what it has produced, how it ends, and whom it tells.

`Sequence` is what all have in common (streams, cancellation, clocks). A `GenerationSequence` takes one chosen token per step and
turns it into text; a `ScoringSequence` takes the tokens of a given completion and reads their log-probabilities.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from eft_engine.config import CompositionOptions, SamplingParams
from eft_engine.decoding.sampling import History
from eft_engine.engine.metrics import Clock
from eft_engine.engine.routing import Route, Stream, conservative_member
from eft_engine.errors import EFTError
from eft_engine.outputs import (
    FinishReason,
    GenerationDelta,
    RequestOutput,
    ScoreOutput,
    TokenLogprobs,
    TokenScore,
    Usage,
)
from eft_engine.text.detokenizer import IncrementalDetokenizer, StopStringFilter
from eft_engine.text.tokenizer import Tokenizer

Event = GenerationDelta | ScoreOutput | EFTError
"""What a sequence tells its caller: pieces of an answer (the last one finished), a score, or why it failed."""

SCORE_BLOCK_LEN = 64
"""Completion tokens scored per step; bounds the logits held at once (tokens x members x vocabulary)."""


@dataclass(frozen=True)
class Request:
    """What was asked, checked and resolved. `member_names` are in the order of the route's coefficients."""

    request_id: str
    route: Route
    weights: Mapping[str, float]
    composition: CompositionOptions
    member_names: tuple[str, ...]
    emit: Callable[[Event], None]


@dataclass(eq=False)
class Sequence:
    """A request in flight. `cancelled` may be set from any thread; everything else belongs to the engine's thread."""

    request: Request
    output_ids: list[int] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    num_forwards: Counter[str] = field(default_factory=Counter)
    cancelled: bool = False
    finished: bool = False
    failed: bool = False

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that its members are read from."""
        return self.request.route.streams

    @property
    def num_pending(self) -> int:
        """Most tokens that any stream still has to read."""
        return max(stream.num_pending(self.output_ids) for stream in self.streams)

    @property
    def conservative_member(self) -> int | None:
        """See `routing.conservative_member`."""
        return conservative_member(self.request.weights, self.request.composition)

    def lookahead(self) -> list[int]:
        """Tokens to feed after the committed ones in the next evaluation; logits are wanted for each of them too."""
        return []

    def count_forward(self, stream: Stream) -> None:
        """Note that `stream` took part in a forward pass, under the first member that it stands for."""
        self.num_forwards[self.request.member_names[stream.members[0]]] += 1

    def fail(self, error: EFTError) -> None:
        """End with an error."""
        self.finished = self.failed = True
        self.request.emit(error)


class GenerationSequence(Sequence):
    """Generates text from a prompt."""

    def __init__(
        self,
        request: Request,
        *,
        sampling: SamplingParams,
        prompt_ids: tuple[int, ...],
        max_new_tokens: int,
        eos_token_ids: frozenset[int],
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__(request)
        self.sampling = sampling
        self.seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        self._counts: Counter[int] = Counter()
        self.history = History(prompt_ids, self._counts)
        self._max_new_tokens = max_new_tokens
        self._stop_ids = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos_token_ids)
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stops = StopStringFilter(sampling.stop)
        self._text: list[str] = []
        self._logprobs: list[TokenLogprobs] = []

    def append(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Take the next token: emit what became certain, and finish if it ends the text."""
        self.output_ids.append(token_id)
        self._counts[token_id] += 1
        self.clock.token()
        if logprobs is not None:
            self._logprobs.append(logprobs)
        ended = token_id in self._stop_ids
        full = len(self.output_ids) == self._max_new_tokens
        text = "" if ended else self._detokenizer.add([token_id])
        if ended or full:
            text += self._detokenizer.flush()
        piece = self._stops.add(text)
        stop_reason: str | int | None = piece.stop
        if stop_reason is None and ended:
            stop_reason = token_id
        finish_reason: FinishReason | None = "stop" if stop_reason is not None else "length" if full else None
        text = piece.text
        if finish_reason is not None and piece.stop is None:
            text += self._stops.flush()
        self._text.append(text)
        self.finished = finish_reason is not None
        self.request.emit(
            GenerationDelta(
                text_delta=text,
                token_ids=(token_id,),
                logprobs=(logprobs,) if logprobs else (),
                finish_reason=finish_reason,
                output=self._output(finish_reason, stop_reason) if finish_reason else None,
            )
        )

    def _output(self, finish_reason: FinishReason, stop_reason: str | int | None) -> RequestOutput:
        request = self.request
        prompt_len = max(len(stream.prompt_ids) for stream in self.streams)
        return RequestOutput(
            request_id=request.request_id,
            text="".join(self._text),
            token_ids=tuple(self.output_ids),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            usage=Usage(prompt_len, len(self.output_ids)),
            metrics=self.clock.metrics({name: self.num_forwards[name] for name in request.member_names}),
            reward_weights=dict(request.weights),
            logprobs=tuple(self._logprobs) if self.sampling.logprobs is not None else None,
        )


class ScoringSequence(Sequence):
    """Reads the log-probabilities of a given completion."""

    def __init__(self, request: Request, *, completion_ids: tuple[int, ...]) -> None:
        super().__init__(request)
        self.completion_ids = completion_ids
        self._scores: list[TokenScore] = []

    def lookahead(self) -> list[int]:
        """The next tokens of the completion. Its last token is predicted and never fed."""
        done = len(self.output_ids)
        return list(self.completion_ids[done : min(done + SCORE_BLOCK_LEN, len(self.completion_ids)) - 1])

    def next_ids(self) -> list[int]:
        """The tokens that the next evaluation scores, one more than `lookahead`."""
        done = len(self.output_ids)
        return list(self.completion_ids[done : done + SCORE_BLOCK_LEN])

    def extend(self, scores: list[TokenScore]) -> None:
        """Take the scores of `next_ids`; emit all of them at the end."""
        self.output_ids += [score.token_id for score in scores]
        self._scores += scores
        if len(self.output_ids) == len(self.completion_ids):
            self.finished = True
            self.request.emit(ScoreOutput(tuple(self._scores), dict(self.request.weights)))
