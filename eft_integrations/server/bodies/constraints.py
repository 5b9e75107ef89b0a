"""What an answer must look like: one of OpenAI's formats, or a constraint as vLLM, SGLang and llama.cpp write it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from eft_engine import Lark, Regex
from eft_integrations.chat.schema import held
from eft_integrations.chat.schemas.together import MOST_TOGETHER
from eft_integrations.server.bodies.body import FreeJson, Part, unused_of
from eft_integrations.server.bodies.unused_fields import refused
from eft_integrations.wire.openai import is_strict, to_response_schema, wrong

MOST = 64 * 1024
"""Most characters of a grammar or an expression; of all texts of a choice together."""
MOST_CHOICES = 4096
MOST_RULES = 256
"""Most rules of a grammar in GBNF: what it takes to translate one grows with their square."""

LARK = re.compile(r"^\s*(%llguidance\b|start\b[^:\n]*:(?!:=))", re.MULTILINE)
"""What a grammar in Lark has, and none in GBNF."""

STRINGS = re.compile(r""""(?:[^"\\\n]|\\.)*"?|/(?:[^/\\\n]|\\.)+/?""")
"""Texts and expressions in a grammar."""

ANY_OBJECT: Mapping[str, object] = {"type": "object"}


def _from_text(value: object) -> object:
    """A schema, which vLLM and SGLang take as text too."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the schema is no JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"a JSON schema is an object, got {type(value).__name__}")
    return value


def _in_lark(text: str) -> str:
    """A grammar in Lark; one in GBNF is translated.

    >>> _in_lark('root ::= "a"').splitlines()[-1]
    'start: "a"'
    """
    if "::=" not in text or LARK.search(text):
        return text
    if (num_rules := text.count("::=")) > MOST_RULES:
        raise ValueError(
            f"a grammar in GBNF may have {MOST_RULES} rules, and this one has {num_rules}; write it in Lark"
        )
    try:
        from llguidance.gbnf_to_lark import gbnf_to_lark

        return str(gbnf_to_lark(text))
    except Exception as error:  # it raises what it likes
        raise ValueError(f"the grammar is no GBNF that can be read ({error}); write it in Lark") from None


SchemaOrText = Annotated[FreeJson, BeforeValidator(_from_text, json_schema_input_type=str | dict[str, Any])]
GrammarText = Annotated[str, Field(max_length=MOST), AfterValidator(_in_lark)]
A_GRAMMAR = "a grammar in Lark (llguidance's dialect) or GBNF"


class StructuredOutputs(Part):
    """vLLM's `structured_outputs`: one of these."""

    json_schema: SchemaOrText | None = Field(default=None, alias="json", description="a JSON schema, or its text")
    regex: str | None = Field(default=None, max_length=MOST, description="the whole text matches it (Rust's syntax)")
    choice: list[str] | None = Field(default=None, max_length=MOST_CHOICES, description="the text is one of these")
    grammar: GrammarText | None = Field(default=None, description=A_GRAMMAR)
    json_object: bool | None = Field(default=None, description="true: any JSON object")

    @model_validator(mode="after")
    def _refuse(self) -> StructuredOutputs:
        if (reason := refused(self.model_extra or {}, ())) is not None:
            raise ValueError(reason)
        return self


class ConstraintFields(BaseModel):
    """Fields that say what the text must look like."""

    structured_outputs: StructuredOutputs | None = Field(default=None, description="as vLLM has it")
    guided_json: SchemaOrText | None = Field(default=None, description="a JSON schema, or its text")
    guided_regex: str | None = Field(
        default=None, max_length=MOST, description="the whole text matches it (Rust's syntax)"
    )
    guided_choice: list[str] | None = Field(
        default=None, max_length=MOST_CHOICES, description="the text is one of these"
    )
    guided_grammar: GrammarText | None = Field(default=None, description=A_GRAMMAR)
    json_schema: SchemaOrText | None = Field(
        default=None, description="a JSON schema, as llama.cpp has it, or its text, as SGLang has it"
    )
    grammar: GrammarText | None = Field(default=None, description=A_GRAMMAR)
    regex: str | None = Field(default=None, max_length=MOST, description="the whole text matches it, as SGLang has it")
    ebnf: GrammarText | None = Field(default=None, description="a grammar, as SGLang has it")

    def unused_constraints(self) -> Iterator[str]:
        """Paths of what is not used in them."""
        if self.structured_outputs is not None:
            yield from unused_of("structured_outputs", self.structured_outputs.model_extra)


@dataclass(frozen=True)
class AnswerFormat:
    """Fields of `ChatRequest`: a schema, or a grammar, or neither."""

    response_schema: Mapping[str, Any] | None = None
    strict_response: bool = False
    response_grammar: Regex | Lark | None = None


def answer_format(
    fields: ConstraintFields, response_format: object = None, *, option: str = "response_format", strict: bool = False
) -> AnswerFormat:
    """What the answer must look like.

    Raises:
        InvalidOptionError: two fields say it, or one cannot be read.
    """
    schema = to_response_schema(response_format, option=option)
    found = [] if schema is None else [(option, AnswerFormat(schema, is_strict(response_format) or strict))]
    found += list(_constraints(fields, strict=strict))
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise wrong(found[1][0], f"{names} both say what the text must look like; give one of them")
    return found[0][1] if found else AnswerFormat(strict_response=strict)


def _constraints(fields: ConstraintFields, *, strict: bool) -> Iterator[tuple[str, AnswerFormat]]:
    for name in ("guided_json", "json_schema"):
        if (schema := getattr(fields, name)) is not None:
            yield name, AnswerFormat(schema, strict)
    for name in ("guided_regex", "regex"):
        if (pattern := getattr(fields, name)) is not None:
            yield name, _regex(pattern, name)
    if fields.guided_choice is not None:
        yield "guided_choice", _choice(fields.guided_choice, "guided_choice")
    for name in ("guided_grammar", "grammar", "ebnf"):
        if getattr(fields, name):  # llama.cpp's clients send an empty one for none
            yield name, _grammar(getattr(fields, name), name)
    if (given := fields.structured_outputs) is not None:
        yield from _structured(given, strict=strict)


def _structured(given: StructuredOutputs, *, strict: bool) -> Iterator[tuple[str, AnswerFormat]]:
    if given.json_schema is not None:
        yield "structured_outputs.json", AnswerFormat(given.json_schema, strict)
    if given.regex is not None:
        yield "structured_outputs.regex", _regex(given.regex, "structured_outputs.regex")
    if given.choice is not None:
        yield "structured_outputs.choice", _choice(given.choice, "structured_outputs.choice")
    if given.grammar is not None:
        yield "structured_outputs.grammar", _grammar(given.grammar, "structured_outputs.grammar")
    if given.json_object:
        yield "structured_outputs.json_object", AnswerFormat(ANY_OBJECT, strict)


def _regex(pattern: str, option: str) -> AnswerFormat:
    if not pattern:
        raise wrong(option, "give an expression", pattern)
    return AnswerFormat(response_grammar=Regex(pattern=pattern))


def _choice(texts: list[str], option: str) -> AnswerFormat:
    r"""One of some texts, as an expression.

    >>> _choice(["a+b", "c"], "guided_choice").response_grammar.pattern
    'a\\+b|c'
    """
    if not texts or not all(texts):
        raise wrong(option, "give at least one text, and none that is empty")
    if sum(map(len, texts)) > MOST:
        raise wrong(option, f"the texts have more than {MOST} characters together; give fewer")
    return AnswerFormat(response_grammar=Regex(pattern="|".join(map(_escaped, texts))))


def _escaped(text: str) -> str:
    return (
        re.sub(r"[\\.+*?()|\[\]{}^$#&~\-/]", lambda sign: f"\\{sign[0]}", text)
        .replace("\n", r"\n")
        .replace("\r", r"\r")
    )


def _grammar(text: str, option: str) -> AnswerFormat:
    if not text.strip():
        raise wrong(option, "give a grammar", text)
    _check_lark(text, option)
    return AnswerFormat(response_grammar=Lark(grammar=text))


def _check_lark(text: str, option: str) -> None:
    """Raises InvalidOptionError where a grammar holds what takes a time without bounds to read: many expressions that a text must
    match together, or a schema that nobody has looked at.
    """
    for schema in _schemas_in(text, option):
        for lost in held(schema).unenforced:
            raise wrong(option, f"%json: {lost.keyword!r} at {lost.at or 'the top'} cannot be held; leave it out")
    if (count := STRINGS.sub(" ", text).count("&")) > MOST_TOGETHER:
        raise wrong(option, f"{count} times &, and {MOST_TOGETHER} are allowed: say less at once")


def _schemas_in(text: str, option: str) -> Iterator[object]:
    """The JSON schemas in a grammar."""
    for found in re.finditer(r"%json\s*", text):
        try:
            yield json.JSONDecoder().raw_decode(text, found.end())[0]
        except (ValueError, RecursionError) as error:
            raise wrong(option, f"what follows %json is no JSON: {error}") from None
