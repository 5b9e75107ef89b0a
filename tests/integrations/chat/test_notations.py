"""Every notation: what it writes, its grammar allows and its reading gives back, however the text is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence

import llguidance.hf
import pytest
from llguidance import LLMatcher, LLTokenizer
from transformers import AddedToken

from eft_engine.errors import InvalidOptionError
from eft_integrations.chat.grammar import answer_grammar
from eft_integrations.chat.messages import InvalidToolCall, Tool, ToolCall
from eft_integrations.chat.notations import NOTATIONS, notation_of
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.prompt import ControlTokens
from eft_integrations.chat.reading import CallReader, Piece, Reading
from eft_integrations.chat.request import CallDelta, ToolChoice
from tests.toy import make_tokenizer

WEATHER = Tool(
    "get_weather",
    "The weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "more": {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}}}},
        },
        "required": ["city"],
    },
)
TIME = Tool("get-time", "The time", {"type": "object", "properties": {}})
TOOLS = (WEATHER, TIME)
CALLS = (
    ToolCall(
        "",
        "get_weather",
        '{"city": "Köln \\"am\\" <Rhein>\\n]}", "days": 2, "unit": "C", "more": {"tags": ["a", "b"]}}',
    ),
    ToolCall("", "get_weather", '{"city": "Paris"}'),
    ToolCall("", "get-time", "{}"),
)
SINGLE = {"harmony", "llama3"}
"""One call per answer: a further one would be the next message, or is unknown to the model."""

WRITTEN = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "llama3": '{"name": "get_weather", "parameters": {"city": "Paris"}}',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
    "mistral-v11": '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
    "deepseek-v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek-v3.1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
    '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "kimi-k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
    "granite3": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
    "phi4-mini": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>',
    "hunyuan": '<tool_calls>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_calls>',
    "nemotron": '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>',
    "qwen3-coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
    "pythonic": "[get_weather(city='Paris')]",
    "lfm2": "<|tool_call_start|>[get_weather(city='Paris')]<|tool_call_end|>",
    "harmony": '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
}
"""By hand, as the families' templates and documents show it."""


def read(
    notation: Notation, pieces: Sequence[str], *, lenient: bool = False
) -> tuple[str, list[tuple[str, object]], list[Piece]]:
    """Text, calls and everything else."""
    reader = CallReader(Reading(notation, TOOLS, lenient=lenient))
    found = [piece for text in pieces for piece in reader.feed(text)] + list(reader.finish())
    text = "".join(piece for piece in found if isinstance(piece, str))
    calls = [(piece.name, json.loads(piece.arguments)) for piece in found if isinstance(piece, ToolCall)]
    streamed: dict[int, list[str]] = {}
    for piece in found:
        if isinstance(piece, CallDelta):
            streamed.setdefault(piece.index, []).append(piece.arguments)
    assert ["".join(streamed[index]) for index in range(len(calls))] == [
        piece.arguments for piece in found if isinstance(piece, ToolCall)
    ]
    return text, calls, [piece for piece in found if not isinstance(piece, str | CallDelta | ToolCall)]


def as_pairs(calls: Sequence[ToolCall]) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


def names() -> list[str]:
    return sorted(NOTATIONS)


def test_every_notation_is_written_down_by_hand() -> None:
    assert set(WRITTEN) == set(NOTATIONS)


@pytest.mark.parametrize("name", names())
def test_calls_are_written_as_the_family_writes_them(name: str) -> None:
    assert NOTATIONS[name].write(CALLS[1:2]) == WRITTEN[name]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("number", [1, 3])
def test_what_is_written_is_read_however_it_is_cut(name: str, number: int) -> None:
    notation = NOTATIONS[name]
    calls = CALLS[: 1 if name in SINGLE else number]
    written = notation.write(calls)
    for size in (1, 2, 7, len(written)):
        pieces = [written[start : start + size] for start in range(0, len(written), size)]
        text, found, rest = read(notation, pieces, lenient=notation.is_bare)
        assert (found, rest, text.strip()) == (as_pairs(calls), [], ""), size


@pytest.mark.parametrize("name", names())
def test_text_before_a_call_is_text(name: str) -> None:
    notation = NOTATIONS[name]
    before = (
        "<|channel|>final<|message|>Let me look.<|end|><|start|>assistant" if notation.has_headers else "Let me look.\n"
    )
    text, found, rest = read(notation, list(before + notation.write(CALLS[:1])), lenient=notation.is_bare)
    assert (text.strip(), found, rest) == ("Let me look.", as_pairs(CALLS[:1]), [])


@pytest.mark.parametrize("name", names())
def test_text_that_only_begins_like_a_call_is_no_call(name: str) -> None:
    notation = NOTATIONS[name]
    written = notation.write(CALLS[:1])
    cut = written[: len(written) * 2 // 3]
    text, found, rest = read(notation, [cut], lenient=notation.is_bare)
    assert found == []
    if notation.is_bare:
        assert text == cut
    else:
        assert [type(piece) for piece in rest] == [InvalidToolCall]


@pytest.mark.parametrize("name", names())
def test_plain_text_passes_at_once(name: str) -> None:
    notation = NOTATIONS[name]
    reader = CallReader(Reading(notation, TOOLS))
    assert list(reader.feed("The sky")) == ["The sky"]
    assert list(reader.feed(" is < blue [1] {2}.")) == [" is < blue [1] {2}."]
    assert list(reader.finish()) == []


# ---- grammars ------------------------------------------------------------------------------------------------------------


def tokenizer_of(name: str, *, special: bool) -> tuple[LLTokenizer, ControlTokens, object]:
    """A byte tokenizer with the notation's markers as tokens of their own."""
    import re

    tokenizer = make_tokenizer()
    markers = sorted(set(re.findall(r"<[^<>\n ]*>|\[[A-Z_]+\]", WRITTEN[name])))
    tokenizer.add_tokens([AddedToken(marker, special=special, normalized=False) for marker in markers])
    added = {
        token_id: (str(token.content), bool(token.special))
        for token_id, token in tokenizer.added_tokens_decoder.items()
    }
    eos = tokenizer.eos_token_id
    return (
        llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=eos),
        ControlTokens.of(added, ()),
        tokenizer,
    )


def accepts(grammar: str | None, ll_tokenizer: LLTokenizer, ids: Sequence[int]) -> bool:
    assert grammar is not None
    matcher = LLMatcher(ll_tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(ids)) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("name", names())
def test_grammars_allow_what_is_written_and_nothing_else(name: str, mode: str, special: bool) -> None:
    notation = NOTATIONS[name]
    ll_tokenizer, control, tokenizer = tokenizer_of(name, special=special)

    def allowed(text: str, *, choice: ToolChoice) -> bool:
        grammar = answer_grammar(TOOLS, choice, notation, control.by_id)
        return accepts(grammar, ll_tokenizer, tokenizer.encode(text, add_special_tokens=False))  # type: ignore[attr-defined]

    choice = ToolChoice(mode)
    calls = CALLS[:1] if name in SINGLE else CALLS
    # Python's own quotes are not JSON's, which the grammar writes.
    written = notation.write(calls) if "'" not in WRITTEN[name] else notation.write(CALLS[2:])
    assert allowed(written, choice=choice)
    if mode == "required" or not notation.is_bare:
        assert not allowed(written.replace("get_weather", "get_wealth").replace("get-time", "get-tame"), choice=choice)
    free = "<|channel|>final<|message|>free text" if notation.has_headers else "free text"
    assert allowed(free, choice=choice) == (mode == "auto")
    if mode == "auto" and not notation.is_bare and not notation.has_headers:
        assert allowed("Look:\n" + written, choice=choice)
    if mode == "required" and notation.is_shared:
        bare = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
        fence = '```json\n{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Paris"\n  }\n}\n```'
        for form in (bare, fence, f"<tools>\n{bare}\n</tools>", f"[{bare}]", f"{bare}\n{bare}"):
            assert allowed(form, choice=choice), form
        once = ToolChoice(mode, parallel=False)
        assert allowed(bare, choice=once)
        assert not allowed(f"{bare}\n{bare}", choice=once)
        assert not allowed('{"name": "get_weather", "arguments": {"town": "Paris"}}', choice=choice)


def test_a_notation_can_be_named_and_else_is_told_from_the_template() -> None:
    assert notation_of(None).name == notation_of("{{ messages }}").name == "hermes"
    assert notation_of("...[TOOL_CALLS]...", "llama3").name == "llama3"
    with pytest.raises(InvalidOptionError, match="hermes"):
        notation_of(None, "unknown")
