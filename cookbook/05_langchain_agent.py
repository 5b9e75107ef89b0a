"""An agent that chooses among tools, with LangChain's `create_agent`: python cookbook/05_langchain_agent.py

You learn to give an agent a trio as its model: the tuned pair carries when and how to call a tool, and how to speak of the result. Every
step of the agent runs at the weight of the surrounding block. Models: Atlas, offline. `--real` takes Qwen2.5 (not run here).

Prints:

    What is the population of Torvel? (weight 0)
      ai: "get_population({'city': 'Torvel'})"
      tool: '4120'
      ai: 'The population of Torvel is 4120.'
    What is the population of Torvel? (weight 1)
      ai: "get_population({'city': 'Torvel'})"
      tool: '4120'
      ai: 'The population of Torvel is 4120. Source: tool.'
    Tell me the weather in Belgar. (weight 0)
      ai: "get_weather({'city': 'Belgar'})"
      tool: 'sunny'
      ai: 'The weather of Belgar is sunny.'
    Tell me the weather in Belgar. (weight 1)
      ai: "get_weather({'city': 'Belgar'})"
      tool: 'sunny'
      ai: 'The weather of Belgar is sunny. Source: tool.'
"""

from __future__ import annotations

import sys

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from eft_integrations import weights
from eft_integrations.langchain import EFTChatModel


@tool
def get_population(city: str) -> str:
    """Get the population of a city."""
    return {"Torvel": "4120", "Belgar": "880"}.get(city, "unknown")


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return {"Torvel": "rain", "Belgar": "sunny"}.get(city, "unknown")


llm = EFTChatModel(preset="atlas", temperature=0.0, max_tokens=64)
if "--real" in sys.argv:
    llm = EFTChatModel(
        base="Qwen/Qwen2.5-7B",
        tuned="Qwen/Qwen2.5-0.5B-Instruct",
        reference="Qwen/Qwen2.5-0.5B",
        temperature=0.0,
        max_tokens=64,
    )
agent = create_agent(llm, tools=[get_population, get_weather])

for question in ("What is the population of Torvel?", "Tell me the weather in Belgar."):
    for weight in (0.0, 1.0):
        print(f"{question} (weight {weight:g})")
        with weights(weight):
            state = agent.invoke({"messages": [("user", question)]})
        for message in state["messages"][1:]:
            calls = message.tool_calls if isinstance(message, AIMessage) else []
            called = ", ".join(f"{call['name']}({call['args']})" for call in calls)
            print(f"  {message.type}: {called or message.text!r}")
