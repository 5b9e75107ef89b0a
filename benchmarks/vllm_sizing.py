"""How much of common trios fits on GPUs under vLLM: the table of docs/vllm.md, out of the public shapes alone.

    python -m benchmarks.vllm_sizing [--gpu-gib 80] [--context 8192]

For a trio that is at hand, `eft inspect --plan` does the same with its own configurations.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

from benchmarks.report import finish
from eft_engine.models.sizing import MemberSize, capacity, member_size, splits

BFLOAT16_BYTES = 2


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool = False, head_dim: int = 128
) -> LlamaConfig:
    """Llama 3's shapes (8 key/value heads)."""
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=head_dim,
        tie_word_embeddings=tied,
    )


def qwen(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, tied: bool) -> Qwen2Config:
    """The shapes of Qwen 2.5."""
    return Qwen2Config(
        vocab_size=151936 if tied else 152064,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        use_sliding_window=False,
        tie_word_embeddings=tied,
    )


def gemma(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int, window: int
) -> Gemma3TextConfig:
    """The shapes of Gemma 3 as a model of text: every sixth layer sees everything."""
    kinds = ["full_attention" if (index + 1) % 6 == 0 else "sliding_attention" for index in range(layers)]
    return Gemma3TextConfig(
        vocab_size=262208,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        sliding_window=window,
        layer_types=kinds,
    )


LLAMA_1B = llama(2048, 8192, 16, 32, tied=True, head_dim=64)
LLAMA_8B = llama(4096, 14336, 32, 32)
LLAMA_70B = llama(8192, 28672, 80, 64)
QWEN_HALF_B = qwen(896, 4864, 24, 14, 2, tied=True)
QWEN_1_5B = qwen(1536, 8960, 28, 12, 2, tied=True)
QWEN_7B = qwen(3584, 18944, 28, 28, 4, tied=False)
QWEN_32B = qwen(5120, 27648, 64, 40, 8, tied=False)
GEMMA_1B = gemma(1152, 6912, 26, 4, 1, 256, 512)
GEMMA_27B = gemma(5376, 21504, 62, 32, 16, 128, 1024)

TRIOS: dict[str, tuple[PreTrainedConfig, PreTrainedConfig]] = {
    "Llama 8B + 1B": (LLAMA_8B, LLAMA_1B),
    "Llama 70B + 1B": (LLAMA_70B, LLAMA_1B),
    "Llama 70B + 8B": (LLAMA_70B, LLAMA_8B),
    "Qwen 2.5 7B + 0.5B": (QWEN_7B, QWEN_HALF_B),
    "Qwen 2.5 32B + 1.5B": (QWEN_32B, QWEN_1_5B),
    "Gemma 3 27B + 1B": (GEMMA_27B, GEMMA_1B),
}
"""Base and small model; a trio has the small one twice."""


def sized(name: str, config: PreTrainedConfig) -> MemberSize:
    """A member in bfloat16."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return member_size(name, config, num_parameters=num_parameters, element_bytes=BFLOAT16_BYTES)


def main(
    gpu_gib: Annotated[float, typer.Option(help="Memory of one GPU, GiB.")] = 80.0,
    context: Annotated[int, typer.Option(help="Tokens of a request, prompt and answer.")] = 8192,
) -> None:
    """Print the table in Markdown."""
    result: dict[str, Any] = {}
    lines = [
        "| trio | weights, GiB | cache per token, KiB | GPUs: requests at a time | splits |",
        "|---|---|---|---|---|",
    ]
    for name, (base, small) in TRIOS.items():
        members = [sized("base", base), sized("tuned", small), sized("reference", small)]
        weights = sum(member.weight_bytes for member in members)
        per_token = sum(member.cache_bytes(context) for member in members) / context
        possible = splits(members)
        groups = [
            capacity(members, num_gpus=number, gpu_bytes=int(gpu_gib * 2**30), context_len=context)
            for number in possible
            if number & (number - 1) == 0
        ]
        fitting = (
            ", ".join(f"{group.num_gpus}: {group.num_requests}" for group in groups if group.num_requests) or "none"
        )
        base_share = members[0].weight_bytes / weights
        lines.append(
            f"| {name} | {weights / 2**30:.1f} (base {base_share:.0%}) | {per_token / 2**10:.0f} | {fitting} | "
            f"{', '.join(map(str, possible))} |"
        )
        result[name] = {"weight_bytes": weights, "cache_bytes_per_token": per_token, "fitting": fitting}
    sys.stdout.write("\n".join(lines) + "\n")
    finish("vllm_sizing", {"gpu_gib": gpu_gib, "context": context, "trios": result})


if __name__ == "__main__":
    typer.run(main)
