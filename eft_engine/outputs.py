"""What a caller gets back. Plain frozen data, no torch: every object can be kept, compared and serialised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from eft_engine.weights import Weight

FinishReason = Literal["stop", "length"]
"""`stop`: an end-of-sequence token, a stop token, a stop string or the end of a grammar's sentence; `length`: max_tokens or the
context was reached before.
"""


@dataclass(frozen=True)
class Usage:
    """Token counts of one request. `prompt_tokens` is the longest prompt among the members that ran, `cached_prompt_tokens` the
    part that no member had to read, because it was in the cache. `reasoning_tokens` are the completion tokens of a thought, its
    markers included; an engine knows no thoughts and says 0, whoever reads chats counts them.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class RequestMetrics:
    """Where the time of one request went, in seconds of wall clock, and what it cost in forward passes."""

    queue_s: float
    """From submission until the first step that worked on the request."""
    ttft_s: float
    """Time to first token: from submission until the first generated token."""
    tpot_s: float
    """Time per output token after the first; 0 for a single token."""
    total_s: float
    """From submission to the last token."""
    num_forwards: Mapping[str, int]
    """Forward passes in which a member took part for this request, by member name. A member that was not needed has 0, as has
    one that another member's pass stands for (a reference that is the base)."""
    num_drafted: int = 0
    """Tokens that were drafted and verified."""
    num_accepted: int = 0
    """Drafted tokens that became part of the text."""
    num_steps: int = 0
    """Evaluations; without drafting as many as there are tokens."""
    num_redrawn: int = 0
    """Tokens that were drawn to find out whether the text is a call, and were thrown away as it is none; no part of the text."""

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second after the first token; 0 when there was only one."""
        return 1.0 / self.tpot_s if self.tpot_s > 0 else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted; 0 when nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per evaluation: 1 + accepted / steps."""
        return 1.0 + self.num_accepted / self.num_steps if self.num_steps else 0.0


@dataclass(frozen=True)
class NetworkStats:
    """What one network has done since the engine was made."""

    members: tuple[str, ...]
    """The members that it stands for."""
    num_forwards: int
    num_tokens: int
    """Tokens that went through it, padding included."""
    host_s: float
    """Seconds that the engine's thread spent in its forward passes; on an accelerator only the time to queue them."""
    kv_cache_bytes: int


@dataclass(frozen=True)
class EngineStats:
    """State and totals of an engine; the totals only grow."""

    num_running: int
    num_waiting: int
    num_warm_prefixes: int
    """Conversations of which the cache keeps what at least one network has read."""
    num_finished: int
    num_failed: int
    num_cancelled: int
    prompt_tokens: int
    """Of the requests that are over, as are the other token counts."""
    cached_prompt_tokens: int
    completion_tokens: int
    num_drafted: int
    num_accepted: int
    num_steps: int
    networks: tuple[NetworkStats, ...]
    kv_cache_use: float = 0.0
    """Share of `max_kv_cache_bytes` that the caches hold. Without that bound: the positions that running requests have filled, of
    those that `max_num_seqs` texts as long as the context would fill."""

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of all key/value caches."""
        return sum(network.kv_cache_bytes for network in self.networks)

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted; 0 when nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0


@dataclass(frozen=True)
class EngineHealth:
    """Whether an engine answers, and how long it has worked without getting anywhere.

    A pass over one network is the smallest unit of its work: a prompt is read in chunks, one pass each. So an engine hangs when it
    has had work for longer than its longest pass takes and none has ended.
    """

    is_closed: bool
    failure: str | None
    """Why it can answer nothing any more: its thread has ended, or what it computes with is lost. None: it can."""
    num_in_hand: int
    """Requests that run and wait."""
    step_s: float | None
    """Seconds since the step began that runs now; None: between steps, or nothing to do."""
    seconds_since_progress: float
    """Seconds since the last pass of a network ended or the work at hand began, whichever is later; 0: there is nothing to do."""

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests and works on them."""
        return not self.is_closed and self.failure is None


@dataclass(frozen=True)
class TopToken:
    """One alternative at a position; `token` is its text, `logprob` natural log under the composed distribution, `utf8` as for
    `TokenLogprobs`.
    """

    token_id: int
    token: str
    logprob: float
    utf8: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities (natural log, temperature 1, before penalties and filters) of one generated token.

    `members` holds the token's log-probability under every member that ran, by member name. `utf8` are the token's bytes: those
    of all tokens joined are the text in UTF-8, also where a character is split over tokens. None: a control token, or not known.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[TopToken, ...]
    members: Mapping[str, float]
    utf8: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Progress:
    """How far a request is: tokens that are written, and drafted and accepted ones as in `RequestMetrics`. The drafts are those of
    the evaluation that wrote the last token, too.
    """

    num_tokens: int
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(frozen=True)
class GenerationDelta:
    """One piece of a stream. The last piece carries `finish_reason` and the finished `output`."""

    text_delta: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None
    progress: Progress | None = None
    """None where nobody counts."""


@dataclass(frozen=True)
class RequestOutput:
    """The answer to one request.

    `text` is without special tokens and without the stop string; `token_ids` are all generated ids, an end-of-sequence id
    included. `stop_reason` is the stop string or the token id that ended the text, None for `length`.
    `reward_weights` are the weights that were in effect, by pair name: numbers, or the rules that gave every token its own.
    `intervention_rate` is the share of tokens that were drawn with some weight other than 0: of all others the base alone decided.
    `closed_within_budget`: the text is a sentence of its
    grammar only because the budget was running out (`SamplingParams.close_within_budget`); some token is not the model's.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    usage: Usage
    metrics: RequestMetrics
    reward_weights: Mapping[str, Weight]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    closed_within_budget: bool = False
    intervention_rate: float = 0.0


@dataclass(frozen=True)
class TextToken:
    """A token of a text; `token` and `utf8` as for `TokenLogprobs`."""

    token_id: int
    token: str
    utf8: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PairScore:
    """One pair's view of one token: natural-log probabilities and the implicit reward `tuned - reference`.

    Of a prompt pair `tuned` is the positive side and `reference` the negative one; a term has no reference.
    """

    tuned: float
    reference: float | None = None

    @property
    def delta(self) -> float:
        """The implicit reward of the token (Rafailov et al. 2023; equation 3 of Mitchell et al. 2023, without its scale).

        0 for a token that the reference cannot write: it says nothing about it, as in the composition. Of a term, what it gives.
        """
        if self.reference is None:
            return self.tuned
        return 0.0 if self.reference == -math.inf else self.tuned - self.reference


@dataclass(frozen=True)
class TokenScore:
    """One scored token: natural-log probability under the base, each pair and the composition; `utf8` as for `TokenLogprobs`.

    `is_greedy`: no token is more probable under the composition. `top` are the most probable ones, as many as were asked for.
    `weights` are those at this position, by pair, and `is_base_greedy`: the base would write it too.
    """

    token_id: int
    token: str
    base: float
    composed: float
    pairs: Mapping[str, PairScore]
    utf8: tuple[int, ...] | None = None
    is_greedy: bool = False
    top: tuple[TopToken, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    is_base_greedy: bool = False

    @property
    def is_steered(self) -> bool:
        """Whether some weight is not 0 here."""
        return any(self.weights.values())


@dataclass(frozen=True)
class ScoreOutput:
    """Scores of a completion, token by token, and their sums."""

    tokens: tuple[TokenScore, ...]
    reward_weights: Mapping[str, Weight]

    @property
    def intervention_rate(self) -> float:
        """Share of tokens at which some weight is not 0."""
        return sum(token.is_steered for token in self.tokens) / max(1, len(self.tokens))

    @property
    def base(self) -> float:
        """Log-probability of the whole completion under the base."""
        return sum(token.base for token in self.tokens)

    @property
    def composed(self) -> float:
        """Log-probability of the whole completion under the composition."""
        return sum(token.composed for token in self.tokens)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would write this completion."""
        return all(token.is_greedy for token in self.tokens)

    def reward(self, pair: str) -> float:
        """Implicit reward of the whole completion under `pair`: sum of `tuned - reference`."""
        return sum(token.pairs[pair].delta for token in self.tokens)


@dataclass(frozen=True)
class MemberReport:
    """One member as it is (or would be) loaded.

    `network` names the set of weights; members with the same `network` share them. `parameter_bytes` counts that network once;
    `adapter_bytes` is what this member adds to it.
    """

    name: str
    source: str
    adapter: str | None
    network: str
    architecture: str
    num_parameters: int
    parameter_bytes: int
    adapter_bytes: int
    logits_width: int
    context_len: int
    dtype: str
    """Type of the weights as they are held: a dtype, how they are packed (`4-bit (gptq)`), or that of a .gguf file (Q4_K_M)."""
    runtime: str = "torch"
    """Who computes: torch or llama.cpp."""
    is_mapped: bool = False
    """The weights stay in the file, which is mapped: `parameter_bytes` of it, as much as is used in memory, shared by processes."""
    left_out_bytes: int = 0
    """Bytes of parts of a multimodal checkpoint that text never uses, as of its images: not read, and not in `parameter_bytes`."""
    notes: tuple[str, ...] = ()
    """Why it runs as it does."""
    adapter_notes: tuple[str, ...] = ()
    """Those of `notes` that are about its adapter."""
    why_merged: str | None = None
    """Why its adapter is inside a network of its own; None: it is switched on per row, or there is none."""
    layers: tuple[str, ...] = ()
    """Kinds of layers and how many there are of each (`"16 x sliding attention (1,024)"`); empty where a file does not tell."""
    kv_bytes_per_token: int = 0
    """Keys and values of one token in all layers."""
    state_bytes: int = 0
    """What all other layers keep of one text, however long it is."""
    unsupported: str | None = None
    """Why it cannot be run, as far as class and configuration tell; None: nothing is known against it."""


@dataclass(frozen=True)
class VocabularyReport:
    """How far the members' vocabularies agree. `kept` are tokens that only the tuned members have, by id."""

    shared_vocab_size: int
    masked_ids: tuple[int, ...]
    differences: tuple[str, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TurnEnd:
    """A token that ends a turn, as members name it.

    `token` is its text, empty where no member has one there. `named_by` says by member what of it names the token
    (`generation_config.json`, `config.json`, `tokenizer`, ...).
    """

    token_id: int
    token: str
    named_by: Mapping[str, tuple[str, ...]]
    unused: str | None = None
    """Why texts do not end there although it is named; None: they do."""


@dataclass(frozen=True)
class TrioReport:
    """All members, what they share, the vocabulary, and what ends a turn."""

    members: tuple[MemberReport, ...]
    vocabulary: VocabularyReport
    total_bytes: int
    """Bytes of all distinct weights and adapters together."""
    ends: tuple[TurnEnd, ...] = ()
    """Every token that a member names as an end of its texts."""
    warnings: tuple[str, ...] = ()
    """What loading warns about: why texts may not end where they should."""

    @property
    def mapped_bytes(self) -> int:
        """How many of them stay in mapped files."""
        return sum(own.parameter_bytes for own in self.members if own.is_mapped and own.network == own.name)
