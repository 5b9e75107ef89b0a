"""What a stage has learned so far: `python -m recipes.atlas.probe base`, also while it is still training.

Fresh passages, requests and questions with the right answer before the network, all at once: an item counts when every token
of its content (names, numbers, the tool and its arguments) is the likeliest one. That is quicker than letting it answer, and a
little kinder. The questions that `questions.py` ships come from another seed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedTokenizerFast

from recipes.atlas.chat import Dialogue
from recipes.atlas.corpus import ask, reading_dialogue
from recipes.atlas.facts import load_facts
from recipes.atlas.fiction import make_reading
from recipes.atlas.phrasing import assistant_answer
from recipes.atlas.pretrain import attention_mask, make_network
from recipes.atlas.tools import make_tool_request
from recipes.atlas.train import PRETRAIN
from recipes.atlas.tune import encode

app = typer.Typer(add_completion=False)


def some_dialogues(rng: random.Random, num: int) -> dict[str, list[Dialogue]]:
    """Dialogues by what they ask for."""
    dialogues: dict[str, list[Dialogue]] = {}
    for max_places in (1, 2, 4):
        readings = [make_reading(rng, max_places=max_places) for _ in range(num)]
        dialogues[f"reading, up to {max_places} places"] = [
            reading_dialogue(reading.passage, reading.items, rng, lambda item, _: assistant_answer(item))
            for reading in readings
        ]
    requests = [make_tool_request(rng) for _ in range(num)]
    dialogues["tools"] = [
        Dialogue([("user", item.request), ("assistant", item.hermes())], item.tools) for item in requests
    ]
    for fact in rng.sample(load_facts(), 5 * num):
        item = ask(fact, rng)
        dialogue = Dialogue([("user", item.question), ("assistant", assistant_answer(item))])
        dialogues.setdefault(f"facts, {fact.relation}", []).append(dialogue)
    return dialogues


@torch.no_grad()
def share_right(network: Any, dialogues: list[Dialogue], tokenizer: PreTrainedTokenizerFast) -> float:
    """Share of the dialogues in which all content is the likeliest, given what stands before it."""
    batch = encode(dialogues, tokenizer)
    logits = network(input_ids=batch.ids, attention_mask=attention_mask(torch.zeros_like(batch.ids))).logits
    is_missed = (logits[:, :-1].argmax(-1) != batch.ids[:, 1:]) & batch.is_content[:, 1:]
    return 1 - float(is_missed.any(-1).float().mean())


@app.command()
def main(
    stage: Annotated[str, typer.Argument(help=", ".join(PRETRAIN))] = "base",
    *,
    work_dir: Annotated[Path, typer.Option(help="Folder with checkpoints.")] = Path("build/atlas"),
    num: Annotated[int, typer.Option(min=1, max=100, help="Dialogues of each kind.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the dialogues.")] = 555,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
) -> None:
    """Probe the last checkpoint of a stage and print one line of JSON."""
    torch.set_num_threads(threads)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work_dir / "tokenizer")
    network = make_network(PRETRAIN[stage].size, tokenizer, seed=seed)
    saved = torch.load(work_dir / f"{stage}.pt", weights_only=True)
    network.load_state_dict(saved["network"])
    network.eval()
    dialogues = some_dialogues(random.Random(seed), num)
    shares = {name: round(share_right(network, items, tokenizer), 3) for name, items in dialogues.items()}
    typer.echo(json.dumps({"probe": stage, "step": saved["step"], "shares": shares}))


if __name__ == "__main__":
    app()
