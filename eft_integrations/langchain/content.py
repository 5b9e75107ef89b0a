"""What one block of a message's content says, in the forms of all providers that LangChain has."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from eft_integrations.wire.media import is_text
from eft_integrations.wire.openai import TEXT_PARTS, UNSEEN_PARTS, wrong

SILENT = (UNSEEN_PARTS - {"server_tool_call"}) | {
    "redacted_thinking", "function_call_signature", "input_json_delta", "custom_tool_call", "tool_result_chunk",
}  # fmt: skip
"""Thoughts and calls, which are read elsewhere, and what only their own provider can read of them."""
SILENT_KEYS = frozenset({"reasoning_content", "reasoningContent", "cachePoint", "cache_point", "toolUse"})
"""Bedrock's blocks have a key and no type."""
MEDIA = frozenset(
    {
        "image", "image_url", "input_image", "audio", "input_audio", "output_audio", "video", "video_url", "file", "input_file",
        "document", "media", "text-plain",
    }
)  # fmt: skip
"""What would have to be looked at or listened to, if it is no text."""
TEXT_FORMATS = frozenset({"txt", "md", "csv", "html"})
"""Bedrock's names of text."""


@dataclass(frozen=True)
class Text:
    """A piece of text. A document stands apart from what is around it."""

    text: str
    is_document: bool = False


@dataclass(frozen=True)
class Silent:
    """Nothing of the text of a turn."""


@dataclass(frozen=True)
class SomethingElse:
    """What no table here knows, or what only its provider could run. `kind` names it."""

    kind: str


def read_block(block: object, where: str) -> Text | Silent | SomethingElse:
    r"""What a block says.

    >>> read_block({"type": "document", "source": {"type": "text", "data": "Mills grind."}, "title": "Mills"}, "here")
    Text(text='Mills\nMills grind.', is_document=True)

    Raises:
        InvalidOptionError: an image, audio, or a file that is no text; a text part without a text.
    """
    match block:
        case str():
            return Text(block)
        case {"type": "non_standard", "value": value}:
            return read_block(value, where)
        case {"type": str(kind)} if kind in SILENT:
            return Silent()
        case {"type": "text", "text": str(text)} | {"type": str(), "refusal": str(text)}:
            return Text(text)
        case {"type": "refusal"}:  # Anthropic's has no text
            return Silent()
        case {"type": str(kind), "text": str(text)} if kind in TEXT_PARTS:
            return Text(text)
        case {"type": str(kind)} if kind in TEXT_PARTS:
            raise wrong(where, "a text part needs a text")
        case {"type": "compaction", "content": str(text)}:
            return Text(text, is_document=True)
        case {"type": "tool_result", **rest}:  # in a tool's own message
            return _listed(rest.get("content"), where)
        case {"type": "search_result", "content": content}:
            return _document(_listed(content, where).text, cast("Mapping[str, object]", block))
        case {"json": value}:
            return Text(json.dumps(value, ensure_ascii=False))
        case {"guard_content": {"text": {"text": str(text)} | str(text)}}:
            return Text(text)
        case {"document": Mapping() as document}:
            return _bedrocks_document(document, where)
        case {"type": str(kind)} if kind in MEDIA:
            return _file(cast("Mapping[str, object]", block), kind, where)
        case {"type": str(kind)}:
            return SomethingElse(kind)
        case {"text": str(text)}:
            return Text(text)
        case Mapping() if seen := block.keys() & {"image", "video", "audio"}:
            raise _not_text(where, str(seen.pop()))
        case Mapping() if block.keys() & SILENT_KEYS:
            return Silent()
    raise wrong(where, 'a part is written {"type": "text", "text": ...}')


def _listed(content: object, where: str) -> Text:
    """The text of blocks inside a block."""
    parts = content if isinstance(content, list) else [content or ""]
    read = [read_block(part, f"{where}.content.{place}") for place, part in enumerate(parts)]
    return Text("".join(piece.text for piece in read if isinstance(piece, Text)))


def _not_text(where: str, kind: str) -> Exception:
    return wrong(where, f"content of type {kind!r} is not text; this model reads text only")


# ---- documents -----------------------------------------------------------------------------------------------------------


def _document(text: str, about: Mapping[str, object]) -> Text:
    """A document with what is said of it, each in a line of its own."""
    said = [value for name in ("title", "context") if isinstance(value := about.get(name), str) and value]
    return Text("\n".join([*said, text]), is_document=True)


def _file(block: Mapping[str, object], kind: str, where: str) -> Text:
    """A document whose text is there: as a text, or as bytes of a type that is text."""
    match block:
        case {"text": str(text)} | {"source": {"type": "text", "data": str(text)}}:
            return _document(text, block)
        case {"source": {"type": "content", "content": content}}:
            return _document(_listed(content, where).text, block)
        case {"file": {"file_data": str(url)}} | {"file_data": str(url)}:
            media_type, _, data = url.removeprefix("data:").partition(";base64,")
        case {"base64": data, "mime_type": str(media_type)} | {"data": data, "mime_type": str(media_type)}:
            pass
        case {"source": {"type": "base64", "media_type": str(media_type), "data": data}}:
            pass
        case _:
            raise _not_text(where, kind)
    if not is_text(media_type):
        raise _not_text(where, media_type or kind)
    return _document(_decoded(data, where), block)


def _bedrocks_document(document: Mapping[str, object], where: str) -> Text:
    said = {"title": document.get("name")}
    match document:
        case {"source": {"text": str(text)}}:
            return _document(text, said)
        case {"source": {"content": content}}:
            return _document(_listed(content, where).text, said)
        case {"source": {"bytes": data}, "format": str(form)} if form in TEXT_FORMATS:
            return _document(_decoded(data, where), said)
    raise _not_text(where, str(document.get("format") or "document"))


def _decoded(data: object, where: str) -> str:
    """Bytes, or base64 of bytes, as text."""
    try:
        found = data if isinstance(data, bytes) else base64.b64decode(str(data), validate=True)
        return found.decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise wrong(where, f"the data of a text document must be UTF-8 in base64: {error}") from None
