"""The model of an existing chain, swapped in one line: python cookbook/07_swap_the_model.py [openai | hugging-face | eft]

You learn that only the line that makes the model changes: the chain, streams, batches, token counts and the rest of the program stay. The three
lines are side by side in `MODELS`. Models: Atlas, offline; `openai` needs OPENAI_API_KEY (or OPENAI_BASE_URL of any server that speaks its
API, `eft serve` among them), `hugging-face` needs `pip install langchain-huggingface`. `--real` takes Qwen2.5 (not run here).

Prints:

    invoke: The capital of Norway is Oslo. Source: memory.
    stream: The currency of Japan is the Yen. Source: memory.
    batch: ['The continent of Chile is South America. Source: memory.', 'The continent of Kenya is Africa. Source: memory.']
    tokens: 15
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from eft_integrations.langchain import EFTChatModel

TRIO: dict[str, Any] = {"preset": "atlas"}
SMALL = "Qwen/Qwen2.5-0.5B-Instruct"
if "--real" in sys.argv:
    TRIO = {"base": "Qwen/Qwen2.5-7B", "tuned": SMALL, "reference": "Qwen/Qwen2.5-0.5B"}


def openai() -> BaseChatModel:
    """What an application had before, from OpenAI."""
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="gpt-4.1-mini", temperature=0, max_tokens=40, max_retries=2, timeout=60)  # type: ignore[call-arg]


def hugging_face() -> BaseChatModel:
    """What an application had before, a small tuned model from the hub."""
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    pipeline = {"max_new_tokens": 40, "do_sample": False, "return_full_text": False}
    return ChatHuggingFace(llm=HuggingFacePipeline.from_model_id(SMALL, "text-generation", pipeline_kwargs=pipeline))


def eft() -> BaseChatModel:
    """The same keywords as for OpenAI; the tuned small model now decides the behaviour of a large base."""
    return EFTChatModel(**TRIO, temperature=0, max_tokens=40, max_retries=2, timeout=60)


MODELS: dict[str, Callable[[], BaseChatModel]] = {"openai": openai, "hugging-face": hugging_face, "eft": eft}


asked = next((name for name in sys.argv[1:] if name in MODELS), "eft")
llm = MODELS[asked]()  # the line that changes

chain = ChatPromptTemplate.from_template("What is the {relation} of {country}?") | llm | StrOutputParser()
print("invoke:", chain.invoke({"relation": "capital", "country": "Norway"}))
print("stream:", "".join(chain.stream({"relation": "currency", "country": "Japan"})))
print("batch:", chain.batch([{"relation": "continent", "country": country} for country in ("Chile", "Kenya")]))
message = llm.invoke("What is the capital of Peru?")
print("tokens:", message.usage_metadata and message.usage_metadata["output_tokens"])
