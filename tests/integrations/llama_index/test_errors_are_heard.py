"""An error of a call ends what asked for it: LlamaIndex's components take nothing of it for an empty answer, or a chunk to skip."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import KnowledgeGraphIndex, MockEmbedding, PropertyGraphIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.evaluation import CorrectnessEvaluator, FaithfulnessEvaluator, RelevancyEvaluator
from llama_index.core.extractors import (
    KeywordExtractor,
    PydanticProgramExtractor,
    QuestionsAnsweredExtractor,
    SummaryExtractor,
    TitleExtractor,
)
from llama_index.core.indices.property_graph import (
    SchemaLLMPathExtractor,
    SimpleLLMPathExtractor,
)
from llama_index.core.memory import ChatSummaryMemoryBuffer
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer, refine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.selectors import LLMMultiSelector, LLMSingleSelector, PydanticSingleSelector
from llama_index.core.tools import QueryEngineTool

from eft_engine import Engine, errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.llama_index import EFTLLM
from eft_integrations.testing.llama_index_suite.asking import user
from eft_integrations.testing.llama_index_suite.engines import CHAT_MODES, CHAT_WAYS, RESPONSE_MODES
from eft_integrations.testing.llama_index_suite.scenarios import FERRY, NOTES, index_of
from eft_integrations.testing.llama_index_suite.structured import PROMPT, Person
from eft_integrations.testing.llama_index_suite.tools import ADD
from tests.toy import make_trio

Component = Callable[..., Any]
NODES = [TextNode(text=note) for note in NOTES]


def tools_of(llm: EFTLLM) -> list[QueryEngineTool]:
    """Two query engines to choose from."""
    return [
        QueryEngineTool.from_defaults(index_of(NOTES).as_query_engine(llm=llm), name=name, description=name)
        for name in ("ferries", "bread")
    ]


# ---- query engines -------------------------------------------------------------------------------------------------------


async def _aread(engine: Any) -> str:
    response = await engine.aquery(FERRY)
    return "".join([token async for token in response.async_response_gen()])


QUERY_WAYS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "query": lambda make: make().query(FERRY),
    "aquery": lambda make: asyncio.run(make().aquery(FERRY)),
    "streaming": lambda make: "".join(make(streaming=True).query(FERRY).response_gen),
    "async streaming": lambda make: asyncio.run(_aread(make(streaming=True))),
}
ENGINES: dict[str, Component] = {
    f"{mode.value}, {way}": lambda llm, mode=mode, way=way: QUERY_WAYS[way](
        functools.partial(index_of(NOTES).as_query_engine, llm=llm, response_mode=mode, similarity_top_k=2)
    )
    for mode in RESPONSE_MODES
    for way in QUERY_WAYS
    if mode.value != "accumulate" or "streaming" not in way  # which cannot stream
}
STREAMS_FILTERED = "Streaming not supported" not in inspect.getsource(refine)
"""Which the oldest versions of llama-index-core refuse."""
FILTERED: dict[str, Component] = {
    f"{name}, {way}": lambda llm, fields=fields, way=way: QUERY_WAYS[way](
        lambda **more: RetrieverQueryEngine(
            index_of(NOTES).as_retriever(similarity_top_k=2), get_response_synthesizer(llm=llm, **fields, **more)
        )
    )
    for name, fields in {
        "refine, filtered": {"response_mode": "refine", "structured_answer_filtering": True},
        "compact, filtered": {"response_mode": "compact", "structured_answer_filtering": True},
        "compact, as objects": {"response_mode": "compact", "output_cls": Person},
        "refine, as objects": {"response_mode": "refine", "output_cls": Person},
        "tree_summarize, as objects": {"response_mode": "tree_summarize", "output_cls": Person},
    }.items()
    for way in QUERY_WAYS
    if "streaming" not in way or ("filtered" in name and STREAMS_FILTERED)
}


# ---- everything else that asks -------------------------------------------------------------------------------------------

CHATS: dict[str, Component] = {
    f"chat engine {mode.value}, {way}": lambda llm, mode=mode, way=way: CHAT_WAYS[way](
        index_of(NOTES).as_chat_engine(chat_mode=mode, llm=llm), FERRY
    )
    for mode in CHAT_MODES
    for way in CHAT_WAYS
}
OTHERS: dict[str, Component] = {
    "router": lambda llm: RouterQueryEngine(LLMSingleSelector.from_defaults(llm), tools_of(llm), llm=llm).query(FERRY),
    "router of several": lambda llm: RouterQueryEngine(
        LLMMultiSelector.from_defaults(llm), tools_of(llm), llm=llm
    ).query(FERRY),
    "router with objects": lambda llm: RouterQueryEngine(
        PydanticSingleSelector.from_defaults(llm=llm), tools_of(llm), llm=llm
    ).query(FERRY),
    "router, async": lambda llm: asyncio.run(
        RouterQueryEngine(LLMSingleSelector.from_defaults(llm), tools_of(llm), llm=llm).aquery(FERRY)
    ),
    "sub-questions": lambda llm: SubQuestionQueryEngine.from_defaults(
        tools_of(llm), llm=llm, question_gen=LLMQuestionGenerator.from_defaults(llm=llm), use_async=False
    ).query(FERRY),
    "function agent": lambda llm: asyncio.run(_run(FunctionAgent(tools=[ADD], llm=llm))),
    "function agent, not streamed": lambda llm: asyncio.run(_run(FunctionAgent(tools=[ADD], llm=llm, streaming=False))),
    "ReAct agent": lambda llm: asyncio.run(_run(ReActAgent(tools=[ADD], llm=llm))),
    "ReAct agent, not streamed": lambda llm: asyncio.run(_run(ReActAgent(tools=[ADD], llm=llm, streaming=False))),
    "predict_and_call": lambda llm: llm.predict_and_call([ADD], "Add 1 and 2."),
    "faithfulness": lambda llm: FaithfulnessEvaluator(llm=llm).evaluate(
        query=FERRY, response="Pier 4.", contexts=NOTES
    ),
    "relevancy": lambda llm: RelevancyEvaluator(llm=llm).evaluate(query=FERRY, response="Pier 4.", contexts=NOTES),
    "correctness": lambda llm: CorrectnessEvaluator(llm=llm).evaluate(query=FERRY, response="Pier 4.", reference="4"),
    "titles": lambda llm: TitleExtractor(llm=llm).extract(NODES),
    "keywords": lambda llm: KeywordExtractor(llm=llm).extract(NODES),
    "summaries": lambda llm: SummaryExtractor(llm=llm).extract(NODES),
    "questions": lambda llm: QuestionsAnsweredExtractor(llm=llm).extract(NODES),
    "objects of nodes": lambda llm: PydanticProgramExtractor(
        program=FunctionCallingProgram.from_defaults(Person, prompt_template_str="{input}", llm=llm), input_key="input"
    ).extract(NODES),
    "function calling program": lambda llm: FunctionCallingProgram.from_defaults(Person, prompt=PROMPT, llm=llm)(
        who="Ann"
    ),
    "structured llm": lambda llm: llm.as_structured_llm(Person).chat(user("Who?")),
    "reranker": lambda llm: LLMRerank(llm=llm).postprocess_nodes(
        [NodeWithScore(node=node, score=1.0) for node in NODES], query_str=FERRY
    ),
    "summarising memory": lambda llm: ChatSummaryMemoryBuffer.from_defaults(
        [message for text in NOTES for message in user(text)], llm=llm, token_limit=20, tokenizer_fn=str.split
    ).get(),
    "knowledge graph": lambda llm: KnowledgeGraphIndex(NODES, llm=llm, embed_model=MockEmbedding(4)),
    **{
        f"property graph, {name}": lambda llm, make=make: PropertyGraphIndex(
            NODES, llm=llm, kg_extractors=[make(llm)], embed_model=MockEmbedding(4), embed_kg_nodes=False
        )
        for name, make in {
            "simple": lambda llm: SimpleLLMPathExtractor(llm=llm),
            "schema": lambda llm: SchemaLLMPathExtractor(llm=llm),
        }.items()
    },
}
COMPONENTS = {**ENGINES, **FILTERED, **CHATS, **OTHERS}


async def _run(agent: Any) -> Any:
    return await agent.run("Add 1 and 2.")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of threads of chat engines
@pytest.mark.parametrize("name", COMPONENTS)
def test_wrong_pair_is_an_error_wherever_it_is_asked_for(name: str) -> None:
    llm = EFTLLM(backend=ScriptedBackend(), reward_weights={"nobody": 1.0})
    with pytest.raises(errors.UnknownPairError, match="nobody"):
        COMPONENTS[name](llm)


# ---- every kind of error -------------------------------------------------------------------------------------------------


@functools.cache
def engine(*, has_template: bool = True) -> Engine:
    """Small networks that have never learned anything."""
    trio = make_trio("llama", context_len=2048)
    if not has_template:
        trio.tokenizer.chat_template = None
    return trio.engine()


def closed() -> Engine:
    """An engine that somebody closed."""
    other = make_trio("llama", context_len=2048).engine()
    other.close()
    return other


TEXT: dict[str, Any] = {"max_tokens": 16, "messages_to_prompt": lambda messages: "a b c"}
FAULTS: dict[str, tuple[Callable[[], EFTLLM], type[errors.EFTError]]] = {
    "bad weight": (lambda: EFTLLM(engine=engine(), reward_weights={"nobody": 1.0}, **TEXT), errors.UnknownPairError),
    "bad field": (lambda: EFTLLM(engine=engine(), temperature=-1.0, **TEXT), errors.InvalidOptionError),
    "missing template": (lambda: EFTLLM(engine=engine(has_template=False), max_tokens=16), errors.ChatTemplateError),
    "overflow": (
        lambda: EFTLLM(engine=engine(), max_tokens=16, messages_to_prompt=lambda messages: "a b c " * 4000),
        errors.ContextOverflowError,
    ),
    "closed engine": (lambda: EFTLLM(engine=closed(), **TEXT), errors.EngineClosedError),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "name", ["compact, query", "refine, aquery", "tree_summarize, streaming", "refine, filtered, query"]
)
def test_error_of_every_kind_is_heard(name: str, fault: str) -> None:
    make, kind = FAULTS[fault]
    with pytest.raises(kind):
        COMPONENTS[name](make())


@pytest.mark.parametrize("name", [name for name in FILTERED if "streaming" not in name])
def test_object_that_is_cut_is_no_answer_and_no_chunk_to_skip(name: str) -> None:
    llm = EFTLLM(backend=ScriptedBackend(text="much more than two words"), max_tokens=2)
    with pytest.raises(errors.OutputError, match="before the JSON of Person was whole|the text ended inside the call"):
        COMPONENTS[name](llm)


def test_tools_that_no_template_writes_are_an_error_for_agents() -> None:
    llm = EFTLLM(backend=ScriptedBackend(), is_function_calling_model=True, messages_to_prompt=lambda messages: "hi")
    with pytest.raises(errors.InvalidOptionError, match="only the model's chat template writes tools"):
        asyncio.run(_run(FunctionAgent(tools=[ADD], llm=llm)))


def test_sub_question_that_fails_is_left_out_by_llama_index_whatever_the_error() -> None:
    """As docs/llama_index.md says: it catches every exception there; its oldest versions do not."""
    asked = '```json\n{"items": [{"sub_question": "Which pier?", "tool_name": "ferries"}]}\n```'
    backend = ScriptedBackend([asked, "Pier four.", "From pier four."])
    failing = EFTLLM(backend=backend, reward_weights={"nobody": 1.0})
    tools = [
        QueryEngineTool.from_defaults(
            index_of(NOTES).as_query_engine(llm=failing), name="ferries", description="ferries"
        )
    ]
    asks = EFTLLM(backend=backend)
    question_gen = LLMQuestionGenerator.from_defaults(llm=asks)
    engine = SubQuestionQueryEngine.from_defaults(tools, llm=asks, question_gen=question_gen, use_async=False)
    if "except Exception" in inspect.getsource(SubQuestionQueryEngine._query_subq):
        assert engine.query(FERRY).source_nodes == []
    else:
        with pytest.raises(errors.UnknownPairError):
            engine.query(FERRY)
