"""The body of POST /v1/responses, and its items as a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.server.protocol import FreeJson, ToolsBody
from eft_integrations.wire.openai import ROLES, name_results, to_text, wrong


class ResponsesBody(ToolsBody):
    """POST /v1/responses."""

    input: str | list[FreeJson] = Field(description="a text, or the items of a conversation")
    instructions: str | None = None
    text: FreeJson | None = Field(default=None, description="text.format: text, json_object or json_schema")
    max_output_tokens: int | None = None
    include: list[str] | None = None
    reasoning: FreeJson | None = Field(default=None, description="its effort is handed to the chat template")
    metadata: FreeJson | None = None


def to_conversation(instructions: str | None, items: str | Sequence[Mapping[str, object]]) -> tuple[Message, ...]:
    """The instructions as a system turn, then the items; calls that follow one another belong to one assistant turn.

    Raises:
        InvalidOptionError: an item of a kind that cannot be read.
    """
    turns: list[Message] = [Message("system", instructions)] if instructions else []
    if isinstance(items, str):
        return (*turns, Message("user", items))
    for index, item in enumerate(items):
        where = f"input.{index}"
        match item:
            case {"type": "function_call", "name": str(name), "call_id": str(call_id)}:
                arguments = item.get("arguments")
                call = ToolCall(call_id, name, arguments if isinstance(arguments, str) and arguments else "{}")
                _add_call(turns, call)
            case {"type": "function_call_output", "call_id": str(call_id)}:
                text = to_text(item.get("output"), f"{where}.output")
                turns.append(Message("tool", text, tool_call_id=call_id))
            case {"type": "reasoning"}:
                continue
            case {"role": str(role)} if role in ROLES and item.get("type", "message") == "message":
                turns.append(Message(ROLES[role], to_text(item.get("content"), f"{where}.content")))
            case _:
                kind = item.get("type", item.get("role"))
                known = "message, function_call, function_call_output and reasoning"
                raise wrong(where, f"items of kind {kind!r} cannot be read; known are {known}")
    return name_results(turns)


def _add_call(turns: list[Message], call: ToolCall) -> None:
    if turns and turns[-1].role == "assistant":
        last = turns.pop()
        turns.append(Message("assistant", last.content, (*last.tool_calls, call)))
    else:
        turns.append(Message("assistant", "", (call,)))
