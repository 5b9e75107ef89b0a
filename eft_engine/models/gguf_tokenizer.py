"""A transformers tokenizer, built straight from the lists that a GGUF file holds.

    tokens           what each id stands for; `gpt2` files write bytes as letters ("Ġthe"), others a space as "▁" ("▁the")
    token types      control tokens, tokens that are matched whole in a text, single bytes, fillers
    merges, scores   how BPE puts tokens together: pairs in their order, or how good each token is (sentencepiece)
    pre              how `gpt2` files cut a text into words first (`gguf_words.py`)

Texts become the ids that llama.cpp gives them, with control tokens read as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from eft_engine.errors import CorruptWeightsError, TokenizerMissingError
from eft_engine.models.gguf_file import GGUFFile
from eft_engine.models.gguf_words import WORDS

Value = TypeVar("Value")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Token types."""

MODELS = ("gpt2", "llama", "gemma4")
"""Kinds of tokenizers that are built here."""

NAMED_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # spelled so in files
    "mask_token": "mask_token_id",
}
"""What transformers calls a token, and under which key its id is."""

SENTENCEPIECE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
"""What `llama` files mean when they give no ids."""

ENDS = frozenset(
    {
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<end_of_turn>",
        "<turn|>",
        "<|tool_response>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
        "<EOT>",
        "[EOT]",
        "[EOS]",
        "[e~[",
    }
)
"""Texts of the tokens that end a turn or a text, in all families: the files name one or two of theirs."""

CALLS = frozenset({"<|call|>", "<|calls|>"})
"""Families that have one of these end a message with `<|end|>`, and go on."""

PHI3_NOT_STRIPPED = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Phi-3's tokens that leave the spaces behind them alone; its other ones swallow them, and files do not say so."""

STRAY_BYTES = "ÀÁõö÷øùúûüýþÿ"
"""How bytes that no UTF-8 text has are written. DeepSeek's vocabularies have these letters as tokens of their own too."""

SPACE = "▁"
"""A space, outside `gpt2` files."""

SPACED = {"gemma4", "sarvam-moe"}
"""Values of `pre` whose tokens are spelled like sentencepiece's, and put together by merges."""


def tokenizer_from_gguf(file: GGUFFile, *, member: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file.

    Ids that the converter only filled up (`[PAD151665]`) have no token.

    Args:
        file: what the file says about itself.
        member: whose file it is, for messages.

    Raises:
        TokenizerMissingError: the file has no tokenizer, or one that cannot be built from what it has.
        CorruptWeightsError: the tokenizer's lists contradict one another.
    """
    lists = _Lists(file, member)
    backend = _byte_level(lists) if lists.model == "gpt2" and lists.pre not in SPACED else _spaced(lists)
    added = list(lists.added_tokens())
    backend.add_special_tokens([token for token in added if token.special])
    backend.add_tokens([token for token in added if not token.special])
    tokenizer = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)
    tokenizer._tokenizer = backend  # handed over as an argument it would be copied, by way of JSON
    tokenizer.__init__(
        add_bos_token=lists.add_bos,
        add_eos_token=lists.get("add_eos_token", False),
        chat_template=lists.chat_template(),
        clean_up_tokenization_spaces=False,
        **lists.named_tokens,
    )
    return tokenizer


def end_token_ids(file: GGUFFile) -> frozenset[int]:
    """Ids that end a text or a turn."""
    return frozenset(named_end_tokens(file))


def named_end_tokens(file: GGUFFile) -> dict[int, str]:
    """Ids that end a text or a turn, and what says so: those that the file names, and those that are known by their texts.

    A GGUF file has no generation configuration; it names one end of a text, and perhaps one of a turn.
    """
    tokens = file.metadata.get("tokenizer.ggml.tokens", [])
    known = {token_id for token_id, token in enumerate(tokens) if token in ENDS}
    if any(tokens[token_id] in CALLS for token_id in known):
        known = {token_id for token_id in known if tokens[token_id] != "<|end|>"}
    named = dict.fromkeys(sorted(known), "known by its text")
    defaults = SENTENCEPIECE_IDS if file.metadata.get("tokenizer.ggml.model") == "llama" else {}
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        token_id = file.metadata.get(f"tokenizer.ggml.{key}", defaults.get(key))
        if isinstance(token_id, int) and 0 <= token_id < len(tokens):
            named[token_id] = f"tokenizer.ggml.{key}"
    return named


def _byte_level(lists: _Lists) -> Tokenizer:
    """BPE over bytes that are written as letters."""
    if lists.pre not in WORDS:
        lists.fail(f"how {lists.pre!r} cuts a text into words is not known")
    words = WORDS[lists.pre]
    tokenizer = Tokenizer(BPE(lists.vocab, lists.merges(), ignore_merges=words.whole_words))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in words.patterns]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, spell])
    letters = [letter for letter in STRAY_BYTES if lists.type_of(letter) == USER_DEFINED]
    as_text = [decoders.Replace(letter, spell.pre_tokenize_str(letter)[0][0]) for letter in letters]
    tokenizer.decoder = decoders.Sequence([*as_text, decoders.ByteLevel()]) if letters else decoders.ByteLevel()
    return tokenizer


def _spaced(lists: _Lists) -> Tokenizer:
    """BPE over characters, where a space is one of them; bytes stand in for characters that are no tokens."""
    merges = lists.merges_by_score() if lists.model == "llama" else lists.merges()
    unknown = lists.named_tokens.get("unk_token")
    tokenizer = Tokenizer(BPE(lists.vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spell: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    unspell: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if lists.add_space_prefix:
        spell.insert(0, normalizers.Prepend(SPACE))
        unspell.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spell)
    tokenizer.decoder = decoders.Sequence(unspell)
    if lists.pre in SPACED:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    elif lists.runs:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(lists.runs)), "isolated")
    return tokenizer


class _Lists:
    """What the file says about its tokenizer, checked.

    `vocab` has all tokens but fillers. `runs` are tokens of spaces alone that are matched whole in a text, the longest first.
    """

    def __init__(self, file: GGUFFile, member: str) -> None:
        self.file = file
        self.member = member
        self.model = self.get("model", "")
        self.pre = "gemma4" if self.model == "gemma4" else self.get("pre", "default") or "default"
        if self.model not in MODELS:
            self.fail(f"{', '.join(MODELS)} are known" if self.model else "the file has none")
        self.add_space_prefix = self.get("add_space_prefix", self.model == "llama")
        self.tokens = [token or f"[EMPTY_{token_id}]" for token_id, token in enumerate(self.texts("tokens"))]
        if not self.tokens:
            self.fail("it has no tokens")
        embedding = file.tensors.get("token_embd.weight")
        if embedding is not None and embedding.shape[:1] != (len(self.tokens),):
            self.damaged(f"there are {len(self.tokens)} tokens, and token_embd.weight has the shape {embedding.shape}")
        self.types = [NORMAL] * len(self.tokens)
        if "tokenizer.ggml.token_type" in file.metadata:
            self.types = self.numbers("token_type", "iu")
        self.runs = self._spell_runs()
        self.vocab = {token: token_id for token_id, token in enumerate(self.tokens) if token != f"[PAD{token_id}]"}
        for token_id, token in enumerate(self.tokens):
            if self.vocab.get(token, token_id) != token_id:
                self.damaged(f"{token!r} is there twice in its tokens, as id {token_id} and {self.vocab[token]}")
        self.named_tokens = self._named_tokens()

    def get(self, name: str, default: Value) -> Value:
        """The file's `tokenizer.ggml.<name>`; `default` when it has none, or a value of another type there."""
        found = self.file.metadata.get(f"tokenizer.ggml.{name}")
        return found if type(found) is type(default) else default

    def fail(self, reason: str) -> NoReturn:
        source = self.file.paths[0]
        raise TokenizerMissingError(
            f"{self.member}: the tokenizer of {source} (tokenizer.ggml.model {self.model!r}, tokenizer.ggml.pre {self.pre!r}) "
            f"cannot be built: {reason}; name a folder that has it with MemberConfig(tokenizer=...)",
            member=self.member,
            source=str(source),
        )

    def damaged(self, reason: str) -> NoReturn:
        source = self.file.paths[0]
        raise CorruptWeightsError(
            f"{self.member}: the tokenizer of {source} is damaged: {reason}; convert the model anew",
            member=self.member,
            source=str(source),
        )

    def type_of(self, token: str) -> int | None:
        """The type of a token, None when there is no such token."""
        return self.types[self.vocab[token]] if token in self.vocab else None

    def texts(self, name: str) -> list[str]:
        texts = self.file.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(texts, list):
            self.fail(f"it has no list of texts tokenizer.ggml.{name}")
        return texts

    def numbers(self, name: str, kinds: str) -> list[Any]:
        """One for each token, of these of numpy's kinds."""
        found = self.file.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds or len(found) < len(self.tokens):
            self.damaged(f"tokenizer.ggml.{name} must hold a number for each of {len(self.tokens)} tokens")
        numbers: list[Any] = found.tolist()
        return numbers

    def _spell_runs(self) -> list[str]:
        """Spell tokens of several spaces as the others are spelled; the converter wrote spaces there."""
        if self.model != "llama" or self.add_space_prefix:
            return []
        runs = []
        spelled = set(self.tokens)
        for token_id, token in enumerate(self.tokens):
            run = SPACE * len(token)
            if self.types[token_id] == USER_DEFINED and not token.strip(" ") and run not in spelled:
                self.tokens[token_id] = run
                runs.append(run)
        return sorted(runs, key=len, reverse=True)

    def _named_tokens(self) -> dict[str, str]:
        end = self.file.metadata.get("tokenizer.ggml.eos_token_id", 0)
        if not isinstance(end, int) or not 0 <= end < len(self.tokens):
            self.fail(f"tokenizer.ggml.eos_token_id is {end!r}, and there are {len(self.tokens)} tokens")
        defaults = SENTENCEPIECE_IDS if self.model == "llama" else {}
        named = {}
        for name, key in NAMED_TOKENS.items():
            token_id = self.get(key, defaults.get(key, -1))
            if not 0 <= token_id < len(self.tokens):
                continue
            token = self.tokens[token_id]
            plain = self.types[token_id] in (NORMAL, BYTE) and not re.fullmatch(r"[<\[].+[>\]]", token)
            if token in self.vocab and not plain:  # some files call a comma the start of a text
                named[name] = token
        return named

    @property
    def add_bos(self) -> bool:
        """Whether a text begins with the start token."""
        if self.pre == "gemma4":  # early files say no, and llama.cpp does not believe them
            return True
        return self.get("add_bos_token", self.model == "llama" or (self.pre in WORDS and WORDS[self.pre].begins))

    def merges(self) -> list[tuple[str, str]]:
        """The file's merges, the first first."""
        merges: dict[tuple[str, str], None] = {}
        for merge in self.texts("merges"):
            cut = merge.find(" ", 1)
            left, right = merge[:cut], merge[cut + 1 :]
            if cut > 0 and left in self.vocab and right in self.vocab and left + right in self.vocab:
                merges[left, right] = None
        return list(merges)

    def merges_by_score(self) -> list[tuple[str, str]]:
        """Sentencepiece joins the two neighbours that make the best token: all ways to cut each token, the best token first."""
        scores = self.numbers("scores", "iuf")
        whole = {
            token: scores[token_id]
            for token, token_id in self.vocab.items()
            if self.types[token_id] in (NORMAL, USER_DEFINED, UNUSED)
        }
        return [
            (token[:cut], token[cut:])
            for token in sorted(whole, key=whole.__getitem__, reverse=True)
            for cut in range(1, len(token))
            if token[:cut] in whole and token[cut:] in whole
        ]

    def added_tokens(self) -> Iterator[AddedToken]:
        """Tokens that are matched whole in a text: control tokens (special), and those that users defined."""
        special = set(self.named_tokens.values())
        strips = self.model == "llama" and self.file.architecture == "phi3"
        runs = set(self.runs)
        for token, token_id in self.vocab.items():
            kind = self.types[token_id]
            is_special = kind in (UNKNOWN, CONTROL) or token in special or token in ENDS
            if is_special or (kind == USER_DEFINED and token not in runs):
                rstrip = strips and token not in PHI3_NOT_STRIPPED
                yield AddedToken(token, special=is_special, normalized=False, rstrip=rstrip)

    def chat_template(self) -> str | dict[str, str] | None:
        """The template, or several by their names."""
        found = {}
        for key, text in self.file.metadata.items():
            if re.match(r"tokenizer\.chat_template(\.|$)", key):
                if not isinstance(text, str):
                    self.damaged(f"{key} must be a text")
                found[key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default"] = text
        return found if found.keys() - {"default"} else found.get("default")
