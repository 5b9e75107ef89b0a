"""What a text must look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from eft_engine.options import Options


class JsonSchema(Options):
    """The text is one JSON value that the schema (a mapping, JSON Schema 2020-12) accepts; `{}` accepts any."""

    kind: Literal["json_schema"] = "json_schema"
    json_schema: Mapping[str, Any] = Field(description="the schema")
    whitespace: Literal["none", "spaces", "any"] = Field(
        default="spaces",
        description="between tokens: nothing; one space after commas and colons, as most models write; whatever the model likes",
    )


class Regex(Options):
    r"""The whole text matches a regular expression (Rust's syntax, no look-around; `\\d` means any Unicode digit)."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, description="the expression")


class Lark(Options):
    """The text is a sentence of a context-free grammar in llguidance's Lark dialect, in which `%json {...}` embeds a schema."""

    kind: Literal["lark"] = "lark"
    grammar: str = Field(min_length=1, description="the grammar, with a rule named start")


Grammar = JsonSchema | Regex | Lark
