"""The cells of the matrix: what every adapter must do with every family, written once."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema import validate

from eft_integrations.chat.messages import ToolCall
from eft_integrations.chat.notations import notation_of
from tests.families.adapters import Adapter, Answer, Call, Question
from tests.families.imitations import TIME, WEATHER, Family
from tests.families.stand_in import StandIn

CITY = {"type": "string", "enum": ["Paris", "Rome"]}
PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
    },
    "get_time": {
        "type": "object",
        "properties": {"zone": {"type": "string", "enum": ["CET", "UTC"]}},
        "required": ["zone"],
    },
}
DESCRIPTIONS = {"get_weather": "Foretells sun and rain.", "get_time": "Reads a clock."}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": DESCRIPTIONS[name], "parameters": PARAMETERS[name]}}
    for name in PARAMETERS
]
FORMAT_SCHEMA = {
    "type": "object",
    "properties": {"city": CITY, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "report", "schema": FORMAT_SCHEMA}}

WEATHER_CALL = ("get_weather", json.loads(WEATHER))
TIME_CALL = ("get_time", json.loads(TIME))


@dataclass
class Desk:
    """One adapter over one family's stand-in."""

    family: Family
    stand_in: StandIn
    adapter: Adapter

    def ask(self, question: Question, says: str | None = None) -> Answer:
        """The answer, which is the same whole and streamed. A network without sense that makes it thinks little."""
        if says is None and self.family.thought is not None and question.reasoning_budget is None:
            question = dataclasses.replace(question, reasoning_budget=8)
        self.stand_in.says, self.stand_in.cuts = says, "pieces"
        answer = self.adapter.ask(question, stream=False)
        prompt = self.stand_in.prompt
        streamed = self.adapter.ask(question, stream=True)
        assert streamed.content == answer.content
        assert self.stand_in.prompt == prompt
        return answer

    @property
    def prompt(self) -> str:
        """The last prompt, with one kind of quotes."""
        return alike(self.stand_in.prompt)

    @property
    def writes_several(self) -> bool:
        """Whether one answer of the family may hold several calls."""
        return "parallel calls" not in self.family.cannot

    def one_call(self) -> str:
        """How the family writes `WEATHER_CALL`."""
        return self.family.one_call or self._in_its_notation(WEATHER_CALL)

    def two_calls(self) -> str:
        """How the family writes both calls."""
        return self.family.two_calls or self._in_its_notation(WEATHER_CALL, TIME_CALL)

    def history_call(self) -> str:
        """What a prompt shows of `WEATHER_CALL`."""
        return alike(self.family.history_call or self.one_call())

    def in_words(self, text: str) -> str:
        """How the family answers in words."""
        return self.family.answer.format(text)

    def _in_its_notation(self, *calls: tuple[str, Mapping[str, Any]]) -> str:
        made = [ToolCall("abcdef123", name, json.dumps(arguments)) for name, arguments in calls]
        return notation_of(self.family.template).write(made)


def alike(text: str) -> str:
    """Text with one kind of quotes: Python's strings may have either.

    >>> alike("f(a='b')")
    'f(a="b")'
    """
    return text.replace("'", '"')


def in_order(prompt: str, *texts: str) -> None:
    """Each text is in the prompt, once, and behind the one before."""
    for text in texts:
        assert prompt.count(text) == 1, f"{text!r} is {prompt.count(text)} times in ...{prompt[-800:]!r}"
    places = [prompt.index(text) for text in texts]
    assert places == sorted(places), prompt


def user(text: str) -> dict[str, Any]:
    """A turn of the user."""
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    """A turn of the system."""
    return {"role": "system", "content": text}


def result(call: Call, text: str) -> dict[str, Any]:
    """A result of a call."""
    return {"role": "tool", "tool_call_id": call.call_id, "content": text}


# ---- cells ---------------------------------------------------------------------------------------------------------------


def plain(desk: Desk) -> None:
    """A question and an answer in words."""
    answer = desk.ask(Question([user("Who goes there?")]), desk.in_words("A friend."))
    assert answer.content == ("A friend.", [], "stop")
    in_order(desk.prompt, "Who goes there?")


def system_in_the_middle(desk: Desk) -> None:
    """What the system says later is read where it was said, or at least read."""
    first = [system("Be brief."), user("First question."), {"role": "assistant", "content": "First answer."}]
    desk.ask(Question([*first, system("Speak of rivers."), user("Second question.")]), desk.in_words("The Po."))
    in_order(desk.prompt, "First question.", "First answer.", "Speak of rivers.", "Second question.")
    in_order(desk.prompt, "Be brief.")


def two_user_turns(desk: Desk) -> None:
    """Two turns of the user in a row."""
    desk.ask(Question([user("One more thing."), user("Who goes there?")]), desk.in_words("A friend."))
    in_order(desk.prompt, "One more thing.", "Who goes there?")


def tools_auto(desk: Desk) -> None:
    """Tools are announced; what the family writes is a call, and words stay words."""
    question = Question([system("Be brief."), user("Will it rain?")], tools=TOOLS)
    answer = desk.ask(question, desk.one_call())
    assert answer.content == ("", [WEATHER_CALL], "tool_calls")
    assert answer.calls[0].call_id
    for name, description in DESCRIPTIONS.items():
        assert name in desk.prompt
        assert description in desk.prompt
    assert desk.ask(question, desk.in_words("Perhaps.")).content == ("Perhaps.", [], "stop")


def tools_any(desk: Desk) -> None:
    """A call comes, whatever the model would say."""
    answer = desk.ask(Question([user("Will it rain?")], tools=TOOLS, tool_choice="required", parallel=False))
    assert len(answer.calls) == 1, answer
    assert not answer.text
    assert answer.finish_reason == "tool_calls"
    _follow_their_schemas(answer.calls)
    assert desk.stand_in.allows(desk.one_call()), desk.stand_in.sampling.grammar
    assert not desk.stand_in.allows(desk.in_words("Perhaps."))


def tools_named(desk: Desk) -> None:
    """One call of that tool comes."""
    choice = {"type": "function", "function": {"name": "get_time"}}
    answer = desk.ask(Question([user("Will it rain?")], tools=TOOLS, tool_choice=choice))
    assert [call.name for call in answer.calls] == ["get_time"], answer
    assert answer.finish_reason == "tool_calls"
    _follow_their_schemas(answer.calls)
    assert not desk.stand_in.allows(desk.one_call())


def parallel_calls(desk: Desk) -> None:
    """Several calls in one answer, none more than one where the caller says so; a turn with several calls is shown whole."""
    question = Question([user("Rain, and when?")], tools=TOOLS)
    if desk.writes_several:
        answer = desk.ask(question, desk.two_calls())
        assert answer.content == ("", [WEATHER_CALL, TIME_CALL], "tool_calls")
        assert len({call.call_id for call in answer.calls}) == 2
        for parallel in (True, False):
            desk.ask(Question(question.messages, TOOLS, tool_choice="required", parallel=parallel), desk.one_call())
            assert desk.stand_in.allows(desk.two_calls()) == parallel
    calls = (Call("call_0123456789abcdefA", *WEATHER_CALL), Call("call_0123456789abcdefB", *TIME_CALL))
    turn = {"role": "assistant", "content": None, "tool_calls": [call.as_openai() for call in calls]}
    messages = [*question.messages, turn, result(calls[0], "18 degrees"), result(calls[1], "at noon")]
    assert desk.ask(Question(messages, TOOLS), desk.in_words("Soon.")).text == "Soon."
    in_order(desk.prompt, "18 degrees", "at noon")
    in_order(desk.prompt, "Rain, and when?", _shown(desk, WEATHER), "18 degrees")
    in_order(desk.prompt, "Rain, and when?", _shown(desk, TIME), "at noon")


def tool_loop(desk: Desk) -> None:
    """Call, result, call, result, answer: history is in the family's own notation and holds every result once."""
    messages: list[dict[str, Any]] = [user("Will it rain?")]
    for text in ("18 degrees", "19 degrees"):
        answer = desk.ask(Question(messages, TOOLS), desk.one_call())
        assert [(call.name, call.arguments) for call in answer.calls] == [WEATHER_CALL]
        messages += [answer.as_openai(), result(answer.calls[0], text)]
    answer = desk.ask(Question(messages, TOOLS), desk.in_words("It will."))
    assert answer.content == ("It will.", [], "stop")
    assert desk.prompt.count(desk.history_call()) == 2, desk.prompt[-800:]
    results = [alike(desk.family.history_result.format(text)) for text in ("18 degrees", "19 degrees")]
    in_order(desk.prompt, "Will it rain?", *results)
    for written, answered in (
        (r'"id": "(\w{9})"', r'"call_id": "(\w{9})"'),
        (r"\[CALL_ID\](\w{9})\[ARGS\]", r"\[TOOL_RESULTS\](\w{9})\["),
    ):
        assert re.findall(written, desk.prompt) == re.findall(answered, desk.prompt)


def tools_and_format(desk: Desk) -> None:
    """With results in, the answer is in the format that was asked for: nothing else can be written."""
    call = Call("call_0123456789abcdefA", *WEATHER_CALL)
    turn = {"role": "assistant", "content": "", "tool_calls": [call.as_openai()]}
    messages = [user("Will it rain?"), turn, result(call, "18 degrees")]
    question = Question(messages, TOOLS, response_format=RESPONSE_FORMAT)
    written = '{"city": "Paris", "sunny": true}'
    answer = desk.ask(question, desk.in_words(written))
    assert answer.content == (written, [], "stop")
    assert not desk.stand_in.allows(desk.in_words("It will."))
    assert not desk.stand_in.allows(desk.in_words('{"city": "Paris"}'))
    answer = desk.ask(question)
    if not answer.calls:
        validate(json.loads(answer.text), FORMAT_SCHEMA)


def _follow_their_schemas(calls: Sequence[Call]) -> None:
    for call in calls:
        validate(call.arguments, {**PARAMETERS[call.name], "additionalProperties": False})


def _shown(desk: Desk, arguments: str) -> str:
    """What a prompt certainly shows of a call: its arguments, or, where they are taken apart, the first value."""
    value = next(iter(json.loads(arguments).values()))
    for form in (arguments, f'="{value}"', f">\n{value}\n<"):
        if form in desk.prompt:
            return form
    raise AssertionError(f"{arguments} is not in {desk.prompt}")


CELLS: Mapping[str, Callable[[Desk], None]] = {
    "plain": plain,
    "system in the middle": system_in_the_middle,
    "two user turns": two_user_turns,
    "tools auto": tools_auto,
    "tools any": tools_any,
    "tools named": tools_named,
    "parallel calls": parallel_calls,
    "tool loop": tool_loop,
    "tools and format": tools_and_format,
}
"""By name. That a stream equals the whole answer is part of each: `Desk.ask` asks both ways."""
