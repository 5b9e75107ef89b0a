"""Chat tokens that only the tuned model has: a pair tuned with ChatML over a base and a reference that never had its tokens.

    python -m benchmarks.kept_tokens --base qwen15.gguf --reference qwen05.gguf --adapter form_adapter

The models are real and know ChatML; base and reference are given a tokenizer without its tokens, as an older base has it, so that
they read every mark of a turn as text, and a turn can end only in the tuned model's word (`tuned_only_tokens="keep"`). Beside
it: the same trio when all members have the tokens, and the tuned model alone. The adapter's form (one line of JSON) shows
whether answers are still the trio's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.report import finish
from eft_engine import Engine, EngineConfig, MemberConfig, SamplingParams, TunedPair
from eft_engine.config import Runtime
from eft_engine.errors import VocabularyMismatchError
from eft_engine.zoo.smollm2_json import load_held_out_questions, parse_json_answer

CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
ENDS_A_DOCUMENT = "<|endoftext|>"


@dataclass(frozen=True)
class Result:
    """Answers of one way: how many ended by themselves, how many had the form, and their mean length in tokens."""

    num_answers: int
    num_ended: int
    num_in_form: int
    mean_tokens: float


def without_chat_tokens(reference: Path, folder: Path) -> Path:
    """The tokenizer of a GGUF file, saved without ChatML's tokens and without a template."""
    tokenizer = AutoTokenizer.from_pretrained(reference.parent, gguf_file=reference.name)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["added_tokens"] = [own for own in saved["added_tokens"] if own["content"] not in CHAT_TOKENS]
    saved["model"]["vocab"] = {text: own for text, own in saved["model"]["vocab"].items() if text not in CHAT_TOKENS}
    path.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = folder / "tokenizer_config.json"
    kept = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": ENDS_A_DOCUMENT, "pad_token": ENDS_A_DOCUMENT}
    settings.write_text(json.dumps(kept), encoding="utf-8")
    left = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert not any(token in left for token in CHAT_TOKENS), "the tokens are gone"
    return folder


def ask(engine: Engine, questions: list[str], *, weights: Mapping[str, float] | None, max_tokens: int) -> Result:
    """Greedy answers, four at a time."""
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
    prompts = [[{"role": "user", "content": question}] for question in questions]
    outputs = engine.generate(prompts, sampling=sampling, reward_weights=weights)
    return Result(
        num_answers=len(outputs),
        num_ended=sum(output.finish_reason == "stop" for output in outputs),
        num_in_form=sum(parse_json_answer(output.text) is not None for output in outputs),
        mean_tokens=sum(output.usage.completion_tokens for output in outputs) / len(outputs),
    )


def main(
    base: Annotated[Path, typer.Option(help="The large model, a GGUF file.")],
    reference: Annotated[Path, typer.Option(help="The small model, a GGUF file.")],
    adapter: Annotated[Path, typer.Option(help="LoRA adapter on the reference, a folder.")],
    num_questions: Annotated[int, typer.Option(help="Held-out questions.")] = 12,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 96,
    runtime: Annotated[str, typer.Option(help="auto, torch or llama.cpp.")] = "auto",
) -> None:
    """Ask the trio with and without the tokens, and the tuned model alone."""
    questions = load_held_out_questions()[:num_questions]
    named: Runtime | Any = runtime
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as name:
        older = str(without_chat_tokens(reference, Path(name)))
        own = MemberConfig(source=str(reference))
        tuned = MemberConfig(source=str(reference), adapter=str(adapter))
        config = EngineConfig(runtime=named, max_num_seqs=4)
        with Engine.load(str(base), pairs={"form": TunedPair(tuned, own)}, config=config) as engine:
            results["all members have the tokens"] = ask(engine, questions, weights=None, max_tokens=max_tokens)
        bare = MemberConfig(source=str(base), tokenizer=older)
        pairs = {"form": TunedPair(tuned, MemberConfig(source=str(reference), tokenizer=older))}
        try:
            Engine.load(bare, pairs=pairs, config=config).close()
        except VocabularyMismatchError as error:
            Console(stderr=True).print(f"by default: {error}", soft_wrap=True, markup=False)
        keep = config.model_copy(update={"tuned_only_tokens": "keep"})
        with Engine.load(bare, pairs=pairs, config=keep) as engine:
            results["only the tuned model has them, kept"] = ask(engine, questions, weights=None, max_tokens=max_tokens)
        with Engine.load(tuned, config=config) as engine:
            results["the tuned model alone"] = ask(engine, questions, weights=None, max_tokens=max_tokens)
    table = Table("way", "ended by itself", "in form", "mean tokens")
    for way, result in results.items():
        of = f"of {result.num_answers}"
        table.add_row(way, f"{result.num_ended} {of}", f"{result.num_in_form} {of}", f"{result.mean_tokens:.1f}")
    Console().print(table)
    finish("kept_tokens", {"max_tokens": max_tokens, "results": {way: asdict(own) for way, own in results.items()}})


if __name__ == "__main__":
    typer.run(main)
