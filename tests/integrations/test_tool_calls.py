"""Tool calls: what a choice allows, what the grammars let through, and how a stream is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_engine import Lark
from eft_engine.text.grammar import GrammarCompiler
from eft_integrations.chat.messages import InvalidToolCall, Message, Tool, ToolCall, merge_turns
from eft_integrations.chat.request import CallDelta, ToolChoice
from eft_integrations.chat.schema import close_schema
from eft_integrations.chat.tool_calls import (
    HERMES,
    LLAMA3,
    MISTRAL,
    Piece,
    ToolCallReader,
    ToolNotation,
    announce,
    call_grammar,
    knows_tools,
    notation_of,
)
from tests.toy import END_ID, make_tokenizer

ADD = Tool("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
NOW = Tool("now")
TOOLS = [ADD, NOW]
NOTATIONS = [HERMES, LLAMA3, MISTRAL]
TOKENIZER = make_tokenizer(extra_tokens=["<tool_call>", "</tool_call>"])
COMPILER = GrammarCompiler(TOKENIZER, width=len(TOKENIZER), eos_token_ids=frozenset([END_ID]))


def written(notation: ToolNotation, *calls: tuple[str, dict[str, Any]]) -> str:
    """Calls as a model of this notation writes them."""
    objects = [
        f'{{"name": "{name}", "{notation.arguments_key}": {json.dumps(arguments, ensure_ascii=False)}}}'
        for name, arguments in calls
    ]
    if notation.is_list:
        return f"{notation.opening}[{', '.join(objects)}]{notation.closing}"
    return "\n".join(f"{notation.opening}{own}{notation.closing}" for own in objects)


def accepts(grammar: str, text: str) -> bool:
    """Whether the whole text may be generated and may end there."""
    state = COMPILER.compile(Lark(grammar=grammar))
    token_ids = TOKENIZER.encode(text, add_special_tokens=False)
    if state.valid_prefix(token_ids) != token_ids:
        return False
    for token_id in token_ids:
        state.commit(token_id)
    return state.is_accepting


# ---- choices -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "mode", "name"),
    [
        (None, "auto", None),
        ("auto", "auto", None),
        ("none", "none", None),
        ("any", "required", None),
        ("required", "required", None),
        (True, "required", None),
        ("add", "named", "add"),
        ({"type": "function", "function": {"name": "now"}}, "named", "now"),
        ({"type": "any"}, "required", None),
    ],
    ids=str,
)
def test_choice_is_understood_in_every_form(value: Any, mode: str, name: str | None) -> None:
    choice = ToolChoice.parse(value, TOOLS)
    assert (choice.mode, choice.name) == (mode, name)


@pytest.mark.parametrize(
    ("value", "reason"), [("sub", "the tools are add, now"), (3, "must be auto"), ({}, "must be auto")]
)
def test_choice_that_means_nothing_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ToolChoice.parse(value, TOOLS)


@pytest.mark.parametrize("value", ["any", "add", True])
def test_demanded_call_needs_tools(value: Any) -> None:
    with pytest.raises(ValueError, match="no tools were given"):
        ToolChoice.parse(value, [])


# ---- grammars ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("added", [set(), {"<tool_call>", "</tool_call>"}], ids=["text markers", "added markers"])
@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda own: own.name)
def test_demanded_calls_are_all_that_may_be_written(notation: ToolNotation, added: set[str]) -> None:
    if notation is HERMES and not added:
        pytest.skip("this tokenizer writes the markers as added tokens")
    grammar = call_grammar(TOOLS, ToolChoice.parse("any", TOOLS), notation, added)
    assert grammar is not None
    assert accepts(grammar, written(notation, ("add", {"a": 3})))
    assert accepts(grammar, written(notation, ("now", {})))
    assert accepts(grammar, written(notation, ("add", {"a": 3}), ("now", {}))) == (notation is not LLAMA3)
    for wrong in (("add", {}), ("add", {"a": "3"}), ("add", {"a": 3, "b": 1}), ("sub", {}), ("now", {"x": 1})):
        assert not accepts(grammar, written(notation, wrong)), wrong
    assert not accepts(grammar, "I would rather talk.")


@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda own: own.name)
def test_named_call_is_that_tool_and_one_call(notation: ToolNotation) -> None:
    grammar = call_grammar(TOOLS, ToolChoice.parse("now", TOOLS), notation, {"<tool_call>", "</tool_call>"})
    assert grammar is not None
    assert accepts(grammar, written(notation, ("now", {})))
    assert not accepts(grammar, written(notation, ("add", {"a": 1})))
    assert not accepts(grammar, written(notation, ("now", {}), ("now", {})))


@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda own: own.name)
def test_free_choice_allows_text_and_valid_calls_only(notation: ToolNotation) -> None:
    grammar = call_grammar(TOOLS, ToolChoice.parse("auto", TOOLS), notation, {"<tool_call>", "</tool_call>"})
    assert grammar is not None
    assert accepts(grammar, "just text, äöü")
    assert accepts(grammar, written(notation, ("add", {"a": 3})))
    assert not accepts(grammar, written(notation, ("add", {"a": "x"})))
    if notation.opening:
        assert accepts(grammar, "Let me see. " + written(notation, ("now", {})))


def test_text_markers_hold_calls_to_the_schema_too() -> None:
    """The same with a tokenizer that has no tokens for the markers."""
    plain = GrammarCompiler(make_tokenizer(), width=END_ID + 1, eos_token_ids=frozenset([END_ID]))
    grammar = call_grammar(TOOLS, ToolChoice(), HERMES, set())
    assert grammar is not None

    def fits(text: str) -> bool:
        state = plain.compile(Lark(grammar=str(grammar)))
        token_ids = make_tokenizer().encode(text, add_special_tokens=False)
        return state.valid_prefix(token_ids) == token_ids

    assert fits("Sure: " + written(HERMES, ("add", {"a": 3}), ("now", {})))
    assert fits("a < b, <tool, no call")
    assert not fits("Sure: " + written(HERMES, ("add", {"b": 3})))


def test_answer_under_a_schema_or_a_call() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    grammar = call_grammar(TOOLS, ToolChoice(), HERMES, {"<tool_call>", "</tool_call>"}, response_schema=schema)
    assert grammar is not None
    assert accepts(grammar, '{"x": 3}')
    assert accepts(grammar, written(HERMES, ("now", {})))
    assert not accepts(grammar, "text")
    assert not accepts(grammar, '{"x": 3, "y": 1}')


def test_no_tools_or_no_call_allowed_leaves_text_free() -> None:
    assert call_grammar([], ToolChoice(), HERMES, set()) is None
    assert call_grammar(TOOLS, ToolChoice.parse("none", TOOLS), HERMES, set()) is None


# ---- reading -------------------------------------------------------------------------------------------------------------


def read(notation: ToolNotation, text: str, step: int) -> list[Piece]:
    """The pieces of a text that arrives in steps."""
    reader = ToolCallReader(notation)
    pieces = [piece for start in range(0, len(text), step) for piece in reader.feed(text[start : start + step])]
    return [*pieces, *reader.finish()]


def summary(pieces: list[Piece]) -> tuple[str, list[tuple[str, Any]]]:
    """Text, and every call's name and arguments."""
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return text, [(piece.name, json.loads(piece.arguments)) for piece in pieces if isinstance(piece, ToolCall)]


ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.integers(), st.text(alphabet='ab"\\{}<>/[]é\n', max_size=12), st.lists(st.booleans(), max_size=3)),
    max_size=3,
)


@given(
    calls=st.lists(st.tuples(st.sampled_from(["add", "größe", 'a"b']), ARGUMENTS), min_size=1, max_size=3),
    before=st.sampled_from(["", "Sure. ", "a < b <tool "]),
    step=st.integers(1, 9),
    notation=st.sampled_from(NOTATIONS),
)
def test_calls_are_read_back_however_the_text_is_cut(
    calls: list[tuple[str, dict[str, Any]]], before: str, step: int, notation: ToolNotation
) -> None:
    if notation is LLAMA3:
        calls, before = calls[:1], ""
    text = before + written(notation, *[(json.dumps(name, ensure_ascii=False)[1:-1], own) for name, own in calls])
    pieces = read(notation, text, step)
    assert summary(pieces) == (before, calls)
    assert not any(isinstance(piece, InvalidToolCall) for piece in pieces)
    starts = [piece for piece in pieces if isinstance(piece, CallDelta) and piece.name is not None]
    assert [(piece.index, piece.name) for piece in starts] == [(index, name) for index, (name, _) in enumerate(calls)]
    for index, (_, arguments) in enumerate(calls):
        parts = [piece.arguments for piece in pieces if isinstance(piece, CallDelta) and piece.index == index]
        assert json.loads("".join(parts)) == arguments


@given(text=st.text(alphabet='ab <tool_call>/{}\n"', max_size=40), step=st.integers(1, 7))
def test_text_without_a_call_is_passed_on_whole(text: str, step: int) -> None:
    text = text.replace("<tool_call>", "")
    text_read, calls = summary(read(HERMES, text, step))
    assert (text_read, calls) == (text if text.strip() else text_read, [])


def test_cut_off_call_is_invalid_and_never_an_empty_one() -> None:
    whole = written(HERMES, ("add", {"a": 3}))
    for end in range(whole.index(">") + 1, whole.index("}")):
        pieces = read(HERMES, whole[:end], 4)
        assert summary(pieces)[1] == []
        assert [type(piece) for piece in pieces if not isinstance(piece, CallDelta)] == [InvalidToolCall]


def test_unusual_order_of_keys_and_text_behind_a_call() -> None:
    pieces = read(HERMES, 'a <tool_call>{"arguments": {"x": 1}, "name": "add"}</tool_call> b', 3)
    assert summary(pieces) == ("a  b", [("add", {"x": 1})])


@pytest.mark.parametrize("body", ["{not json}", '{"name": 3, "arguments": {}}', '{"name": "add", "arguments": [1]}'])
def test_what_is_no_call_is_invalid(body: str) -> None:
    pieces = read(HERMES, f"<tool_call>{body}</tool_call>", 5)
    assert [piece.text for piece in pieces if isinstance(piece, InvalidToolCall)] == [body]
    assert summary(pieces)[1] == []


# ---- rendering -----------------------------------------------------------------------------------------------------------


def test_notation_and_knowledge_of_tools_come_from_the_template() -> None:
    assert notation_of("{% if tools %}<tool_call>{% endif %}") is HERMES
    assert notation_of("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]") is MISTRAL
    assert notation_of('{{ tools }} {"name": f, "parameters": d}') is LLAMA3
    assert notation_of(None) is HERMES
    assert knows_tools("{% for t in tools %}")
    assert not knows_tools("{{ messages }} toolset")
    assert not knows_tools(None)


def test_tools_are_announced_in_the_system_turn_and_results_as_text() -> None:
    conversation = [
        Message("system", "Be brief."),
        Message("user", "3?"),
        Message("assistant", "", tool_calls=(ToolCall("1", "add", '{"a": 3}'),)),
        Message("tool", "4", tool_call_id="1", name="add"),
    ]
    system, _, called, result = announce(conversation, TOOLS, HERMES)
    assert system.content.startswith("Be brief.")
    assert all(json.dumps(tool.as_openai()) in system.content for tool in TOOLS)
    assert called.content == written(HERMES, ("add", {"a": 3}))
    assert not called.tool_calls
    assert (result.role, result.content) == ("user", "<tool_response>\n4\n</tool_response>")
    assert announce([Message("user", "hi")], TOOLS, HERMES)[0].role == "system"
    assert announce([Message("user", "hi")], [], HERMES) == [Message("user", "hi")]


def test_turns_of_one_role_become_one() -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("1", "add", "{}"),))
    results = [Message("tool", "1", tool_call_id="1"), Message("tool", "2", tool_call_id="2")]
    turns = [Message("system", "a"), Message("system", "b"), Message("user", "c"), call, *results]
    assert merge_turns(turns) == [Message("system", "a\n\nb"), Message("user", "c"), call, *results]
    assert merge_turns([]) == []


def test_objects_that_name_their_properties_are_closed() -> None:
    schema = {
        "type": "object",
        "properties": {"type": {"type": "object", "properties": {}}, "free": {"type": "object"}},
        "$defs": {"properties": {"type": "object", "properties": {}, "additionalProperties": True}},
        "anyOf": [{"type": "object", "properties": {}}],
        "enum": [{"type": "object", "properties": {}}],
    }
    closed = close_schema(schema)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["type"]["additionalProperties"] is False
    assert closed["properties"]["free"] == {"type": "object"}
    assert closed["$defs"]["properties"]["additionalProperties"] is True
    assert closed["anyOf"][0]["additionalProperties"] is False
    assert closed["enum"] == schema["enum"]
