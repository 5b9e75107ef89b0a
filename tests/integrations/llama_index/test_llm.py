"""What `EFTLLM` promises beyond the suite: weights by every route, errors, cancelling, one text with the other adapters."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.evaluation import FaithfulnessEvaluator
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

import eft_integrations
from eft_engine import Engine, SamplingParams, errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.llama_index import EFTLLM
from eft_integrations.testing.llama_index_suite.asking import CHATS, COMPLETIONS, PREDICTIONS, gather, user
from eft_integrations.testing.llama_index_suite.engines import CHAT_WAYS, QUERIES
from eft_integrations.testing.llama_index_suite.scenarios import NOTES, index_of
from eft_integrations.testing.llama_index_suite.structured import PROMPT, Person
from eft_integrations.testing.llama_index_suite.tools import ADD
from tests.integrations.llama_index.trained import GREETING, trained_engine
from tests.integrations.trained_trio import without_drafts

W = {"scripted": 0.3}
ANN = '{"name": "Ann", "age": 3}'


def make(*replies: str | Message, **fields: Any) -> tuple[EFTLLM, ScriptedBackend]:
    """An LLM that answers by a script, and what it was asked."""
    backend = ScriptedBackend(list(replies) or [ANN] * 10)
    return EFTLLM(backend=backend, **fields), backend


def model(**fields: Any) -> EFTLLM:
    """Over the trio that answers."""
    return EFTLLM(engine=trained_engine(), **{"temperature": 0.0, "max_tokens": 40, **fields})


# ---- construction --------------------------------------------------------------------------------------------------------


def test_import_construction_and_events_load_nothing() -> None:
    code = (
        "import sys; from eft_integrations.llama_index import EFTLLM\n"
        "llm = EFTLLM(base='nowhere', tuned='b', reference='c')\n"
        "llm.with_weights(0.5).to_payload()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_survive_serialisation() -> None:
    llm = EFTLLM(base="a", pairs={"x": ("t", "r")}, reward_weights={"x": 0.5}, max_tokens=7, system_prompt="Be kind.")
    restored = EFTLLM.from_dict(llm.to_dict())
    assert restored.to_dict() == llm.to_dict()
    assert restored._backend is llm._backend
    assert llm.to_dict()["class_name"] == "EFTLLM"


def test_context_window_is_the_engines_and_loading_can_be_asked_for() -> None:
    llm = model()
    llm.load()
    assert llm.metadata.context_window == trained_engine().context_len
    assert llm.metadata.num_output == 40
    assert EFTLLM(engine=trained_engine()).metadata.num_output == SamplingParams().max_tokens
    assert llm.token_ids("Hello") == trained_engine().tokenizer.encode("Hello", add_special_tokens=False)


# ---- weights -------------------------------------------------------------------------------------------------------------

TOOL_WAYS: dict[str, Callable[..., Any]] = {
    "chat_with_tools": lambda llm, **keywords: llm.chat_with_tools([ADD], "hi", **keywords),
    "achat_with_tools": lambda llm, **keywords: asyncio.run(llm.achat_with_tools([ADD], "hi", **keywords)),
    "stream_chat_with_tools": lambda llm, **keywords: list(llm.stream_chat_with_tools([ADD], "hi", **keywords)),
    "astream_chat_with_tools": lambda llm, **keywords: asyncio.run(
        gather(llm.astream_chat_with_tools([ADD], "hi", **keywords))
    ),
}
STRUCTURED_WAYS: dict[str, Callable[..., Any]] = {
    "structured_predict": lambda llm, **keywords: llm.structured_predict(Person, PROMPT, keywords, who="Ann"),
    "astructured_predict": lambda llm, **keywords: asyncio.run(
        llm.astructured_predict(Person, PROMPT, keywords, who="Ann")
    ),
    "stream_structured_predict": lambda llm, **keywords: list(
        llm.stream_structured_predict(Person, PROMPT, keywords, who="Ann")
    ),
    "astream_structured_predict": lambda llm, **keywords: asyncio.run(
        gather(llm.astream_structured_predict(Person, PROMPT, keywords, who="Ann"))
    ),
    "structured llm": lambda llm, **keywords: llm.as_structured_llm(Person).chat(user("hi"), **keywords),
}
WITH_KEYWORDS: dict[str, Callable[..., Any]] = {
    **{way: lambda llm, way=way, **keywords: CHATS[way](llm, user("hi"), **keywords) for way in CHATS},
    **{way: lambda llm, way=way, **keywords: COMPLETIONS[way](llm, "hi", **keywords) for way in COMPLETIONS},
    **TOOL_WAYS,
    **STRUCTURED_WAYS,
}
WITHOUT_KEYWORDS: dict[str, Callable[[EFTLLM], Any]] = {
    **{way: lambda llm, way=way: PREDICTIONS[way](llm, PromptTemplate("hi")) for way in PREDICTIONS},
    **QUERIES,
    **{
        f"chat engine, {way}": lambda llm, way=way: CHAT_WAYS[way](
            index_of(NOTES).as_chat_engine(chat_mode="context", llm=llm), "hi"
        )
        for way in CHAT_WAYS
    },
    "use_async": lambda llm: (
        index_of(NOTES).as_query_engine(llm=llm, response_mode="tree_summarize", use_async=True).query("hi")
    ),
    "function agent": lambda llm: asyncio.run(_run_agent(llm)),
    "evaluator": lambda llm: FaithfulnessEvaluator(llm=llm).evaluate(response="a", contexts=["b"]),
}


async def _run_agent(llm: EFTLLM) -> Any:
    return await FunctionAgent(tools=[ADD], llm=llm).run("hi")


@pytest.mark.parametrize("way", WITH_KEYWORDS)
def test_weights_of_the_call_itself(way: str) -> None:
    llm, backend = make()
    WITH_KEYWORDS[way](llm.with_weights(0.9), reward_weights=W)
    assert [request.reward_weights for request in backend.requests] == [W]


@pytest.mark.parametrize("way", WITH_KEYWORDS | WITHOUT_KEYWORDS)
def test_weights_of_a_surrounding_block_and_of_a_copy_reach_everything(way: str) -> None:
    llm, backend = make()
    ask = (WITH_KEYWORDS | WITHOUT_KEYWORDS)[way]
    with eft_integrations.weights(W):
        ask(llm)
    ask(llm.with_weights(W))
    ask(llm)
    assert [request.reward_weights for request in backend.requests] == [W, W, None]


def test_precedence() -> None:
    """Call, block, name of the model, field."""
    llm, backend = make()
    llm = llm.with_weights(0.5)
    llm.chat(user())
    llm.chat(user(), model="scripted@scripted=0.4")
    with eft_integrations.weights(0.2):
        llm.chat(user(), model="scripted@scripted=0.4")
        llm.chat(user(), reward_weights=0.1)
    assert [request.reward_weights for request in backend.requests] == [0.5, {"scripted": 0.4}, 0.2, 0.1]


@pytest.mark.parametrize(
    "stream",
    [
        lambda llm: llm.stream_chat(user()),
        lambda llm: llm.stream_complete("hi"),
        lambda llm: llm.stream(PromptTemplate("hi")),
        lambda llm: llm.stream_structured_predict(Person, PROMPT, who="Ann"),
    ],
)
def test_stream_that_is_read_later_keeps_the_weights_of_its_call(stream: Callable[[EFTLLM], Any]) -> None:
    llm, backend = make()
    with eft_integrations.weights(0.2):
        pieces = stream(llm)
    list(pieces)
    assert [request.reward_weights for request in backend.requests] == [0.2]


def test_concurrent_calls_keep_their_weights_in_the_engine_and_step_together() -> None:
    """Eight at once, four weights: each answer is the one it gets alone, and tells its weights."""
    llm, engine = model(max_tokens=12, ignore_eos=True), trained_engine()
    weights = [0.0, 0.5, 1.0, 2.0] * 2

    async def together() -> list[Any]:
        return await asyncio.gather(*[llm.achat(user(), reward_weights=weight) for weight in weights])

    with without_drafts(engine):
        started = engine.stats().networks[0].num_forwards
        alone = [llm.chat(user(), reward_weights=weight).message.content for weight in weights]
        one_by_one = engine.stats().networks[0].num_forwards - started
        started = engine.stats().networks[0].num_forwards
        answers = asyncio.run(together())
        assert engine.stats().networks[0].num_forwards - started < 0.6 * one_by_one
    assert [answer.message.content for answer in answers] == alone
    assert [answer.raw["eft"]["reward_weights"] for answer in answers] == [{"chat": own} for own in weights]
    assert len(set(alone)) > 1


# ---- requests and answers ------------------------------------------------------------------------------------------------


def test_formatted_text_is_continued_as_it_stands() -> None:
    prompt, sampling = "<|user|>Hello<|end|><|assistant|>", SamplingParams(temperature=0.0, max_tokens=16)
    expected = trained_engine().generate(prompt, sampling=sampling, reward_weights=0.5)
    response = model(max_tokens=16).complete(prompt, formatted=True, reward_weights=0.5)
    assert response.text == expected.text
    assert response.raw["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert model().complete(prompt).raw["usage"]["prompt_tokens"] > expected.usage.prompt_tokens


def test_conversation_reaches_the_backend_in_neutral_form() -> None:
    llm, backend = make("fine")
    openai = [{"id": "2", "type": "function", "function": {"name": "g", "arguments": '{"x": 1}'}}]
    llm.chat(
        [
            ChatMessage(role="developer", content="be kind"),
            ChatMessage(role="user", blocks=[TextBlock(text="a"), TextBlock(text="b")]),
            ChatMessage(
                role="assistant",
                blocks=[
                    ThinkingBlock(content="hm"),
                    TextBlock(text="c"),
                    ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"ü": 1}),
                ],
            ),
            ChatMessage(role="tool", content="done", additional_kwargs={"tool_call_id": "1"}),
            ChatMessage(role="model", additional_kwargs={"tool_calls": openai}),
        ]
    )
    assert backend.requests[0].messages == (
        Message("system", "be kind"),
        Message("user", "a\nb"),
        Message("assistant", "c", tool_calls=(ToolCall("1", "f", '{"ü": 1}'),), reasoning="hm"),
        Message("tool", "done", tool_call_id="1", name="f"),
        Message("assistant", "", tool_calls=(ToolCall("2", "g", '{"x": 1}'),)),
    )


@pytest.mark.parametrize(
    ("ask", "kind", "reason"),
    [
        (lambda llm: llm.complete("word " * 6000), errors.ContextOverflowError, "context"),
        (lambda llm: llm.complete("hi", temperature=-1.0), errors.InvalidOptionError, "temperature"),
        (lambda llm: llm.complete("hi", reward_weights={"nobody": 1.0}), errors.UnknownPairError, "nobody"),
        (lambda llm: llm.complete("hi", model="another"), errors.ModelNotFoundError, "another"),
        (lambda llm: llm.complete("hi", timeout=0.0, ignore_eos=True, max_tokens=500), TimeoutError, "cancelled"),
        (lambda llm: llm.chat(user(), tool_choice="any"), errors.InvalidOptionError, "no tools were given"),
        (lambda llm: llm.chat(user(), tools=[{"name": "f"}]), errors.InvalidOptionError, "a tool is written"),
        (lambda llm: llm.chat(user(), response_format="json"), errors.InvalidOptionError, "response_format"),
        (
            lambda llm: llm.chat([ChatMessage(role="user", blocks=[ImageBlock(image=b"x")])]),
            errors.InvalidOptionError,
            "reads text only",
        ),
        (
            lambda llm: llm.structured_predict(Person, PROMPT, {"max_tokens": 2}, who="Ann"),
            errors.IncompleteOutputError,
            "more tokens",
        ),
    ],
)
def test_errors_say_what_is_wrong_and_the_engine_lives_on(ask: Any, kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=reason):
        ask(model())
    assert model().complete("Hello").text == GREETING


def test_rule_that_no_schema_holds_is_reported_with_what_pydantic_says() -> None:
    llm, _ = make('{"name": 3}')
    with pytest.raises(errors.OutputError, match="name: Input should be a valid string, so it is no Person"):
        llm.structured_predict(Person, PROMPT, who="Ann")


def test_call_that_does_not_fit_is_no_call_and_says_so() -> None:
    llm = model(max_tokens=6)
    response = llm.chat_with_tools([ADD], "Hello", tool_required=True)
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    assert response.raw["choices"][0]["finish_reason"] == "length"
    with pytest.raises(errors.NoToolCallError, match="a call was begun"):
        llm.get_tool_calls_from_response(response)


def test_parallel_calls_come_only_where_they_are_allowed() -> None:
    calls = tuple(ToolCall(str(index), "add", f'{{"first": {index}, "second": 2}}') for index in range(2))
    llm, backend = make(Message("assistant", "", tool_calls=calls), "ok")
    response = llm.chat_with_tools([ADD], "hi", allow_parallel_tool_calls=True)
    assert [call.tool_kwargs["first"] for call in llm.get_tool_calls_from_response(response)] == [0, 1]
    llm.chat_with_tools([ADD], "hi")
    assert [request.tool_choice.parallel for request in backend.requests] == [True, False]


def test_partial_objects_are_of_the_class_as_soon_as_they_can_be() -> None:
    class Trip(BaseModel):
        place: str
        days: int
        notes: str = ""

    llm, _ = make('{"place": "Tarn Bay", "days": 3, "notes": "take a coat"}')
    outputs = list(llm.stream_structured_predict(Trip, PROMPT, who="x"))
    assert isinstance(outputs[-1], Trip)
    assert outputs[-1].notes == "take a coat"
    kinds = [isinstance(output, Trip) for output in outputs]
    assert kinds == sorted(kinds)
    assert not kinds[0]
    assert kinds.count(True) > 1


def test_acceptance_and_members_are_told() -> None:
    raw = model().chat(user(), logprobs=True, top_logprobs=1).raw
    assert raw["model"] == "eft"
    assert 0 <= raw["eft"]["acceptance_rate"] <= 1
    assert set(raw["choices"][0]["logprobs"]["content"][0]["eft"]) == {"base", "chat.tuned", "chat.reference"}


def test_tool_descriptions_of_any_length_are_taken() -> None:
    tool = FunctionTool.from_defaults(lambda: "x", name="long", description="word " * 400)
    llm, backend = make("ok")
    llm.chat_with_tools([tool], "hi")
    assert len(backend.requests[0].tools[0].description) > 1024


# ---- together ------------------------------------------------------------------------------------------------------------


def idle(engine: Engine) -> bool:
    """Whether nothing runs, now or soon."""
    deadline = time.monotonic() + 30
    while engine.stats().num_running and time.monotonic() < deadline:
        time.sleep(0.005)
    return engine.stats().num_running == 0


@pytest.mark.parametrize("way", ["stream", "astream", "cancelled task", "timeout"])
def test_answer_that_nobody_waits_for_frees_its_place(way: str) -> None:
    llm, engine = model(max_tokens=3000, ignore_eos=True), trained_engine()
    cancelled = engine.stats().num_cancelled

    async def close_early() -> None:
        stream = await llm.astream_chat(user())
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0.05)

    async def cancel() -> None:
        task = asyncio.create_task(llm.achat(user()))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    match way:
        case "stream":
            stream = llm.stream_chat(user())
            next(stream)
            stream.close()
        case "astream":
            asyncio.run(close_early())
        case "cancelled task":
            asyncio.run(cancel())
        case "timeout":
            with pytest.raises(TimeoutError):
                asyncio.run(llm.achat(user(), timeout=0.1))
    assert idle(engine)
    assert engine.stats().num_cancelled == cancelled + 1
