"""Tools and schemas in any of LangChain's forms, with their JSON schema as it is.

LangChain's own conversion writes definitions in the place of their names and cannot with recursive ones, which become `{}`. So
names and descriptions are LangChain's, and schemas are those of the classes themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, ForwardRef, NotRequired, Required, Union, get_args, get_origin

from langchain_core.tools import BaseTool, Tool
from langchain_core.tools.base import create_schema_from_function
from langchain_core.utils.function_calling import (
    _parse_google_docstring,
    convert_to_json_schema,
    convert_to_openai_tool,
)
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, Field, create_model
from typing_extensions import get_type_hints, is_typeddict  # for both kinds of TypedDict

from eft_engine import errors
from eft_integrations.chat.schemas.display import untitled
from eft_integrations.class_schema import schema_of_class
from eft_integrations.json_types import JsonObject


def tool_form(tool: object, *, strict: bool | None = None) -> JsonObject:
    """A tool in OpenAI's form.

    Args:
        tool: a function, a LangChain tool, a pydantic class (v1 or v2), a TypedDict, a JSON schema with a title, or a tool in the
            form of OpenAI, Anthropic or Bedrock.
        strict: what the form says of it; None: nothing.

    Raises:
        InvalidOptionError: it is none of these.
    """
    if is_typeddict(tool):
        tool = _model_of(tool)  # type: ignore[arg-type]
    form = _converted(convert_to_openai_tool, tool)
    function = form.get("function")
    if not isinstance(function, dict):
        return form
    schema = _own_schema(tool)
    if schema is not None:
        described = ("title",) if isinstance(tool, Mapping) else ("title", "description")
        parameters = {key: value for key, value in schema.items() if key not in described}
        function = {**function, "parameters": untitled(parameters)}
    if strict is not None:
        if function.get("strict", strict) != strict:
            raise errors.InvalidOptionError(
                f"the tool {function['name']!r} says strict={function['strict']}, and the call strict={strict}",
                option="strict",
                value=strict,
            )
        function = {**function, "strict": strict}
    return {**form, "function": function}


def answer_schema(schema: object) -> JsonObject:
    """The JSON schema of an answer in any of these forms; its title is the name."""
    function = tool_form(schema).get("function")
    if not isinstance(function, dict) or "name" not in function:
        raise _no_tool(schema, "it names no schema")
    described = {"description": function["description"]} if function.get("description") else {}
    parameters = function.get("parameters") or {}
    assert isinstance(parameters, dict), "parameters are a schema"
    return {"title": function["name"], **described, **parameters}


def traced_schema(schema: object) -> JsonObject:
    """What LangChain's traces and tests call the schema of an answer: its own form, where it has one."""
    try:
        return _converted(convert_to_json_schema, schema)
    except TypeError:  # a TypedDict with keys that may be missing
        return answer_schema(schema)


def _converted(convert: Callable[..., dict[str, Any]], tool: object) -> JsonObject:
    try:
        return convert(tool)
    except ValueError as error:
        raise _no_tool(tool, str(error)) from error


def _no_tool(tool: object, reason: str) -> errors.InvalidOptionError:
    message = f"a tool or schema is a function, a LangChain tool, a class, or JSON with a name, got {tool!r}: {reason}"
    return errors.InvalidOptionError(message, option="tools", value=tool)


def _own_schema(tool: object) -> dict[str, Any] | None:
    """The schema of what a tool takes, as its class or its author writes it; None where LangChain's form has all there is."""
    match tool:
        case Mapping():
            has_form = "type" in tool and tool["type"] == "function"
            is_schema = "title" in tool and "name" not in tool and "input_schema" not in tool and "toolSpec" not in tool
            return {key: tool[key] for key in tool if key != "description"} if is_schema and not has_form else None
        case BaseTool():
            is_simple = isinstance(tool, Tool) and not tool.args_schema
            shape = tool.tool_call_schema
            if is_simple or not shape:
                return None
            return shape if isinstance(shape, dict) else schema_of_class(shape)
        case type() if is_basemodel_subclass(tool):
            return schema_of_class(tool)
        case _ if callable(tool):
            return schema_of_class(_model_of_function(tool))
    return None


def _model_of_function(function: Callable[..., Any]) -> type:
    """The class of a function's arguments, made as LangChain makes it."""
    return create_schema_from_function(
        function.__name__,
        function,
        filter_args=(),
        parse_docstring=True,
        error_on_invalid_docstring=False,
        include_injected=False,
    )


# ---- TypedDicts ----------------------------------------------------------------------------------------------------------


def _model_of(typed_dict: type) -> type[BaseModel]:
    """A pydantic class of a TypedDict and of all that it names, recursive ones too.

    A field may be annotated as LangChain has it: `Annotated[type, default, "description"]`, where `...` is no default.
    """
    waiting: dict[type, str] = {typed_dict: "TypedDict0"}
    made: dict[str, type[BaseModel]] = {}
    while len(made) < len(waiting):
        own, name = list(waiting.items())[len(made)]
        made[name] = _one_model(own, waiting)
    for model in made.values():
        model.model_rebuild(force=True, _types_namespace=made)
    return made[waiting[typed_dict]]


def _one_model(typed_dict: type, waiting: dict[type, str]) -> type[BaseModel]:
    """The class of one TypedDict. Others that it names are references by the names in `waiting`, which gets those that are new."""
    hints = get_type_hints(typed_dict, include_extras=True)
    text = inspect.cleandoc(vars(typed_dict).get("__doc__") or "")
    description, described = _parse_google_docstring(text, list(hints)) if text else ("", {})
    fields: dict[str, Any] = {}
    for name, hint in hints.items():
        kind, said = _taken_apart(hint)
        is_langchains = bool(said) and (said[0] is ... or (len(said) > 1 and isinstance(said[1], str)))
        if said and not is_langchains:  # pydantic's own
            kind = Annotated[(kind, *said)]
        default = said[0] if is_langchains else ...
        about = said[1] if is_langchains and len(said) > 1 else described.get(name)
        is_required = name in typed_dict.__required_keys__  # type: ignore[attr-defined]
        field = Field(default, description=about) if is_required else Field(default_factory=_missing, description=about)
        fields[name] = (_referring(kind, waiting), field)
    model: type[BaseModel] = create_model(typed_dict.__name__, __doc__=description or None, **fields)
    return model


def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of a field, and what `Annotated` says of it."""
    origin: Any = get_origin(hint)
    parts: tuple[Any, ...] = get_args(hint)
    if origin in (Required, NotRequired):
        return _taken_apart(parts[0])
    return (parts[0], parts[1:]) if origin is Annotated else (hint, ())


def _missing() -> None:
    """What stands for a key that may be left out: it is no default that a schema would show."""


def _referring(hint: Any, waiting: dict[type, str]) -> Any:
    """A type in which TypedDicts are references to their classes."""
    if is_typeddict(hint):
        return ForwardRef(waiting.setdefault(hint, f"TypedDict{len(waiting)}"))
    origin, inner = get_origin(hint), get_args(hint)
    if origin is None or not inner or not any(_names_typed_dict(own) for own in inner):
        return hint
    parts = tuple(_referring(own, waiting) if own is not ... else own for own in inner)
    return Union[parts] if origin in (Union, UnionType) else origin[parts]  # noqa: UP007  made of a tuple


def _names_typed_dict(hint: Any) -> bool:
    return is_typeddict(hint) or any(_names_typed_dict(own) for own in get_args(hint))
