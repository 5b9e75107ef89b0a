"""Weights by kind of call (docs/which_calls.md): what both frameworks' own components ask for runs at the weight that it should."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    LLMToolEmulator,
    LLMToolSelectorMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy
from langchain_classic.chains.history_aware_retriever import create_history_aware_retriever
from langchain_classic.evaluation import EvaluatorType, load_evaluator
from langchain_classic.retrievers.document_compressors import LLMChainExtractor, LLMListwiseRerank
from langchain_classic.retrievers.multi_query import MultiQueryRetriever
from langchain_core.documents import Document as LangChainDocument
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from llama_index.core import Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.evaluation import CorrectnessEvaluator, FaithfulnessEvaluator, RelevancyEvaluator
from llama_index.core.extractors import KeywordExtractor, QuestionsAnsweredExtractor, SummaryExtractor, TitleExtractor
from llama_index.core.indices.property_graph import SimpleLLMPathExtractor
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatSummaryMemoryBuffer
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import QueryEngineTool
from pydantic import BaseModel

from eft_integrations.backends.scripted import AUTO, ScriptedBackend
from eft_integrations.langchain import EFTChatModel
from eft_integrations.langchain.middleware import WeightMiddleware
from eft_integrations.llama_index import EFTLLM
from eft_integrations.testing import forbid_engines, scripted, tool_call
from tests.documents import python_blocks

AT_0, AT_1 = {"scripted": 0.0}, {"scripted": 1.0}
NODES: list[Any] = [TextNode(text="Paris is sunny."), TextNode(text="Oslo is grey.")]
EMBEDDING = MockEmbedding(4)
SUB_QUESTIONS = '```json\n[{"sub_question": "Is Paris sunny?", "tool_name": "one"}]\n```'
SYNTHESIS = "Context information"
"""Is in every prompt of LlamaIndex's that asks for an answer from texts."""


def weights_seen(backend: ScriptedBackend) -> list[float]:
    """Of all requests, in order."""
    return [record.weights["scripted"] for record in backend.records]


# ---- LlamaIndex: an LLM at 0 in Settings, the weighted one in the synthesizer ----------------------------------------------


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    """What answers `Settings.llm`, which is at weight 0."""
    script = ScriptedBackend(
        when={
            "sub-question": SUB_QUESTIONS,
            "list of documents": "Doc: 1, Relevance: 9",
            "search queries": "sunny\ngrey",
            "Reference Answer": "4.0\nIt is right.",
        },
        otherwise=AUTO,
    )
    before = (Settings._llm, Settings._embed_model)
    Settings.llm, Settings.embed_model = EFTLLM(backend=script, reward_weights=0.0), EMBEDDING
    yield script
    Settings._llm, Settings._embed_model = before


def synthesizer() -> Any:
    """The one place that is told the weight."""
    llm = Settings.llm
    assert isinstance(llm, EFTLLM)
    return get_response_synthesizer(llm=llm.with_weights(1.0))


def engine() -> Any:
    """A query engine that answers at the weight."""
    return SummaryIndex(NODES).as_query_engine(response_synthesizer=synthesizer())


def tools() -> list[QueryEngineTool]:
    """Two of them."""
    return [QueryEngineTool.from_defaults(engine(), name=name, description=name) for name in ("one", "two")]


def test_a_router_chooses_at_0_and_answers_at_the_weight(backend: ScriptedBackend) -> None:
    RouterQueryEngine.from_defaults(tools()).query("Is it sunny?")
    assert weights_seen(backend) == [0.0, 1.0]
    assert backend.weights_of(SYNTHESIS) == [AT_1]


def test_sub_questions_are_found_at_0_and_answered_at_the_weight(backend: ScriptedBackend) -> None:
    own = LLMQuestionGenerator.from_defaults()
    SubQuestionQueryEngine.from_defaults(
        tools(), question_gen=own, response_synthesizer=synthesizer(), use_async=False, verbose=False
    ).query("Is it sunny?")
    assert weights_seen(backend) == [0.0, 1.0, 1.0]


def test_hypothetical_documents_and_further_queries_are_made_at_0(backend: ScriptedBackend) -> None:
    TransformQueryEngine(engine(), HyDEQueryTransform()).query("Is it sunny?")
    assert weights_seen(backend) == [0.0, 1.0]
    QueryFusionRetriever([VectorStoreIndex(NODES).as_retriever()], num_queries=2, use_async=False).retrieve(
        "Is it sunny?"
    )
    assert weights_seen(backend)[2:] == [0.0]


def test_a_follow_up_is_condensed_at_0_and_answered_at_the_weight(backend: ScriptedBackend) -> None:
    history = [ChatMessage("Is Paris sunny?"), ChatMessage("Yes.", role="assistant")]
    CondenseQuestionChatEngine.from_defaults(engine(), chat_history=history).chat("And Oslo?")
    assert weights_seen(backend) == [0.0, 1.0]


ASKED_AT_0: dict[str, Callable[[], object]] = {
    "faithfulness": lambda: FaithfulnessEvaluator().evaluate(response="It is.", contexts=["Paris is sunny."]),
    "relevancy": lambda: RelevancyEvaluator().evaluate("Is it?", response="It is.", contexts=["Paris is sunny."]),
    "correctness": lambda: CorrectnessEvaluator().evaluate("Is it?", response="It is.", reference="Yes."),
    "keywords": lambda: KeywordExtractor(num_workers=1).extract(NODES),
    "titles": lambda: TitleExtractor(num_workers=1).extract(NODES),
    "summaries": lambda: SummaryExtractor(num_workers=1).extract(NODES),
    "questions": lambda: QuestionsAnsweredExtractor(num_workers=1).extract(NODES),
    "graph": lambda: SimpleLLMPathExtractor(num_workers=1)(NODES),
    "reranking": lambda: LLMRerank(top_n=1).postprocess_nodes(
        [NodeWithScore(node=node) for node in NODES], query_bundle=QueryBundle("sunny")
    ),
    "citations": lambda: CitationQueryEngine.from_args(VectorStoreIndex(NODES)).query("Is it sunny?"),
    "memory": lambda: _full_memory().get(),
}


def _full_memory() -> ChatSummaryMemoryBuffer:
    memory = ChatSummaryMemoryBuffer.from_defaults(llm=Settings.llm, token_limit=8, count_initial_tokens=False)
    for turn in range(4):
        memory.put(ChatMessage(f"turn {turn}: one two three four five", role="assistant" if turn % 2 else "user"))
    return memory


@pytest.mark.parametrize("ask", ASKED_AT_0.values(), ids=list(ASKED_AT_0))
def test_what_is_no_answer_to_the_user_runs_at_0(backend: ScriptedBackend, ask: Callable[[], object]) -> None:
    ask()
    assert backend.records
    assert set(weights_seen(backend)) == {0.0}


# ---- LangChain: copies for what is beside the answer, a middleware for agents ----------------------------------------------


@tool
def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


@tool
def count(n: int) -> str:
    """Count."""
    return str(n)


def agent(backend: ScriptedBackend, middleware: list[Any], **options: Any) -> Any:
    """An agent whose model is at weight 1."""
    return create_agent(
        EFTChatModel(backend=backend, reward_weights=1.0), [look, count], middleware=middleware, **options
    )


QUESTION = {"messages": [("user", "Is it sunny in Paris?")]}


@pytest.mark.parametrize("is_async", [False, True])
def test_an_agent_decides_at_0_and_answers_at_the_weight(is_async: bool) -> None:
    backend = ScriptedBackend()
    own = agent(backend, [WeightMiddleware()])
    state = asyncio.run(own.ainvoke(QUESTION)) if is_async else own.invoke(QUESTION)
    assert weights_seen(backend) == [0.0, 0.0, 1.0]
    decided, written = backend.requests[1:]
    assert (decided.messages, decided.tools, decided.tool_choice) == (
        written.messages,
        written.tools,
        written.tool_choice,
    )
    assert state["messages"][-1].response_metadata["eft"]["reward_weights"] == AT_1
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "tool", "ai"]


def test_a_call_that_nobody_decided_on_is_not_run() -> None:
    backend = ScriptedBackend(["It is sunny.", tool_call("look", place="Paris")])
    state = agent(backend, [WeightMiddleware()]).invoke(QUESTION)
    assert [message.text for message in state["messages"]] == ["Is it sunny in Paris?", "It is sunny."]


def test_weights_of_the_middleware_are_those_that_it_is_given() -> None:
    backend = ScriptedBackend()
    agent(backend, [WeightMiddleware(deciding=0.25, answering={"scripted": 0.75})]).invoke(QUESTION)
    assert weights_seen(backend) == [0.25, 0.25, 0.75]


def test_a_weight_of_the_config_reaches_the_answer_and_not_the_decision() -> None:
    backend = ScriptedBackend()
    agent(backend, [WeightMiddleware()]).invoke(QUESTION, config={"configurable": {"eft_reward_weights": 0.5}})
    assert weights_seen(backend) == [0.0, 0.0, 0.5]


def test_what_was_put_aside_is_not_streamed() -> None:
    backend = ScriptedBackend(["aside aside", "told"])
    told = [
        message.text for message, _ in agent(backend, [WeightMiddleware()]).stream(QUESTION, stream_mode="messages")
    ]
    assert "".join(told) == "told"


class Fixed(BaseRetriever):
    """Finds the same text for every question."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[LangChainDocument]:
        return [LangChainDocument("Paris is sunny.")]


class Report(BaseModel):
    """A weather report."""

    city: str


def test_an_answer_with_a_schema_is_written_at_the_weight() -> None:
    backend = ScriptedBackend()
    state = agent(backend, [WeightMiddleware()], response_format=ProviderStrategy(Report)).invoke(QUESTION)
    assert state["structured_response"] == Report(city="a")
    assert weights_seen(backend) == [0.0, 0.0, 1.0]


def test_an_agent_without_tools_only_answers() -> None:
    backend = ScriptedBackend()
    own: Any = create_agent(EFTChatModel(backend=backend), [], middleware=[WeightMiddleware(answering=0.5)])
    own.invoke(QUESTION)
    assert weights_seen(backend) == [0.5]


def test_models_of_middleware_run_at_0_and_the_agents_at_its_weight() -> None:
    backend = ScriptedBackend(call_tools=["look"])
    at_0 = EFTChatModel(backend=backend, reward_weights=1.0).with_weights(0.0)
    middleware = [
        SummarizationMiddleware(at_0, trigger=("messages", 4), keep=("messages", 1)),
        LLMToolSelectorMiddleware(model=at_0, always_include=["look"]),
        LLMToolEmulator(tools=["look"], model=at_0),
        TodoListMiddleware(),
    ]
    turns = [
        ("user", "Hello."),
        ("assistant", "Hello."),
        ("user", "I am in Paris."),
        ("assistant", "Yes."),
        *QUESTION["messages"],
    ]
    agent(backend, middleware).invoke({"messages": turns})
    for pattern in ("context extraction|Context Extraction", "emulating a tool call", "select.*tool"):
        assert backend.weights_of(pattern), pattern
        assert set(map(str, backend.weights_of(pattern))) == {str(AT_0)}, pattern
    answers = [record for record in backend.records if any(own.name == "write_todos" for own in record.request.tools)]
    assert answers
    assert all(record.weights == AT_1 for record in answers)


def test_parts_of_a_chain_have_weights_of_their_own() -> None:
    texts = [LangChainDocument("Paris is sunny."), LangChainDocument("Oslo is grey.")]
    retriever: Any = RunnableLambda(lambda query: texts)
    backend = ScriptedBackend()
    llm = EFTChatModel(backend=backend, reward_weights=1.0)
    at_0 = llm.with_weights(0.0)
    condense = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("user", "Condense: {input}")])
    create_history_aware_retriever(at_0, retriever, condense).invoke(
        {"input": "And Oslo?", "chat_history": [("user", "Hi.")]}
    )
    LLMChainExtractor.from_llm(at_0).compress_documents(texts, "sunny")
    LLMListwiseRerank.from_llm(at_0, top_n=1).compress_documents(texts, "sunny")
    judge: Any = load_evaluator(EvaluatorType.CRITERIA, llm=at_0, criteria="conciseness")
    judge.evaluate_strings(prediction="Paris is sunny.", input="Is it?")
    MultiQueryRetriever.from_llm(Fixed(), at_0).invoke("sunny")
    assert set(weights_seen(backend)) == {0.0}
    chain = ChatPromptTemplate.from_template("Answer {question}") | llm | StrOutputParser()
    chain.invoke({"question": "x"})
    assert weights_seen(backend)[-1] == 1.0


def test_a_node_of_a_graph_has_its_weight() -> None:
    backend = ScriptedBackend([{"city": "Paris"}, "Sunny."])
    llm = EFTChatModel(backend=backend, reward_weights=1.0)
    router = llm.with_weights(0.0).with_structured_output(Report)

    def route(state: MessagesState) -> str:
        assert router.invoke(state["messages"]) == Report(city="Paris")
        return "answer"

    graph: Any = StateGraph(MessagesState)
    graph.add_node("answer", lambda state: {"messages": [llm.invoke(state["messages"])]})
    graph.add_conditional_edges(START, route, ["answer"])
    graph.add_edge("answer", END)
    graph.compile().invoke(QUESTION)
    assert weights_seen(backend) == [0.0, 1.0]


def test_a_bound_weight_holds_against_blocks_and_configs_and_a_copys_does_not() -> None:
    backend = ScriptedBackend()
    llm = EFTChatModel(backend=backend)
    config: Any = {"configurable": {"eft_reward_weights": 1.0}}
    llm.bind(reward_weights=0.0).invoke("hi", config=config)
    llm.with_weights(0.0).invoke("hi", config=config)
    assert weights_seen(backend) == [0.0, 1.0]


BLOCKS = python_blocks(Path(__file__).parents[2] / "docs" / "which_calls.md")


@pytest.mark.parametrize("block", BLOCKS, ids=["agents", "llama_index", "langchain"])
def test_blocks_of_the_page_run(block: str, backend: ScriptedBackend) -> None:
    with forbid_engines(), scripted(weights={"assistant": 0.5}):
        exec(compile(block, "docs/which_calls.md", "exec"), {})
