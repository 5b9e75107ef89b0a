"""Objects out of answers: one that is not whole, or that breaks its schema, is an error by every method and never a stump."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from pydantic import BaseModel
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import ChatResult
from eft_integrations.langchain import EFTChatModel
from tests.integrations.cuts import REASON, cut

METHODS = pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])


class Person(BaseModel):
    """Everything may be missing, so that any stump would do."""

    name: str = ""
    tags: list[str] = []
    age: int = 0


class PersonV1(BaseModelV1):
    """The same for pydantic's first version."""

    name: str = ""
    tags: list[str] = []
    age: int = 0


class PersonDict(TypedDict, total=False):
    """The same as a dict."""

    name: str
    tags: list[str]
    age: int


JSON_SCHEMA = {"title": "Person", "type": "object", "properties": {"name": {"type": "string"}}}
SCHEMAS = pytest.mark.parametrize("schema", [Person, PersonV1, PersonDict, JSON_SCHEMA], ids=str)
WRITTEN = '{"name": "Ann", "tags": ["a", "b"], "age": 3}'


def name_of(schema: Any) -> str:
    """What its tool is called."""
    return schema["title"] if isinstance(schema, dict) else schema.__name__


def answered(method: str, written: str, *, schema: Any = Person, reason: str | None = None) -> ChatResult:
    """An answer in the method's form. `reason`: why it is not whole, or not what was asked for."""
    if method == "function_calling":
        if reason is None:
            call = ToolCall("call_1", name_of(schema), written)
            return dataclasses.replace(cut(Message("assistant", "", (call,))), finish_reason="tool_calls")
        return cut(Message("assistant", ""), InvalidToolCall(written, reason, name_of(schema), "call_1", written))
    result = cut(Message("assistant", written))
    metadata = {} if reason is None else {"format_error": reason}
    return dataclasses.replace(result, finish_reason="stop" if reason is None else "length", metadata=metadata)


def asking(method: Any, *replies: Any, schema: Any = Person, **options: Any) -> Any:
    """A model that answers with objects."""
    return EFTChatModel(backend=ScriptedBackend(list(replies))).with_structured_output(schema, method=method, **options)


@METHODS
@SCHEMAS
def test_answer_that_is_cut_anywhere_is_an_error_and_no_object(schema: Any, method: str) -> None:
    places = range(len(WRITTEN) + (method == "function_calling"))
    replies = [answered(method, WRITTEN[:place], schema=schema, reason=REASON) for place in places]
    structured = asking(method, *replies, answered(method, WRITTEN, schema=schema), schema=schema)
    for _ in replies:
        with pytest.raises(OutputParserException, match="max_tokens after 7 tokens: give it more"):
            structured.invoke("Who?")
    found = structured.invoke("Who?")
    assert (found if isinstance(found, dict) else found.dict()) == {"name": "Ann", "tags": ["a", "b"], "age": 3}


@METHODS
def test_cut_that_the_backend_does_not_call_a_format_error_is_one_all_the_same(method: str) -> None:
    if method == "function_calling":
        reply = cut(Message("assistant", "I think that"))
    else:
        reply = cut(Message("assistant", WRITTEN[:20]))
    with pytest.raises(OutputParserException, match="max_tokens"):
        asking(method, reply).invoke("Who?")


@METHODS
def test_raw_answer_is_kept_beside_the_error(method: str) -> None:
    structured = asking(
        method, answered(method, WRITTEN[:20], reason=REASON), answered(method, WRITTEN), include_raw=True
    )
    bad, good = structured.invoke("Who?"), asyncio.run(structured.ainvoke("Who?"))
    assert isinstance(bad["raw"], AIMessage)
    assert bad["parsed"] is None
    assert isinstance(bad["parsing_error"], OutputParserException)
    assert "max_tokens" in str(bad["parsing_error"])
    assert (good["parsed"], good["parsing_error"]) == (Person(name="Ann", tags=["a", "b"], age=3), None)


@METHODS
@pytest.mark.parametrize("include_raw", [False, True])
def test_stream_tells_the_error_at_its_end(include_raw: bool, method: str) -> None:
    replies = [answered(method, WRITTEN[:20], schema=PersonDict, reason=REASON)] * 2
    replies += [answered(method, WRITTEN, schema=PersonDict)] * 2
    structured = asking(method, *replies, schema=PersonDict, include_raw=include_raw)

    async def collect(into: list[Any]) -> None:
        async for piece in structured.astream("Who?"):
            into.append(piece)

    for way in ("stream", "astream"):
        pieces: list[Any] = []
        try:
            if way == "stream":
                for piece in structured.stream("Who?"):
                    pieces.append(piece)
            else:
                asyncio.run(collect(pieces))
            error = pieces[-1]["parsing_error"] if include_raw else None
        except OutputParserException as raised:
            error = raised
        assert isinstance(error, OutputParserException)
        assert not include_raw or pieces[-1]["parsed"] is None
    whole = list(structured.stream("Who?"))
    assert (whole[-1]["parsed"] if include_raw else whole[-1]) == {"name": "Ann", "tags": ["a", "b"], "age": 3}
    assert include_raw or method == "function_calling" or len(whole) > 1


@METHODS
def test_object_that_breaks_its_schema_is_an_error(method: str) -> None:
    reply = answered(method, WRITTEN, reason="tags: has non-unique elements")
    with pytest.raises(OutputParserException, match="non-unique elements") as raised:
        asking(method, dataclasses.replace(reply, finish_reason="stop")).invoke("Who?")
    assert "max_tokens" not in str(raised.value)


def test_call_that_does_not_come_is_an_error_and_not_none() -> None:
    for schema in (Person, PersonDict):
        with pytest.raises(OutputParserException, match=f"does not call {schema.__name__}: 'Hm.'"):
            asking("function_calling", "Hm.", schema=schema).invoke("Who?")


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_json_that_ends_with_its_budget_is_whole(method: str) -> None:
    """It was closed inside its budget on demand, or needed just as much."""
    reply = cut(Message("assistant", WRITTEN))
    assert asking(method, reply).invoke("Who?").age == 3


def test_demand_for_strictness_reaches_the_backend() -> None:
    backend = ScriptedBackend([answered("json_schema", WRITTEN), answered("function_calling", WRITTEN)] * 3)
    llm = EFTChatModel(backend=backend)
    for model, strict in ((llm, True), (llm, None), (EFTChatModel(backend=backend, strict=True), None)):
        for method in ("json_schema", "function_calling"):
            model.with_structured_output(Person, method=method, strict=strict).invoke("Who?")
    asked = [request.strict_response or any(tool.strict for tool in request.tools) for request in backend.requests]
    assert asked == [True, True, False, False, True, True]


def test_strict_is_a_keyword_of_every_call() -> None:
    backend = ScriptedBackend(["ok", "ok"])
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    EFTChatModel(backend=backend).invoke("hi", tools=[tool], strict=True)
    EFTChatModel(backend=backend, strict=True).invoke("hi", tools=[tool], strict=False)
    assert [request.tools[0].strict for request in backend.requests] == [True, False]


def test_errors_of_the_model_are_no_parsing_errors() -> None:
    backend = ScriptedBackend([errors.InvalidGrammarError("no")])
    structured = EFTChatModel(backend=backend).with_structured_output(Person, include_raw=True)
    with pytest.raises(Exception, match="no") as raised:
        structured.invoke("Who?")
    assert isinstance(raised.value.__cause__, errors.InvalidGrammarError)
