"""A trio inside vLLM at the size of real models: Llama of 8B with a pair of 1B, bfloat16, beside the base alone in the same vLLM.

    python -m benchmarks.vllm_gpu                     # on a GPU, in an environment with vLLM (docs/vllm.md); batches 1, 8, 32, 128
    python -m benchmarks.vllm_gpu --tiny --batch 2    # on a CPU, without CUDA graphs, on shapes that mean nothing

The goal is at least 0.6 times the base alone, without drafts. Weights are random, and answers are known: the base's output layer is
its input embedding shifted by one token and the tuned model's by two, with margins that no rounding bridges. So token t is
followed by t + 1 at weight 0 and by t + 2 at weight 1, and CUDA graphs, eager passes and any batch must agree with that.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu import LLAMA_1B, LLAMA_8B, make_prompts, random_model
from benchmarks.report import finish

TINY_BASE = LLAMA_8B | {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TINY_SMALL = TINY_BASE | {"hidden_size": 128}
WEIGHTS = (0.0, 1.0)
"""Requests alternate between these; the answer shows which one a request had."""


@torch.no_grad()
def save_model(folder: Path, shape: dict[str, Any], *, seed: int, shift: int, scale: float, tiny: bool) -> None:
    """A Llama whose output layer is its embedding, shifted by `shift` tokens and scaled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if tiny else torch.bfloat16
    model = random_model(shape | {"tie_word_embeddings": False}, device, dtype, seed)
    embedding = model.get_input_embeddings().weight
    embedding.normal_()
    model.get_output_embeddings().weight.copy_(embedding.roll(shift, dims=0) * scale)
    model.save_pretrained(folder)
    words = {f"w{index}": index for index in range(shape["vocab_size"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)


def save_trio(folder: Path, *, tiny: bool) -> dict[str, Any]:
    """All members, and the overrides that make them one model of vLLM."""
    base, small = (TINY_BASE, TINY_SMALL) if tiny else (LLAMA_8B, LLAMA_1B)
    save_model(folder / "base", base, seed=0, shift=1, scale=0.25, tiny=tiny)
    save_model(folder / "tuned", small, seed=1, shift=2, scale=1.0, tiny=tiny)
    save_model(folder / "reference", small, seed=2, shift=0, scale=0.0, tiny=tiny)
    pair = {"tuned": str(folder / "tuned"), "reference": str(folder / "reference")}
    return {"architectures": ["EFTForCausalLM"], "eft": {"pairs": {"pair": pair}}}


def tokens_per_s(llm: Any, batch_size: int, *, composed: bool, prompt_len: int, max_tokens: int, rounds: int) -> float:
    """Decoded tokens per second, the best of `rounds`; the time of prompts is measured by itself and taken off."""
    from vllm import SamplingParams

    vocab_size = llm.llm_engine.model_config.get_vocab_size()
    prompts = make_prompts(batch_size, prompt_len, vocab_size)
    weights = [WEIGHTS[index % 2] if composed else 0.0 for index in range(batch_size)]

    def seconds(num_tokens: int) -> float:
        sampling = [
            SamplingParams(
                temperature=0,
                max_tokens=num_tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args={"eft_weights": [weight]} if composed else None,
            )
            for weight in weights
        ]
        llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        taken = time.perf_counter() - started
        for ids, weight, output in zip(prompts, weights, outputs, strict=True):
            step = 1 if weight == 0 else 2
            right = [(ids[-1] + step * (index + 1)) % vocab_size for index in range(num_tokens)]
            assert list(output.outputs[0].token_ids) == right, "decoding must give the answer that is known to be right"
        return taken

    seconds(max_tokens)  # compiles, and warms what there is to warm
    decoding = min(seconds(max_tokens) - seconds(1) for _ in range(rounds))
    return batch_size * (max_tokens - 1) / decoding


def main(
    batch: Annotated[list[int] | None, typer.Option(help="Requests that run together; repeat for several.")] = None,
    prompt_len: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 128,
    rounds: Annotated[int, typer.Option(help="Rounds that count; the best one does.")] = 3,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that every layer is split over.")] = 1,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny shapes in float32, for a CPU.")] = False,
) -> None:
    """Measure the base alone, the trio eagerly, and the trio as vLLM runs it (compiled, with CUDA graphs)."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm import LLM

    sizes = batch or [1, 8, 32, 128]
    options: dict[str, Any] = {
        "dtype": "float32" if tiny else "bfloat16",
        "max_num_seqs": max(sizes),
        "max_model_len": prompt_len + max_tokens,
        "tensor_parallel_size": tensor_parallel,
    }
    speeds: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        overrides = save_trio(Path(folder), tiny=tiny)
        modes: dict[str, dict[str, Any]] = {
            "base alone": {"enforce_eager": tiny},
            "trio, eager": {"enforce_eager": True, "hf_overrides": overrides},
        }
        if not tiny:
            modes["trio"] = {"hf_overrides": overrides}
        for name, own in modes.items():
            llm = LLM(model=str(Path(folder) / "base"), **options, **own)
            how: dict[str, Any] = {"prompt_len": prompt_len, "max_tokens": max_tokens, "rounds": rounds}
            speeds[name] = {size: tokens_per_s(llm, size, composed="hf_overrides" in own, **how) for size in sizes}
            llm.llm_engine.engine_core.shutdown()
    table = Table()
    for heading in ("tokens/s", *map(str, sizes)):
        table.add_column(heading, justify="right")
    for name, found in speeds.items():
        shares = [f"{found[size]:,.0f} ({found[size] / speeds['base alone'][size]:.2f}x)" for size in sizes]
        table.add_row(name, *shares)
    Console(stderr=True).print(table)
    finish(
        "vllm_gpu",
        {
            "tokens_per_s": speeds,
            "prompt_len": prompt_len,
            "max_tokens": max_tokens,
            "tensor_parallel": tensor_parallel,
            "tiny": tiny,
        },
    )


if __name__ == "__main__":
    typer.run(main)
