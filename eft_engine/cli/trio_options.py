"""Options that every command shares: which trio, how it is held, and the weights."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console

from eft_engine.config import (
    EngineConfig,
    LlamaCppOptions,
    MemberConfig,
    Messages,
    Prompt,
    TunedPair,
    parse_pairs,
)
from eft_engine.errors import InvalidOptionError
from eft_engine.outputs import GenerationDelta, RequestOutput

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
Preset = Annotated[
    str | None, typer.Option("--preset", help="A ready trio (see `eft demo`); the default when no --base is given.")
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
        "--weight", "-w", help="NUMBER for every pair, or NAME=NUMBER; repeat for several.", metavar="[NAME=]NUMBER"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Raw = Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the chat template.")]
System = Annotated[str | None, typer.Option("--system", help="System message of the conversation.")]


@dataclass(frozen=True)
class TrioChoice:
    """The trio that the options name."""

    base: MemberConfig
    pairs: dict[str, TunedPair]
    config: EngineConfig


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
    preset: Preset = None,
    dtype: Dtype = "auto",
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
    named_runtime: Any = runtime  # checked there, as the next one
    named_way: Any = tuned_only_tokens
    config = EngineConfig(
        dtype=dtype,
        device=device,
        runtime=named_runtime,
        tuned_only_tokens=named_way,
        llama_cpp=LlamaCppOptions(n_threads=threads, n_gpu_layers=gpu_layers),
    )
    named = any((base, tuned, reference, pair))
    if not named or preset:
        if named:
            raise InvalidOptionError("--preset names a whole trio; do not combine it with --base, --tuned, ...")
        from eft_engine.zoo.presets import DEFAULT_PRESET, find_preset

        found = find_preset(preset or DEFAULT_PRESET)
        return TrioChoice(found.base(), found.pairs(), config)
    if base is None:
        raise InvalidOptionError("--base is missing: name the large model (or use --preset)")
    pairs = parse_pairs(pair or (), tuned=tuned, reference=reference)
    return TrioChoice(MemberConfig(source=base), pairs, config)


def load_engine(choice: TrioChoice) -> Any:
    """Load the chosen trio; a display on stderr shows what is being loaded."""
    from eft_engine.engine.engine import Engine

    return Engine.load(choice.base, pairs=choice.pairs, config=choice.config)


def parse_weights(texts: Sequence[str] | None) -> float | dict[str, float] | None:
    """`["0.5"]` is a number for every pair, `["a=0.5", "b=1"]` a mapping, nothing means the pairs' own weights.

    Raises:
        InvalidOptionError: not a number, or both forms at once.
    """
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return _number(texts[0])
    weights: dict[str, float] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise InvalidOptionError(
                f"several weights need names, NAME=NUMBER, got {text!r}", option="weight", value=text
            )
        weights[name] = _number(value)
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidOptionError(f"a weight must be a number, got {text!r}", option="weight", value=text) from None


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
    """One line of JSON on stdout; dataclasses become objects."""
    sys.stdout.write(json.dumps(value, default=dataclasses.asdict, ensure_ascii=False) + "\n")


def console() -> Console:
    """Console for tables and text; honours NO_COLOR and plain pipes."""
    return Console(highlight=False)
