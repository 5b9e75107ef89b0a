r"""How a byte-level vocabulary cuts a text into words before it merges bytes: regular expressions by the name that a file has.

A GGUF file holds the name only (`tokenizer.ggml.pre`), so the expressions are written out here, by the names that llama.cpp's
converter gives (https://github.com/ggml-org/llama.cpp, `src/llama-vocab.cpp`). Where llama.cpp simplifies an expression because its
own engine lacks `\p{Lu}`, `(?i:` or `&&`, this file has the one that the model was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """How a text is cut: by each expression in turn, into what it matches and what lies between.

    `whole_words`: a word that is a token is that token, whatever the merges say. `begins`: a text begins with the start token,
    unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False


_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKED_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_HAN_AND_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_HAN_AND_HANGUL = "[一-龥ࠀ-一가-퟿]+"
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
_QWEN35 = rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_DEEPSEEK3 = rf"{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


def _by_case(digits: str, *, suffix: str = "", signs: str = r" ?[^\s\p{L}\p{N}]+[\r\n/]*", without: str = "") -> str:
    """Words that are cut where capitals begin; `without` are letters that no word has."""
    upper = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]"
    lower = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{without}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}|{digits}|{signs}|{_SPACES}"


_GPT4O = _by_case(r"\p{N}{1,3}", suffix=f"{_SUFFIX}?")

_BY_NAMES: Mapping[str, Words] = {
    "default": Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Words(
        (_LLAMA3,), whole_words=True, begins=True
    ),
    "dbrx smaug-bpe chatglm-bpe": Words((_LLAMA3,)),
    "glm4 glm5": Words((_LLAMA3,), whole_words=True),
    "jais-2": Words(
        (
            rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|"
            + "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}",
        )
    ),
    "minicpm5": Words((r"\p{N}{1,3}", rf"{_SUFFIX}|{_WORD}|\p{{N}}+|{_SIGNS}|{_SPACES}"), whole_words=True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": Words((_QWEN2,)),
    "qwen35": Words((_QWEN35,)),
    "ufakzeka": Words((rf"{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}",)),
    "laguna": Words((r"[^\n]+|[\n]+", _QWEN2)),
    "bailingmoe bailingmoe2 llada-moe": Words(
        (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
    ),
    "seed-coder": Words((rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)),
    "exaone-moe": Words(
        (
            rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "deepseek-llm": Words(
        (
            "[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _HAN_AND_HANGUL,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Words(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, r"\p{N}")),
    "deepseek-v3 hunyuan-dense hy_v4 joyai-llm": Words((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3)),
    "spark2_5": Words(
        (
            r"\p{N}{1,3}",
            _HAN_AND_KANA,
            rf"{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        )
    ),
    "afmoe": Words(
        (
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
            "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+",
            _DEEPSEEK3,
        )
    ),
    "youtu": Words(
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            _by_case(r"\p{N}", suffix=f"{_SUFFIX}?"),
        ),
        whole_words=True,
    ),
    "falcon": Words((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": Words((r"\p{N}", _GPT2)),
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4": Words((_GPT2,)),
    "poro-chat bloom gpt3-finnish": Words((_BLOOM,)),
    "viking": Words((_BLOOM, r"\p{N}")),
    "tekken": Words((_by_case(r"\p{N}"),), whole_words=True, begins=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Words((_GPT4O,)),
    "tiny_aya cohere2moe": Words((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    "kimi-k2": Words(
        (r"[\p{Han}]+|" + _by_case(r"\p{N}{1,3}", suffix=f"{_SUFFIX}?", signs=_SIGNS, without=r"&&[^\p{Han}]"),)
    ),
    "superbpe": Words((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "chameleon": Words(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        begins=True,
    ),
}
"""Families that cut alike, by all their names."""

WORDS: Mapping[str, Words] = {name: words for names, words in _BY_NAMES.items() for name in names.split()}
"""How each `tokenizer.ggml.pre` cuts. Names of encoders, which generate nothing, are left out."""
