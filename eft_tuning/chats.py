"""Chat files: JSON Lines, one dialogue or one preference a line, in the forms that data sets come in.

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    {"prompt": ..., "completion": ...}                       strings, or lists of messages
    {"question": ..., "answer": ...}
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}      ShareGPT; "system": ... beside it
    {"prompt": ..., "chosen": ..., "rejected": ...}          preferences for DPO: strings, or lists of messages

Other fields of a line (ids, sources) are left alone; `tools` are the functions that a dialogue may call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from eft_engine.errors import InvalidOptionError

Message: TypeAlias = dict[str, Any]
"""A turn: `role`, `content` (a string) and whatever else the template reads (`tool_calls`, `name`, ...)."""

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""What the `from` of a ShareGPT turn means."""

FORMS = (
    '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}, '
    '{"prompt": ..., "completion": ...}, {"question": ..., "answer": ...}, '
    '{"conversations": [{"from": "human", "value": ...}, ...]}, or {"prompt": ..., "chosen": ..., "rejected": ...}'
)
MAX_TOLD = 5
"""Most lines that one error lists."""


@dataclass(frozen=True)
class Chat:
    """A dialogue of a file. `line` counts from 1; `tools` are OpenAI's function objects, None: the line has none."""

    messages: list[Message]
    line: int
    tools: list[dict[str, Any]] | None = None

    @property
    def prompt(self) -> list[Message]:
        """Everything before the last answer."""
        return self.messages[:-1]

    @property
    def question(self) -> str:
        """The last user turn, "" where there is none."""
        return next((message["content"] for message in reversed(self.messages) if message["role"] == "user"), "")

    @property
    def answer(self) -> str:
        """The last turn, which is the assistant's."""
        return str(self.messages[-1]["content"])


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse answer, all three lists of messages, as TRL's DPO takes them.

    `chosen` and `rejected` begin behind the prompt, mostly with the assistant's one turn.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    line: int
    tools: list[dict[str, Any]] | None = None

    def as_chats(self) -> tuple[Chat, Chat]:
        """The dialogue that ends with the better answer, and the one that ends with the worse."""
        return (
            Chat([*self.prompt, *self.chosen], self.line, self.tools),
            Chat([*self.prompt, *self.rejected], self.line, self.tools),
        )


class _Malformed(Exception):
    """What is wrong with a line, in words."""


def load_chats(path: Path) -> list[Chat] | list[Preference]:
    """The rows of a chat file; empty lines are skipped.

    Raises:
        InvalidOptionError: the file cannot be read, lines are neither dialogues nor preferences (the first few are named), the
            two are mixed, or there is no row.
    """
    chats: list[Chat] = []
    preferences: list[Preference] = []
    wrong: list[str] = []
    for number, line in _lines(path):
        try:
            row = _row(_object(line), number)
        except _Malformed as malformed:
            wrong.append(f"line {number}: {malformed}")
            continue
        if isinstance(row, Chat):
            chats.append(row)
        else:
            preferences.append(row)
    if wrong:
        further = f"\n  and {len(wrong) - MAX_TOLD} more" if len(wrong) > MAX_TOLD else ""
        raise InvalidOptionError(
            f"{path} has {len(wrong)} {'lines' if len(wrong) > 1 else 'line'} that cannot be read as a dialogue:\n  "
            + "\n  ".join(wrong[:MAX_TOLD])
            + f"{further}\na line is one of {FORMS}",
            option="chats",
            value=str(path),
        )
    if chats and preferences:
        raise InvalidOptionError(
            f"{path} mixes dialogues (line {chats[0].line}) and preferences (line {preferences[0].line}); "
            "put them into two files: dialogues train by SFT, preferences by DPO",
            option="chats",
            value=str(path),
        )
    if not chats and not preferences:
        raise InvalidOptionError(
            f"{path} holds no dialogues; a line is one of {FORMS}", option="chats", value=str(path)
        )
    return chats or preferences


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers. A line feed alone ends a line: texts may hold other separators."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOptionError(
            f"cannot read the chat file {path}: {error}; it must be JSON Lines in UTF-8",
            option="chats",
            value=str(path),
        ) from None
    if text.lstrip().startswith("["):
        raise InvalidOptionError(
            f"{path} is one JSON list; write one object a line instead, for example with `jq -c '.[]' {path.name}`",
            option="chats",
            value=str(path),
        )
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _Malformed(f"an object is needed, not {_short(value)}")
    return value


def _row(fields: dict[str, Any], line: int) -> Chat | Preference:
    tools = _tools(fields.get("tools"))
    match fields:
        case {"chosen": chosen, "rejected": rejected}:
            return _preference(fields.get("prompt"), chosen, rejected, line, tools)
        case {"messages": messages}:
            return Chat(_messages(messages, "messages"), line, tools)
        case {"conversations": turns}:
            return Chat(_sharegpt(turns, fields.get("system")), line, tools)
        case {"prompt": prompt, "completion": completion}:
            return Chat(
                [*_turns(prompt, "user", "prompt"), *_turns(completion, "assistant", "completion")], line, tools
            )
        case {"question": question, "answer": answer}:
            return Chat([*_turns(question, "user", "question"), *_turns(answer, "assistant", "answer")], line, tools)
    names = ", ".join(map(repr, fields)) or "nothing"
    raise _Malformed(f"no known fields, it has {names}")


def _turns(value: object, role: str, field: str) -> list[Message]:
    """A string as one turn of the role, or messages as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else _messages(value, field)


def _messages(value: object, field: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _Malformed(f"{field} must be a list of messages, not {_short(value)}")
    return [_message(message, f"{field}[{index}]") for index, message in enumerate(value)]


def _message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise _Malformed(f'{where} must be an object with "role" and "content", not {_short(message)}')
    match message.get("content"):
        case str() as content:
            pass
        case None if message.get("tool_calls"):
            content = ""
        case list() as parts if all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
            content = "".join(part["text"] for part in parts)
        case other:
            raise _Malformed(f"{where}.content must be a string, not {_short(other)}")
    further = {str(name): own for name, own in message.items() if own is not None}
    return {**further, "role": message["role"], "content": content}


def _sharegpt(turns: object, system: object) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise _Malformed(f"conversations must be a list of turns, not {_short(turns)}")
    messages: list[Message] = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise _Malformed(f'{where} must be an object with "from" and "value", not {_short(turn)}')
        role = SHAREGPT_ROLES.get(str(turn.get("from")))
        if role is None:
            raise _Malformed(f"{where}: from is {_short(turn.get('from'))}; known are {', '.join(SHAREGPT_ROLES)}")
        messages.append({"role": role, "content": turn["value"]})
    return messages


def _preference(
    prompt: object, chosen: object, rejected: object, line: int, tools: list[dict[str, Any]] | None
) -> Preference:
    """Where chosen and rejected are whole dialogues, the turns with which both begin are the prompt."""
    better, worse = _turns(chosen, "assistant", "chosen"), _turns(rejected, "assistant", "rejected")
    shared = 0
    while shared < min(len(better), len(worse)) - 1 and better[shared] == worse[shared]:
        shared += 1
    first = better[shared]["role"], worse[shared]["role"]
    if first != ("assistant", "assistant"):
        raise _Malformed(
            f"behind the turns that they share, chosen goes on with a turn of {first[0]} and rejected with one of {first[1]}; "
            "both must be the assistant's"
        )
    if shared:
        before = better[:shared]
    elif prompt is None:
        raise _Malformed("chosen and rejected have no prompt in common, and there is no field prompt")
    else:
        before = _turns(prompt, "user", "prompt")
    return Preference(before, better[shared:], worse[shared:], line, tools)


def _tools(value: object) -> list[dict[str, Any]] | None:
    """Functions as OpenAI writes them; data sets keep them as a text of JSON too."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise _Malformed(f"tools is a string that is not JSON ({error})") from None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise _Malformed(f"tools must be a list of objects, not {_short(value)}")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
