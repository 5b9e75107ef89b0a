"""The body of POST /v1/responses, and its items as a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.server.protocol import FreeJson, ToolsBody
from eft_integrations.wire.openai import ROLES, name_results, to_text, wrong
from eft_integrations.wire.reasoning import thought_text


class ResponsesBody(ToolsBody):
    """POST /v1/responses."""

    input: str | list[FreeJson] = Field(description="a text, or the items of a conversation")
    instructions: str | None = None
    text: FreeJson | None = Field(default=None, description="text.format: text, json_object or json_schema")
    max_output_tokens: int | None = None
    include: list[str] | None = None
    metadata: FreeJson | None = None


def to_conversation(instructions: str | None, items: str | Sequence[Mapping[str, object]]) -> tuple[Message, ...]:
    """The instructions as a system turn, then the items. What was thought, and calls that follow one another, belong to one
    assistant turn. A call that was cut off, and therefore never answered, is no part of the conversation.

    Raises:
        InvalidOptionError: an item of a kind that cannot be read.
    """
    turns: list[Message] = [Message("system", instructions)] if instructions else []
    if isinstance(items, str):
        return (*turns, Message("user", items))
    answered = [item.get("call_id") for item in items if item.get("type") == "function_call_output"]
    for index, item in enumerate(items):
        where = f"input.{index}"
        match item:
            case {"type": "function_call", "call_id": call_id, "status": "incomplete"} if call_id not in answered:
                continue
            case {"type": "function_call", "name": str(name), "call_id": str(call_id)}:
                arguments = item.get("arguments")
                call = ToolCall(call_id, name, arguments if isinstance(arguments, str) and arguments else "{}")
                _add(turns, Message("assistant", "", (call,)))
            case {"type": "function_call_output", "call_id": str(call_id)}:
                text = to_text(item.get("output"), f"{where}.output")
                turns.append(Message("tool", text, tool_call_id=call_id))
            case {"type": "reasoning"}:
                if thought := thought_text(item):
                    _add(turns, Message("assistant", "", reasoning=thought))
            case {"role": str(role)} if role in ROLES and item.get("type", "message") == "message":
                _add(turns, Message(ROLES[role], to_text(item.get("content"), f"{where}.content")))
            case _:
                kind = item.get("type", item.get("role"))
                known = "message, function_call, function_call_output and reasoning"
                raise wrong(where, f"items of kind {kind!r} cannot be read; known are {known}")
    return name_results(turns)


def _add(turns: list[Message], turn: Message) -> None:
    """A part of an assistant's turn, in the order thought, words, calls: with what stands before it, or as the next turn."""
    last = turns[-1] if turns else None
    if last is None or not last.role == turn.role == "assistant" or _begins_anew(last, turn):
        turns.append(turn)
        return
    turns[-1] = Message(
        "assistant",
        last.content or turn.content,
        (*last.tool_calls, *turn.tool_calls),
        reasoning="\n\n".join(filter(None, (last.reasoning, turn.reasoning))),
    )


def _begins_anew(last: Message, turn: Message) -> bool:
    return bool(turn.reasoning or turn.content) and bool(last.content or last.tool_calls)
