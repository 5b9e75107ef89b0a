"""Streams of text become text and calls: cut anywhere, in the model's notation or in a looser form."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_integrations.chat.loose import Unrecognised
from eft_integrations.chat.messages import InvalidToolCall, Tool, ToolCall
from eft_integrations.chat.notations import HERMES, LLAMA3, MISTRAL
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.reading import CallReader, Piece, Reading
from eft_integrations.chat.request import CallDelta

OPEN = {"type": "object"}
ADD = Tool("add", "", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
TOOLS = (ADD, Tool("now", "", {"type": "object", "properties": {}}), Tool("größe", "", OPEN), Tool('a"b', "", OPEN))
CALL = '{"name": "add", "arguments": {"a": 3}}'


def read(notation: Notation, text: str, step: int, *, lenient: bool = True) -> list[Piece]:
    """The pieces of a text that arrives in steps."""
    reader = CallReader(Reading(notation, TOOLS, lenient=lenient))
    pieces = [piece for start in range(0, len(text), step) for piece in reader.feed(text[start : start + step])]
    return [*pieces, *reader.finish()]


def summary(pieces: list[Piece]) -> tuple[str, list[tuple[str, object]]]:
    """Text, and every call's name and arguments."""
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return text, [(piece.name, json.loads(piece.arguments)) for piece in pieces if isinstance(piece, ToolCall)]


ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.integers(), st.text(alphabet='ab"\\{}<>/[]é\n', max_size=12), st.lists(st.booleans(), max_size=3)),
    max_size=3,
)


@given(
    calls=st.lists(st.tuples(st.sampled_from(["größe", 'a"b']), ARGUMENTS), min_size=1, max_size=3),
    before=st.sampled_from(["", "Sure.", "a < b <tool"]),
    step=st.integers(1, 9),
    notation=st.sampled_from([HERMES, MISTRAL, LLAMA3]),
)
def test_calls_are_read_back_however_the_text_is_cut(
    calls: list[tuple[str, dict[str, object]]], before: str, step: int, notation: Notation
) -> None:
    if notation is LLAMA3:
        calls, before = calls[:1], ""
    calls = [call for index, call in enumerate(calls) if call not in calls[:index]]
    text = notation.write([ToolCall("", name, json.dumps(own, ensure_ascii=False)) for name, own in calls])
    pieces = read(notation, f"{before}\n{text}" if before else text, step)
    assert summary(pieces) == (before, calls)
    assert not any(isinstance(piece, InvalidToolCall) for piece in pieces)
    starts = [piece for piece in pieces if isinstance(piece, CallDelta) and piece.name is not None]
    assert [(piece.index, piece.name) for piece in starts] == [(index, name) for index, (name, _) in enumerate(calls)]
    for index, (_, arguments) in enumerate(calls):
        parts = [piece.arguments for piece in pieces if isinstance(piece, CallDelta) and piece.index == index]
        assert json.loads("".join(parts)) == arguments


@given(text=st.text(alphabet='ab <tool_call>/{}[]`\n"', max_size=40), step=st.integers(1, 7), lenient=st.booleans())
def test_text_without_a_call_is_passed_on_whole(text: str, step: int, lenient: bool) -> None:
    text = text.replace("<tool_call>", "")
    assert summary(read(HERMES, text, step, lenient=lenient)) == (text, [])


@given(text=st.text(alphabet='ab{}[]",:\n `<>', max_size=60), step=st.integers(1, 9))
def test_streamed_equals_whole(text: str, step: int) -> None:
    text = text.replace("a", CALL)
    assert summary(read(HERMES, text, step)) == summary(read(HERMES, text, len(text) or 1))


def test_arguments_of_a_call_stream_as_they_are_written() -> None:
    pieces = read(HERMES, HERMES.write([ToolCall("", "add", '{"a": 12345}')]), 1)
    parts = [piece.arguments for piece in pieces if isinstance(piece, CallDelta)]
    assert len(parts) > 5
    assert "".join(parts) == '{"a": 12345}'


def test_cut_off_call_is_invalid_and_never_an_empty_one() -> None:
    whole = HERMES.write([ToolCall("", "add", '{"a": 3}')])
    for end in range(whole.index(">") + 1, whole.index("}")):
        pieces = read(HERMES, whole[:end], 4)
        assert summary(pieces)[1] == []
        assert [type(piece) for piece in pieces if not isinstance(piece, CallDelta)] == [InvalidToolCall]


def test_unusual_order_of_keys_and_text_behind_a_call() -> None:
    pieces = read(HERMES, 'a <tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call> b', 3)
    assert summary(pieces) == ("a b", [("add", {"a": 1})])


@pytest.mark.parametrize(
    "body", ["{not json at all}", '{"name": 3, "arguments": {}}', '{"name": "add", "arguments": [1]}']
)
def test_what_is_no_call_is_invalid_and_text_goes_on(body: str) -> None:
    pieces = read(HERMES, f"<tool_call>{body}</tool_call>\nSorry.", 5)
    assert [piece.text for piece in pieces if isinstance(piece, InvalidToolCall)] == [body]
    assert (summary(pieces)[0].strip(), summary(pieces)[1]) == ("Sorry.", [])


def test_a_call_that_is_repeated_counts_once() -> None:
    call = HERMES.write([ToolCall("", "add", '{"a": 3}')])
    again = HERMES.write([ToolCall("", "add", '{"a":3}')])
    pieces = read(HERMES, f"{call}\n{again}\n{HERMES.write([ToolCall('', 'now', '{}')])}", 6)
    assert summary(pieces) == ("", [("add", {"a": 3}), ("now", {})])
    assert [piece.reason for piece in pieces if isinstance(piece, Unrecognised)] == [
        "the answer makes this call already"
    ]


FORMS = {
    "bare": CALL,
    "fenced": f"```json\n{CALL}\n```",
    "fence without a language": f"```\n{CALL}\n```",
    "indented": '```json\n{\n  "name": "add",\n  "arguments": {\n    "a": 3\n  }\n}\n```',
    "tools": f"<tools>\n{CALL}\n</tools>",
    "function_call": f"<function_call> {CALL} </function_call>",
    "own tags without line breaks": f"<tool_call>{CALL}</tool_call>",
    "unclosed": f"<tools>\n{CALL}",
    "list": f"[{CALL}]",
    "parameters": '{"name": "add", "parameters": {"a": 3}}',
    "text of arguments": '{"name": "add", "arguments": "{\\"a\\": 3}"}',
    "OpenAI's": '{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 3}"}}',
    "other order": '{"arguments": {"a": 3}, "name": "add"}',
    "Python's quotes": "{'name': 'add', 'arguments': {'a': 3}}",
    "pythonic": "[add(a=3)]",
    "function tag": '<function=add>{"a": 3}</function>',
    "Mistral's": f"[TOOL_CALLS][{CALL}]",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_calls_count_in_the_forms_that_models_write(form: str, step: int) -> None:
    assert summary(read(HERMES, FORMS[form], step)) == ("", [("add", {"a": 3})])
    before = read(HERMES, f"I add it up.\n\n{FORMS[form]}\n", step)
    assert (summary(before)[0].strip(), summary(before)[1]) == ("I add it up.", [("add", {"a": 3})])
    if form != "unclosed":
        behind = read(HERMES, f"{FORMS[form]}\nThis adds it up.", step)
        assert (summary(behind)[0].strip(), summary(behind)[1]) == ("This adds it up.", [("add", {"a": 3})])


@pytest.mark.parametrize("form", [form for form in FORMS if form != "unclosed"])
@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_several_calls_are_read_one_after_another(form: str, between: str) -> None:
    text = between.join([FORMS[form], FORMS[form].replace("3", "4"), FORMS[form].replace("3", "5")])
    for step in (1, 1000):
        assert summary(read(HERMES, text, step)) == ("", [("add", {"a": number}) for number in (3, 4, 5)])


@pytest.mark.parametrize("form", [form for form in FORMS if form != "own tags without line breaks"])
def test_looser_forms_can_be_turned_off(form: str) -> None:
    assert summary(read(HERMES, FORMS[form], 5, lenient=False)) == (FORMS[form], [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"One writes {CALL} for that.", "inside a line"),
        (f"First.\n\n{CALL}\n\nThis would call the function.", "text before and behind"),
        (f"First.\n\nThen this:\n\n{CALL}", "inside an explanation"),
        (f"{CALL} is how one adds.", "inside a line"),
        ('{"name": "subtract", "arguments": {"a": 3}}', "no tool 'subtract' is bound"),
        ('{"name": "add", "arguments": {"a": "three"}}', "do not fit the schema"),
        ('{"name": "Anna", "age": 3}', None),
        ('{"answer": 3}', None),
        ("```python\nprint(3)\n```", None),
        ("[1](https://example.org)", None),
        ("[" * 5000, None),
        ('{"name": "add", "arguments": ' + "[" * 5000, None),
    ],
)
def test_what_only_looks_like_a_call_stays_text(text: str, reason: str | None) -> None:
    for step in (7, len(text)):
        pieces = read(HERMES, text, step)
        assert summary(pieces) == (text, [])
        reasons = [piece.reason for piece in pieces if isinstance(piece, Unrecognised)]
        assert reasons == [] if reason is None else reason in reasons[0]


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": ',
        "```python\nimport",
        "# Title\n",
        "[1](h",
        "a {",
        '{"name": "Anna", "age"',
        "<b>bold",
        "First.\n\nSecond.\n\n{",
    ],
)
def test_text_is_held_back_only_while_it_may_become_a_call(text: str) -> None:
    reader = CallReader(Reading(HERMES, TOOLS))
    shown = "".join(piece for piece in reader.feed(text) if isinstance(piece, str))
    assert shown.strip() == text.strip()


@pytest.mark.parametrize(
    "text", ['{"name": "ad', "```json\n{", "```js", "<too", "[add(a=", '{"type": "function", "func', CALL]
)
def test_what_may_become_a_call_is_held_back(text: str) -> None:
    assert [piece for piece in CallReader(Reading(HERMES, TOOLS)).feed(text) if isinstance(piece, str)] == []


def test_long_pieces_pass_at_once() -> None:
    reader = CallReader(Reading(HERMES, TOOLS))
    text = "word " * 200 + "end"
    assert list(reader.feed(text)) == [text]


@pytest.mark.parametrize("demanded", [True, False])
def test_calls_that_a_budget_cuts_are_invalid(demanded: bool) -> None:
    for text, calls in ((CALL[:-3], 0), (f"{CALL}\n{CALL[:-3]}", 1), (f"```json\n{CALL[:-1]}", 0)):
        reader = CallReader(Reading(HERMES, TOOLS, demanded=demanded))
        pieces = [*reader.feed(text), *reader.finish(is_cut=True)]
        assert (summary(pieces)[0], len(summary(pieces)[1])) == ("", calls)
        invalid = [piece.reason for piece in pieces if isinstance(piece, InvalidToolCall)]
        assert invalid == ["the text ended inside the call"]
    whole = CallReader(Reading(HERMES, TOOLS, demanded=demanded))
    pieces = [*whole.feed("Well, "), *whole.finish(is_cut=True)]
    assert [type(piece) for piece in pieces if not isinstance(piece, str)] == ([InvalidToolCall] if demanded else [])
