"""Options that every command shares: which trio, how it is held, and the weights."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console

from eft_engine.config import (
    CompositionOptions,
    EngineConfig,
    LlamaCppOptions,
    MemberConfig,
    Messages,
    Pair,
    Prompt,
    parse_pairs,
)
from eft_engine.errors import InvalidOptionError
from eft_engine.outputs import GenerationDelta, RequestOutput
from eft_engine.prompt_pairs import PromptPair
from eft_engine.weights import Weight as OneWeight
from eft_engine.weights import as_json, checked_weight, is_schedule

SYSTEM_PAIR = "system"
"""Name of the prompt pair that `--positive` and `--negative` make."""

Base = Annotated[str | None, typer.Option("--base", help="The large model: hub id, folder or .gguf file.")]
Tuned = Annotated[
    str | None, typer.Option("--tuned", help="The small model after fine-tuning, or a LoRA adapter on the reference.")
]
Reference = Annotated[str | None, typer.Option("--reference", help="The small model before fine-tuning.")]
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--pair", help="A named pair, NAME=TUNED,REFERENCE; repeat for several.", metavar="NAME=TUNED,REFERENCE"
    ),
]
Terms = Annotated[
    list[str] | None,
    typer.Option("--term", help="A model without a reference, NAME=MODEL; repeat for several.", metavar="NAME=MODEL"),
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="A ready trio (see `eft demo`); the default when no --base is given.")
]
Quantization = Annotated[
    str, typer.Option("--quantization", help="none, int8 or int4: round the weights while loading, on a CPU.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Runtime = Annotated[
    str,
    typer.Option("--runtime", help="auto, torch or llama.cpp; auto: llama.cpp for .gguf files where it is installed."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="With llama.cpp: threads; as many as there are cores by default.")
]
GPULayers = Annotated[
    int | None,
    typer.Option("--gpu-layers", help="With llama.cpp built for a GPU: layers of each network held there; -1: all."),
]
TunedOnlyTokens = Annotated[
    str,
    typer.Option(
        "--tuned-only-tokens",
        help="Tokens that only the tuned models have, as those of a chat format: refuse the trio if one ends a turn, or keep their "
        "probability.",
        metavar="refuse|keep",
    ),
]
Weight = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        "-w",
        help="NUMBER for every pair, or NAME=NUMBER; repeat for several. A schedule stands in JSON: "
        """NAME='{"kind": "gate", "by": "kl", "above": 0.1}'.""",
        metavar="[NAME=]WEIGHT",
    ),
]
PromptPairs = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt-pair",
        help="""A prompt as a pair, as faithful='{"negative": {"system": "Answer from memory."}}'; repeat for several.""",
        metavar="NAME=JSON",
    ),
]
Positive = Annotated[
    str | None,
    typer.Option(
        "--positive",
        help=f"A system message to strengthen: the prompt pair {SYSTEM_PAIR!r} (with --raw: a whole prompt).",
    ),
]
Negative = Annotated[
    str | None,
    typer.Option(
        "--negative",
        help=f"A system message to get away from: the prompt pair {SYSTEM_PAIR!r} (with --raw: a whole prompt).",
    ),
]
Amplification = Annotated[float, typer.Option("--amplification", help="Factor on the direction base - reference.")]
ConservativeTopP = Annotated[
    float | None, typer.Option("--conservative-top-p", help="Keep the tuned model outside of its nucleus.")
]
MinPlausibility = Annotated[
    float,
    typer.Option("--min-plausibility", help="Keep what the base gives at least this share of its best token; 0: all."),
]
TunedPlausibility = Annotated[
    float,
    typer.Option(
        "--tuned-plausibility",
        help="Beyond weight 1 lift only what a pair's tuned model gives at least this share of its best token; 0: all.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Raw = Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the chat template.")]
System = Annotated[str | None, typer.Option("--system", help="System message of the conversation.")]


@dataclass(frozen=True)
class TrioChoice:
    """The trio that the options name."""

    base: MemberConfig
    pairs: dict[str, Pair]
    config: EngineConfig
    preset: str | None = None


def takes_trio(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a trio, in place of its parameter `choice`."""
    own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != "choice"]
    trio = inspect.signature(choose_trio, eval_str=True).parameters
    before = [each for each in own if each.default is each.empty]
    after = [each for each in own if each.default is not each.empty]

    @functools.wraps(command)
    def with_choice(**given: Any) -> None:
        choice = choose_trio(**{name: given.pop(name) for name in trio})
        command(choice=choice, **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*before, *trio.values(), *after)]
    with_choice.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_choice.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_choice


def choose_trio(
    *,
    base: Base = None,
    tuned: Tuned = None,
    reference: Reference = None,
    pair: Pairs = None,
    term: Terms = None,
    preset: Preset = None,
    dtype: Dtype = "auto",
    quantization: Quantization = "none",
    device: Device = "auto",
    runtime: Runtime = "auto",
    threads: Threads = None,
    gpu_layers: GPULayers = None,
    tuned_only_tokens: TunedOnlyTokens = "refuse",
) -> TrioChoice:
    """What the options mean.

    Raises:
        InvalidOptionError: they contradict each other or are incomplete.
    """
    named_runtime: Any = runtime  # checked there, as the next ones
    named_rounding: Any = quantization
    named_way: Any = tuned_only_tokens
    config = EngineConfig(
        dtype=dtype,
        quantization=named_rounding,
        device=device,
        runtime=named_runtime,
        tuned_only_tokens=named_way,
        llama_cpp=LlamaCppOptions(n_threads=threads, n_gpu_layers=gpu_layers),
    )
    named = any((base, tuned, reference, pair, term))
    if not named or preset:
        if named:
            raise InvalidOptionError("--preset names a whole trio; do not combine it with --base, --tuned, ...")
        from eft_engine.zoo.presets import DEFAULT_PRESET, find_preset

        found = find_preset(preset or DEFAULT_PRESET)
        return TrioChoice(found.base(), found.pairs(), config, found.name)
    if base is None:
        raise InvalidOptionError("--base is missing: name the large model (or use --preset)")
    pairs = parse_pairs(pair or (), tuned=tuned, reference=reference, terms=term or ())
    return TrioChoice(MemberConfig(source=base), pairs, config)


def load_engine(choice: TrioChoice) -> Any:
    """Load the chosen trio; a display on stderr shows what is being loaded."""
    from eft_engine.engine.engine import Engine

    return Engine.load(choice.base, pairs=choice.pairs, config=choice.config)


def parse_weights(texts: Sequence[str] | None) -> OneWeight | dict[str, OneWeight] | None:
    """`["0.5"]` is a weight for every pair, `["a=0.5", "b=1"]` a mapping, nothing means the pairs' own weights. A schedule is JSON.

    >>> parse_weights(["a=0.5", 'b={"kind": "first_tokens", "num_tokens": 8}'])["b"].num_tokens
    8

    Raises:
        InvalidOptionError: neither a number nor a schedule, or both forms at once.
        InvalidWeightError: a number that is not finite, or a schedule that is none.
    """
    if not texts:
        return None
    if len(texts) == 1 and not _is_named(texts[0]):
        return _one_weight(texts[0], "every pair")
    weights: dict[str, OneWeight] = {}
    for text in texts:
        if not _is_named(text):
            raise InvalidOptionError(
                f"several weights need names, NAME=NUMBER, got {text!r}", option="weight", value=text
            )
        name, _, value = text.partition("=")
        weights[name] = _one_weight(value, f"pair {name!r}")
    return weights


def split_weights(text: str) -> list[str]:
    """Several weights in one line, behind commas or blanks; JSON stays whole.

    >>> split_weights('a=0.5, b={"kind": "first_tokens", "num_tokens": 8} c=1')
    ['a=0.5', 'b={"kind": "first_tokens", "num_tokens": 8}', 'c=1']
    """
    found, depth, in_string = [""], 0, False
    for before, letter in zip(" " + text, text, strict=False):
        if letter == '"' and before != "\\":
            in_string = not in_string
        depth += 0 if in_string else {"{": 1, "}": -1}.get(letter, 0)
        if letter in ", \t" and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [item for item in found if item]


def _is_named(text: str) -> bool:
    return "=" in text and not text.lstrip().startswith("{")


def _one_weight(text: str, whose: str) -> OneWeight:
    try:
        if text.lstrip().startswith("{"):
            return checked_weight(json.loads(text), whose)
        return checked_weight(float(text), whose)
    except ValueError:
        raise InvalidOptionError(
            f"a weight must be a number, or a schedule in JSON, got {text!r}", option="weight", value=text
        ) from None


def weights_text(weights: Mapping[str, OneWeight]) -> str:
    """Weights in one line.

    >>> weights_text({"a": 0.5, "b": checked_weight({"kind": "first_tokens", "num_tokens": 8}, "b")})
    'a=0.5, b=first_tokens(num_tokens=8, weight=1, then=0)'
    """
    return ", ".join(f"{name}={_weight_text(as_json(weight))}" for name, weight in weights.items())


def _weight_text(told: Any) -> str:
    if isinstance(told, Mapping):
        inside = ", ".join(f"{name}={_weight_text(value)}" for name, value in told.items() if name != "kind")
        return f"{told['kind']}({inside})"
    return f"{told:g}" if isinstance(told, float) else repr(told)


def formula(
    prompt_pairs: Sequence[str] | None,
    *,
    positive: str | None = None,
    negative: str | None = None,
    min_plausibility: float = 0.0,
    tuned_plausibility: float = 0.0,
    raw: bool = False,
) -> CompositionOptions:
    """What the options say of the formula, besides weights.

    >>> formula(['brief={"positive": {"system": "Be brief."}, "weight": 0.5}']).prompt_pairs["brief"].weight
    0.5

    Raises:
        InvalidOptionError: a prompt pair is no JSON of one, or a name is given twice.
    """
    pairs: dict[str, PromptPair] = {}
    for text in prompt_pairs or ():
        name, found, told = text.partition("=")
        try:
            fields = json.loads(told)
        except ValueError:
            fields = None
        if not found or not isinstance(fields, dict):
            raise InvalidOptionError(
                f'--prompt-pair must be NAME=JSON, as brief=\'{{"positive": {{"system": "Be brief."}}}}\', got {text!r}',
                option="prompt_pair",
                value=text,
            )
        if name in pairs:
            raise InvalidOptionError(f"--prompt-pair: {name!r} is given twice", option="prompt_pair", value=text)
        pairs[name] = PromptPair(**fields)
    if positive is not None or negative is not None:
        if SYSTEM_PAIR in pairs:
            raise InvalidOptionError(
                f"--positive and --negative make the prompt pair {SYSTEM_PAIR!r}; call the other one otherwise",
                option="prompt_pair",
            )
        pairs[SYSTEM_PAIR] = PromptPair(
            positive=positive if raw or positive is None else {"system": positive},
            negative=negative if raw or negative is None else {"system": negative},
        )
    return CompositionOptions(
        prompt_pairs=pairs, min_plausibility=min_plausibility, tuned_plausibility=tuned_plausibility
    )


def as_prompt(text: str, *, raw: bool, system: str | None) -> Prompt:
    """The prompt as typed (`-` reads standard input), as a raw string or as a conversation.

    Raises:
        InvalidOptionError: a system message together with a raw prompt.
    """
    text = sys.stdin.read() if text == "-" else text
    if not raw:
        return conversation(text, system=system)
    if system:
        raise InvalidOptionError("--system needs the chat template; it cannot be combined with --raw")
    return text


def conversation(text: str, *, system: str | None) -> Messages:
    """One user turn, after a system message if there is one."""
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def shown_if_cut(text: str, answer: RequestOutput) -> str:
    """A text for tables, with dots behind it where max_tokens ended the answer."""
    return text + (" ..." if answer.finish_reason == "length" else "")


def warn_if_cut(delta: GenerationDelta) -> None:
    """Say on stderr that --max-tokens ended an answer, by the last piece of it."""
    if delta.finish_reason == "length":
        sys.stderr.write("cut: the answer reached --max-tokens, or the end of the context\n")


def print_json(value: Any) -> None:
    """One line of JSON on stdout; dataclasses and schedules become objects."""
    sys.stdout.write(json.dumps(value, default=_as_object, ensure_ascii=False) + "\n")


def _as_object(value: Any) -> Any:
    return as_json(value) if is_schedule(value) else dataclasses.asdict(value)


def console() -> Console:
    """Console for tables and text; honours NO_COLOR and plain pipes."""
    return Console(highlight=False)
