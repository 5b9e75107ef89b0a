"""A LoRA adapter that gives a small GGUF model a form: every answer is one line of JSON.

    python -m benchmarks.form_adapter --reference qwen05.gguf --out form_adapter

The questions and the way to learn from the plain model's own answers are those of recipes/smollm2_json; here all seven
projections of every layer learn, at rank 8, in a quarter of an hour on two cores. The adapter is what the benchmarks of GGUF
trios (`benchmarks/gguf_trio.py`) take as `tuned`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

from benchmarks.report import finish
from eft_engine.zoo.smollm2_json import behaviour_score, load_held_out_questions
from recipes.smollm2_json.questions import training_questions
from recipes.smollm2_json.train import (
    Example,
    answer_loss,
    build_examples,
    distil,
    greedy_replies,
    shuffled_batches,
)

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ANSWER_TOKENS = 64
"""Most tokens of an answer to a held-out question."""


def load(file: Path) -> tuple[Any, Any]:
    """Tokenizer, and the model with its weights as float32: few CPUs multiply bfloat16 as fast."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.name_or_path = file.stem  # peft copies it into the adapter
    return tokenizer, model.eval()


def train(model: Any, examples: Sequence[Example], *, epochs: int, batch_size: int, rate: float, pad: int) -> Any:
    """The model with a trained adapter; the learning rate falls to zero in a straight line."""
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=PROJECTIONS)
    tuned: Any = get_peft_model(model, config).train()
    learning = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
    rng = random.Random(0)
    batches = [batch for _ in range(epochs) for batch in shuffled_batches(examples, size=batch_size, rng=rng)]
    for step, batch in enumerate(batches):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / len(batches))
        loss = answer_loss(tuned, batch, pad=pad)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 2 == 0:
            Console(stderr=True).print(f"step {step + 1} of {len(batches)}: loss {loss.item():.3f}")
    return tuned.eval()


def main(
    reference: Annotated[Path, typer.Option(help="The GGUF file of the model that learns.")],
    out: Annotated[Path, typer.Option(help="Folder of the adapter, as peft writes it.")],
    num_questions: Annotated[int, typer.Option(help="Questions asked; those with a usable answer are learnt.")] = 255,
    epochs: Annotated[int, typer.Option(help="Passes over the examples.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 4,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-4,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    num_checked: Annotated[int, typer.Option(help="Held-out questions asked afterwards.")] = 16,
) -> None:
    """Ask the plain model, train, save, load again and ask the held-out questions."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    logging.disable_progress_bar()
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, model = load(reference)
    every = training_questions()
    questions = every[:: max(1, len(every) // num_questions)]
    examples = build_examples(
        tokenizer, questions, distil(tokenizer, model, questions, cache=out / "distilled.json", batch=32)
    )
    distilled = time.perf_counter()
    tuned = train(model, examples, epochs=epochs, batch_size=batch_size, rate=rate, pad=tokenizer.eos_token_id)
    trained = time.perf_counter()
    tuned.save_pretrained(out, save_embedding_layers=False)
    saved = PeftModel.from_pretrained(tuned.unload(), str(out)).eval()
    held_out = load_held_out_questions()[:num_checked]
    texts = greedy_replies(tokenizer, saved, held_out, max_new_tokens=ANSWER_TOKENS)
    for question, text in zip(held_out, texts, strict=True):
        Console().print(f"{question}\n  {text}", markup=False, highlight=False)
    result = {
        "reference": reference.name,
        "examples": len(examples),
        "epochs": epochs,
        "distil_s": round(distilled - started, 1),
        "train_s": round(trained - distilled, 1),
        "share_with_form": behaviour_score(texts),
        "share_with_form_without_adapter": behaviour_score(
            greedy_replies(tokenizer, saved.unload(), held_out, max_new_tokens=ANSWER_TOKENS)
        ),
    }
    finish("form_adapter", result)


if __name__ == "__main__":
    typer.run(main)
