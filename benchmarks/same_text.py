"""Whether a request has the same text every time, in half precision, greedy: SmolLM2-135M and its JSON adapter, or any other trio.

    python -m benchmarks.same_text alone --folder build/single_request/bfloat16
    python -m benchmarks.same_text company --folder build/single_request/bfloat16
    python -m benchmarks.same_text alone --folder qwen15.gguf --reference qwen05.gguf --tuned adapter --runtime torch --weight 1

`alone`: with default options, nobody else on the engine: whole, streamed, repeated (warm), and in another process. `company`: with
deterministic=True, in batches of 4 and 16, with other drafters, in small chunks, and how many tokens per second beside
deterministic=False. `benchmarks.single_request files` writes the folder; a .gguf file is computed by llama.cpp, and with --runtime
torch it is dequantised to bfloat16.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console

from benchmarks.drafts import fixed_drafts
from benchmarks.report import finish
from benchmarks.rounds import clock
from eft_engine import Engine, EngineConfig, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.config import Runtime
from eft_engine.zoo.presets import ZOO
from eft_engine.zoo.smollm2_json import load_held_out_questions

app = typer.Typer(add_completion=False, help=__doc__)
Folder = Annotated[str, typer.Option(help="The base: a folder, or a .gguf file.")]
Reference = Annotated[str | None, typer.Option(help="The reference. [the base]")]
Tuned = Annotated[str, typer.Option(help="The adapter.")]
RuntimeName = Annotated[str, typer.Option(help="auto, torch or llama.cpp.")]
WeightOption = Annotated[float, typer.Option("--weight", help="Of the pair.")]
Kernels = Annotated[bool, typer.Option(help="Let the kernels for a CPU compute; off: torch.")]
Number = Annotated[int, typer.Option(help="Questions.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens of an answer.")]
Threads = Annotated[int, typer.Option(help="Threads of torch.")]
ADAPTER = str(ZOO / "smollm2_json" / "adapter")
Texts = list[tuple[int, ...]]


@dataclass(frozen=True)
class Trio:
    """What is asked, and at which weight."""

    folder: str
    tuned: str
    reference: str | None = None
    runtime: Runtime = "auto"
    kernels: bool = True
    weight: float = 0.7

    def engine(self, **config: Any) -> Engine:
        """In bfloat16, or as a file has it where llama.cpp computes."""
        runtime = "torch" if self.runtime == "auto" and not self.folder.endswith(".gguf") else self.runtime
        options = EngineConfig(
            dtype="bfloat16" if runtime == "torch" else "auto", runtime=runtime, cpu_kernels=self.kernels, **config
        )
        return Engine.load(
            self.folder, pairs={"form": TunedPair(self.tuned, self.reference or self.folder)}, config=options
        )

    @property
    def arguments(self) -> list[str]:
        """Of the command line."""
        reference = ["--reference", self.reference] if self.reference else []
        kernels = "--kernels" if self.kernels else "--no-kernels"
        own = ["--folder", self.folder, "--tuned", self.tuned, "--runtime", self.runtime, "--weight", str(self.weight)]
        return [*own, *reference, kernels]

    def whole(self, engine: Engine, prompts: Sequence[Any], max_tokens: int) -> Texts:
        """One after the other."""
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        return [engine.generate(prompt, sampling=sampling, reward_weights=self.weight).token_ids for prompt in prompts]

    def streamed(self, engine: Engine, prompts: Sequence[Any], max_tokens: int) -> Texts:
        """The same, piece by piece."""
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        texts = []
        for prompt in prompts:
            *_, last = engine.stream(prompt, sampling=sampling, reward_weights=self.weight)
            assert last.output is not None
            texts.append(last.output.token_ids)
        return texts


def conversations(number: int) -> list[Any]:
    """One message each."""
    held_out = load_held_out_questions()
    return [[{"role": "user", "content": held_out[index % len(held_out)]}] for index in range(number)]


def num_other(found: Texts, expected: Texts) -> int:
    """How many texts differ."""
    return sum(own != other for own, other in zip(found, expected, strict=True))


@app.command()
def alone(
    folder: Folder = "build/single_request/bfloat16",
    tuned: Tuned = ADAPTER,
    reference: Reference = None,
    runtime: RuntimeName = "auto",
    weight: WeightOption = 0.7,
    kernels: Kernels = True,
    number: Number = 40,
    max_tokens: MaxTokens = 16,
    threads: Threads = 1,
    only: Annotated[bool, typer.Option(help="Write the texts of one process, and nothing else.")] = False,
) -> None:
    """Default options."""
    torch.set_num_threads(threads)
    prompts, trio = conversations(number), Trio(folder, tuned, reference, cast("Runtime", runtime), kernels, weight)
    with trio.engine() as engine:
        expected = trio.whole(engine, prompts, max_tokens)
        if only:
            sys.stdout.write(json.dumps(expected))
            return
        differ = {
            "streamed": num_other(trio.streamed(engine, prompts, max_tokens), expected),
            "again": num_other(trio.whole(engine, prompts, max_tokens), expected),
            "at once again (warm)": num_other(
                [trio.whole(engine, [p], max_tokens)[0] for p in prompts for _ in (0, 1)][1::2], expected
            ),
        }
    options = [*trio.arguments, "--number", str(number), "--max-tokens", str(max_tokens), "--threads", str(threads)]
    for name in ("another process", "a third process"):
        command = [sys.executable, "-m", "benchmarks.same_text", "alone", *options, "--only"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        differ[name] = num_other([tuple(own) for own in found], expected)
    total = number * len(differ)
    Console().print(f"{sum(differ.values())} of {total} texts differ: {differ}")
    finish("same_text_alone", {**asdict(trio), "threads": threads, "differ": differ, "of": total})


@app.command()
def company(
    folder: Folder = "build/single_request/bfloat16",
    tuned: Tuned = ADAPTER,
    number: Number = 40,
    max_tokens: MaxTokens = 16,
    threads: Threads = 1,
) -> None:
    """deterministic=True."""
    torch.set_num_threads(threads)
    prompts, sampling = conversations(number), SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    trio = Trio(folder, tuned)

    def together(engine: Engine, size: int, speculation: SpeculationOptions | None = None) -> Texts:
        texts: Texts = []
        for start in range(0, number, size):
            outputs = engine.generate(
                prompts[start : start + size], sampling=sampling, reward_weights=trio.weight, speculation=speculation
            )
            texts += [output.token_ids for output in outputs]
        return texts

    with trio.engine(deterministic=True) as engine:
        expected = trio.whole(engine, prompts, max_tokens)
        differ = {
            "batches of 4": num_other(together(engine, 4), expected),
            "batches of 16": num_other(together(engine, 16), expected),
            "four drafts": num_other(together(engine, 8, fixed_drafts(4)), expected),
            "prompt lookup": num_other(
                together(engine, 8, SpeculationOptions(drafter="prompt_lookup", min_ngram_size=1)), expected
            ),
        }
    with trio.engine(deterministic=True, prefill_chunk_len=8, max_warm_prefixes=0) as engine:
        differ["chunks of 8, cold"] = num_other(together(engine, 8), expected)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3):
        for deterministic in seconds:
            with trio.engine(deterministic=deterministic) as engine:
                together(engine, 8)
                started = clock()
                together(engine, 8)
                seconds[deterministic].append(clock() - started)
    ratio = sorted(other / own for own, other in zip(seconds[True], seconds[False], strict=True))[1]
    total = number * len(differ)
    Console().print(
        f"{sum(differ.values())} of {total} texts differ: {differ}; speed {ratio:.2f} of that without the option"
    )
    finish("same_text_company", {"folder": folder, "threads": threads, "differ": differ, "of": total, "speed": ratio})


if __name__ == "__main__":
    app()
