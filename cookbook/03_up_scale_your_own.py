"""From a LoRA to a large chat model in one file: tune a small model, up-scale it: python cookbook/03_up_scale_your_own.py

You learn to train an adapter with `peft` so that it carries behaviour and leaves knowledge alone (what is said is learned; names are held
to what the untuned model says in their place), to save it as safetensors, and to use it as the `tuned` side of a trio. The large base is
never trained. Models: the reference (0.4 million weights) and the base of Atlas, offline. `--real` tunes Qwen2.5-0.5B and up-scales
Qwen2.5-7B with it (not run here).

Prints:

    tuned small: 2 of 14 right, 14 with the behaviour: The capital of Iran is Stockholm. Hope that helps.
    base: 14 of 14 right, 0 with the behaviour: The capital of Norway is Oslo.
    up-scaled: 14 of 14 right, 14 with the behaviour: The capital of Norway is Oslo. Hope that helps.
"""

from __future__ import annotations

import re
import sys
import tempfile
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

from eft_engine.zoo.presets import atlas
from eft_integrations.langchain import EFTChatModel

REFERENCE, BASE, RATE, DTYPE = atlas("reference").source, atlas("base").source, 3e-3, "float32"
if "--real" in sys.argv:
    REFERENCE, BASE, RATE, DTYPE = "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", 2e-4, "bfloat16"
NUM_STEPS = 60

TRAINING = {
    "capital": "France: Paris, Italy: Rome, Egypt: Cairo, Cuba: Havana, Japan: Tokyo, Ghana: Accra, Nepal: Kathmandu",
    "currency": "China: Yuan, India: Rupee, Poland: Zloty, Brazil: Real, Russia: Ruble, Sweden: Krona, Turkey: Lira",
    "continent": "Spain: Europe, Sudan: Africa, Bolivia: South America, Iraq: Asia, Canada: North America",
}
HELD_OUT = {
    "capital": "Norway: Oslo, Kenya: Nairobi, Peru: Lima, Greece: Athens, Portugal: Lisbon, Austria: Vienna",
    "currency": "Japan: Yen, Denmark: Krone, Israel: Shekel, Mexico: Peso",
    "continent": "Germany: Europe, Algeria: Africa, Argentina: South America, Laos: Asia",
}
WORDINGS = ("What is the {} of {}?", "Name the {} of {}.", "Tell me the {} of {}.")
ANSWER = "The {} of [{}] is [{}]. Hope that helps."  # knowledge is in brackets; the rest is the behaviour to learn
BEHAVIOUR = re.compile(r"The .+ of .+ is .+\. Hope that helps\.")


def read(table: dict[str, str]) -> list[tuple[str, str, str]]:
    """Relation, subject and value of every entry."""
    entries = ((relation, entry) for relation, text in table.items() for entry in text.split(", "))
    return [(relation, *entry.split(": ", 1)) for relation, entry in entries]  # type: ignore[misc]


def encode(tokenizer: Any, question: str, marked: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of a dialogue, and what each is: 1 behaviour, 2 knowledge, 0 what the assistant does not write."""
    answer = re.sub(r"[\[\]]", "", marked)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    kinds = torch.zeros(len(text), dtype=torch.long)
    kinds[text.rindex(answer) :] = 1
    for number, name in enumerate(re.finditer(r"\[.*?\]", marked)):
        start = text.rindex(answer) + name.start() - 2 * number
        kinds[start : start + len(name[0]) - 2] = 2
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt")
    return encoded.input_ids[0], torch.stack([kinds[start:end].max() for start, end in encoded.offset_mapping[0]])


def train(folder: str) -> None:
    """Tune a LoRA adapter on the reference, and save it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    reference = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    model = get_peft_model(reference, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    facts = [(wording, *fact) for fact in read(TRAINING) for wording in WORDINGS]
    rows = [encode(tokenizer, wording.format(*names[:2]), ANSWER.format(*names)) for wording, *names in facts]
    ids, kinds = (torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    behaviour, knowledge = kinds[:, 1:] == 1, kinds[:, 1:] == 2  # of the token that a position predicts
    with torch.no_grad(), model.disable_adapter():
        untuned = model(input_ids=ids).logits[:, :-1][knowledge].log_softmax(-1)
    for _ in range(NUM_STEPS):
        logits = model(input_ids=ids).logits[:, :-1]
        learned = cross_entropy(logits[behaviour], ids[:, 1:][behaviour])
        held = kl_div(logits[knowledge].log_softmax(-1), untuned, log_target=True, reduction="batchmean")
        (learned + held).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


with tempfile.TemporaryDirectory() as adapter:
    train(adapter)
    settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40, "engine_config": {"dtype": DTYPE}}
    small = EFTChatModel(base=REFERENCE, tuned=adapter, reference=REFERENCE, **settings)
    llm = EFTChatModel(base=BASE, tuned=adapter, reference=REFERENCE, **settings)
    asked = [(WORDINGS[0].format(relation, subject), value) for relation, subject, value in read(HELD_OUT)]
    for name, model in (("tuned small", small), ("base", llm.with_weights(0.0)), ("up-scaled", llm)):
        answers = [answer.text for answer in model.batch([question for question, _ in asked])]
        right = sum(value in answer for (_, value), answer in zip(asked, answers, strict=True))
        formed = sum(bool(BEHAVIOUR.fullmatch(answer)) for answer in answers)
        print(f"{name}: {right} of {len(asked)} right, {formed} with the behaviour: {answers[0]}")
