"""Answers that `max_tokens` ended, at every place of every form that an answer has, as a backend gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from eft_engine import Usage
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import ChatResult

REASON = "the text ended inside the call"
PLACE = ToolCall("call_1", "visit", '{"place": "Tarn \\"B\\"", "days": [1, {"n": 2}]}')
OTHER = ToolCall("call_2", "visit", '{"place": "Ω", "days": []}')
OBJECT = '{"name": "Ann", "tags": ["a", "b"], "age": 3}'

ANSWERS: dict[str, Message] = {
    "text": Message("assistant", "One, two."),
    "thought and text": Message("assistant", "Yes.", reasoning="Is it so?"),
    "call": Message("assistant", "", (PLACE,)),
    "thought, text and call": Message("assistant", "I go.", (PLACE,), reasoning="Where to?"),
    "parallel calls": Message("assistant", "", (PLACE, OTHER)),
    "object": Message("assistant", OBJECT),
    "thought and object": Message("assistant", OBJECT, reasoning="Who?"),
}
"""Whole answers. Those with an object are asked for with a schema."""


def cuts(answer: Message) -> Iterator[ChatResult]:
    """The answer as it is when its budget ends behind each of its characters, but the last: a call is none until it is over, even
    if its arguments are whole.
    """
    is_object = answer.content == OBJECT
    for length in range(len(answer.reasoning)):
        yield cut(Message("assistant", "", reasoning=answer.reasoning[:length]), is_object=is_object)
    before = Message("assistant", "", reasoning=answer.reasoning)
    for length in range(len(answer.content)):
        yield cut(dataclasses.replace(before, content=answer.content[:length]), is_object=is_object)
    before = dataclasses.replace(before, content=answer.content)
    for index, call in enumerate(answer.tool_calls):
        whole = dataclasses.replace(before, tool_calls=answer.tool_calls[:index])
        for length in range(len(call.arguments) + 1):
            arguments = call.arguments[:length]
            text = f'<tool_call>{{"name": "{call.name}", "arguments": {arguments}'
            yield cut(whole, InvalidToolCall(text, REASON, call.name, call.call_id, arguments))


def cut(so_far: Message, *broken: InvalidToolCall, is_object: bool = False) -> ChatResult:
    """What there is of an answer, and calls that are none."""
    return ChatResult(
        content=so_far.content,
        tool_calls=so_far.tool_calls,
        invalid_tool_calls=broken,
        finish_reason="length",
        usage=Usage(3, 7, reasoning_tokens=2 if so_far.reasoning else 0),
        logprobs=None,
        metadata={"format_error": "the text ended inside the JSON"} if is_object else {},
        reasoning=so_far.reasoning,
    )


def unfit(call: ToolCall) -> ChatResult:
    """An answer that ended by itself, with a whole call that breaks its schema in what no mask could hold."""
    broken = InvalidToolCall(call.arguments, "days: has non-unique elements", call.name, call.call_id, call.arguments)
    return dataclasses.replace(cut(Message("assistant", ""), broken), finish_reason="stop")
