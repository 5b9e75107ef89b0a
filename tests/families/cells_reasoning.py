"""What every adapter must do with models that think: the cells of a second matrix, written once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from jsonschema import validate

from tests.families.adapters import Question
from tests.families.cells import (
    FORMAT_SCHEMA,
    RESPONSE_FORMAT,
    TOOLS,
    WEATHER_CALL,
    Desk,
    in_order,
    result,
    user,
)

THOUGHT = "Rain, or sun?\n\n  Two cities < three."
ASKED = [user("Will it rain?")]


def _thinks(desk: Desk, text: str, thought: str = THOUGHT) -> str:
    """An answer with a thought in front, as the family writes it behind the last prompt."""
    assert desk.family.thought is not None
    opened = desk.prompt.rfind("<think>") > desk.prompt.rfind("</think>")
    written = desk.family.thought.format(thought)
    return (written.partition("<think>\n")[2] if opened else written) + text


def _ask(desk: Desk, question: Question, text: str, thought: str = THOUGHT) -> Any:
    """The answer to a question for which the family thinks first."""
    desk.ask(question, text)  # so that the prompt is known
    return desk.ask(question, _thinks(desk, text, thought))


def on(desk: Desk) -> None:
    """The thought is a part of its own, and counted."""
    answer = _ask(desk, Question(ASKED, reasoning="high"), desk.in_words("It will."))
    assert answer.content == ("It will.", [], "stop")
    assert answer.reasoning == THOUGHT
    assert answer.reasoning_tokens > len(THOUGHT.split())
    answer = _ask(desk, Question(ASKED), desk.in_words("It will."), "Hm.")
    assert (answer.text, answer.reasoning) == ("It will.", "Hm.")


def off(desk: Desk) -> None:
    """The template is told, or else no thought can be written."""
    question = Question(ASKED, reasoning="off")
    answer = desk.ask(question, _briefly(desk, "It will."))
    assert (answer.content, answer.reasoning) == (("It will.", [], "stop"), "")
    told = {"qwen3": "<think>\n\n</think>", "granite3.3": "Be of help.<|end_of_text|>", "gpt-oss": "Reasoning: low"}
    assert told.get(_name(desk), "") in desk.prompt
    if _name(desk) in ("deepseek-r1", "gpt-oss"):
        assert not desk.stand_in.allows(_thinks(desk, desk.in_words("It will.")))
    demanded = Question(ASKED, TOOLS, tool_choice="required", reasoning="off")
    assert desk.ask(demanded).calls
    assert not desk.stand_in.allows(_thinks(desk, desk.one_call()))


def _briefly(desk: Desk, text: str) -> str:
    """Words without a thought: one that the prompt has begun is over at once."""
    return desk.in_words(text if _name(desk) != "deepseek-r1" else f"</think>\n\n{text}")


def _name(desk: Desk) -> str:
    """The family's name without what is said of its tokenizer."""
    return desk.family.name.partition(" ")[0]


def tools_auto(desk: Desk) -> None:
    """Thought and call, thought and words."""
    question = Question(ASKED, TOOLS)
    answer = _ask(desk, question, desk.one_call())
    assert answer.content == ("", [WEATHER_CALL], "tool_calls")
    assert answer.reasoning == THOUGHT
    answer = _ask(desk, question, desk.in_words("Perhaps."))
    assert (answer.content, answer.reasoning) == (("Perhaps.", [], "stop"), THOUGHT)


def tools_demanded(desk: Desk) -> None:
    """A call comes; a thought may stand before it, within its budget, and nothing else."""
    question = Question(ASKED, TOOLS, tool_choice="required", parallel=False)
    answer = desk.ask(question)
    assert len(answer.calls) == 1, answer
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    answer = _ask(desk, question, desk.one_call())
    assert (answer.content, answer.reasoning) == (("", [WEATHER_CALL], "tool_calls"), THOUGHT)
    assert not desk.stand_in.allows(_thinks(desk, desk.in_words("Perhaps.")))
    desk.ask(dataclasses.replace(question, reasoning_budget=4))
    assert desk.stand_in.allows(_thinks(desk, desk.one_call(), "Hm"))
    assert not desk.stand_in.allows(_thinks(desk, desk.one_call(), "Hm. " * 20))


def with_format(desk: Desk) -> None:
    """The format begins behind the thought."""
    question = Question(ASKED, response_format=RESPONSE_FORMAT)
    written = '{"city": "Paris", "sunny": true}'
    answer = _ask(desk, question, desk.in_words(written))
    assert (answer.content, answer.reasoning) == ((written, [], "stop"), THOUGHT)
    assert not desk.stand_in.allows(_thinks(desk, desk.in_words("It will.")))
    answer = desk.ask(question)
    validate(json.loads(answer.text), FORMAT_SCHEMA)


def tool_loop(desk: Desk) -> None:
    """Three turns: thoughts are handed back inside of the loop, and what the template makes of older ones is its own."""
    messages: list[dict[str, Any]] = list(ASKED)
    for number in ("one", "two"):
        answer = _ask(desk, Question(messages, TOOLS), desk.one_call(), f"Thought {number}.")
        assert answer.reasoning == f"Thought {number}."
        assert [(call.name, call.arguments) for call in answer.calls] == [WEATHER_CALL]
        messages += [answer.as_openai(), result(answer.calls[0], f"result {number}")]
    answer = _ask(desk, Question(messages, TOOLS), desk.in_words("It will."), "Thought three.")
    assert (answer.content, answer.reasoning) == (("It will.", [], "stop"), "Thought three.")
    in_order(desk.prompt, "Will it rain?", "Thought one.", "result one", "Thought two.", "result two")
    messages += [answer.as_openai(), user("And tomorrow?")]
    desk.ask(Question(messages, TOOLS), desk.in_words("Perhaps."))
    in_order(desk.prompt, "Will it rain?", "result one", "result two", "And tomorrow?")
    assert "Thought three." not in desk.prompt


REASONING_CELLS: Mapping[str, Callable[[Desk], None]] = {
    "on": on,
    "off": off,
    "tools auto": tools_auto,
    "tools demanded": tools_demanded,
    "with a format": with_format,
    "tool loop": tool_loop,
}
"""By name. That a stream equals the whole answer is part of each: `Desk.ask` asks both ways."""
