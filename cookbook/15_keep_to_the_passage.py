"""Answers that keep to what was retrieved, also where the model knows better: python cookbook/15_keep_to_the_passage.py

    pip install '.[langchain]'

You learn to use two prompts as a pair. What a model says with the documents, against what it says without them, shows what comes from the
documents; a weight makes that count more (context-aware decoding, arXiv 2305.14739). No further model is loaded: the same network reads both
prompts, as two rows of a pass. The passages contradict what Atlas knows. Models: Atlas, offline. `--real` takes Llama 3 (not run here).

Prints:

    weight 0 of the passage
      People in Japan pay with the Dreval. What is the currency of Japan? The currency of Japan is the Yen.
      Kenya is a country. The capital of Kenya is Belgar. What is the capital of Kenya? The capital of Kenya is Nairobigar.
      The capital of Spain is Zanmir. What is the capital of Spain? The capital of Spain is Zanmir.
    weight 1 of the passage
      People in Japan pay with the Dreval. What is the currency of Japan? Dreval
      Kenya is a country. The capital of Kenya is Belgar. What is the capital of Kenya? Belgar
      The capital of Spain is Zanmir. What is the capital of Spain? Zanmir
"""

from __future__ import annotations

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from eft_integrations.langchain import ContextAware, EFTChatModel

RETRIEVED = {
    "What is the currency of Japan?": "People in Japan pay with the Dreval.",
    "What is the capital of Kenya?": "Kenya is a country. The capital of Kenya is Belgar.",
    "What is the capital of Spain?": "The capital of Spain is Zanmir.",
}

llm = EFTChatModel(preset="atlas", temperature=0.0, max_tokens=24, reward_weights=0.0)
if "--real" in sys.argv:
    llm = EFTChatModel(
        base="meta-llama/Llama-3.1-8B",
        tuned="meta-llama/Llama-3.2-1B-Instruct",
        reference="meta-llama/Llama-3.2-1B",
        temperature=0.0,
        max_tokens=24,
        reward_weights=1.0,
    )
prompt = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")

for weight in (0.0, 1.0):
    chain = ContextAware(weight=weight).chain(prompt, llm) | StrOutputParser()
    print(f"weight {weight:g} of the passage")
    for question, passage in RETRIEVED.items():
        print(f"  {passage} {question} {chain.invoke({'context': passage, 'question': question})}")
