"""Conversations in the neutral form, whoever's models had them.

LangChain keeps content as its provider has it: OpenAI's parts, of chat completions and of responses, Anthropic's, Google's and
Bedrock's blocks, and LangChain's own standard ones. What is text in any of them is read; thoughts and calls go where they belong;
what a model wrote beside (calls of tools that its provider ran, signatures) is left out, with a warning that names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from eft_integrations.chat.messages import Message, Role, ToolCall
from eft_integrations.langchain.content import Silent, SomethingElse, Text, read_block
from eft_integrations.wire.openai import ROLES, arguments_text, name_results, wrong
from eft_integrations.wire.reasoning import to_thought


def to_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """The conversation in the neutral form. A thought is content of type reasoning, or else in `additional_kwargs`.

    Raises:
        InvalidOptionError: content that is not text (images, audio, files), or a role that no model knows; it names the place.
    """
    return name_results(turn for index, message in enumerate(messages) for turn in _turns(message, f"messages.{index}"))


def _turns(message: BaseMessage, where: str) -> Iterator[Message]:
    """The turns of one message: several where results of calls stand in what a user says, as Anthropic has it."""
    role = _role(message, where)
    content = message.content if isinstance(message.content, list) else [message.content]
    parts = dict(enumerate(content))
    results = {place: part for place, part in parts.items() if role == "user" and _is_result(part)}
    for place, part in results.items():
        yield _result(part, f"{where}.content.{place}")
    if results and len(results) == len(parts):
        return
    said = {place: part for place, part in parts.items() if place not in results}
    text = text_of(said, f"{where}.content", of_model=role == "assistant")
    if role == "assistant":
        text = text or str(message.additional_kwargs.get("refusal") or "")
    yield Message(
        role,
        text,
        tool_calls=tuple(_calls(message, content, where)) if isinstance(message, AIMessage) else (),
        tool_call_id=message.tool_call_id if isinstance(message, ToolMessage) else None,
        name=message.name,
        reasoning=to_thought({"content": content, **message.additional_kwargs}) if role == "assistant" else "",
    )


def _role(message: BaseMessage, where: str) -> Role:
    match message:
        case SystemMessage():
            return "system"
        case HumanMessage():
            return "user"
        case AIMessage():
            return "assistant"
        case ToolMessage() | FunctionMessage():
            return "tool"
    role = message.role if isinstance(message, ChatMessage) else message.type
    if role not in ROLES:
        raise wrong(f"{where}.role", f"must be one of {', '.join(ROLES)}, got {role!r}", role)
    return ROLES[role]


# ---- text ----------------------------------------------------------------------------------------------------------------


def text_of(content: Mapping[int, object], where: str, *, of_model: bool) -> str:
    """The text of a message's content; documents stand apart from what is around them.

    Args:
        content: its parts by their places.
        where: the path of the content, for errors.
        of_model: what is no text is left out, with a warning, and not an error. Images, audio and files are one in any case.
    """
    pieces: list[Text] = []
    for place, part in content.items():
        match read_block(part, f"{where}.{place}"):
            case Text() as piece:
                pieces.append(piece)
            case SomethingElse(kind) if of_model:
                warnings.warn(f"{kind} in the history of a conversation is left out: no text of it", stacklevel=2)
            case SomethingElse(kind):
                raise wrong(f"{where}.{place}", f"content of type {kind!r} is not text; this model reads text only")
            case Silent():
                pass
    return _joined(pieces)


def _joined(pieces: Sequence[Text]) -> str:
    text = ""
    before: Text | None = None
    for piece in pieces:
        apart = before is not None and (piece.is_document or before.is_document)
        text += f"\n\n{piece.text}" if apart else piece.text
        before = piece
    return text


# ---- calls and results ---------------------------------------------------------------------------------------------------


def _calls(message: AIMessage, content: Sequence[object], where: str) -> Iterator[ToolCall]:
    """The calls of a turn: those that LangChain lists, and those that stand in its content or its old field alone."""
    known = {call["id"] for call in (*message.tool_calls, *message.invalid_tool_calls)}
    for call in message.tool_calls:
        yield ToolCall(call["id"] or "", call["name"], arguments_text(call["args"]))
    for place, part in enumerate(content):
        match part:
            case {"type": "tool_use", "name": str(name), "input": arguments, **rest}:
                call_id = rest.get("id")
            case {"type": "tool_call", "name": str(name), "args": arguments, **rest}:
                call_id = rest.get("id")
            case {"type": "function_call", "name": str(name), "arguments": arguments, **rest}:
                call_id = rest.get("call_id")
            case _:
                continue
        if not isinstance(call_id, str | None):
            raise wrong(f"{where}.content.{place}", f"the id of a call is a string, got {call_id!r}", call_id)
        if call_id not in known:
            yield ToolCall(call_id or "", name, arguments_text(arguments or {}))
    match message.additional_kwargs.get("function_call"):
        case {"name": str(name), **rest} if not known:
            yield ToolCall("", name, arguments_text(rest.get("arguments") or {}))


def _is_result(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "tool_result"


def _result(part: object, where: str) -> Message:
    match part:
        case {"tool_use_id": str(call_id), **rest}:
            content = rest.get("content") or ""
            parts = dict(enumerate(content if isinstance(content, list) else [content]))
            return Message("tool", text_of(parts, f"{where}.content", of_model=False), tool_call_id=call_id)
    raise wrong(where, "a tool_result needs a tool_use_id, the id of its call", part)
