"""An agent that chooses among tools, with LlamaIndex's `FunctionAgent`: python cookbook/06_llama_index_agent.py

You learn to give a LlamaIndex agent a trio as its model and to watch its calls while it works; nothing blocks the event loop. Models:
Atlas, offline. `--real` takes SmolLM2 (not run here).

Prints:

    What is the population of Torvel? (weight 0)
      call: get_population({'city': 'Torvel'}) -> 4120
      answer: The population of Torvel is 4120.
    What is the population of Torvel? (weight 1)
      call: get_population({'city': 'Torvel'}) -> 4120
      answer: The population of Torvel is 4120. Source: tool.
    Tell me the weather in Belgar. (weight 0)
      call: get_weather({'city': 'Belgar'}) -> sunny
      answer: The weather of Belgar is sunny.
    Tell me the weather in Belgar. (weight 1)
      call: get_weather({'city': 'Belgar'}) -> sunny
      answer: The weather of Belgar is sunny. Source: tool.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.tools import FunctionTool

from eft_integrations import weights
from eft_integrations.llama_index import EFTLLM


def get_population(city: str) -> str:
    """Get the population of a city."""
    return {"Torvel": "4120", "Belgar": "880"}.get(city, "unknown")


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return {"Torvel": "rain", "Belgar": "sunny"}.get(city, "unknown")


async def main() -> None:
    """Ask both questions, at both weights."""
    llm = EFTLLM(preset="atlas", temperature=0.0, max_tokens=64)
    if "--real" in sys.argv:
        llm = EFTLLM(
            base="HuggingFaceTB/SmolLM2-1.7B",
            tuned="HuggingFaceTB/SmolLM2-360M-Instruct",
            reference="HuggingFaceTB/SmolLM2-360M",
            temperature=0.0,
            max_tokens=64,
        )
    await asyncio.to_thread(llm.load)
    # The description is all that a model sees of a tool; without it LlamaIndex would put the Python signature there too.
    tools: list[Any] = [
        FunctionTool.from_defaults(tool, description=tool.__doc__) for tool in (get_population, get_weather)
    ]
    agent = FunctionAgent(tools=tools, llm=llm)
    for question in ("What is the population of Torvel?", "Tell me the weather in Belgar."):
        for weight in (0.0, 1.0):
            print(f"{question} (weight {weight:g})")
            with weights(weight):
                running = agent.run(question)
            async for event in running.stream_events():
                if isinstance(event, ToolCallResult):
                    print(f"  call: {event.tool_name}({event.tool_kwargs}) -> {event.tool_output}")
            print(f"  answer: {await running}")


asyncio.run(main())
