"""What is known of calls that a cut has gone through."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_integrations.chat.forms import WrittenCall
from eft_integrations.chat.torn import Torn, arguments_so_far, torn_call, torn_calls

NAMES = ["add", "now"]
VALUES = st.recursive(
    st.one_of(st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("ab'\"\\é\n)", max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(
    st.from_regex(r"\A[a-z_][a-z0-9_]{0,5}\Z"),
    st.one_of(VALUES, st.text("aT1'\"\\(,=[{}é\n\x80🌞", max_size=8)),
    max_size=3,
)


@given(arguments=ARGUMENTS, data=st.data())
def test_python_arguments_are_the_beginning_of_the_json_that_the_whole_is(
    arguments: dict[str, object], data: st.DataObject
) -> None:
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    whole = json.dumps(arguments, ensure_ascii=False).removesuffix("}")
    assert arguments_so_far(written) == whole
    assert whole.startswith(arguments_so_far(written[: data.draw(st.integers(0, len(written)))]))


@given(arguments=st.dictionaries(st.text(max_size=5), VALUES, max_size=3), data=st.data(), as_text=st.booleans())
def test_json_arguments_are_what_is_written_of_them(
    arguments: dict[str, object], data: st.DataObject, as_text: bool
) -> None:
    whole = json.dumps(arguments)
    written = json.dumps({"name": "add", "arguments": whole if as_text else arguments})
    beginning = written.index('"arguments": ') + len('"arguments": ') + as_text
    call = torn_call(written[: data.draw(st.integers(beginning, len(written)))], NAMES)
    assert call is not None
    assert call.name == "add"
    assert whole.startswith(call.arguments)


CALL = '{"name": "add", "arguments": {"a": 3}}'
ADD = WrittenCall("add", '{"a": 3}')


@pytest.mark.parametrize(
    ("text", "torn"),
    [
        (f"[{CALL}", Torn((ADD,))),
        (f"```json\n{CALL}\n``", Torn((ADD,))),
        (f"{CALL}\n</too", Torn((ADD,))),
        (f"{CALL}; ", Torn((ADD,))),
        (f"{CALL}\n<tool_c", Torn((ADD,))),
        (f'{CALL}\n{{"na', Torn((ADD,), '{"na')),
        (f'[{CALL}, {{"name": "now"', Torn((ADD,), '{"name": "now"', WrittenCall("now", ""))),
        ("[add(a=3), no", Torn((ADD,), "no")),
        (
            "[add(a=3), now(b='c)', d=[1,",
            Torn((ADD,), "now(b='c)', d=[1,", WrittenCall("now", '{"b": "c)", "d": [1, ')),
        ),
        ("<function=add>", Torn((), "<function=add>", WrittenCall("add", ""))),
        ('<function=add>{"a', Torn((), '<function=add>{"a', WrittenCall("add", '{"a'))),
        ('{"tool": "add", "args": {"a', Torn((), '{"tool": "add", "args": {"a', WrittenCall("add", '{"a'))),
        ("{'name': 'add', 'arguments': {'a", Torn((), "{'name': 'add', 'arguments': {'a", WrittenCall("add", "{'a"))),
        (f"{CALL}\nThis adds it", None),
        (f'{CALL.replace("add", "subtract")}, {{"name": "add"', None),
        ('{"name": "subtract", "arguments": {"a', None),
        ('{"name": "ad', None),
        ("[", None),
        ("", None),
    ],
)
def test_calls_in_front_of_the_cut_are_whole(text: str, torn: Torn | None) -> None:
    assert torn_calls(text, NAMES) == torn


def test_half_a_pair_of_surrogates_is_no_character() -> None:
    call = torn_call('{"name": "add", "arguments": "{\\"a\\": \\"\\ud83d', NAMES)
    assert call == WrittenCall("add", '{"a": "')
    call = torn_call('{"name": "add", "arguments": "{\\"a\\": \\"\\ud83c\\udf1e', NAMES)
    assert call == WrittenCall("add", '{"a": "🌞')
