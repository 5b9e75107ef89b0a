"""The base decides what is called, the pair writes the words: python cookbook/17_who_calls.py

    pip install '.[langchain]'

You learn to give the calls of an agent a weight of their own. A pair that was tuned on plain answers pulls towards plain answers, also where the
base would have called a tool; with `call_weight=0` the base decides whether, what and with which arguments, and the pair
words the answer. Models: Atlas, offline. `--real` takes Qwen2.5 (not run here).

Prints:

    What is the population of Torvel?
      get_population({'city': 'Torvel'}) (steered: 0%, drawn anew: 0 tokens)
      The population of Torvel is 4120. Source: tool. (steered: 100%, drawn anew: 14 tokens)
    Tell me the weather in Belgar.
      get_weather({'city': 'Belgar'}) (steered: 0%, drawn anew: 0 tokens)
      The weather of Belgar is sunny. Source: tool. (steered: 100%, drawn anew: 11 tokens)
"""

from __future__ import annotations

import sys

from langchain.agents import create_agent
from langchain_core.messages import AIMessage

from eft_integrations.langchain import EFTChatModel


def get_population(city: str) -> str:
    """The population of a city."""
    return {"Torvel": "4120", "Belgar": "9005"}.get(city, "unknown")


def get_weather(city: str) -> str:
    """The weather in a city."""
    return {"Torvel": "rainy", "Belgar": "sunny"}.get(city, "unknown")


llm = EFTChatModel(preset="atlas", temperature=0.0, max_tokens=48, call_weight=0.0)
if "--real" in sys.argv:
    llm = EFTChatModel(
        base="Qwen/Qwen2.5-7B",
        tuned="Qwen/Qwen2.5-0.5B-Instruct",
        reference="Qwen/Qwen2.5-0.5B",
        temperature=0.0,
        max_tokens=256,
        call_weight=0.0,
    )
agent = create_agent(llm, [get_population, get_weather])

for question in ("What is the population of Torvel?", "Tell me the weather in Belgar."):
    print(question)
    for message in agent.invoke({"messages": [("user", question)]})["messages"]:
        if isinstance(message, AIMessage):
            told = message.response_metadata["eft"]
            steered, thrown = told["intervention_rate"], told.get("num_redrawn", 0)
            said = "; ".join(f"{call['name']}({call['args']})" for call in message.tool_calls) or message.text
            print(f"  {said} (steered: {steered:.0%}, drawn anew: {thrown} tokens)")
