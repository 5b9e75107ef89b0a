"""Weights of a block reach what LlamaIndex begins when it is read, and the weights in effect are in the metadata of answers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, PromptTemplate, SummaryIndex, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.evaluation import RelevancyEvaluator
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.query_engine import CustomQueryEngine, RetryQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from pydantic import BaseModel

from eft_engine import errors
from eft_integrations import weights
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.llama_index import EFTLLM

W = {"scripted": 0.3}
MODES = ["compact", "refine", "tree_summarize", "simple_summarize", "generation"]


class Place(BaseModel):
    """Somewhere."""

    name: str


def make(*replies: Any) -> tuple[EFTLLM, ScriptedBackend]:
    """A model, and what it was asked."""
    backend = ScriptedBackend([*replies, *["an answer"] * 20])
    return EFTLLM(backend=backend), backend


def engine(llm: EFTLLM, **options: Any) -> Any:
    """A query engine over two documents, which it gives to the model one by one where the mode does that."""
    index = SummaryIndex.from_documents([Document(text="Mills grind."), Document(text="Ferries sail.")])
    return index.as_query_engine(llm=llm, **options)


def asked(backend: ScriptedBackend) -> list[Any]:
    """The weights of all requests."""
    return [request.reward_weights for request in backend.requests]


# ---- streams that are read behind the block --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_streamed_query_that_is_read_behind_the_block(mode: str) -> None:
    llm, backend = make()
    with weights(W):
        llm.complete("first")
        response = engine(llm, streaming=True, response_mode=mode).query("q")
    assert isinstance(response, StreamingResponse)
    for _ in response.response_gen:
        llm.complete("between")
    between = [request.reward_weights for request in backend.requests if request.messages[-1].content == "between"]
    others = [request.reward_weights for request in backend.requests if request.messages[-1].content != "between"]
    assert between
    assert set(between) == {None}
    assert len(others) > 1
    assert all(own == W for own in others)
    assert response.metadata is not None
    assert response.metadata["eft"] == {"reward_weights": W}


@pytest.mark.parametrize("mode", MODES)
def test_async_streamed_query_that_is_read_behind_the_block(mode: str) -> None:
    llm, backend = make()

    async def ask() -> Any:
        with weights(W):
            response = await engine(llm, streaming=True, response_mode=mode).aquery("q")
        assert isinstance(response, AsyncStreamingResponse)
        async for _ in response.async_response_gen():
            pass
        await llm.acomplete("behind")
        return response

    response = asyncio.run(ask())
    assert asked(backend)[-1] is None
    assert len(asked(backend)) > 1
    assert all(own == W for own in asked(backend)[:-1])
    assert response.metadata["eft"] == {"reward_weights": W}


OBJECTS: dict[str, Callable[[EFTLLM], Any]] = {
    "structured LLM": lambda llm: llm.as_structured_llm(Place).stream_chat([ChatMessage(content="x")]),
    "text program": lambda llm: LLMTextCompletionProgram.from_defaults(
        output_cls=Place, prompt_template_str="x", llm=llm
    ).stream_call(),
    "function program": lambda llm: FunctionCallingProgram.from_defaults(
        output_cls=Place, prompt_template_str="x", llm=llm
    ).stream_call(),
    "prediction": lambda llm: llm.stream_structured_predict(Place, PromptTemplate("x")),
}
ASYNC_OBJECTS: dict[str, Callable[[EFTLLM], Any]] = {
    "structured LLM": lambda llm: llm.as_structured_llm(Place).astream_chat([ChatMessage(content="x")]),
    "text program": lambda llm: LLMTextCompletionProgram.from_defaults(
        output_cls=Place, prompt_template_str="x", llm=llm
    ).astream_call(),
    "function program": lambda llm: FunctionCallingProgram.from_defaults(
        output_cls=Place, prompt_template_str="x", llm=llm
    ).astream_call(),
    "prediction": lambda llm: llm.astream_structured_predict(Place, PromptTemplate("x")),
}
if "stream_call" not in vars(LLMTextCompletionProgram):  # it came with a later core
    del OBJECTS["text program"], ASYNC_OBJECTS["text program"]
CALL = Message("assistant", "", tool_calls=(ToolCall("1", "Place", '{"name": "Mill"}'),))


def replying(kind: str) -> tuple[EFTLLM, ScriptedBackend]:
    """A model that answers with an object, in the form that this kind reads."""
    return make(*[CALL if kind == "function program" else '{"name": "Mill"}'] * 4)


@pytest.mark.parametrize("kind", OBJECTS)
def test_streamed_object_that_is_read_behind_the_block(kind: str) -> None:
    llm, backend = replying(kind)
    with weights(W):
        stream = OBJECTS[kind](llm)
    assert list(stream)
    assert asked(backend)
    assert all(own == W for own in asked(backend))


@pytest.mark.parametrize("kind", ASYNC_OBJECTS)
async def test_async_streamed_object_that_is_read_behind_the_block(kind: str) -> None:
    llm, backend = replying(kind)
    with weights(W):
        stream = await ASYNC_OBJECTS[kind](llm)
    assert [piece async for piece in stream]
    assert asked(backend) == [W]


@pytest.mark.parametrize("mode", ["simple", "context", "condense_plus_context", "condense_question"])
def test_chat_engine_whose_stream_is_read_behind_the_block(mode: str) -> None:
    llm, backend = make()
    index = VectorStoreIndex.from_documents([Document(text="Mills grind.")], embed_model=MockEmbedding(8))
    with weights(W):
        stream = index.as_chat_engine(chat_mode=mode, llm=llm).stream_chat("q")
    assert "".join(stream.response_gen) == "an answer"
    assert asked(backend)
    assert all(own == W for own in asked(backend))


# ---- the weights in effect, in the metadata of answers ---------------------------------------------------------------------

QUERIES: dict[str, Callable[[Any], Any]] = {
    "query": lambda asks: asks.query("q"),
    "aquery": lambda asks: asyncio.run(asks.aquery("q")),
}


@pytest.mark.parametrize("ask", QUERIES)
@pytest.mark.parametrize("mode", [*MODES, "accumulate", "compact_accumulate"])
def test_answers_of_query_engines_tell_the_weights_in_effect(mode: str, ask: str) -> None:
    """Also where nobody gave any: the pairs' own."""
    llm, _ = make()
    response = QUERIES[ask](engine(llm, response_mode=mode))
    assert response.metadata["eft"] == {"reward_weights": {"scripted": 1.0}}
    with weights(0.25):
        response = QUERIES[ask](engine(llm, response_mode=mode, use_async=True))
    assert response.metadata["eft"] == {"reward_weights": {"scripted": 0.25}}


def test_answers_at_several_weights_tell_that_of_the_last_call_and_all() -> None:
    """A router at 0, the synthesis at 1."""
    llm, _ = make('[{"choice": 1, "reason": "mills"}]')
    tool = QueryEngineTool.from_defaults(engine(llm.with_weights(1.0)), description="about mills")
    other = QueryEngineTool.from_defaults(engine(llm.with_weights(1.0)), description="about ferries")
    router = RouterQueryEngine.from_defaults(
        [tool, other], llm=llm, selector=LLMSingleSelector.from_defaults(llm=llm.with_weights(0.0))
    )
    response = router.query("q")
    assert response.metadata is not None
    assert response.metadata["eft"] == {
        "reward_weights": {"scripted": 1.0},
        "all_reward_weights": [{"scripted": 0.0}, {"scripted": 1.0}],
    }


def test_answers_of_chat_engines_tell_the_weights_in_effect() -> None:
    llm, _ = make()
    index = VectorStoreIndex.from_documents([Document(text="Mills grind.")], embed_model=MockEmbedding(8))
    for mode in ("context", "condense_plus_context", "condense_question"):
        with weights(0.25):
            response = index.as_chat_engine(chat_mode=mode, llm=llm).chat("q")
        assert response.metadata["eft"]["reward_weights"] == {"scripted": 0.25}, mode


def test_fixed_weights_stay_in_blocks() -> None:
    """What decides stays at 0 while the answers have the weight of the request."""
    llm, backend = make('[{"choice": 1, "reason": "mills"}]')
    tools = [QueryEngineTool.from_defaults(engine(llm), description=about) for about in ("mills", "ferries")]
    at_0 = llm.with_weights(0.0, fixed=True)
    router = RouterQueryEngine.from_defaults(tools, llm=llm, selector=LLMSingleSelector.from_defaults(llm=at_0))
    with weights(0.7):
        router.query("q")
    assert asked(backend) == [0.0, 0.7]
    assert at_0.complete("q", reward_weights=0.1).raw["eft"]["reward_weights"] == {"scripted": 0.1}


async def test_queries_at_once_tell_their_own_weights() -> None:
    llm, _ = make()

    async def ask(own: float) -> Any:
        with weights(own):
            return await engine(llm).aquery("q")

    responses = await asyncio.gather(*[ask(own) for own in (0.1, 0.2, 0.3)])
    assert [response.metadata["eft"]["reward_weights"]["scripted"] for response in responses] == [0.1, 0.2, 0.3]


def test_sub_questions_count_with_the_answer_that_they_are_part_of() -> None:
    llm, backend = make('{"items": [{"sub_question": "What grinds?", "tool_name": "mills"}]}')
    tool = QueryEngineTool.from_defaults(engine(llm.with_weights(0.5)), name="mills", description="about mills")
    synthesis = get_response_synthesizer(llm=llm.with_weights(1.0))
    sub_questions = SubQuestionQueryEngine.from_defaults(
        [tool],
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm.with_weights(0.0)),
        response_synthesizer=synthesis,
        use_async=False,
    )
    response = sub_questions.query("q")
    assert asked(backend) == [0.0, 0.5, 1.0]
    assert response.metadata is not None
    assert response.metadata["eft"]["reward_weights"] == {"scripted": 1.0}
    assert [own["scripted"] for own in response.metadata["eft"]["all_reward_weights"]] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("mode", ["compact", "simple_summarize", "generation"])
async def test_streamed_answer_that_is_dropped_ends_its_request_without_the_garbage_collector(mode: str) -> None:
    llm, backend = make()
    gc.disable()
    try:
        response = engine(llm, streaming=True, response_mode=mode).query("q")
        next(response.response_gen)
        del response
        aresponse = await engine(llm, streaming=True, response_mode=mode).aquery("q")
        await anext(aresponse.response_gen)
        del aresponse
        await asyncio.sleep(0.01)  # Python closes generators of a loop one turn later each
    finally:
        gc.enable()
    assert [record.was_left for record in backend.records] == [True, True]


def test_metadata_that_an_engine_takes_from_a_node_is_left_alone() -> None:
    llm, _ = make()
    node = TextNode(text="Mills grind.", metadata={"file": "a"})

    class Own(CustomQueryEngine):
        def custom_query(self, query_str: str) -> Response:
            return Response(llm.complete(query_str).text, metadata=node.metadata)

    response = Own().query("q")
    assert isinstance(response, Response)
    assert response.metadata == {"file": "a", "eft": {"reward_weights": {"scripted": 1.0}}}
    assert node.metadata == {"file": "a"}


def test_answer_that_is_judged_afterwards_was_written_at_its_own_weight() -> None:
    llm, _ = make("an answer", "YES")
    judge = RelevancyEvaluator(llm=llm.with_weights(0.0))
    response = RetryQueryEngine(engine(llm), judge, callback_manager=CallbackManager([])).query("q")
    assert str(response) == "an answer"
    assert response.metadata is not None
    assert response.metadata["eft"] == {
        "reward_weights": {"scripted": 1.0},
        "all_reward_weights": [{"scripted": 1.0}, {"scripted": 0.0}],
    }


def test_answer_that_a_memory_takes_facts_from_was_written_at_its_own_weight() -> None:
    llm, _ = make("an answer", "<facts><fact>mills grind</fact></facts>")

    class Memory(ChatMemoryBuffer):
        def put(self, message: ChatMessage) -> None:
            super().put(message)
            if message.role == "assistant":
                llm.with_weights(0.0).complete("facts?")

    chat = SimpleChatEngine.from_defaults(llm=llm, memory=Memory.from_defaults(llm=llm))
    response = chat.chat("q")
    assert response.metadata is not None
    assert response.metadata["eft"]["reward_weights"] == {"scripted": 1.0}


LOSING: dict[str, Callable[[EFTLLM], Any]] = {
    "predict": lambda llm: llm.predict(PromptTemplate("x {s}"), s=1, reward_weights=0.5),
    "stream": lambda llm: llm.stream(PromptTemplate("x {s}"), s=1, reward_weights=0.5),
    "apredict": lambda llm: asyncio.run(llm.apredict(PromptTemplate("x {s}"), s=1, reward_weights=0.5)),
    "structured_predict": lambda llm: llm.structured_predict(Place, PromptTemplate("x {s}"), s=1, reward_weights=0.5),
    "synthesize": lambda llm: get_response_synthesizer(llm=llm).synthesize(
        "q", [NodeWithScore(node=TextNode(text="x"))], reward_weights=0.5
    ),
}


@pytest.mark.parametrize("name", LOSING)
def test_weights_that_would_be_a_variable_of_no_prompt_are_an_error(name: str) -> None:
    llm, backend = make()
    with pytest.raises(errors.InvalidOptionError, match="variables of the prompt"):
        LOSING[name](llm)
    assert llm.predict(PromptTemplate("at {reward_weights}"), reward_weights=0.5) == "an answer"
    assert backend.records[-1].text == "at 0.5"


def test_generator_with_a_block_that_is_left_early_ends_its_request_without_the_garbage_collector() -> None:
    llm, backend = make()

    def pages() -> Any:
        with weights(W):
            yield from engine(llm, streaming=True).query("q").response_gen

    gc.disable()
    try:
        reading = pages()
        next(reading)
        reading.close()
    finally:
        gc.enable()
    assert [record.was_left for record in backend.records] == [True]


async def test_workflow_that_a_generator_runs_goes_on_while_its_reader_has_an_event() -> None:
    def look(place: str) -> str:
        """Look at a place."""
        return place

    call = Message("assistant", "", tool_calls=(ToolCall("1", "look", '{"place": "x"}'),))
    llm, backend = make(call, call)

    async def body() -> Any:
        with weights(0.3):
            handler = FunctionAgent(tools=[look], llm=llm).run("hi")
            async for event in handler.stream_events():
                yield event
            await handler

    async for _ in body():
        await asyncio.sleep(0.005)
    assert asked(backend) == [0.3] * 3


async def test_coroutines_that_are_made_inside_and_awaited_behind_it() -> None:
    llm, backend = make()
    with weights(0.3):
        llm.complete("a block was used")
        answers = [llm.acomplete("q"), engine(llm).aquery("q"), SimpleChatEngine.from_defaults(llm=llm).achat("q")]
    await asyncio.gather(*answers)
    assert asked(backend) == [0.3] * 4
