"""What a caller can set: small frozen objects, grouped by subject.

Unknown names, wrong types and values out of range raise `InvalidOptionError`; nothing is dropped in silence.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from eft_engine.errors import InvalidOptionError, InvalidWeightError, UnknownPairError

RewardWeights = float | Mapping[str, float] | None
"""A number for every pair, a mapping by pair name (pairs not named keep their own weight), or None (own weights)."""

MAX_FLOAT32 = 3.4e38
"""Scores are float32: what is added to one must not turn into +inf there."""


class Options(BaseModel):
    """Base of all option objects: frozen, unknown names refused, errors typed."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, ser_json_inf_nan="strings")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise error.errors()[0]["ctx"]["error"].meaning from None

    # Like pydantic's own: options inside another model are validated as a part of it, whose error then names both.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="wrap")
    @classmethod
    def _told_in_words(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            raise _Refusal(_as_option_error(cls, error)) from None


class _Refusal(ValueError):
    """What pydantic is told of wrong options; it takes a ValueError for a finding."""

    def __init__(self, meaning: InvalidOptionError) -> None:
        super().__init__(str(meaning))
        self.meaning = meaning


def _as_option_error(options: type[BaseModel], error: ValidationError) -> InvalidOptionError:
    """The first finding of pydantic, in our words and with a suggestion for a misspelt name."""
    finding = error.errors()[0]
    option = ".".join(str(part) for part in finding["loc"])
    value = finding["input"]
    if finding["type"] == "extra_forbidden":
        known = list(options.model_fields)
        close = difflib.get_close_matches(option, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known options: {', '.join(known)}"
        message = f"{options.__name__} has no option {option!r} (value {value!r}); {hint}"
    else:
        reason = finding["msg"].removeprefix("Value error, ")
        message = f"{options.__name__}.{option}: {reason}; got {value!r}"
    return InvalidOptionError(message, option=option, value=value)


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

    Weight 0 leaves the behaviour out, 1 is up-scaling, in between is a trade-off, above 1 exaggerates. **A negative weight
    pushes the base away from the tuned behaviour; with a safety-tuned pair that undoes the safety tuning ("emulated
    disalignment"). It is allowed because research needs it; do not let untrusted callers choose weights.**
    """

    tuned: Member
    reference: Member
    weight: float = Field(default=1.0, description="default weight of the behaviour; finite, may be negative")

    def __init__(
        self, tuned: str | MemberConfig, reference: str | MemberConfig, weight: float = 1.0, **unknown: Any
    ) -> None:
        super().__init__(tuned=tuned, reference=reference, weight=weight, **unknown)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("weight")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return value


SINGLE_PAIR = "tuned"
"""Name of the pair that `--tuned` and `--reference` make."""


def parse_pairs(
    texts: Sequence[str] = (), *, tuned: str | None = None, reference: str | None = None
) -> dict[str, TunedPair]:
    """The pairs that options of a command name: `--pair NAME=TUNED,REFERENCE`, several times, and `--tuned` with `--reference`.

    Their weights are 1; `--weight` is an option of its own.

    >>> pairs = parse_pairs(["chat=a,b"], tuned="t", reference="r")
    >>> list(pairs), pairs["chat"].reference.source
    (['tuned', 'chat'], 'b')

    Raises:
        InvalidOptionError: one of `--tuned` and `--reference` without the other, another syntax, or one name twice.
    """
    if (tuned is None) != (reference is None):
        raise InvalidOptionError("--tuned and --reference belong together; give both", option="tuned")
    pairs: dict[str, TunedPair] = {}
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
    return pairs


class JsonSchema(Options):
    """The text is one JSON value that the schema (a mapping, JSON Schema 2020-12) accepts; `{}` accepts any."""

    kind: Literal["json_schema"] = "json_schema"
    json_schema: Mapping[str, Any] = Field(description="the schema")
    whitespace: Literal["none", "spaces", "any"] = Field(
        default="spaces",
        description="between tokens: nothing; one space after commas and colons, as most models write; whatever the model likes",
    )


class Regex(Options):
    r"""The whole text matches a regular expression (Rust's syntax, no look-around; `\\d` means any Unicode digit)."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, description="the expression")


class Lark(Options):
    """The text is a sentence of a context-free grammar in llguidance's Lark dialect, in which `%json {...}` embeds a schema."""

    kind: Literal["lark"] = "lark"
    grammar: str = Field(min_length=1, description="the grammar, with a rule named start")


Grammar = JsonSchema | Regex | Lark


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
    seed: int | None = Field(default=None, ge=0, lt=2**64, description="same seed, same text, whatever else runs")
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
    """Variants of the composition formula (Mitchell et al. 2023, section 3.3 and 4.3)."""

    amplification: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="coefficient b on the up-scaling direction: tuned part + b * (base - reference part)",
    )
    conservative_top_p: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="outside this nucleus of the tuned model its own probability is kept; None: off",
    )


class ChatTemplate(Options):
    """Render messages through a chat template: the named member's own, or the given Jinja text."""

    of: Literal["base", "tuned", "reference"] = Field(default="tuned", description="whose template")
    jinja: str | None = Field(default=None, description="template text to use instead of a member's own")


class PlainText(Options):
    """Render messages as lines of plain text, which pre-trained bases often continue better than chat markup.

    `template` is applied to each message, `closing` ends the prompt and opens the answer.
    """

    template: str = Field(default="{role}: {content}\n\n", description="one message; fields {role} and {content}")
    closing: str = Field(default="Answer:", description="text after the last message")
    role_names: dict[str, str] = Field(
        default_factory=lambda: {"user": "Question", "assistant": "Answer", "system": "Instruction"},
        description="how each role is written",
    )

    @field_validator("template")
    @classmethod
    def _has_content(cls, value: str) -> str:
        try:
            filled = [value.format(role="user", content=content) for content in ("one", "two")]
        except (LookupError, ValueError, AttributeError) as error:
            raise ValueError(f"may have the fields {{role}} and {{content}} only ({error!r})") from None
        if filled[0] == filled[1]:
            raise ValueError("must contain {content}")
        return value


class Verbatim(Options):
    """Give a member exactly this text as its prompt."""

    text: str = Field(min_length=1)


class TokenIds(Options):
    """A raw prompt, or a completion to score, as tokens: ids of `Engine.tokenizer`. Nothing is added to them.

    A member that does not know one of them reads its text in tokens of its own.
    """

    ids: tuple[Annotated[int, Field(strict=True, ge=0)], ...] = Field(min_length=1)


Rendering = ChatTemplate | PlainText | Verbatim


class PromptOptions(Options):
    """How prompts become token ids.

    By default messages are rendered and tokenised once and every member reads the same ids. A member named here gets its own
    rendering and so its own prompt length; only the generated tokens are shared.
    """

    chat_template: ChatTemplate = Field(default_factory=ChatTemplate, description="for members not named below")
    base: Rendering | None = None
    tuned: Rendering | None = Field(default=None, description="for the tuned model of every pair")
    reference: Rendering | None = Field(default=None, description="for the reference model of every pair")
    add_special_tokens: bool = Field(
        default=True, description="add the tokenizer's own start token to raw string prompts"
    )
    control_tokens: Literal["neutralise", "parse"] = Field(
        default="neutralise",
        description="control tokens written inside of messages, tools and documents: break them up (nobody can end a turn or forge "
        "a call with text), or honour them",
    )
    template_variables: dict[str, Any] = Field(
        default_factory=dict,
        description="further variables for the chat template (tools, enable_thinking, ...)",
    )


class SpeculationOptions(Options):
    """Drafting: tokens are guessed cheaply and verified together. It changes the speed, never the text.

    Every drafted token is compared with the token that the composed distribution gives for the same seed and position, so the
    text is that of plain decoding, whatever drafts, at any temperature.
    """

    drafter: Literal["auto", "tuned", "prompt_lookup", "none"] = Field(
        default="auto", description="who guesses: the tuned model, n-grams of prompt and output, both (auto), nobody"
    )
    max_draft_tokens: int = Field(default=8, ge=1, le=64, description="most tokens drafted per step")
    adaptive: bool = Field(
        default=True,
        description="draft as many as measured acceptance and times justify, down to none; off: always the most",
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
    max_kv_cache_bytes: int | None = Field(
        default=None,
        ge=1,
        description="budget of all key/value caches; a request waits until what it may need fits; None: no budget",
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
    cuda_graphs: bool = Field(
        default=True, description="on a GPU: record forward passes of few tokens as CUDA graphs and replay them"
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


Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages | TokenIds
"""A raw string, or a conversation: a list of {"role", "content"} mappings."""


def resolve_weights(
    reward_weights: RewardWeights, own: Mapping[str, float], *, owner: str = "this engine"
) -> dict[str, float]:
    """Effective weight of every pair: a number for all, a mapping for some, None for the pairs' `own` weights. `owner`, of
    the pairs, is named in errors.

    Raises:
        UnknownPairError: the mapping names a pair that does not exist.
        InvalidWeightError: a weight is not a finite number.
    """
    if reward_weights is None:
        return dict(own)
    if not isinstance(reward_weights, Mapping):
        return dict.fromkeys(own, _checked_weight(reward_weights, "every pair"))
    for name in reward_weights:
        if name not in own:
            raise UnknownPairError(
                f"there is no pair {name!r}; {owner} has {', '.join(map(repr, own)) or 'no pairs'}",
                name=str(name),
                known=list(own),
            )
    return dict(own) | {name: _checked_weight(weight, f"pair {name!r}") for name, weight in reward_weights.items()}


def _checked_weight(weight: object, whose: str) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise InvalidWeightError(f"the weight of {whose} must be a finite number, got {weight!r}", value=weight)
    return float(weight)
