"""Answers as objects. LangChain's parsers mend JSON that breaks off and take a call that did not come for None; so an answer is
looked at before they see it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from langchain_core import output_parsers
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableGenerator, RunnableLambda, RunnableMap
from langchain_core.utils.json import parse_json_markdown
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from eft_engine import errors
from eft_integrations.chat.messages import InvalidToolCall
from eft_integrations.json_types import JsonObject
from eft_integrations.langchain.schemas import answer_schema, traced_schema
from eft_integrations.wire.openai import schema_format

if TYPE_CHECKING:
    from eft_integrations.langchain.chat_model import EFTChatModel


def structured_output(
    llm: EFTChatModel,
    schema: dict[str, Any] | type | None,
    method: str,
    *,
    include_raw: bool,
    strict: bool | None,
    keywords: Mapping[str, Any],
) -> Runnable[Any, Any]:
    """See `EFTChatModel.with_structured_output`.

    Raises:
        InvalidOptionError: a method that there is not, or one that needs a schema without one.
    """
    if schema is None and method != "json_mode":
        raise errors.InvalidOptionError(f"method {method!r} needs a schema", option="schema")
    is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
    traced: JsonObject = {"type": "object"} if schema is None else traced_schema(schema)
    traces = {"kwargs": {"method": method, "strict": strict}, "schema": traced}
    further: dict[str, Any] = {**keywords, "ls_structured_output_format": traces}
    parser: Runnable[Any, Any]
    answers: Runnable[Any, AIMessage]
    name: str | None = None
    match method:
        case "function_calling":
            tools = cast("list[type[BaseModel]]", [schema])
            name = str(traced["title"])
            answers = llm.bind_tools(tools, tool_choice=name, parallel_tool_calls=False, strict=strict, **further)
            parser = output_parsers.JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            if is_pydantic:
                parser = output_parsers.PydanticToolsParser(tools=[*tools], first_tool_only=True)
        case "json_schema" | "json_mode":
            if strict is not None:
                further["strict"] = strict
            wanted = {"title": "answer", "type": "object"} if schema is None else answer_schema(schema)
            answers = llm.bind(response_format=schema_format(str(wanted["title"]), wanted), **further)
            parser = output_parsers.JsonOutputParser()
            if is_pydantic:
                parser = output_parsers.PydanticOutputParser(pydantic_object=cast("type[BaseModel]", schema))
        case _:
            raise errors.InvalidOptionError(
                f"method must be json_schema, function_calling or json_mode, got {method!r}",
                option="method",
                value=method,
            )
    return structured(answers, parser, tool=name, include_raw=include_raw)


def structured(
    llm: Runnable[Any, AIMessage], parser: Runnable[Any, Any], *, tool: str | None, include_raw: bool
) -> Runnable[Any, Any]:
    """Answers of a model through a parser. One that is not whole is an error: an `OutputParserException`, at the end of a stream.

    Args:
        llm: answers with a call of `tool`, or with JSON.
        parser: makes an object of an answer, or of what there is of it.
        tool: whose call is the object; None: the content is.
        include_raw: give `{"raw", "parsed", "parsing_error"}`, and raise nothing.
    """
    parser = only_whole(tool) | parser
    if not include_raw:
        return llm | parser

    def parsed(answer: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        try:
            return {**answer, "parsed": parser.invoke(answer["raw"], config), "parsing_error": None}
        except Exception as error:  # whatever it is, a field tells it
            return {**answer, "parsed": None, "parsing_error": error}

    async def aparsed(answer: dict[str, Any], config: RunnableConfig) -> dict[str, Any]:
        try:
            return {**answer, "parsed": await parser.ainvoke(answer["raw"], config), "parsing_error": None}
        except Exception as error:
            return {**answer, "parsed": None, "parsing_error": error}

    return RunnableMap(raw=llm) | RunnableLambda(parsed, aparsed)


def only_whole(tool: str | None) -> Runnable[AIMessage, AIMessage]:
    """Passes an answer on, in pieces as they come; raises at the end if it is not whole."""

    def passed(pieces: Iterator[AIMessage]) -> Iterator[AIMessage]:
        answer: Any = None
        for piece in pieces:
            answer = piece if answer is None else answer + piece
            yield piece
        _check(answer, tool)

    async def apassed(pieces: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
        answer: Any = None
        async for piece in pieces:
            answer = piece if answer is None else answer + piece
            yield piece
        _check(answer, tool)

    return RunnableGenerator(passed, apassed)


def _check(answer: AIMessage, tool: str | None) -> None:
    fault = content_fault(answer) if tool is None else call_fault(answer, tool)
    if fault is not None:
        raise OutputParserException(fault, llm_output=answer.text)


def call_fault(answer: AIMessage, tool: str) -> str | None:
    """Why an answer has no call of the tool; None if it has one."""
    if any(call["name"] == tool for call in answer.tool_calls):
        return None
    broken = [InvalidToolCall(**call) for call in _report(answer).get("invalid_tool_calls", ())]
    if broken:
        reasons = "; ".join(f"{call.reason}: {call.text!r}" for call in broken)
        return f"the call of {tool} is not to be used, {reasons}{_advice(answer)}"
    return f"the answer does not call {tool}: {answer.text!r}{_advice(answer)}"


def content_fault(answer: AIMessage) -> str | None:
    """Why the content of an answer is not the JSON that was asked for; None if it is."""
    fault: str | None = _report(answer).get("format_error")
    try:
        value = parse_json_markdown(answer.text, parser=functools.partial(json.loads, strict=False))
    except ValueError as error:
        fault = "the text ended inside the JSON" if _was_cut(answer) else f"the content is no JSON ({error})"
    else:
        if _was_cut(answer) and not isinstance(value, dict | list):
            fault = "the text ended inside the JSON"
    return None if fault is None else f"{fault}: {answer.text!r}{_advice(answer)}"


def _report(answer: AIMessage) -> dict[str, Any]:
    report: dict[str, Any] = answer.response_metadata.get("eft", {})
    return report


def _was_cut(answer: AIMessage) -> bool:
    return answer.response_metadata.get("finish_reason") == "length"


def _advice(answer: AIMessage) -> str:
    if not _was_cut(answer):
        return ""
    usage = answer.usage_metadata
    spent = f" after {usage['output_tokens']} tokens" if usage is not None else ""
    return f"; the answer reached max_tokens{spent}: give it more, or bound its thought with reasoning_budget"
