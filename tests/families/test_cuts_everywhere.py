"""Answers that `max_tokens` ends, at every token: what was cut is never a call, and nothing that was written is lost."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator

import pytest
from jsonschema import validate

from eft_integrations.backends.pool import backend_of
from eft_integrations.chat.messages import ToolCall
from eft_integrations.chat.notations import NOTATIONS, notation_of
from eft_integrations.chat.request import ChatRequest, ChatResult
from tests.families.cells import PARAMETERS, TIME_CALL, WEATHER_CALL
from tests.families.imitations import BY_NAME, FAMILIES, TIME, WEATHER, Family
from tests.families.stand_in import StandIn
from tests.families.test_lenient import CALL, FORMS
from tests.families.test_reading import CALLS, NOTE, REQUEST, demanded, each_notation

THOUGHT = "Is it {dry}, or is it not?"
ARGUMENTS = {"get_weather": WEATHER, "get_time": TIME}
WRITTEN_CALL = re.compile(
    r'(?P<name>get_weather|get_time)(?:\([^)]*\)|>.*?</function>|[\'"][^}]*\}[^}]*\}(?:"?\s*\})*|[^>"(][^{]*\{[^}]*\})',
    re.DOTALL,
)
"""A call from its name to the bracket or tag that closes it, in whatever notation: no argument of these calls holds a bracket."""


def told(result: ChatResult) -> tuple[object, ...]:
    """Everything that an answer says, without ids and counts."""
    return (
        result.content,
        result.reasoning,
        [(call.name, call.arguments) for call in result.tool_calls],
        [(call.name, call.arguments, call.text, call.reason) for call in result.invalid_tool_calls],
        result.finish_reason,
        result.metadata.get("format_error"),
    )


def streamed(stand_in: StandIn, request: ChatRequest) -> ChatResult:
    """The result of a stream, whose pieces say together what it says: text, thought, and every call under its id."""
    *pieces, last = backend_of(stand_in).stream(request)
    result = last.result
    assert result is not None
    assert "".join(piece.text for piece in pieces) == result.content
    assert "".join(piece.reasoning for piece in pieces) == result.reasoning
    calls: dict[int, ToolCall] = {}
    for delta in (piece.call for piece in pieces):
        if delta is not None and delta.name is not None:
            calls[delta.index] = ToolCall(delta.call_id or "", delta.name, "")
        if delta is not None:
            begun = calls[delta.index]
            calls[delta.index] = dataclasses.replace(begun, arguments=begun.arguments + delta.arguments)
    broken = [
        ToolCall(call.call_id, call.name or "", call.arguments or "")
        for call in result.invalid_tool_calls
        if call.call_id
    ]
    assert [call for call in calls.values() if call not in broken] == list(result.tool_calls)
    return result


def cut_at_every_token(stand_in: StandIn, text: str, request: ChatRequest) -> Iterator[tuple[str, ChatResult]]:
    """What is written up to every token, and the answer that it makes, which is the same whole and in any pieces."""
    stand_in.says, stand_in.checks_grammars = text, False
    token_ids = stand_in.own_tokenizer.encode(text, add_special_tokens=False)
    ends = text.endswith(stand_in.family.further_ends)
    try:
        for stand_in.cut_at in range(1, len(token_ids) + 1 - ends):
            stand_in.cuts = "words"
            result = backend_of(stand_in).chat(request)
            stand_in.cuts = ("characters", "pieces")[stand_in.cut_at % 2]
            assert told(streamed(stand_in, request)) == told(result), stand_in.cuts
            yield stand_in.own_tokenizer.decode(token_ids[: stand_in.cut_at]), result
    finally:
        stand_in.cut_at, stand_in.checks_grammars, stand_in.cuts = None, True, "words"


def behind_a_thought(stand_in: StandIn, text: str) -> str:
    """What the family writes, with a thought in front where it thinks."""
    if stand_in.family.thought is None:
        return text
    stand_in.says = text
    backend_of(stand_in).chat(REQUEST)
    thought = stand_in.family.thought.format(THOUGHT)
    opened = next((own for own in ("<think>\n", "<think>") if stand_in.prompt.endswith(own)), "")
    return thought.removeprefix(opened) + text


def check(written: str, text: str, result: ChatResult, *, words: str = "") -> None:
    """What was written of an answer that consists of words and calls is in the result, each part in its place."""
    assert result.finish_reason == "length"
    thought = re.sub(r"</?[a-z]*$", "", result.reasoning)  # the tag behind it may be cut
    assert THOUGHT.startswith(thought)
    if THOUGHT[:2] in written:
        assert thought == THOUGHT[: len(written) - written.index(THOUGHT[:2])].rstrip()
    found = list(WRITTEN_CALL.finditer(text))
    whole = [call["name"] for call in found if call.end() <= len(written)]
    assert [call.name for call in result.tool_calls] == whole
    for call in result.tool_calls:
        assert json.loads(call.arguments) == json.loads(ARGUMENTS[call.name])
        validate(json.loads(call.arguments), dict(PARAMETERS[call.name]))
    begun = next((call for call in found if call.start() < len(written) < call.end()), None)
    told = "".join([result.content, *(call.text for call in result.invalid_tool_calls)])
    assert "unrecognised_calls" not in result.metadata
    if begun is None:
        assert not any(call.name for call in result.invalid_tool_calls)
        assert all(part in written for part in (result.content, *(call.text for call in result.invalid_tool_calls)))
        return
    beginning = written[begun.start() :]
    assert beginning.strip() in told
    if not begun["name"].startswith(beginning):
        (call,) = result.invalid_tool_calls
        assert (call.name, result.content.strip()) == (begun["name"], words)
        assert call.call_id
        assert call.arguments is not None
        check_arguments(call.arguments, beginning, begun["name"])


def check_arguments(arguments: str, beginning: str, name: str) -> None:
    """They are as far as they were written; where they are taken apart, in JSON all the same."""
    expected = "".join(ARGUMENTS[name].split())
    behind = beginning[len(name) :]
    if behind[0] not in "(>":
        written = "".join(behind.replace("\\", "").partition("{")[1:]).split()
        assert "".join(arguments.split()) == "".join(written)[: len(expected)]
        assert arguments in behind.replace("\\", "")
        return
    assert ARGUMENTS[name].startswith(arguments), arguments
    for value in (own for own in ("Paris", "2", "CET") if own in expected):
        written = [value[:end] for end in range(1, len(value) + 1) if re.search(rf"\W{value[:end]}", behind)]
        assert not written or written[-1] in arguments, (arguments, beginning)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda own: own.name)
def test_calls_in_the_familys_notation(family: Family, stand_ins: Callable[[Family], StandIn]) -> None:
    text = family.two_calls or family.one_call or notation_of(family.template).write(CALLS)
    text = behind_a_thought(stand_ins(family), text)
    for written, result in cut_at_every_token(stand_ins(family), text, REQUEST):
        check(written, text, result)


@pytest.mark.parametrize("name", [name for name in NOTATIONS if name != "harmony"])
def test_calls_in_every_notation_without_tokens_of_its_own(name: str, stand_ins: Callable[[Family], StandIn]) -> None:
    """Markers come in pieces, too."""
    text = NOTATIONS[name].write(CALLS)
    request = dataclasses.replace(REQUEST, tool_notation=name)
    for written, result in cut_at_every_token(stand_ins(BY_NAME["neutral"]), text, request):
        check(written, text, result)


def also_the_time(form: str) -> str:
    """The other call in a form of `CALL`."""
    form = form.replace("get_weather", "get_time")
    for dumped in (json.dumps, lambda own: json.dumps(json.dumps(own)), lambda own: json.dumps(own, indent=2)):
        form = form.replace(dumped(WEATHER_CALL[1]), dumped(TIME_CALL[1]))
    return re.sub(r'"city": "Paris",\s*"days": 2', '"zone": "CET"', form)


WORDS = "Let me look."


@pytest.mark.parametrize("form", [form for form in FORMS if form != "sentence behind"])
def test_calls_in_looser_forms(form: str, stand_ins: Callable[[Family], StandIn]) -> None:
    text = f"{FORMS[form]}\n{also_the_time(FORMS[form].removeprefix(WORDS).lstrip())}"
    if form == "list":
        text = f"[{CALL}, {also_the_time(CALL)}]"
    for written, result in cut_at_every_token(stand_ins(BY_NAME["phi4"]), text, REQUEST):
        check(written, text, result, words=WORDS if text.startswith(WORDS) else "")


@each_notation
def test_demanded_calls_of_a_network(family: Family, stand_ins: Callable[[Family], StandIn]) -> None:
    """What a grammar holds and `max_tokens` ends, as an engine makes it."""
    for max_tokens in range(1, 80, 13):
        result = demanded(stand_ins(family), max_tokens=max_tokens)
        for call in result.tool_calls:
            validate(json.loads(call.arguments), dict(NOTE.parameters))
        assert result.finish_reason == "length"
        assert result.tool_calls or result.invalid_tool_calls
