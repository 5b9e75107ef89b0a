"""An agent that chooses among tools, with LlamaIndex's `FunctionAgent`: python cookbook/06_llama_index_agent.py

You learn to give a LlamaIndex agent a trio as its model and to watch its calls while it works; nothing blocks the event loop. Models:
Atlas, offline. `--real` takes SmolLM2 (not run here).

Prints:

"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.tools import FunctionTool

from eft_integrations import weights
from eft_integrations.llama_index import EFTLLM

TRIO: dict[str, Any] = {"preset": "atlas"}
if "--real" in sys.argv:
    family = "HuggingFaceTB/SmolLM2"
    TRIO = {"base": f"{family}-1.7B", "tuned": f"{family}-360M-Instruct", "reference": f"{family}-360M"}


def get_population(city: str) -> str:
    """Get the population of a city."""
    return {"Torvel": "4120", "Belgar": "880"}.get(city, "unknown")


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return {"Torvel": "rain", "Belgar": "sunny"}.get(city, "unknown")


async def main() -> None:
    """Ask both questions, at both weights."""
    llm = EFTLLM(**TRIO, temperature=0.0, max_tokens=64)
    await asyncio.to_thread(llm.load)
    # The description is all that a model sees of a tool; without it LlamaIndex would put the Python signature there too.
    tools = [FunctionTool.from_defaults(tool, description=tool.__doc__) for tool in (get_population, get_weather)]
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
