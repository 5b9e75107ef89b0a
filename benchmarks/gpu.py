"""The engine on one GPU at the size of real models: Llama of 8B with a pair of 1B, bfloat16, random weights made on the device.

    python -m benchmarks.gpu                        all parts, batches of 1, 4, 8, 16 and 32
    python -m benchmarks.gpu --part draft           how close the small model's steps come to reading its weights once
    python -m benchmarks.gpu --device cpu --tiny    every line of this script in seconds, on shapes that mean nothing

draft     seconds of one token through the tuned model / seconds that a copy of its weights' size takes, batch 1
overhead  share of plain decoding at batch 1 in which the device does nothing (on a CPU: time outside forward passes), and of the
          device's bandwidth that a step of the three networks reaches
speed     tokens/s of the naive three-model loop, of the base alone under transformers' static cache (which compiles its forward
          pass on a GPU), and of the engine without drafts and with drafts that are right as often as `--acceptance` says

The output layer of the base is its input embedding shifted by one token, and what its layers add to the embedding is kept small, so
token t is followed by t + 1 with a margin that no rounding bridges: what is right is known, and all ways of decoding must agree. A
forward pass takes what it takes with any weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.bandwidth import copy_bandwidth, step_bytes, wait_for, weight_bytes
from benchmarks.imposed import impose
from benchmarks.naive import naive_batch, transformers_batch
from benchmarks.report import finish
from eft_engine import Engine, EngineConfig, LoadedPair, SamplingParams, SpeculationOptions
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block

PARTS = ("draft", "overhead", "speed")
WEIGHT = 0.5
PROGRESS = Console(stderr=True)
PROFILED_TOKENS = 16
"""Every kernel of every layer is an event."""

LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
LLAMA_1B = LLAMA_8B | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "tie_word_embeddings": True,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class RandomTrio:
    """Models on one device and a tokenizer whose words are `w0`, `w1`, ..."""

    base: Any
    tuned: Any
    reference: Any
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Of all three."""
        return torch.device(self.base.device)

    def engine(self, speculation: SpeculationOptions, batch_size: int) -> Engine:
        """An engine over the three; close it to have the models back."""
        pairs = {"pair": LoadedPair(self.tuned, self.reference)}
        config = EngineConfig(speculation=speculation, self_check=False, max_num_seqs=batch_size, max_warm_prefixes=0)
        return Engine.from_models(self.base, tokenizer=self.tokenizer, pairs=pairs, config=config)


@torch.no_grad()
def random_model(shape: dict[str, Any], device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """A Llama with random weights, made where it will run; its layers add little to the embedding (see the module)."""
    config = LlamaConfig(**shape, max_position_embeddings=8192, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(seed)
    own = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(own)
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.mul_(0.1)
    return model


@torch.no_grad()
def make_trio(device: torch.device, *, tiny: bool) -> RandomTrio:
    """See the module's first lines."""
    dtype = torch.float32 if tiny else torch.bfloat16
    base_shape, small_shape = (TINY | {"tie_word_embeddings": False}, TINY) if tiny else (LLAMA_8B, LLAMA_1B)
    base = random_model(base_shape, device, dtype, 0)
    embedding = base.get_input_embeddings().weight
    embedding.normal_()
    base.get_output_embeddings().weight.copy_(embedding.roll(1, dims=0) * 0.25)
    words = {f"w{index}": index for index in range(base_shape["vocab_size"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tuned, reference = (random_model(small_shape, device, dtype, seed) for seed in (1, 2))
    return RandomTrio(base, tuned, reference, PreTrainedTokenizerFast(tokenizer_object=backend))


def make_prompts(count: int, length: int, vocab_size: int) -> list[list[int]]:
    """Random words, every prompt its own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (count, length), generator=generator).tolist()


def right_answers(prompts: list[list[int]], max_tokens: int, vocab_size: int) -> dict[tuple[int, ...], list[int]]:
    """What every way of decoding must answer."""
    return {tuple(ids): [(ids[-1] + 1 + step) % vocab_size for step in range(max_tokens)] for ids in prompts}


def draft_floor(trio: RandomTrio, bandwidth: float, num_steps: int) -> dict[str, float]:
    """One token after another through the tuned model; nothing waits for the device in between."""
    with trio.engine(SpeculationOptions(drafter="none"), 1) as engine:
        networks = [network for network in engine._trio.networks if isinstance(network, LanguageModel)]
        network = next(network for network in networks if network.model is trio.tuned)
        slot = network.kv_cache.allocate()
        slot.reserved_len = 4 * num_steps
        seconds = []
        for _ in range(3):  # the first one captures or compiles what the engine wants to
            slot.truncate(0)
            wait_for(trio.device)
            started = time.perf_counter()
            for _ in range(num_steps):
                network.forward([Block(slot, [1], 1)])
            wait_for(trio.device)
            seconds.append((time.perf_counter() - started) / num_steps)
        network.kv_cache.release(slot)
    step_s, floor_s = min(seconds[1:]), weight_bytes(trio.tuned) / bandwidth
    return {"step_s": step_s, "floor_s": floor_s, "times_floor": step_s / floor_s}


def engine_seconds(engine: Engine, trio: RandomTrio, prompts: list[list[int]], max_tokens: int) -> float:
    """One greedy call; its text must be the right one."""
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    texts = [trio.tokenizer.decode(ids) for ids in prompts]
    started = time.perf_counter()
    outputs = engine.generate(texts, sampling=sampling, reward_weights=WEIGHT)
    seconds = time.perf_counter() - started
    right = right_answers(prompts, max_tokens, trio.base.config.vocab_size)
    for ids, output in zip(prompts, outputs, strict=True):
        assert list(output.token_ids) == right[tuple(ids)], "decoding must give the text that is known to be right"
    return seconds


def speed(
    trio: RandomTrio, batch_size: int, *, prompt_len: int, max_tokens: int, rounds: int, acceptance: float
) -> dict[str, dict[str, float]]:
    """Tokens per second of every way; each has one round of its own that is not counted, in which it compiles."""
    vocab_size = trio.base.config.vocab_size
    prompts = make_prompts(batch_size, prompt_len, vocab_size)
    right = right_answers(prompts, max_tokens, vocab_size)
    trio_models = (trio.base, trio.tuned, trio.reference)

    def peer(run: Callable[[], Any]) -> float:
        own = run()
        assert own.token_ids == list(right.values()), "decoding must give the text that is known to be right"
        return float(own.seconds)

    ways: dict[str, Callable[[], Any]] = {
        "naive loop": lambda: naive_batch(trio_models, prompts, weight=WEIGHT, max_tokens=max_tokens),
        "base alone, static cache": lambda: transformers_batch(
            trio.base, prompts, max_tokens=max_tokens, cache_implementation="static"
        ),
    }
    seconds = {}
    for name, way in ways.items():
        seconds[name] = [peer(way) for _ in range(rounds + 1)]
        PROGRESS.print(f"{batch_size} together, {name}: {seconds[name]} s")
    for name, drafter in (("engine, no drafts", "none"), (f"engine, acceptance {acceptance:g}", "tuned")):
        with trio.engine(SpeculationOptions.model_validate({"drafter": drafter}), batch_size) as engine:
            impose(engine, right, acceptance)
            seconds[name] = [engine_seconds(engine, trio, prompts, max_tokens) for _ in range(rounds + 1)]
        PROGRESS.print(f"{batch_size} together, {name}: {seconds[name]} s")
    medians = {name: statistics.median(own[1:]) for name, own in seconds.items()}
    return {
        name: {
            "tokens_per_s": batch_size * max_tokens / own,
            "times_naive_loop": medians["naive loop"] / own,
            "times_base_alone": medians["base alone, static cache"] / own,
        }
        for name, own in medians.items()
    }


def busy_seconds(run: Callable[[], object]) -> float:
    """Seconds in which at least one kernel ran on the device; parallel streams are not counted twice."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA
    )
    busy, reached = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy * 1e-6


def overhead(trio: RandomTrio, bandwidth: float, *, prompt_len: int) -> dict[str, float]:
    """Steps of plain decoding: wall clock without the profiler, which slows the host, against device time with it, and against the
    time that reading all weights, keys and values takes.
    """
    (prompt,) = make_prompts(1, prompt_len, trio.base.config.vocab_size)
    with trio.engine(SpeculationOptions(drafter="none"), 1) as engine:

        def run(num_tokens: int) -> float:
            return engine_seconds(engine, trio, [prompt], num_tokens)

        def forward_s() -> float:
            return sum(network.host_s for network in engine.stats().networks)

        run(PROFILED_TOKENS)
        before = forward_s()
        wall = run(PROFILED_TOKENS)
        busy = forward_s() - before
        if trio.device.type == "cuda":
            wall = statistics.median(run(PROFILED_TOKENS) for _ in range(5))
            busy = busy_seconds(lambda: run(PROFILED_TOKENS))
        longer, shorter = (
            statistics.median(run(number) for _ in range(3)) for number in (4 * PROFILED_TOKENS, PROFILED_TOKENS)
        )
    step_s = (longer - shorter) / (3 * PROFILED_TOKENS)
    floor_s = step_bytes((trio.base, trio.tuned, trio.reference), [prompt_len + PROFILED_TOKENS]) / bandwidth
    return {
        "step_s": step_s,
        "overhead_share": 1.0 - busy / wall,
        "floor_s": floor_s,
        "bandwidth_share": floor_s / step_s,
    }


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu ...")] = "cuda",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Tiny shapes in float32, few tokens: does the script work?")
    ] = False,
    part: Annotated[list[str] | None, typer.Option(help=f"{', '.join(PARTS)}; repeat for several. [all]")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Requests together. [1, 4, 8, 16, 32]")] = None,
    acceptance: Annotated[float, typer.Option(min=0, max=1, help="Of drafted tokens, imposed.")] = 0.7,
    prompt_tokens: Annotated[int, typer.Option(min=2, help="Length of every prompt.")] = 512,
    max_tokens: Annotated[int, typer.Option(min=4, help="Tokens per request.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Counted repetitions; medians are reported.")] = 3,
) -> None:
    """Run and print; the last line is JSON."""
    for name in part or ():
        if name not in PARTS:
            raise typer.BadParameter(f"--part must be one of {', '.join(PARTS)}, got {name!r}")
    parts = part or list(PARTS)
    if tiny:
        batch, prompt_tokens, max_tokens, rounds = batch or [1, 2], min(prompt_tokens, 8), min(max_tokens, 8), 1
    where = torch.device(device)
    trio = make_trio(where, tiny=tiny)
    bandwidth = copy_bandwidth(where, num_bytes=2**20 if tiny else 2**30)
    result: dict[str, Any] = {"device": device, "tiny": tiny, "acceptance": acceptance, "copy_bytes_per_s": bandwidth}
    console = Console()
    if "draft" in parts:
        result["draft"] = own = draft_floor(trio, bandwidth, max_tokens)
        console.print(
            f"draft step {own['step_s'] * 1e3:.3f} ms, {own['times_floor']:.2f}x the time to read its weights"
        )
    if "overhead" in parts:
        result["overhead"] = own = overhead(trio, bandwidth, prompt_len=prompt_tokens)
        console.print(
            f"plain step {own['step_s'] * 1e3:.2f} ms at {own['bandwidth_share']:.0%} of the bandwidth; "
            f"{own['overhead_share']:.0%} of the time not on the device"
        )
    if "speed" in parts:
        table = Table(title=f"prompts of {prompt_tokens} tokens, {max_tokens} generated, weight {WEIGHT:g}")
        for heading in ("together", "", "tokens/s", "x naive loop", "x base alone"):
            table.add_column(heading, justify="right")
        result["speed"] = {}
        for size in batch or [1, 4, 8, 16, 32]:
            rows = speed(
                trio, size, prompt_len=prompt_tokens, max_tokens=max_tokens, rounds=rounds, acceptance=acceptance
            )
            result["speed"][size] = rows
            for name, values in rows.items():
                speed_value, by_naive, by_base = values.values()
                table.add_row(str(size), name, f"{speed_value:.1f}", f"{by_naive:.2f}", f"{by_base:.2f}")
            table.add_section()
        console.print(table)
    finish("gpu", result)


if __name__ == "__main__":
    typer.run(main)
