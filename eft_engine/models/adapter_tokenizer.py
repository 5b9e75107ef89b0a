"""The tokenizer of a member with an adapter: trainers save theirs, or only its chat template, beside the adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eft_engine.errors import TokenizerMissingError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
)
"""One of these says what the tokens are; other files only say how they are used."""

CONFIG, TEMPLATE, MORE_TEMPLATES = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"

WITH_AN_ADAPTER = (
    *TOKENIZER_FILES,
    CONFIG,
    TEMPLATE,
    f"{MORE_TEMPLATES}/*.jinja",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
)
"""Files beside an adapter that are read, none of which can run code."""


def has_tokenizer(folder: Path) -> bool:
    """Whether an adapter's folder has a tokenizer of its own.

    >>> has_tokenizer(Path("/no/such/folder"))
    False
    """
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def tokenizer_folder(adapter: Path | None, *, named: str | None) -> Path | None:
    """The folder of an adapter that has a tokenizer or templates, where its member names no tokenizer."""
    if adapter is None or named is not None or not adapter.is_dir():
        return None
    templates = any((adapter / name).exists() for name in (CONFIG, TEMPLATE, MORE_TEMPLATES))
    return adapter if templates or has_tokenizer(adapter) else None


def own_template(folder: Path, *, member: str) -> str | dict[str, str] | None:
    """The chat template in an adapter's folder, as transformers has it: one, or several by name; None: there is none.

    Raises:
        TokenizerMissingError: a file that may have one is damaged.
    """
    try:
        named = {
            file.stem: file.read_text(encoding="utf-8") for file in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
        }
        if (folder / TEMPLATE).is_file():
            default = (folder / TEMPLATE).read_text(encoding="utf-8")
            return {"default": default, **named} if named else default
        found = named or _of_config(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TokenizerMissingError(
            f"{member}: the chat template in the adapter's folder {folder} cannot be read ({error!r}); save it again, or take "
            "the file away",
            member=member,
            source=str(folder),
        ) from error
    return found or None


def _of_config(folder: Path) -> str | dict[str, str] | None:
    if not (folder / CONFIG).is_file():
        return None
    found: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("chat_template")
    if isinstance(found, list):
        return {str(entry["name"]): str(entry["template"]) for entry in found}
    return None if found is None else str(found)
