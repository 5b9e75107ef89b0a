"""The body of POST /v1/responses, and its items as a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.server.bodies.body import FreeJson, unused_of
from eft_integrations.server.bodies.nested_fields import QUIET, unused_format, unused_parts
from eft_integrations.server.bodies.protocol import ToolsBody
from eft_integrations.wire.openai import ROLES, name_results, to_text, wrong
from eft_integrations.wire.reasoning import thought_text

LOGPROBS = "message.output_text.logprobs"
"""What `include` says to get log-probabilities."""

READ = {
    "message": ("type", "role", "content", "name"),
    "function_call": ("type", "call_id", "name", "arguments"),
    "function_call_output": ("type", "call_id", "output"),
}
"""Keys of items that are read, by kind."""


class ResponsesBody(ToolsBody):
    """POST /v1/responses."""

    input: str | list[FreeJson] = Field(description="a text, or the items of a conversation")
    instructions: str | None = None
    text: FreeJson | None = Field(default=None, description="text.format: text, json_object or json_schema")
    max_output_tokens: int | None = None
    include: list[str] | None = None
    metadata: FreeJson | None = None
    previous_response_id: str | None = Field(
        default=None, description="the answer to go on from, where answers are kept"
    )
    stream_options: FreeJson | None = None
    store: bool | None = Field(default=None, description="false: do not keep the answer, where answers are kept")

    @property
    def prompt_field(self) -> str:
        """See `Body`."""
        return "input"

    @property
    def asked_summary(self) -> str | None:
        """What is asked of a summary of thoughts; None: none is wanted."""
        return None if self.reasoning is None else self.reasoning.summary or self.reasoning.generate_summary

    @property
    def functions(self) -> list[dict[str, object]]:
        """The tools that are functions; no others can be called here."""
        return [tool for tool in self.tools or () if not _is_foreign(tool)]

    def unused_inside(self) -> Iterator[str]:
        """See `Body`."""
        yield from super().unused_inside()
        yield from self.unused_constraints()
        yield from (f"include.{name}" for name in self.include or () if name != LOGPROBS)
        for index, tool in enumerate(self.tools or ()):
            if _is_foreign(tool):
                yield f"tools.{index}: type {tool['type']}"
        yield from unused_of("text", self.text, ("format",))
        yield from unused_of("stream_options", self.stream_options, ("include_usage",), quiet=("include_obfuscation",))
        yield from unused_format("text.format", (self.text or {}).get("format"))
        for item in self.input if isinstance(self.input, list) else ():
            kind = str(item.get("type", "message"))
            if kind in READ:
                yield from unused_of("input", item, READ[kind], quiet=QUIET)
            yield from unused_parts("input.content", item.get("content"))


def _is_foreign(tool: Mapping[str, object]) -> bool:
    """Whether it is a tool that OpenAI runs itself (web_search, mcp, ...), or one that is called with free text."""
    return isinstance(tool.get("type"), str) and tool["type"] != "function"


def given_items(body: ResponsesBody) -> list[Mapping[str, object]]:
    """The input as items; a text is a message."""
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": body.input}]}]
    return list(body.input)


def to_conversation(instructions: str | None, items: Sequence[Mapping[str, object]]) -> tuple[Message, ...]:
    """The instructions as a system turn, then the items. What was thought, and calls that follow one another, belong to one
    assistant turn. A call that was cut off, and therefore never answered, is no part of the conversation.

    Raises:
        InvalidOptionError: an item of a kind that cannot be read.
    """
    turns: list[Message] = [Message("system", instructions)] if instructions else []
    answered = {str(item.get("call_id")) for item in items if item.get("type") == "function_call_output"}
    for index, item in enumerate(items):
        where = f"input.{index}"
        match item:
            case {"type": "function_call", "call_id": call_id, "status": "incomplete"} if str(call_id) not in answered:
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
                known = ", ".join((*READ, "reasoning and item_reference (where answers are kept)"))
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
