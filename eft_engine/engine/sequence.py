"""One request in flight: what it has produced, how it ends, and whom it tells.

`Sequence` is what all have in common (streams, cancellation, clocks). A `GenerationSequence` takes one chosen token per step and
turns it into text; a `ScoringSequence` takes the tokens of a given completion and reads their log-probabilities.
"""

from __future__ import annotations

import functools
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eft_engine.config import CompositionOptions, SamplingParams, SpeculationOptions
from eft_engine.decoding.prompt_lookup import PromptLookupIndex
from eft_engine.decoding.races import SALT_REDRAWN, SALT_TARGET, race_times
from eft_engine.decoding.sampling import History, needs_penalties
from eft_engine.engine.acceptance import Acceptance
from eft_engine.engine.deciding import Deciding
from eft_engine.engine.metrics import Clock, EngineTotals, Outcome
from eft_engine.engine.routing import Route, Rows, Stream, draft_route
from eft_engine.engine.steering import Steering
from eft_engine.errors import EFTError, EngineStepError, StepOutOfMemoryError
from eft_engine.models.memory import is_out_of_memory
from eft_engine.outputs import (
    FinishReason,
    GenerationDelta,
    Progress,
    RequestOutput,
    ScoreOutput,
    TokenLogprobs,
    TokenScore,
    Usage,
)
from eft_engine.text.closing import Closing
from eft_engine.text.detokenizer import AnswerText
from eft_engine.text.grammar import GrammarState
from eft_engine.text.tokenizer import Tokenizer
from eft_engine.weights import Weight

logger = logging.getLogger(__name__)

Event = GenerationDelta | ScoreOutput | EFTError
"""What a sequence tells its caller: pieces of an answer (the last one finished), a score, or why it failed."""

PLACEHOLDER = 0
"""Stands for a draft that only the device knows yet."""

SCORE_BLOCK_LEN = 64
"""Most completion tokens of one request scored per step; bounds the logits held at once (tokens x members x vocabulary)."""

SCORE_STEP_LEN = 128
"""Completion tokens scored per step, where many requests score; each of them still gets on by one token."""


@dataclass(frozen=True)
class Request:
    """What was asked, checked and resolved. `member_names` are in the order of the route's coefficients, `weights` in that of its
    pairs, of which the first `num_held_pairs` are the engine's.
    """

    request_id: str
    route: Route
    weights: Mapping[str, Weight]
    composition: CompositionOptions
    member_names: tuple[str, ...]
    emit: Callable[[Event], None]
    totals: EngineTotals
    steering: Steering
    num_held_pairs: int


MAX_LAG = 64
"""Tokens that a stream may have missed when drafts lead to where it matters; one with more reads them first, in chunks."""


@dataclass(eq=False)
class Sequence:
    """A request in flight. `cancel` may be called from any thread; everything else belongs to the engine's thread."""

    request: Request
    output_ids: list[int] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    num_forwards: Counter[str] = field(default_factory=Counter)
    num_drafted: int = 0
    num_accepted: int = 0
    num_steps: int = 0
    cancelled: bool = False
    finished: bool = False
    failed: bool = False
    outcome: Outcome | None = None
    """What it was counted as."""
    is_caller_gone: Callable[[], bool] = lambda: False
    """Whether its caller has left without a word."""

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that its members are read from."""
        return self.request.route.streams

    @property
    def num_pending(self) -> int:
        """Most tokens that any stream still has to read for the next token."""
        return max(stream.num_pending(self.output_ids) for stream in self.next_streams)

    @property
    def next_streams(self) -> tuple[Stream, ...]:
        """The streams that matter for the next token."""
        return self.rows([]).active if self.request.route.directions else self.streams

    @property
    def ends_alone(self) -> bool:
        """Whether the last token of what it reads first is read in a pass of its own, as after a prompt that was read before."""
        return False

    def rows(self, lookahead: list[int]) -> Rows:
        """What is to be composed for the next token, and behind each token of the lookahead."""
        steering, route = self.request.steering, self.request.route
        if not route.directions:
            count = 1 + len(lookahead)
            return Rows([list(route.fixed)] * count, [list(route.numbers)] * count, [], route.streams)
        return route.rows(steering.rows(len(self.output_ids), lookahead, self._decides(lookahead)))

    def _decides(self, lookahead: list[int]) -> list[bool]:
        """See `Steering.rows`."""
        return [False] * (len(lookahead) + 1)

    def rows_in_reach(self) -> Rows:
        """`rows` of this lookahead; it is dropped where it leads to a stream that has much to read before."""
        rows = self.rows(self.lookahead())
        behind = {stream for stream in rows.active if stream.num_pending(self.output_ids) > MAX_LAG}
        if behind and len(rows.coefficients) > 1 and behind - set(self.next_streams):
            self.drop_lookahead()
            return self.rows(self.lookahead())
        return rows

    def drop_lookahead(self) -> None:
        """Let the next evaluation have one row."""
        raise NotImplementedError

    @property
    def max_output_len(self) -> int:
        """Most tokens that will be read after the prompt."""
        raise NotImplementedError

    def lookahead(self) -> list[int]:
        """Tokens to feed after the committed ones in the next evaluation; logits are wanted for each of them too."""
        return []

    @property
    def unread(self) -> Tensor | None:
        """The lookahead where only the device knows it yet; then `lookahead` has placeholders."""
        return None

    def kept_rows(self, stream: Stream) -> list[tuple[Tensor, Tensor]]:
        """Log-probabilities and normaliser of positions that `stream` has already predicted for the next evaluation."""
        return []

    def rewind(self) -> None:
        """Let every stream forget what it read beyond the committed tokens."""
        for stream in self.streams:
            stream.rewind(self.output_ids)

    def undo_step(self) -> None:
        """Forget an evaluation that was broken off."""
        self.rewind()

    def draftable(self, token_ids: list[int]) -> list[int]:
        """The first of these, up to one that a stream spells: an evaluation has no logits both before and behind it."""
        spelled = {token_id for stream in self.streams for token_id in stream.spelling}
        count = next((index for index, token_id in enumerate(token_ids) if token_id in spelled), len(token_ids))
        return token_ids[:count]

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        prompt_len = max(len(stream.prompt_ids) for stream in self.streams)
        return Usage(prompt_len, len(self.output_ids), min(stream.num_cached for stream in self.streams))

    def count_forward(self, stream: Stream) -> None:
        """Note that `stream` took part in a forward pass, under the first member that it stands for."""
        self.num_forwards[self.request.member_names[stream.members[0]]] += 1

    def count(self, outcome: Outcome) -> None:
        """Add it to the engine's totals, before its caller knows that it is over. Once: what comes later does not count."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        usage, request_id = self.usage, self.request.request_id
        logger.debug(
            "request %s %s: %d tokens of prompt, %d of them cached, %d written in %d evaluations",
            request_id,
            outcome,
            usage.prompt_tokens,
            usage.cached_prompt_tokens,
            usage.completion_tokens,
            self.num_steps,
            extra={"request_id": request_id},
        )
        self.request.totals.count_request(
            outcome,
            usage,
            num_drafted=self.num_drafted,
            num_accepted=self.num_accepted,
            num_steps=self.num_steps,
        )

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for it any more. That changes at any moment, so ask once and act on the answer."""
        return self.cancelled or self.is_caller_gone()

    def cancel(self) -> None:
        """Nobody waits for it any more: it is dropped before the next step. Harmless when it is over.

        Takes no lock, so that finalizers may call it, which run at any moment in any thread.
        """
        self.cancelled = True

    def fail(self, error: EFTError) -> None:
        """End with an error."""
        self.finished = self.failed = True
        self.count("failed")
        self.request.emit(error)

    def fail_step(self, cause: Exception) -> None:
        """End because a step failed."""
        kind = StepOutOfMemoryError if is_out_of_memory(cause) else EngineStepError
        error = kind(f"a step of the engine failed for this request: {cause}")
        error.__cause__ = cause
        self.fail(error)


@dataclass(frozen=True)
class Redraw:
    """What a text that turns out to be no call is drawn anew with: how that is found out, and what it is held to then."""

    deciding: Deciding
    grammar: GrammarState | None = None
    closing: Closing | None = None


class GenerationSequence(Sequence):
    """Generates text from a prompt.

    `drafts` are guesses of the next tokens, made by `drafting` and judged by the next evaluation. `skipped` are the tokenizer's
    tokens that `skip_special_tokens` leaves out of the text, by id their texts.
    """

    def __init__(
        self,
        request: Request,
        *,
        sampling: SamplingParams,
        speculation: SpeculationOptions,
        prompt_ids: tuple[int, ...],
        room: int,
        eos_token_ids: frozenset[int],
        tokenizer: Tokenizer,
        skipped: Mapping[int, str],
        grammar: GrammarState | None,
        closing: Closing | None = None,
        redraw: Redraw | None = None,
    ) -> None:
        super().__init__(request)
        self._redraw = redraw
        self._held_back: list[GenerationDelta] = []
        self._num_redrawn = 0
        self._steered: list[bool] = []
        self._salt = SALT_TARGET
        self.sampling = sampling
        self.speculation = speculation
        self._seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        self._prompt_ids = prompt_ids
        self._counts: Counter[int] = Counter()
        self._room = room
        self.grammar = grammar
        self._closing = closing
        ends = (
            grammar is not None or not sampling.ignore_eos
        )  # behind a complete sentence of a grammar nothing can follow
        self._stop_ids = frozenset(sampling.stop_token_ids) | (eos_token_ids if ends else frozenset())
        self._new_answer = functools.partial(
            AnswerText,
            tokenizer,
            stop=sampling.stop,
            skip_special_tokens=sampling.skip_special_tokens,
            skipped=skipped,
        )
        self._answer = self._new_answer()
        self._text: list[str] = []
        self._logprobs: list[TokenLogprobs] = []

        self.drafts: list[int] = []
        self._unread: list[Tensor] = []
        self.drafted_by: Acceptance | None = None
        self.found: tuple[Acceptance, list[int]] | None = None
        """What looking up has found for this step, whoever drafts, and the estimate of how often such tokens are right."""
        self.last_drafted_at = 0
        self.lookup_acceptance = Acceptance(prior=0.6)
        self.history_acceptance = Acceptance(prior=0.5)
        self.forced_acceptance = Acceptance(prior=0.95)
        self.tuned_acceptance: Acceptance | None = None  # known when it first might draft
        self._kept: dict[Stream, list[tuple[Tensor, Tensor]]] = {}
        self._race_times: dict[int, Tensor] = {}  # of this step, by offset
        self.lookup: PromptLookupIndex | None = None
        if speculation.drafter in ("auto", "prompt_lookup"):
            self.lookup = self._new_lookup()
        self._drafting_streams: tuple[tuple[Stream, float], ...] = ()
        if speculation.drafter in ("auto", "tuned"):
            held = list(request.weights.values())[: request.num_held_pairs]
            self._drafting_streams = draft_route(request.route, held)

    @property
    def new_ids(self) -> list[int]:
        """Its text, prompt and output, without what was kept in the cache from an earlier one."""
        known = min(stream.num_cached for stream in self.streams)
        return [*self._prompt_ids[max(0, known - self.speculation.max_ngram_size) :], *self.output_ids]

    def _new_lookup(self) -> PromptLookupIndex:
        least, most = self.speculation.min_ngram_size, self.speculation.max_ngram_size
        return PromptLookupIndex(self._prompt_ids, min_ngram_size=least, max_ngram_size=most)

    # ---- drafts --------------------------------------------------------------------------------------------------------

    @property
    def ends_alone(self) -> bool:
        """Where what is read together is rounded together, so that a prompt says the same when it comes again."""
        return not self.output_ids and not all(stream.network.is_invariant for stream in self.streams)

    @property
    def draft_limit(self) -> int:
        """Most tokens that may be drafted now: the evaluation itself adds one more."""
        return min(self.speculation.max_draft_tokens, self.max_output_len - len(self.output_ids) - 1)

    @property
    def max_output_len(self) -> int:
        """`max_tokens`, or what the context leaves."""
        return min(self.sampling.max_tokens, self._room)

    @property
    def drafting_streams(self) -> tuple[tuple[Stream, float], ...]:
        """Streams that may draft the next token, and their coefficients (see `draft_route`); none where the pair is silent now."""
        if self._drafting_streams:
            now = self.next_streams
            if any(stream not in now for stream, _ in self._drafting_streams):
                return ()
        return self._drafting_streams

    def _decides(self, lookahead: list[int]) -> list[bool]:
        return super()._decides(lookahead) if self._redraw is None else self._redraw.deciding.decides(lookahead)

    def drop_lookahead(self) -> None:
        """Without drafts; streams that have read them forget them."""
        self.clear_drafts()
        self.rewind()

    def undo_step(self) -> None:
        """Drafts go with the evaluation that they were made for."""
        self.clear_drafts()
        if self._closing is not None:
            self._closing.rewind(len(self.output_ids))
        super().undo_step()

    def clear_drafts(self) -> None:
        """Forget the drafts of the last step."""
        self.drafts = []
        self._unread = []
        self.drafted_by = None
        self._kept.clear()

    @property
    def needs_drafts_read(self) -> bool:
        """What may come next depends on the drafts in ways that are computed on the host."""
        reads_text = self.request.steering.reads_text or self._redraw is not None
        return reads_text or self.grammar is not None or needs_penalties(self.sampling)

    @property
    def narrows(self) -> bool:
        """Whether something forbids tokens behind the composition, so that what is plausible is to be found among the others."""
        return self.grammar is not None or bool(self.sampling.logit_bias)

    def add_unread_draft(self, token_id: Tensor) -> None:
        """Draft a token, `[]`, whose value the host does not know before `read_drafts`."""
        assert len(self._unread) == len(self.drafts), "a step's drafts are all read or all unread"
        self._unread.append(token_id)
        self.drafts.append(PLACEHOLDER)

    @property
    def unread(self) -> Tensor | None:
        """Drafts that are still to be read, `[num_drafts]` on the device."""
        return torch.stack(self._unread) if self._unread else None

    def read_drafts(self, drafts: list[int]) -> None:
        """Learn the values of the drafts."""
        assert len(drafts) == len(self.drafts), "every draft has a value"
        self.drafts, self._unread = drafts, []

    def keep_row(self, stream: Stream, logprobs: Tensor, normaliser: Tensor) -> None:
        """Keep what `stream` predicted while drafting; it is a member's part of the target at that position."""
        self._kept.setdefault(stream, []).append((logprobs, normaliser))

    def drop_row(self, stream: Stream) -> None:
        """Forget the newest row, behind which nothing was drafted; a copy's was not kept."""
        if stream in self._kept:
            self._kept[stream].pop()
        stream.rewind([*self.output_ids, *self.drafts])

    def kept_rows(self, stream: Stream) -> list[tuple[Tensor, Tensor]]:
        """See `keep_row`."""
        return self._kept.get(stream, [])

    def lookahead(self) -> list[int]:
        """The drafts."""
        return self.drafts

    # ---- grammar -------------------------------------------------------------------------------------------------------

    def grammar_masks(self) -> list[bytes]:
        """What may come at the next position and behind each draft (see `GrammarState.masks`)."""
        assert self.grammar is not None, "only sequences with a grammar have masks"
        return self.grammar.masks(self.drafts)

    def in_time(self, token_ids: list[int]) -> list[int]:
        """The target's tokens behind 0, 1, ... drafts, as they are unless closing was asked for. Then each is replaced where the
        grammar's sentence could not be ended behind it, up to the first that is not the next draft.
        """
        if self._closing is None:
            return token_ids
        left = self.max_output_len - len(self.output_ids)
        chosen: list[int] = []
        for offset, token_id in enumerate(token_ids):
            chosen.append(self._closing.choose(token_id, remaining=left - offset))
            if self.drafts[offset : offset + 1] != chosen[-1:] or chosen[-1] in self._stop_ids:
                break
        return chosen

    # ---- verification --------------------------------------------------------------------------------------------------

    def race_times(self, offset: int, width: int, device: torch.device) -> Tensor | None:
        """What decides the token `offset` positions after the committed ones, for the draft and for the target; see
        `races.race_times`. None for greedy decoding.
        """
        if self.sampling.temperature == 0.0:
            return None
        if offset not in self._race_times:
            position = len(self.output_ids) + offset
            self._race_times[offset] = race_times(self._seed, position, width, salt=self._salt, device=device)
        return self._race_times[offset]

    def history_after(self, num_drafts: int) -> History:
        """What penalties see when the first `num_drafts` drafts are taken for granted."""
        drafts = self.drafts[:num_drafts]
        return History(self._prompt_ids, self._counts + Counter(drafts) if drafts else self._counts)

    def num_verified(self, token_ids: list[int]) -> int:
        """How many of the target's `token_ids` count: those whose drafts before them were all right, so one more than drafts
        accepted.
        """
        accepted = 0
        while accepted < min(len(self.drafts), len(token_ids) - 1) and self.drafts[accepted] == token_ids[accepted]:
            accepted += 1
        return accepted + 1

    def commit(self, token_ids: list[int], logprobs: list[TokenLogprobs | None], steered: list[bool]) -> None:
        """Take verified tokens: emit what became certain, finish if one of them ends the text, rewind the streams. `steered` says
        of each whether some weight was not 0 when it was drawn.
        """
        self.num_steps += 1
        if self.drafts:
            self.num_drafted += len(self.drafts)
            self.num_accepted += len(token_ids) - 1
            self.last_drafted_at = len(self.output_ids) + len(token_ids)
            if self.drafted_by is not None:
                self.drafted_by.note(len(self.drafts), len(token_ids) - 1)
        if self.found is not None:
            self._judge_found(*self.found, token_ids)
        if self.lookup is not None:
            self.lookup.extend(token_ids)
        self._race_times.clear()
        for token_id, own, is_steered in zip(token_ids, logprobs, steered, strict=True):
            self._steered.append(is_steered)
            if not self._append(token_id, own):
                break
        self.rewind()

    def _judge_found(self, acceptance: Acceptance, found: list[int], token_ids: list[int]) -> None:
        """Learn from tokens that came whether what was found would have been right, where another one drafted."""
        self.found = None
        if acceptance is not self.drafted_by:
            judged = min(len(found), len(token_ids))
            right = next((place for place in range(judged) if found[place] != token_ids[place]), judged)
            acceptance.note(judged, right)

    def _append(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """Take a token. False where what was drawn behind it does not count."""
        self.output_ids.append(token_id)
        self._counts[token_id] += 1
        self._room -= self._more_than_one(token_id)
        self.request.steering.commit(token_id)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        full = len(self.output_ids) >= self.max_output_len
        ended = token_id in self._stop_ids
        complete = False
        if self.grammar is not None and not ended:
            self.grammar.commit(token_id)
            complete = self.grammar.is_complete or (full and self.grammar.is_accepting)
        piece = self._answer.add(token_id, is_end=ended, is_last=full or complete)
        stop_reason: str | int | None = piece.stop
        if stop_reason is None and ended:
            stop_reason = token_id
        stopped = complete or stop_reason is not None
        finish_reason: FinishReason | None = "stop" if stopped else "length" if full else None
        if self._redraw is not None and self._redraw.deciding.commit(token_id, is_last=bool(finish_reason)) == "words":
            self._draw_anew()
            return False
        is_told = not self._is_open
        for _ in range(1 + len(self._held_back) if is_told else 0):
            self.clock.token()
        self._text.append(piece.text)
        self.finished = finish_reason is not None
        if self.finished:
            self.count("finished")
        self._held_back.append(
            GenerationDelta(
                text_delta=piece.text,
                token_ids=(token_id,),
                logprobs=(logprobs,) if logprobs else (),
                finish_reason=finish_reason,
                output=self._output(finish_reason, stop_reason) if finish_reason else None,
                progress=Progress(len(self.output_ids), self.num_drafted, self.num_accepted),
            )
        )
        if is_told:
            for delta in self._held_back:
                self.request.emit(delta)
            self._held_back.clear()
        return not self.finished

    def _more_than_one(self, token_id: int) -> int:
        """Places that a token takes in the longest stream, beyond one."""
        return max(len(stream.spelling.get(token_id, (token_id,))) for stream in self.streams) - 1

    @property
    def _is_open(self) -> bool:
        """Whether it is open if the newest token is part of a call; of a thought it is not."""
        if self._redraw is None:
            return False
        deciding = self._redraw.deciding
        return deciding.verdict is None and not deciding.is_thinking and len(self.output_ids) != deciding.start

    def _draw_anew(self) -> None:
        """The text is no call: what was held back is dropped, and drawn under the request's own weights."""
        assert self._redraw is not None, "only a text that may be a call is drawn anew"
        start = self._redraw.deciding.start
        self._num_redrawn = len(self.output_ids) - start
        for token_id in self.output_ids[start:]:
            self._room += self._more_than_one(token_id)
        self.grammar, self._closing = self._redraw.grammar, self._redraw.closing
        self._salt = SALT_REDRAWN
        del self.output_ids[start:], self._text[start:], self._logprobs[start:], self._steered[start:]
        self._held_back.clear()
        self._counts = Counter(self.output_ids)
        self._answer = self._new_answer()
        for place, token_id in enumerate(self.output_ids):
            self._answer.add(token_id, is_end=False, is_last=False)
            if self.grammar is not None:
                self.grammar.commit(token_id)
            if self._closing is not None:
                self._closing.choose(token_id, remaining=self.max_output_len - place)
        self.request.steering.restart(self.output_ids)
        if self.lookup is not None:
            self.lookup = self._new_lookup()
            self.lookup.extend(self.output_ids)
        self.last_drafted_at = start

    def _output(self, finish_reason: FinishReason, stop_reason: str | int | None) -> RequestOutput:
        request = self.request
        return RequestOutput(
            request_id=request.request_id,
            text="".join(self._text),
            token_ids=tuple(self.output_ids),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            usage=self.usage,
            metrics=self.clock.metrics(
                {name: self.num_forwards[name] for name in request.member_names},
                num_drafted=self.num_drafted,
                num_accepted=self.num_accepted,
                num_steps=self.num_steps,
                num_redrawn=self._num_redrawn,
            ),
            reward_weights=dict(request.weights),
            intervention_rate=sum(self._steered) / len(self.output_ids),
            logprobs=tuple(self._logprobs) if self.sampling.logprobs is not None else None,
            closed_within_budget=self._closing is not None and self._closing.was_steered(len(self.output_ids)),
        )


class ScoringSequence(Sequence):
    """Reads the log-probabilities of a given completion."""

    def __init__(self, request: Request, *, completion_ids: tuple[int, ...], num_top: int = 0) -> None:
        super().__init__(request)
        self.completion_ids = completion_ids
        self.num_top = num_top
        self._block_len = SCORE_BLOCK_LEN
        self._scores: list[TokenScore] = []

    @property
    def max_output_len(self) -> int:
        """The completion's length."""
        return len(self.completion_ids)

    def share(self, num_scoring: int) -> None:
        """In the next step so many requests score together."""
        self._block_len = max(1, min(SCORE_BLOCK_LEN, SCORE_STEP_LEN // num_scoring))

    def lookahead(self) -> list[int]:
        """The next tokens of the completion. Its last token is predicted and never fed."""
        done = len(self.output_ids)
        return self.draftable(
            list(self.completion_ids[done : min(done + self._block_len, len(self.completion_ids)) - 1])
        )

    def drop_lookahead(self) -> None:
        """The next evaluation scores one token."""
        self._block_len = 1

    def next_ids(self) -> list[int]:
        """The tokens that the next evaluation scores, one more than `lookahead`."""
        done = len(self.output_ids)
        return list(self.completion_ids[done : done + 1 + len(self.lookahead())])

    def extend(self, scores: list[TokenScore]) -> None:
        """Take the scores of `next_ids`; emit all of them at the end."""
        for score in scores:
            self.output_ids.append(score.token_id)
            self.request.steering.commit(score.token_id)
        self._scores += scores
        self.num_steps += 1
        self.rewind()
        if len(self.output_ids) == len(self.completion_ids):
            self.finished = True
            self.count("finished")
            self.request.emit(ScoreOutput(tuple(self._scores), dict(self.request.weights)))
