"""A conversation as a chat template can render it: what it does not know becomes text, and what it refuses is put in order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from eft_integrations.chat.messages import LOOSE, Message, Tool, ToolCall
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.tags import Tags
from eft_integrations.chat.template import TemplateTraits
from eft_integrations.json_types import Json, JsonObject

NO_RESULT = "(no result)"
"""What stands in the place of a result that is missing beside others of its turn."""


def arranged(
    messages: Sequence[Message], tools: Sequence[Tool], traits: TemplateTraits, notation: Notation
) -> list[Message]:
    """The turns in a form and an order that a template with these traits takes. Nothing of what they say is lost."""
    turns = _orphans_in_words(_results_in_order(messages))
    turns = _with_thoughts_of_the_loop(turns) if traits.thought == "content" else turns
    if not traits.shows_results or any(_is_loose(turn) for turn in turns):
        turns = _results_in_words(turns)
    if traits.arguments is None:
        turns = [_call_as_text(turn, notation) for turn in turns]
    if not traits.parallel:
        turns = _one_call_each(turns)
    if traits.alternates:
        turns = _open_loops_in_words(turns, notation)
    if tools and not traits.shows_tools:
        turns = [Message("system", announcement(tools, notation)), *turns]
        if len(turns) > 1 and turns[1].role == "system":
            turns[:2] = [Message("system", f"{turns[1].content}\n\n{turns[0].content}", name=turns[1].name)]
    turns = _merged(turns, any_name=traits.alternates)
    if traits.system != "anywhere":
        kept = turns[:1] if traits.system == "first" and turns and turns[0].role == "system" else []
        turns = _merged([*kept, *_system_in_user(turns[len(kept) :])], any_name=traits.alternates)
    first = 1 if turns and turns[0].role == "system" else 0
    if traits.alternates and len(turns) > first and turns[first].role == "assistant":
        turns.insert(first, Message("user", ""))
    return turns


def _with_thoughts_of_the_loop(turns: Sequence[Message]) -> list[Message]:
    """A template that takes thoughts decides which of them it shows. For one that does not, those count that come after the last
    question, where a model goes on with what it has begun.
    """
    last = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=-1)
    return [dataclasses.replace(turn, reasoning="") if index < last else turn for index, turn in enumerate(turns)]


def _results_in_order(turns: Sequence[Message]) -> list[Message]:
    """Results in the order of their calls: most templates show no ids, and a model goes by the order then."""
    ordered: list[Message] = []
    for turn, results in _with_results(turns):
        ordered.append(turn)
        if not results:
            continue
        own, others = _assigned(turn.tool_calls, results)
        for call, answers in zip(turn.tool_calls, own, strict=True):
            ordered += answers or [Message("tool", NO_RESULT, tool_call_id=call.call_id or None, name=call.name)]
        ordered += others
    return ordered


def _with_results(turns: Sequence[Message]) -> Iterator[tuple[Message, Sequence[Message]]]:
    """The turns; one with calls together with the results that follow it."""
    place = 0
    while place < len(turns):
        end = place + 1
        while turns[place].tool_calls and end < len(turns) and turns[end].role == "tool":
            end += 1
        yield turns[place], turns[place + 1 : end]
        place = end


def _assigned(
    calls: Sequence[ToolCall], results: Sequence[Message]
) -> tuple[Sequence[Sequence[Message]], Sequence[Message]]:
    """The results of each call, and those that belong to none.

    A result is that of the call with its id, of several with one id the first that has none yet; what else has that id follows
    it. One without an id is that of the first call with its name, or of the first at all, that has none yet. A turn with one call
    has no results but those of that call.
    """
    if len(calls) == 1:
        return [results], []
    own: list[list[Message]] = [[] for _ in calls]
    others: list[Message] = []
    for result in sorted(results, key=lambda result: not result.tool_call_id):
        if result.tool_call_id:
            fitting = [place for place, call in enumerate(calls) if call.call_id == result.tool_call_id]
        else:
            fitting = [place for place, call in enumerate(calls) if not own[place] and result.name in (None, call.name)]
        if not fitting:
            others.append(result)
            continue
        place = next((place for place in fitting if not own[place]), fitting[-1])
        if not result.tool_call_id:
            result = dataclasses.replace(result, name=calls[place].name, tool_call_id=calls[place].call_id or None)
        own[place].append(result)
    return own, others


def announcement(tools: Sequence[Tool], notation: Notation) -> str:
    """What a model is told of its tools where its template says nothing."""
    listed = "\n".join(json.dumps(tool.as_openai(), ensure_ascii=False) for tool in tools)
    return (
        f"You may call these functions:\n<tools>\n{listed}\n</tools>\n"
        f"To call one, write its name and its arguments as JSON:\n{notation.example()}"
    )


def _call_as_text(turn: Message, notation: Notation) -> Message:
    if not turn.tool_calls:
        return turn
    written = notation.write(turn.tool_calls)
    return dataclasses.replace(turn, content=f"{turn.content}\n{written}" if turn.content else written, tool_calls=())


def _is_loose(turn: Message) -> bool:
    """Whether the model wrote a call of this turn in another form than its template's."""
    return any(call.call_id.startswith(LOOSE) for call in turn.tool_calls)


def _results_in_words(turns: Sequence[Message]) -> list[Message]:
    """Results as something that the user says."""
    names = {call.call_id: call.name for turn in turns for call in turn.tool_calls}
    return [_in_words(turn, names) if turn.role == "tool" else turn for turn in turns]


def _in_words(result: Message, names: Mapping[str, str]) -> Message:
    name = result.name or names.get(result.tool_call_id or "")
    function = f"The function {name}" if name else "The function"
    return Message("user", f"{function} returned:\n{result.content}")


def _orphans_in_words(turns: Sequence[Message]) -> list[Message]:
    """Results behind no call, as a history has them that was trimmed, as something that the user says."""
    arranged: list[Message] = []
    for turn, results in _with_results(turns):
        arranged += [_in_words(turn, {}) if turn.role == "tool" else turn, *results]
    return arranged


def _open_loops_in_words(turns: Sequence[Message], notation: Notation) -> list[Message]:
    """Calls that nobody spoke after before the user went on, and their results, as text: where roles must alternate, calls and
    results do not count.
    """
    arranged: list[Message] = []
    loops = list(_with_results(turns))
    for (turn, results), following in zip(loops, [*loops[1:], None], strict=True):
        if turn.tool_calls and following is not None and following[0].role == "user":
            arranged += _results_in_words([turn, *results])
            arranged[-len(results) - 1] = _call_as_text(turn, notation)
        else:
            arranged += [turn, *results]
    return arranged


def _one_call_each(turns: Sequence[Message]) -> list[Message]:
    """Turns with several calls as turns with one, each followed by its result."""
    arranged: list[Message] = []
    for turn, results in _with_results(turns):
        if len(turn.tool_calls) < 2:
            arranged += [turn, *results]
            continue
        own, others = _assigned(turn.tool_calls, results)
        for number, (call, answers) in enumerate(zip(turn.tool_calls, own, strict=True)):
            said = turn if number == 0 else dataclasses.replace(turn, content="", reasoning="")
            arranged += [dataclasses.replace(said, tool_calls=(call,)), *answers]
        arranged += others
    return arranged


def _system_in_user(turns: Sequence[Message]) -> list[Message]:
    """System turns as the beginning of the next user turn; where none follows, as a user turn."""
    arranged: list[Message] = []
    waiting: list[str] = []
    for turn in turns:
        if turn.role == "system":
            waiting.append(turn.content)
            continue
        if turn.role == "user" and waiting:
            turn = dataclasses.replace(turn, content="\n\n".join([*waiting, turn.content]))
            waiting = []
        elif turn.role == "assistant" and waiting:
            arranged.append(Message("user", "\n\n".join(waiting)))
            waiting = []
        arranged.append(turn)
    if waiting:
        arranged.append(Message("user", "\n\n".join(waiting)))
    return arranged


def _merged(turns: Sequence[Message], *, any_name: bool) -> list[Message]:
    """Neighbouring turns of one role as one turn; calls and results stay apart."""
    merged: list[Message] = []
    for turn in turns:
        previous = merged[-1] if merged else None
        if (
            previous is not None
            and previous.role == turn.role != "tool"
            and not previous.tool_calls
            and not turn.tool_calls
            and (any_name or previous.name == turn.name)
        ):
            name = previous.name if previous.name == turn.name else None
            thought = "\n\n".join(own.reasoning for own in (previous, turn) if own.reasoning)
            merged[-1] = Message(turn.role, f"{previous.content}\n\n{turn.content}", name=name, reasoning=thought)
        else:
            merged.append(turn)
    return merged


# ---- the form that templates read ----------------------------------------------------------------------------------------


def as_mappings(turns: Sequence[Message], traits: TemplateTraits, tags: Tags | None) -> list[JsonObject]:
    """OpenAI's form, with arguments, ids and thoughts as the template wants them."""
    return [_as_mapping(turn, traits, tags) for turn in turns]


def _as_mapping(message: Message, traits: TemplateTraits, tags: Tags | None) -> JsonObject:
    mapping: JsonObject = {"role": message.role, "content": message.content}
    if message.reasoning:
        mapping |= _thought_fields(message, traits, tags)
    if message.name is not None:
        mapping["name"] = message.name
    if message.role == "tool" and traits.results_in_json:
        mapping["content"] = json.dumps(message.content, ensure_ascii=False)
    if message.tool_call_id is not None:
        mapping["tool_call_id"] = _call_id(message.tool_call_id, traits)
    if message.tool_calls:
        mapping["tool_calls"] = [
            {
                "id": _call_id(call.call_id, traits),
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call, traits)},
            }
            for call in message.tool_calls
        ]
    return mapping


def _thought_fields(message: Message, traits: TemplateTraits, tags: Tags | None) -> JsonObject:
    """What a thought changes in a message."""
    thought, words = message.reasoning, message.content
    match traits.thought:
        case None:
            return {}
        case "chunk":
            said: list[Json] = [{"type": "text", "text": words}] if words else []
            return {"content": [{"type": "thinking", "thinking": thought}, *said]}
        case "content":
            return {"content": tags.written(thought) + words} if tags is not None else {}
        case field:
            if message.tool_calls and words and not traits.thought_beside_words:
                return {field: f"{thought}\n\n{words}", "content": ""}
            return {field: thought}


def _call_id(call_id: str, traits: TemplateTraits) -> str:
    """The id, or nine letters and digits that stand for it."""
    if not traits.short_ids or re.fullmatch(r"[a-zA-Z0-9]{9}", call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _arguments(call: ToolCall, traits: TemplateTraits) -> Json:
    if traits.arguments == "string":
        return call.arguments
    try:
        value: Json = json.loads(call.arguments, strict=False)
    except ValueError:
        return call.arguments
    return value


def with_documents(turns: Sequence[Message], documents: Sequence[Mapping[str, str]]) -> list[Message]:
    """Documents in front of the last user turn, for templates that do not render them."""
    listed = "\n\n".join("\n".join(document.values()) for document in documents)
    last = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        return [*turns, Message("user", listed)]
    question = turns[last]
    return [*turns[:last], dataclasses.replace(question, content=f"{listed}\n\n{question.content}"), *turns[last + 1 :]]
