"""Decide at weight 0, answer at weight 1: python cookbook/13_which_calls.py

A pair taught a form belongs to answers, not to everything that a framework asks a model for (docs/which_calls.md). You learn to say it
once: `WeightMiddleware` for an agent, a copy at 0 for the parts of a chain that no user reads, an LLM at 0 in LlamaIndex' `Settings`
and the weighted one in the synthesizer. Models: Atlas, offline. `--real` takes Qwen2.5 (not run here).

Prints:

    an agent
      {'assistant': 0.0}: get_population({'city': 'Torvel'})
      {'assistant': 0.0}: The population of Torvel is 4120.
      {'assistant': 1.0}: The population of Torvel is 4120. Source: tool.
    a chain
      {'assistant': 0.0}: Oslo is the capital of Norway.
      {'assistant': 1.0}: The currency of Norway is the Krone. Source: memory.
    an index
      extracted: [{'section_summary': 'Madrid.'}]
      answered: The capital of Spain is Madrid. Source: context.
"""

from __future__ import annotations

import sys
from typing import Any

from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from llama_index.core import MockEmbedding, Settings, SummaryIndex, get_response_synthesizer
from llama_index.core.extractors import SummaryExtractor
from llama_index.core.schema import TextNode

from eft_integrations.langchain import EFTChatModel
from eft_integrations.langchain.middleware import WeightMiddleware
from eft_integrations.llama_index import EFTLLM

TRIO: dict[str, Any] = {"preset": "atlas"}
if "--real" in sys.argv:
    TRIO = {"base": "Qwen/Qwen2.5-7B", "tuned": "Qwen/Qwen2.5-0.5B-Instruct", "reference": "Qwen/Qwen2.5-0.5B"}
TRIO |= {"temperature": 0.0, "max_tokens": 64}


class Told(BaseCallbackHandler):
    """Prints every answer of a model with the weights in effect."""

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        """One answer."""
        message = response.generations[0][0].message
        called = ", ".join(f"{call['name']}({call['args']})" for call in message.tool_calls)
        print(f"  {message.response_metadata['eft']['reward_weights']}: {called or message.text}")


@tool
def get_population(city: str) -> str:
    """Get the population of a city."""
    return {"Torvel": "4120", "Belgar": "880"}.get(city, "unknown")


llm = EFTChatModel(**TRIO, callbacks=[Told()])

print("an agent")
agent: Any = create_agent(llm, tools=[get_population], middleware=[WeightMiddleware(deciding=0.0, answering=1.0)])
agent.invoke({"messages": [("user", "What is the population of Torvel?")]})

print("a chain")
find = ChatPromptTemplate.from_template("Which country has the capital {city}?") | llm.with_weights(0.0)
answer = ChatPromptTemplate.from_template("What is the currency of {country}?") | llm.with_weights(1.0)
found = find | StrOutputParser() | (lambda text: text.rstrip(".").split()[-1])
({"country": found} | answer).invoke({"city": "Oslo"})

print("an index")
Settings.llm, Settings.embed_model = EFTLLM(**TRIO, reward_weights=0.0), MockEmbedding(4)
nodes = [TextNode(text="The capital of Spain is Madrid.")]
extractor = SummaryExtractor(prompt_template="{context_str}\nWhat is the capital of Spain?", show_progress=False)
synthesizer = get_response_synthesizer(llm=EFTLLM(**TRIO, reward_weights=1.0))
engine = SummaryIndex(nodes).as_query_engine(response_synthesizer=synthesizer)
print("  extracted:", extractor.extract(nodes))
print("  answered:", engine.query("What is the capital of Spain?"))
