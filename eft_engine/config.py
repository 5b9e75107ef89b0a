"""What a caller can set: small frozen objects, grouped by subject.

Unknown names, wrong types and values out of range raise `InvalidOptionError`; nothing is dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from eft_engine.call_decision import CallDecision as CallDecision
from eft_engine.call_decision import Thought as Thought
from eft_engine.errors import InvalidOptionError
from eft_engine.grammars import Grammar as Grammar
from eft_engine.grammars import JsonSchema as JsonSchema
from eft_engine.grammars import Lark as Lark
from eft_engine.grammars import Regex as Regex
from eft_engine.options import Options as Options
from eft_engine.prompt_pairs import PromptPair as PromptPair
from eft_engine.prompt_pairs import Without as Without
from eft_engine.prompts import ChatTemplate as ChatTemplate
from eft_engine.prompts import Messages as Messages
from eft_engine.prompts import PlainText as PlainText
from eft_engine.prompts import Prompt as Prompt
from eft_engine.prompts import PromptOptions as PromptOptions
from eft_engine.prompts import Rendering as Rendering
from eft_engine.prompts import TokenIds as TokenIds
from eft_engine.prompts import Verbatim as Verbatim
from eft_engine.weights import RewardWeights as RewardWeights
from eft_engine.weights import Weight as Weight
from eft_engine.weights import resolve_weights as resolve_weights

MAX_FLOAT32 = 3.4e38
"""Scores are float32: what is added to one must not turn into +inf there."""


def _as_stop_list(value: object) -> object:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


Runtime = Literal["auto", "torch", "llama.cpp"]
"""Who computes a network: `auto` takes llama.cpp for a .gguf file where llama-cpp-python is installed, and torch for all else."""

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""How llama.cpp holds keys or values; the quantised ones need flash attention."""


class LlamaCppOptions(Options):
    """How llama.cpp holds and computes a network. What is None is decided at loading, and `eft inspect` tells it."""

    n_gpu_layers: int | None = Field(
        default=None, ge=-1, description="layers held on a GPU; -1: all; None: all where llama.cpp was built for a GPU"
    )
    n_threads: int | None = Field(
        default=None, ge=1, le=512, description="threads for steps of few tokens; None: as many as torch takes"
    )
    n_threads_batch: int | None = Field(
        default=None, ge=1, le=512, description="threads for prompts; None: `n_threads`"
    )
    n_ctx: int = Field(
        default=2048,
        ge=256,
        description="tokens that all requests together have room for at the start; the room grows when it is full",
    )
    n_ubatch: int = Field(default=512, ge=32, le=4096, description="most tokens computed at a time")
    cache_type_k: CacheType = Field(default="f16", description="type of the keys in memory")
    cache_type_v: CacheType = Field(default="f16", description="type of the values in memory")
    flash_attention: bool | None = Field(default=None, description="None: where llama.cpp has it for this network")
    use_mmap: bool = Field(
        default=True,
        description="map the file instead of reading it: it is ready sooner, and processes share its memory",
    )
    repack: bool = Field(
        default=True,
        description="on a CPU: copy k-quant matrices into another order, which makes single tokens faster and prompts slower",
    )
    check_tensors: bool = Field(default=True, description="look for values that are not finite while the file is read")


Quantization = Literal["none", "int8", "int4"]
"""How weights are rounded while they are loaded."""


class MemberConfig(Options):
    """Where one member comes from and how it is held.

    A plain string is short for `MemberConfig(source=string)`. As `tuned`, a folder or hub id that holds a PEFT adapter
    is short for the pair's reference with that adapter on top.
    """

    source: str = Field(
        description="hub id, folder, or .gguf file (on a hub: organisation/model/file.gguf)", min_length=1
    )
    adapter: str | None = Field(
        default=None, description="folder or hub id of a PEFT adapter to put on top of `source`, or a .gguf adapter"
    )
    merge: bool | None = Field(
        default=None,
        description="hold a network of its own with the adapter merged into it; None: where it cannot share one with members "
        "that lack it; False: refuse it then",
    )
    gguf_file: str | None = Field(
        default=None, description="name of the .gguf file inside the folder or hub repository"
    )
    tokenizer: str | None = Field(
        default=None, description="folder or hub id of the tokenizer, where it lies elsewhere"
    )
    revision: str | None = Field(default=None, description="hub branch, tag or commit")
    dtype: str | None = Field(default=None, description="float32, bfloat16, float16 or auto; None: the engine's")
    device: str | None = Field(default=None, description="cpu, cuda, cuda:1, ...; None: the engine's")
    device_map: str | dict[str, Any] | None = Field(
        default=None, description="passed to transformers; spreads one member"
    )
    quantization_config: Any = Field(
        default=None, description="a transformers quantisation config object, passed through"
    )
    quantization: Quantization | None = Field(
        default=None, description="none, int8 or int4: round its weights while loading, on a CPU; None: the engine's"
    )
    trust_remote_code: bool = Field(default=False, description="run modelling code shipped with the checkpoint")
    runtime: Runtime | None = Field(default=None, description="auto, torch or llama.cpp; None: the engine's")
    llama_cpp: LlamaCppOptions | None = Field(
        default=None, description="how llama.cpp runs it (threads, layers on a GPU, ...); None: the engine's"
    )
    tensor_parallel: bool = Field(
        default=False,
        description="split every layer over all processes of torchrun; see docs/tensor_parallel.md",
    )

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        return value if value is None else _check_dtype(value)

    @field_validator("tensor_parallel")
    @classmethod
    def _placed_once(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("device_map") is not None:
            raise ValueError("places the network by itself, so it excludes device_map")
        return value


def _check_dtype(value: str) -> str:
    known = ("auto", "float32", "bfloat16", "float16")
    if value not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return value


def _as_member(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


Member = Annotated[MemberConfig, BeforeValidator(_as_member)]


class TunedPair(Options):
    """One behaviour: a small model after (`tuned`) and before (`reference`) fine-tuning, and its default weight.

    Weight 0 leaves the behaviour out, 1 is up-scaling, in between is a trade-off, above 1 exaggerates; a schedule gives every token
    a weight of its own. **A negative weight pushes the base away from the tuned behaviour; with a safety-tuned pair that undoes the
    safety tuning ("emulated disalignment"). It is allowed because research needs it; do not let untrusted callers choose weights.**
    """

    tuned: Member
    reference: Member
    weight: Weight = Field(default=1.0, description="default weight of the behaviour; finite, may be negative")

    def __init__(
        self, tuned: str | MemberConfig, reference: str | MemberConfig, weight: Weight = 1.0, **unknown: Any
    ) -> None:
        super().__init__(tuned=tuned, reference=reference, weight=weight, **unknown)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class Term(Options):
    """A pair without a reference: `weight` times the log-probabilities of one model are added to the composition.

    What a model trained as a reward needs (GenARM, Xu et al. 2024, arXiv 2410.08193; portable reward tuning, 2025, arXiv
    2502.12776), and any linear form is made of: the base itself as a term changes the base's own coefficient, and two terms with
    weights of opposite signs are a pair. Its member is called like a pair's tuned model, `<name>.tuned`.
    """

    model: Member
    weight: Weight = Field(default=1.0, description="coefficient of the model; finite, may be negative")

    def __init__(self, model: str | MemberConfig, weight: Weight = 1.0, **unknown: Any) -> None:
        super().__init__(model=model, weight=weight, **unknown)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @property
    def tuned(self) -> MemberConfig:
        """The model, by the name that a pair has for it."""
        return self.model

    @property
    def reference(self) -> None:
        """There is none."""
        return None


Pair = TunedPair | Term
"""What changes a base, held for all calls; `PromptPair` is given with a call."""


SINGLE_PAIR = "tuned"
"""Name of the pair that `--tuned` and `--reference` make."""


def parse_pairs(
    texts: Sequence[str] = (),
    *,
    tuned: str | None = None,
    reference: str | None = None,
    terms: Sequence[str] = (),
) -> dict[str, Pair]:
    """The pairs that options of a command name: `--pair NAME=TUNED,REFERENCE`, several times, `--tuned` with `--reference`, and
    `--term NAME=MODEL`, several times.

    Their weights are 1; `--weight` is an option of its own.

    >>> pairs = parse_pairs(["chat=a,b"], tuned="t", reference="r")
    >>> list(pairs), pairs["chat"].reference.source
    (['tuned', 'chat'], 'b')
    >>> parse_pairs(terms=["safe=reward-model"])["safe"].model.source
    'reward-model'

    Raises:
        InvalidOptionError: one of `--tuned` and `--reference` without the other, another syntax, or one name twice.
    """
    if (tuned is None) != (reference is None):
        raise InvalidOptionError("--tuned and --reference belong together; give both", option="tuned")
    pairs: dict[str, Pair] = {}
    if tuned is not None and reference is not None:
        pairs[SINGLE_PAIR] = TunedPair(tuned, reference)
    for text in texts:
        name, _, models = text.partition("=")
        sources = [source.strip() for source in models.split(",")]
        name = name.strip()
        if not name or len(sources) != 2 or not all(sources):
            raise InvalidOptionError(
                f"--pair must be NAME=TUNED,REFERENCE, got {text!r} (its weight is another option: --weight NAME=NUMBER)",
                option="pair",
                value=text,
            )
        if name in pairs:
            also = " (--tuned and --reference make a pair of this name)" if name == SINGLE_PAIR and tuned else ""
            raise InvalidOptionError(f"--pair: two pairs are called {name!r}{also}", option="pair", value=text)
        pairs[name] = TunedPair(sources[0], sources[1])
    for text in terms:
        name, _, model = (part.strip() for part in text.partition("="))
        if not name or not model or "," in model:
            raise InvalidOptionError(
                f"--term must be NAME=MODEL, got {text!r} (with a reference it is --pair NAME=TUNED,REFERENCE)",
                option="term",
                value=text,
            )
        if name in pairs:
            raise InvalidOptionError(
                f"--term: {name!r} is a pair already; give it another name", option="term", value=text
            )
        pairs[name] = Term(model)
    return pairs


class SamplingParams(Options):
    """How the next token is drawn from the composed distribution, and when to stop.

    Order: penalties and logit bias, temperature, top-k, top-p, min-p; each filter sees what the one before it left
    (as the warpers of transformers do).
    """

    max_tokens: int = Field(default=256, ge=1, description="most tokens to generate")
    temperature: float = Field(
        default=1.0, ge=0.0, allow_inf_nan=False, description="0: always the most probable token"
    )
    top_k: int = Field(default=0, ge=0, description="keep the k most probable tokens; 0: all")
    top_p: float = Field(
        default=1.0, gt=0.0, le=1.0, description="keep the smallest set with at least this probability"
    )
    min_p: float = Field(
        default=0.0, ge=0.0, le=1.0, description="drop tokens below this share of the most probable one"
    )
    repetition_penalty: float = Field(
        default=1.0,
        gt=0.0,
        allow_inf_nan=False,
        description="divides positive and multiplies negative scores of seen tokens",
    )
    presence_penalty: float = Field(
        default=0.0, ge=-2.0, le=2.0, description="subtracted once per token already generated"
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2.0, le=2.0, description="subtracted per occurrence already generated"
    )
    logit_bias: dict[int, float] = Field(default_factory=dict, description="token id -> value added to its score")
    seed: int | None = Field(default=None, ge=0, lt=2**64, description="same seed, same draws, whatever else runs")
    stop: Annotated[tuple[str, ...], BeforeValidator(_as_stop_list)] = Field(
        default=(), description="strings that end the text; they are not part of it; texts of control tokens count too"
    )
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="token ids that end the text"
    )
    ignore_eos: bool = Field(default=False, description="go on after an end-of-sequence token")
    skip_special_tokens: bool = Field(default=True, description="leave control tokens out of the text")
    grammar: Grammar | None = Field(
        default=None,
        discriminator="kind",
        description="what the text must look like",
    )
    close_within_budget: bool = Field(
        default=False,
        description="bring the sentence of a grammar to an end inside max_tokens wherever that is possible; the answer says when a "
        "token was put in for that. Off: the text is cut, which shows; a JSON that was closed looks whole",
    )
    logprobs: int | None = Field(
        default=None, ge=0, le=100, description="report log-probabilities with this many alternatives; None: do not"
    )

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text for text in value):
            raise ValueError("a stop string must not be empty")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _usable_bias(cls, value: dict[int, float]) -> dict[int, float]:
        for token_id, bias in value.items():
            if token_id < 0 or math.isnan(bias) or bias > MAX_FLOAT32:
                raise ValueError(
                    f"token id {token_id} with bias {bias} is not usable (ids from 0, no NaN, no +inf; -inf forbids)"
                )
        return value


class CompositionOptions(Options):
    """Variants of the composition formula, and what a call adds to it (docs/composition.md)."""

    amplification: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="coefficient b on the up-scaling direction: tuned + b * (base - reference) (Mitchell et al. 2023, 3.3)",
    )
    conservative_top_p: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="outside the nuclei of all tuned models their own probability is kept (Mitchell et al. 2023, 4.3); None: off",
    )
    min_plausibility: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="keep what the base gives at least this share of its best token (contrastive decoding, Li et al. 2022, arXiv "
        "2210.15097); 0: keep all",
    )
    tuned_plausibility: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="beyond weight 1 lift no token further that the tuned model gives less than this share of its best token: its "
        "positive difference tuned - reference counts with weight 1; 0: lift all",
    )
    prompt_pairs: Mapping[str, PromptPair] = Field(
        default_factory=dict, max_length=16, description="prompts as pairs, by name; `reward_weights` may name them"
    )
    call_decision: CallDecision | None = Field(
        default=None, description="weights of their own for whether and what a text calls; None: those of the request"
    )
    member: str | None = Field(
        default=None,
        description="the answer of one member alone, as it is: base, NAME.tuned or NAME.reference; None: the composition",
    )

    @field_validator("prompt_pairs")
    @classmethod
    def _named(cls, value: Mapping[str, PromptPair]) -> Mapping[str, PromptPair]:
        for name in value:
            if not name or "." in name:
                raise ValueError(f"a pair's name must not be empty or contain a dot, got {name!r}")
        return value

    @model_validator(mode="after")
    def _alone(self) -> CompositionOptions:
        idle = [name for name in self.model_dump(exclude_defaults=True) if name != "member"]
        if self.member is not None and idle:
            raise ValueError(
                f"member {self.member!r} answers alone, so that {', '.join(idle)} would do nothing; leave them out"
            )
        return self


class SpeculationOptions(Options):
    """Drafting: tokens are guessed cheaply and verified together. It changes the speed, not the distribution.

    Every drafted token is compared with the token that the composed distribution gives for the same seed and position, so the
    text is that of plain decoding, whatever drafts, at any temperature. Where a network rounds sums of several tokens otherwise
    than those of one (torch in half precision, llama.cpp), that holds up to this rounding: two tokens that are nearly as probable
    may change places. Networks of the kernels for a CPU never do that.
    """

    drafter: Literal["auto", "tuned", "prompt_lookup", "none"] = Field(
        default="auto", description="who guesses: the tuned model, n-grams of prompt and output, both (auto), nobody"
    )
    max_draft_tokens: int = Field(default=8, ge=1, le=64, description="most tokens drafted per step")
    adaptive: bool = Field(
        default=True,
        description="draft as many as measured acceptance, the drafter's confidence and times justify, down to none; off: always "
        "the most",
    )
    min_confidence: float = Field(
        default=0.3,
        ge=0.0,
        le=1.0,
        description="the tuned model stops drafting after a token it gives less probability",
    )
    min_ngram_size: int = Field(default=3, ge=1, description="shortest n-gram that prompt lookup matches")
    max_ngram_size: int = Field(
        default=6, ge=1, validate_default=True, description="longest n-gram that prompt lookup matches"
    )

    @field_validator("max_ngram_size")
    @classmethod
    def _ordered(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("min_ngram_size", 1):
            raise ValueError("must not be smaller than min_ngram_size")
        return value


class EngineConfig(Options):
    """How members are held and how the engine steps."""

    dtype: str = Field(
        default="auto",
        description="float32, bfloat16, float16, or auto: the checkpoint's own; bfloat16 for .gguf files where that is fast",
    )
    quantization: Quantization = Field(
        default="none",
        description="on a CPU: round weights to int8 or int4 while loading (groups of 32, as llama.cpp's Q8_0 and Q4_1; the output "
        "layer never below int8); needs cpu_kernels. Elsewhere a member's quantization_config does it",
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, ..., or auto: a GPU when there is one")
    runtime: Runtime = Field(
        default="auto",
        description="who computes networks: torch, llama.cpp, or auto: llama.cpp for .gguf files where it is installed",
    )
    llama_cpp: LlamaCppOptions = Field(
        default_factory=LlamaCppOptions, description="how llama.cpp runs networks, unless a member has its own"
    )
    max_num_seqs: int = Field(
        default=16, ge=1, description="most requests that step together; the others wait in order"
    )
    max_context_len: int | None = Field(
        default=None, ge=2, description="cap on prompt + output tokens; None: the models'"
    )
    prefill_chunk_len: int = Field(
        default=512, ge=8, description="most prompt tokens read per step, so streams do not stall"
    )
    max_warm_prefixes: int = Field(
        default=16,
        ge=0,
        description="conversations kept in the cache, each in all networks that it ran, so that it goes on where it ended",
    )
    max_kv_cache_bytes: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="budget of all key/value caches; a request waits until what it may need fits, and conversations that are kept "
        "warm give way, the oldest first. auto: what is free once everything is loaded, less a tenth and the work of the largest "
        "step; None: no budget",
    )
    max_queued_requests: int | None = Field(
        default=None,
        ge=1,
        description="most requests that wait; a call that would exceed it is refused; None: no limit",
    )
    mismatched_tokens: Literal["refuse", "mask"] = Field(
        default="refuse",
        description="ids that mean different tokens: refuse the trio, or never generate them (at most 1 %)",
    )
    tuned_only_tokens: Literal["refuse", "keep"] = Field(
        default="refuse",
        description="tokens that all tuned models have and others lack: never generate them, and refuse the trio if one of them "
        "ends a turn; or keep the tuned models' own probability of them",
    )
    speculation: SpeculationOptions = Field(
        default_factory=SpeculationOptions, description="drafting, unless a call has its own"
    )
    deterministic: bool = Field(
        default=False,
        description="refuse networks whose rows depend on what is computed beside them, so that a text is a function of request "
        "and seed alone: in any batch, however drafted, cached or cut, in every process on one kind of machine",
    )
    draft_history_tokens: int = Field(
        default=2**15,
        ge=0,
        description="tokens of earlier texts of the engine from which prompt lookup drafts too, where drafts cannot change a bit; "
        "0: none, where one caller must not learn from another's speed",
    )
    draft_quantization: Quantization | None = Field(
        default=None,
        description="with the kernels for a CPU: what a copy of a tuned model is rounded to that drafts in its place, over its "
        "keys and values; none: it drafts itself; None: int4 from 100 million parameters on, where it is not the base's network "
        "and memory allows it. No text follows it",
    )
    cuda_graphs: bool = Field(
        default=True, description="on a GPU: record forward passes of few tokens as CUDA graphs and replay them"
    )
    cpu_kernels: bool | None = Field(
        default=None,
        description="on a CPU: compute families that they know by kernels of our own, compiled for this processor when they are "
        "first needed; False: by torch; None: where they are faster, which is measured once per machine",
    )
    attention: Literal["sdpa", "flash"] = Field(
        default="sdpa",
        description="who computes attention: torch, or the flash-attn package (GPU, half precision)",
    )
    tensor_parallel_timeout_s: float = Field(
        default=60.0,
        gt=0.0,
        allow_inf_nan=False,
        description="longest wait for another process of a tensor-parallel network before it counts as lost",
    )
    self_check: bool = Field(
        default=True,
        description="try each network when it is loaded, beyond its windows and with drafts taken back, and compare with its own "
        "forward pass",
    )
    show_progress: bool | None = Field(
        default=None, description="show what is being loaded; None: when stderr is a terminal"
    )

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        return _check_dtype(value)
