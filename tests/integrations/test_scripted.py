"""A backend without a model answers what it is told to, or what fits, through every adapter; it records, fails and waits."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.tools import tool
from llama_index.core import Document, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.tools import FunctionTool, QueryEngineTool
from pydantic import BaseModel, Field

from eft_engine import Lark, Regex, errors
from eft_integrations.backends.scripted import AUTO, Broken, Gate, Gated, ScriptedBackend, ScriptOverError
from eft_integrations.chat.messages import Message, Tool, ToolCall
from eft_integrations.chat.request import ChatRequest, ChatResult, ToolChoice
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM

USER = Message("user", "Is it sunny in Paris?")
LOOK = Tool("look", "Look.", {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]})
COUNT = Tool(
    "count", "Count.", {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
)
WORDS = "one two three four five"


class Report(BaseModel):
    """A weather report."""

    city: str = Field(pattern="^[A-Z][a-z]+$")
    degrees: int = Field(ge=-50, le=50)
    days: list[str] = Field(min_length=2)


@tool
def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


def look_at(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


def asked(**fields: Any) -> ChatRequest:
    """A request of one turn."""
    return ChatRequest(**{"messages": (USER,), **fields})


def with_results(request: ChatRequest, answer: ChatResult, *results: str) -> ChatRequest:
    """The request behind the calls of an answer, with what the tools said."""
    turns = [
        Message("tool", said, tool_call_id=call.call_id, name=call.name)
        for call, said in zip(answer.tool_calls, results, strict=True)
    ]
    messages = (*request.messages, Message("assistant", "", answer.tool_calls), *turns)
    return ChatRequest(messages=messages, tools=request.tools, tool_choice=request.tool_choice)


# ---- answers that it finds by itself -------------------------------------------------------------------------------------


def test_every_tool_is_called_once_and_then_their_results_are_told() -> None:
    backend = ScriptedBackend()
    request = asked(tools=(LOOK, COUNT))
    calls = backend.chat(request)
    assert [(call.name, json.loads(call.arguments)) for call in calls.tool_calls] == [
        ("look", {"place": "a"}),
        ("count", {"n": 3}),
    ]
    assert calls.finish_reason == "tool_calls"
    told = backend.chat(with_results(request, calls, "sunny", "three"))
    assert (json.loads(told.content), told.tool_calls) == ({"look": "sunny", "count": "three"}, ())


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (ToolChoice("none"), []),
        (ToolChoice("auto"), ["look", "count"]),
        (ToolChoice("auto", parallel=False), ["look"]),
        (ToolChoice("required"), ["look", "count"]),
        (ToolChoice("required", parallel=False), ["look"]),
        (ToolChoice("named", "count", parallel=False), ["count"]),
    ],
)
def test_the_choice_among_tools_is_obeyed(choice: ToolChoice, names: list[str]) -> None:
    answer = ScriptedBackend().chat(asked(tools=(LOOK, COUNT), tool_choice=choice))
    assert [call.name for call in answer.tool_calls] == names
    assert bool(answer.content) == (not names)


def test_one_call_at_a_time_goes_through_all_tools_and_a_demanded_call_comes_again() -> None:
    backend = ScriptedBackend()
    request = asked(tools=(LOOK, COUNT), tool_choice=ToolChoice("required", parallel=False))
    names = []
    for _ in range(3):
        answer = backend.chat(request)
        names += [call.name for call in answer.tool_calls]
        request = with_results(request, answer, "ok")
    assert names == ["look", "count", "count"]


def test_tools_and_arguments_can_be_chosen() -> None:
    backend = ScriptedBackend(call_tools=["count"], arguments={"count": {"n": 7}})
    (call,) = backend.chat(asked(tools=(LOOK, COUNT))).tool_calls
    assert (call.name, call.arguments) == ("count", '{"n": 7}')
    without = backend.chat(asked(tools=(LOOK,)))
    assert (without.content, without.metadata["ignored"]) == ("scripted answer", ["call_tools"])
    with pytest.raises(errors.InvalidOptionError, match="arguments for tool 'count' do not fit its schema"):
        ScriptedBackend(arguments={"count": {"n": 1}}).chat(asked(tools=(COUNT,)))


def test_limits_of_a_request_are_kept() -> None:
    backend = ScriptedBackend(text=WORDS, thought="hm hm hm")

    def said(**fields: Any) -> tuple[str, str, str]:
        answer = backend.chat(asked(**fields))
        return answer.reasoning, answer.content, answer.finish_reason

    assert said() == ("hm hm hm", WORDS, "stop")
    assert said(reasoning="off", sampling={"max_tokens": 2}) == ("", "one two", "length")
    assert said(sampling={"max_tokens": 2}) == ("hm hm", "", "length")
    assert said(reasoning_budget=1) == ("hm", WORDS, "stop")
    assert said(reasoning="off", sampling={"stop": ["three"]}) == ("", "one two ", "stop")
    assert said(reasoning="off", sampling={"max_tokens": 5}) == ("", WORDS, "stop")


def test_a_call_and_an_object_that_are_cut_are_told_as_cut() -> None:
    call = ScriptedBackend().chat(asked(tools=(LOOK,), sampling={"max_tokens": 2}))
    assert (call.tool_calls, call.invalid_tool_calls[0].arguments, call.finish_reason) == ((), '{"place":', "length")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    value = ScriptedBackend().chat(asked(response_schema=schema, sampling={"max_tokens": 1}))
    assert (value.content, value.finish_reason) == ('{"a":', "length")
    assert value.metadata["format_error"] == "the text ended inside the JSON"


def test_what_no_mask_holds_is_reported_and_a_strict_request_is_refused_as_by_an_engine() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 2}
    assert ScriptedBackend().chat(asked(response_schema=schema)).metadata["unenforced"][0]["keyword"] == "uniqueItems"
    with pytest.raises(errors.InvalidOptionError, match="uniqueItems"):
        ScriptedBackend().chat(asked(response_schema=schema, strict_response=True))


def test_the_same_seed_gives_the_same_answers() -> None:
    request = asked(response_schema=Report.model_json_schema())
    first, again, other = (ScriptedBackend(seed=seed).chat(request).content for seed in (1, 1, 2))
    assert first == again != other


# ---- replies ---------------------------------------------------------------------------------------------------------------


def test_replies_of_all_kinds_come_in_order_and_patterns_go_first() -> None:
    backend = ScriptedBackend(
        ["one", {"a": 1}, lambda request: request.messages[-1].content.upper(), AUTO],
        when={"weather": "rain"},
        otherwise=lambda request: None,
    )
    texts = [
        backend.chat(ChatRequest((Message("user", text),))).content
        for text in ("x", "the weather?", "x", "y", "z", "x")
    ]
    assert texts == ["one", "rain", '{"a": 1}', "Y", "scripted answer", "scripted answer"]


def test_a_script_that_is_over_says_so_and_what_to_do() -> None:
    backend = ScriptedBackend(["one"])
    backend.chat(asked())
    with pytest.raises(
        ScriptOverError, match="the script has 1 replies, and this is request 2; give more, or otherwise=AUTO"
    ) as over:
        backend.chat(asked())
    assert (over.value.num_replies, over.value.number) == (1, 2)
    backend.reset()
    assert (backend.chat(asked()).content, len(backend.records)) == ("one", 1)


def test_what_is_no_reply_is_refused() -> None:
    with pytest.raises(TypeError, match="for one text write \\['Paris'\\]"):
        ScriptedBackend("Paris")
    with pytest.raises(TypeError, match="a reply is a text, .* got 5"):
        ScriptedBackend([5]).chat(asked())  # type: ignore[list-item]


# ---- records ---------------------------------------------------------------------------------------------------------------


def test_requests_are_recorded_with_weights_and_answers() -> None:
    backend = ScriptedBackend(["one", TimeoutError("late"), "three"], weights={"chat": 1.0, "json": 0.5})
    backend.chat(asked(reward_weights={"chat": 0.25}))
    with pytest.raises(TimeoutError, match="late"):
        backend.chat(asked(reward_weights=0.0))
    backend.stream(asked()).close()
    first, second, third = backend.records
    assert (first.weights, first.answer and first.answer.content) == ({"chat": 0.25, "json": 0.5}, "one")
    assert (second.weights, second.answer, str(second.error)) == ({"chat": 0.0, "json": 0.0}, None, "late")
    assert (third.was_left, third.text) == (True, USER.content)
    assert backend.weights_of("sunny in Paris") == [first.weights, second.weights, third.weights]
    stats = backend.stats()
    assert (stats.num_finished, stats.num_failed, stats.num_cancelled, stats.num_running) == (1, 1, 1, 0)


def test_pairs_that_the_script_does_not_have_are_refused_unless_it_takes_any() -> None:
    with pytest.raises(errors.UnknownPairError, match="there is no pair 'chat'; this script has 'scripted'"):
        ScriptedBackend().chat(asked(reward_weights={"chat": 0.5}))
    backend = ScriptedBackend(takes_any_pair=True)
    backend.chat(asked(reward_weights={"chat": 0.5}))
    assert backend.records[0].weights == {"chat": 0.5, "scripted": 1.0}


def test_many_threads_are_answered_once_each() -> None:
    backend = ScriptedBackend([str(number) for number in range(64)])
    got: list[str] = []
    threads = [
        threading.Thread(target=lambda: got.extend(backend.chat(asked()).content for _ in range(8))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got, key=int) == [str(number) for number in range(64)]
    assert [record.answer.content for record in backend.records if record.answer] == [
        str(number) for number in range(64)
    ]


# ---- failures and waits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [errors.QueueFullError("full", num_queued=1, limit=1), TimeoutError, RuntimeError("broken")]
)
def test_an_error_comes_before_anything(error: Any) -> None:
    backend = ScriptedBackend([error])
    with pytest.raises(error if isinstance(error, type) else type(error)):
        backend.stream(asked())
    assert backend.stats().num_failed == 1


@pytest.mark.parametrize(("after", "seen"), [(0, ""), (2, "one two"), (99, WORDS)])
def test_an_error_in_the_middle_comes_behind_so_many_pieces(after: int, seen: str) -> None:
    backend = ScriptedBackend([Broken(WORDS, RuntimeError("broken"), after=after)])
    got: list[str] = []
    pieces = (got.append(delta.text) for delta in backend.stream(asked()))
    with pytest.raises(RuntimeError, match="broken"):
        list(pieces)
    assert "".join(got) == seen
    assert str(backend.records[0].error) == "broken"


async def test_an_answer_waits_at_a_gate_and_a_cancelled_task_leaves_it() -> None:
    gate = Gate()
    backend = ScriptedBackend([Gated(WORDS, gate, after=1), Gated(WORDS, gate)])
    llm = EFTChatModel(backend=backend)
    waiting, cancelled = asyncio.create_task(llm.ainvoke("hi")), asyncio.create_task(llm.ainvoke("hi"))
    assert await asyncio.to_thread(gate.wait_until_reached, 60)
    while len(backend.records) < 2:
        await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert not waiting.done()
    gate.open()
    assert (await waiting).text == WORDS
    assert [record.was_left for record in backend.records] == [False, True]


def test_a_thread_waits_at_a_gate_too() -> None:
    gate = Gate()
    llm = EFTLLM(backend=ScriptedBackend([Gated(WORDS, gate, after=2)]))
    got: list[str] = []
    thread = threading.Thread(target=lambda: got.extend(chunk.delta or "" for chunk in llm.stream_complete("hi")))
    thread.start()
    assert gate.wait_until_reached(60)
    assert "".join(got) in ("", "one", "one two")
    gate.open()
    thread.join()
    assert "".join(got) == WORDS


@pytest.mark.parametrize("model", [EFTLLM, EFTChatModel])
def test_a_timeout_leaves_an_answer_that_waits_at_a_gate(model: Any) -> None:
    backend = ScriptedBackend([Gated(WORDS, Gate(), after=1)])
    llm = model(backend=backend, timeout=0.05)
    with pytest.raises(Exception, match="no whole answer within 0.05 s"):
        llm.invoke("hi") if model is EFTChatModel else llm.complete("hi")
    assert backend.records[0].was_left
    for thread in [own for own in threading.enumerate() if own.name == "eft-in-time"]:
        thread.join(60)
        assert not thread.is_alive()


# ---- through the frameworks ------------------------------------------------------------------------------------------------


def test_langchain_models_chains_and_objects() -> None:
    llm: BaseChatModel = EFTChatModel(backend=ScriptedBackend())
    assert llm.invoke("hi").text == "scripted answer"
    assert "".join(chunk.text for chunk in llm.stream("hi")) == "scripted answer"
    assert [call["args"] for call in llm.bind_tools([look]).invoke("hi").tool_calls] == [{"place": "a"}]
    for method in ("json_schema", "function_calling", "json_mode"):
        found = llm.with_structured_output(Report, method=method).invoke("hi")
        assert isinstance(found, Report)


async def test_langchain_agents() -> None:
    backend = ScriptedBackend()
    agent: Any = create_agent(EFTChatModel(backend=backend), [look], response_format=ProviderStrategy(Report))
    state = await agent.ainvoke({"messages": [("user", "Is it sunny?")]})
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert isinstance(state["structured_response"], Report)
    plain: Any = create_agent(EFTChatModel(backend=backend), [look])
    assert plain.invoke({"messages": [("user", "hi")]})["messages"][-1].text == '{"look": "sunny in a"}'


async def test_llama_index_models_and_agents() -> None:
    llm = EFTLLM(backend=ScriptedBackend(arguments={"look_at": {"place": "Paris"}}))
    assert llm.chat([ChatMessage("hi")]).message.content == "scripted answer"
    assert isinstance(llm.structured_predict(Report, PromptTemplate("hi")), Report)
    tools: list[Any] = [FunctionTool.from_defaults(look_at)]
    assert str(await FunctionAgent(tools=tools, llm=llm).run("hi")) == '{"look_at": "sunny in Paris"}'
    react = ReActAgent(tools=tools, llm=EFTLLM(backend=ScriptedBackend(["Thought: I know.\nAnswer: sunny"])))
    assert str(await react.run("hi")) == "sunny"


def test_llama_index_query_engines() -> None:
    backend = ScriptedBackend(when={"Context information": "From the documents."})
    llm = EFTLLM(backend=backend)
    index = SummaryIndex.from_documents([Document(text="Paris is sunny.")], embed_model=MockEmbedding(4))
    tools = [QueryEngineTool.from_defaults(index.as_query_engine(llm=llm), description=name) for name in ("one", "two")]
    router = RouterQueryEngine.from_defaults(tools, llm=llm)
    assert str(router.query("Is it sunny?")) == "From the documents."
    assert len(backend.requests) == 2


@pytest.mark.parametrize(
    "ask",
    [
        lambda backend: EFTChatModel(backend=backend).with_structured_output(Report).invoke("hi"),
        lambda backend: EFTLLM(backend=backend).structured_predict(Report, PromptTemplate("hi")),
    ],
)
def test_a_failure_reaches_the_application(ask: Callable[[ScriptedBackend], object]) -> None:
    with pytest.raises(Exception, match="no room") as raised:
        ask(ScriptedBackend([errors.ContextOverflowError("no room", prompt_len=9, context_len=8)]))
    cause = raised.value.__cause__ or raised.value
    assert isinstance(cause, errors.ContextOverflowError)


def test_ids_of_calls_differ_within_a_conversation() -> None:
    backend = ScriptedBackend(otherwise=AUTO)
    ids = [call.call_id for _ in range(2) for call in backend.chat(asked(tools=(LOOK, COUNT))).tool_calls]
    assert len(set(ids)) == 4
    assert ToolCall(ids[0], "look", '{"place": "a"}') == backend.records[0].answer.tool_calls[0]  # type: ignore[union-attr]


@pytest.mark.parametrize("pattern", ["yes|a\\.b", "[0-9]{3}-[a-z]+", "s\u00fc\u00df"])
def test_expression_gets_a_text_that_it_matches(pattern: str) -> None:
    answer = ScriptedBackend().chat(ChatRequest((USER,), response_grammar=Regex(pattern=pattern)))
    assert re.fullmatch(pattern, answer.content)


def test_no_text_is_made_up_of_a_grammar() -> None:
    request = ChatRequest((USER,), response_grammar=Lark(grammar='start: "a"'))
    with pytest.raises(errors.InvalidOptionError, match="give it a reply"):
        ScriptedBackend().chat(request)
    assert ScriptedBackend(["a"]).chat(request).content == "a"
