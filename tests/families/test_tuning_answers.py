"""Answers in training dialogues with real tokenizers and their templates, which `make test-families` fetches."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from eft_tuning.rendering import answer_runs, prompt_token_ids, render
from tests.families.fetch import COMMAND, FOLDER

ENDS = {
    "qwen2.5": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3.2": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "mistral-nemo": "</s>",
    "deepseek-v3": "<｜end▁of▁sentence｜>",
}

if not FOLDER.is_dir():
    pytest.skip(f"there are no real tokenizers; {COMMAND} fetches them", allow_module_level=True)


@pytest.mark.parametrize("name", ENDS)
def test_an_answer_is_what_the_model_is_asked_for(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    texts = ["12 years, naïve café.", '{"answer": "Paris"}']
    messages = [
        {"role": "user", "content": "How old? a"},
        {"role": "assistant", "content": texts[0]},
        {"role": "user", "content": "And where?"},
        {"role": "assistant", "content": texts[1]},
    ]
    rendered = render(tokenizer, messages)
    written = [
        tokenizer.decode(rendered.token_ids[start:end], skip_special_tokens=False)
        for start, end in answer_runs(rendered)
    ]
    assert written == [f"{text}{ENDS[name]}" for text in texts]
    asked = prompt_token_ids(tokenizer, messages[:-1])
    assert rendered.token_ids[: len(asked)] == asked
    assert answer_runs(rendered)[-1] == (
        len(asked),
        len(asked) + len(tokenizer.encode(texts[1], add_special_tokens=False)) + 1,
    )
