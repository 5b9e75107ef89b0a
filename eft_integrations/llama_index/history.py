"""LlamaIndex's messages in the neutral form, by way of OpenAI's: of this package's answers, and of other providers'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llama_index.core.base.llms import types
from pydantic import BaseModel

from eft_integrations.chat.messages import Message
from eft_integrations.wire import openai as openai_wire
from eft_integrations.wire.media import is_text
from eft_integrations.wire.reasoning import thought_text

UNTITLED = "input_document"
"""The title of a document that has none."""
CALL_IDS = ("call_id", "tool_use_id", "toolUseId", "tool_call_id", "tool_id", "id")
"""Where providers write the id of a call that is told in a flat form; the first that is there counts."""
CALL_NAMES = ("name", "tool_name")
CALL_ARGUMENTS = ("arguments", "args", "input", "parameters", "tool_kwargs")


def to_messages(messages: Iterable[types.ChatMessage]) -> tuple[Message, ...]:
    """The conversation in the neutral form. What was passed in is only read.

    Raises:
        InvalidOptionError: content that is not text (images, audio, files), or a call that cannot be read.
    """
    forms = [_openai_form(message, f"messages.{index}") for index, message in enumerate(messages)]
    return openai_wire.name_results(openai_wire.to_messages(forms))


def _openai_form(message: types.ChatMessage, where: str) -> dict[str, object]:
    """Calls and thoughts are blocks, or else where older integrations keep them: in `additional_kwargs`."""
    extra = message.additional_kwargs
    calls: Sequence[object] = [
        {"id": block.tool_call_id, "function": {"name": block.tool_name, "arguments": block.tool_kwargs}}
        for block in message.blocks
        if isinstance(block, types.ToolCallBlock)
    ] or [_call_form(call) for call in _calls_kept(extra)]
    thought = thought_text([block.content for block in message.blocks if isinstance(block, types.ThinkingBlock)])
    return {
        "role": message.role.value,
        "content": _text(message.blocks, where),
        "tool_calls": calls,
        "tool_call_id": extra.get("tool_call_id"),
        "name": extra.get("name"),
        "reasoning_content": thought or thought_text(extra.get("reasoning_content") or extra.get("thinking")),
    }


def _calls_kept(extra: Mapping[str, object]) -> Sequence[object]:
    """Calls in `additional_kwargs`: a list, or the one call of OpenAI's first form."""
    listed = extra.get("tool_calls")
    if isinstance(listed, list | tuple) and listed:
        return listed
    return [extra["function_call"]] if extra.get("function_call") else ()


def _call_form(call: object) -> object:
    """A call of any provider in OpenAI's form; what is none of them stays as it is, and is refused as such."""
    call = call.model_dump() if isinstance(call, BaseModel) else call
    match call:
        case {"function": {"name": str()}}:
            return call
        case {"toolUse": Mapping() as inner}:
            return _call_form(inner)
        case Mapping() if name := _first(call, CALL_NAMES):
            return {"id": _first(call, CALL_IDS), "function": {"name": name, "arguments": _first(call, CALL_ARGUMENTS)}}
    return call


def _first(mapping: Mapping[str, object], names: Sequence[str]) -> object:
    return next((value for name in names if (value := mapping.get(name)) is not None), None)


# ---- content -------------------------------------------------------------------------------------------------------------


def _text(blocks: Sequence[types.ContentBlock], where: str) -> str:
    """Texts of the blocks, one below the other, as `ChatMessage.content` joins them."""
    parts = []
    for index, block in enumerate(blocks):
        place = f"{where}.blocks.{index}"
        match block:
            case types.TextBlock():
                parts.append(block.text)
            case types.CitableBlock():
                parts.append(_text(block.content, place))
            case types.CitationBlock():
                parts.append(_text([block.cited_content], place))
            case types.DocumentBlock():
                parts.append(_document(block, place))
            case types.ToolCallBlock() | types.ThinkingBlock() | types.CachePoint():
                pass
            case _:
                raise openai_wire.wrong(
                    place, f"content of type {block.block_type!r} is not text; this model reads text only"
                )
    return "\n".join(parts)


def _document(block: types.DocumentBlock, where: str) -> str:
    """The text of a document that is one, below its title.

    Raises:
        InvalidOptionError: it is of another kind, lies on a server, or cannot be read.
    """
    kind = block.document_mimetype
    if kind is not None and not is_text(kind):
        raise openai_wire.wrong(where, f"a document of type {kind!r} is not text; this model reads text only")
    if block.url is not None and block.data is None and block.path is None and not block.url.startswith("data:"):
        raise openai_wire.wrong(where, f"nothing is fetched from {block.url!r}; give the document's data or path")
    try:
        data = bytes(block.resolve_document().read())
        text = data.decode()
    except UnicodeDecodeError as error:
        raise openai_wire.wrong(
            where, f"the document is no text in UTF-8 ({error}); this model reads text only"
        ) from None
    except (OSError, ValueError) as error:
        raise openai_wire.wrong(where, f"the document cannot be read: {error}") from error
    if "\0" in text:
        raise openai_wire.wrong(where, "the document is no text: it has zero bytes in it; this model reads text only")
    return text if block.title in (None, "", UNTITLED) else f"{block.title}\n{text}"
