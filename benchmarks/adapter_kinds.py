"""Adapters of many kinds on a real model, in the engine and in PEFT's own forward pass.

    python -m benchmarks.adapter_kinds --reference qwen05.gguf

Each adapter is made by PEFT on the dequantised model in float32, its weights moved by random numbers, and saved. Then a completion
is scored: by PEFT, with nothing of this project in the way, and by an engine whose tuned member is the adapter's folder. Beside
the difference stands whether the adapter shares the reference's network, and whether the reference still says to the bit what it
says in an engine without any adapter.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

from benchmarks.report import finish
from eft_engine import Engine, EngineConfig, ScoreOutput, TunedPair

QUESTION = "Question: What does the HTTP status code 404 mean?\nAnswer:"
COMPLETION = " It means that the server was reached and has nothing at the address that was asked for."

Q_AND_V = ["q_proj", "v_proj"]
KINDS: dict[str, Callable[[], PeftConfig]] = {
    "LoRA": lambda: LoraConfig(r=8, target_modules="all-linear"),
    "LoRA, rsLoRA, rank and alpha patterns": lambda: LoraConfig(
        r=8, target_modules=Q_AND_V, use_rslora=True, rank_pattern={"v_proj": 4}, alpha_pattern={"q_proj": 32}
    ),
    "LoRA, and a head of its own": lambda: LoraConfig(r=8, target_modules=Q_AND_V, modules_to_save=["lm_head"]),
    "LoRA on embeddings": lambda: LoraConfig(r=8, target_modules=["embed_tokens", *Q_AND_V]),
    "LoRA, biases": lambda: LoraConfig(r=8, target_modules=Q_AND_V, bias="all"),
    "LoRA, single tokens": lambda: LoraConfig(r=8, target_modules=Q_AND_V, trainable_token_indices=[100, 200]),
    "DoRA": lambda: LoraConfig(r=8, target_modules=Q_AND_V, use_dora=True),
    "PiSSA": lambda: LoraConfig(r=8, target_modules=Q_AND_V, init_lora_weights="pissa"),
    "OLoRA": lambda: LoraConfig(r=8, target_modules=Q_AND_V, init_lora_weights="olora"),
    "IA3": lambda: IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": lambda: LoHaConfig(r=8, target_modules=Q_AND_V),
    "VeRA": lambda: VeraConfig(r=64, target_modules=["q_proj"]),
    "OFT": lambda: OFTConfig(oft_block_size=32, target_modules=Q_AND_V),
    "layer norms": lambda: LNTuningConfig(target_modules=["input_layernorm"]),
}


@dataclass(frozen=True)
class Result:
    """One kind: whether it shares the reference's network, the largest difference to PEFT of a token's log-probability, the
    implicit reward of the completion, and whether the reference is what it was.
    """

    shares: bool
    max_difference: float
    reward: float
    reference_is_equal: bool


def save_adapter(model: Any, config: PeftConfig, folder: Path, *, scale: float) -> None:
    """Put an adapter onto `model`, move what it trains, save it, and take it off."""
    torch.manual_seed(1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        tuned: Any = get_peft_model(model, config)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * parameter.std().nan_to_num(1.0).clamp(min=0.01) * torch.randn_like(parameter))
        tuned.save_pretrained(folder, save_embedding_layers="auto")


@torch.inference_mode()
def by_peft(model: Any, adapter: Path, prompt: list[int], completion: list[int]) -> Tensor:
    """Log-probabilities of the completion's tokens in PEFT's forward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    logits = tuned(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    found: Tensor = logits.log_softmax(dim=-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
    return found


def score(folder: Path, tuned: str) -> tuple[ScoreOutput, int]:
    """The completion's score, and the networks that hold the trio."""
    config = EngineConfig(dtype="float32", cuda_graphs=False)
    with Engine.load(str(folder), pairs={"pair": TunedPair(tuned, str(folder))}, config=config) as engine:
        return engine.score(QUESTION, COMPLETION), len({member.network for member in engine.report().members})


def main(
    reference: Annotated[Path, typer.Option(help="The model that the adapters are made for, a GGUF file.")],
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="Only these kinds; repeat for several.")] = None,
    scale: Annotated[float, typer.Option(help="How far weights are moved, in their standard deviations.")] = 0.2,
) -> None:
    """Make, load and compare every kind, one after another."""
    logging.set_verbosity_error()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, adapter = Path(name) / "model", Path(name) / "adapter"
        tokenizer = AutoTokenizer.from_pretrained(reference.parent, gguf_file=reference.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            reference.parent,
            gguf_file=reference.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.config.quantization_config = None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        prompt = tokenizer(QUESTION)["input_ids"]
        completion = tokenizer(COMPLETION, add_special_tokens=False)["input_ids"]
        plain, _ = score(folder, str(folder))
        for kind, make in KINDS.items():
            if kinds and kind not in kinds:
                continue
            own = adapter / str(len(results))
            save_adapter(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), make(), own, scale=scale)
            gc.collect()
            expected = by_peft(
                AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), own, prompt, completion
            )
            gc.collect()
            found, num_networks = score(folder, str(own))
            tuned = torch.tensor([token.pairs["pair"].tuned for token in found.tokens])
            results[kind] = Result(
                shares=num_networks == 1,
                max_difference=float((tuned - expected).abs().max()),
                reward=found.reward("pair"),
                reference_is_equal=[token.pairs["pair"].reference for token in found.tokens]
                == [token.pairs["pair"].reference for token in plain.tokens],
            )
            Console(stderr=True).print(f"{kind}: {results[kind]}", markup=False, highlight=False)
    table = Table("kind", "network", "largest difference", "implicit reward", "reference")
    for kind, result in results.items():
        table.add_row(
            kind,
            "the reference's" if result.shares else "its own",
            f"{result.max_difference:.1e}",
            f"{result.reward:+.2f}",
            "as before" if result.reference_is_equal else "changed",
        )
    Console().print(table)
    finish("adapter_kinds", {"results": {kind: asdict(result) for kind, result in results.items()}})


if __name__ == "__main__":
    typer.run(main)
