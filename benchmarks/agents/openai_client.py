"""OpenAI's Agents SDK against `eft serve`, in an environment of its own: a conversation a line in, its outcome a line out.

`loops.py` starts this with that environment's interpreter; only what is installed there is imported.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from agents import Agent, MaxTurnsExceeded, ModelSettings, Runner, function_tool, set_tracing_disabled

from benchmarks.agents.tools import Desk
from eft_integrations.agents.openai_agents import agents_model


async def converse(agent: Any, questions: list[str], max_steps: int) -> tuple[str, bool]:
    """The last answer, and whether the limit of steps was reached."""
    items: list[Any] = []
    answer = ""
    for question in questions:
        try:
            result = await Runner.run(agent, [*items, {"role": "user", "content": question}], max_turns=max_steps)
        except MaxTurnsExceeded:
            return "", True
        items, answer = result.to_input_list(), str(result.final_output)
    return answer, False


async def main() -> None:
    """Read the settings, then conversations; answer each before the next is read."""
    set_tracing_disabled(True)
    given = json.loads(sys.stdin.readline())
    desk = Desk()
    agent = Agent(
        name="shop",
        instructions=given["system"],
        model=agents_model("eft", base_url=given["base_url"], reward_weights=given["weight"], api=given["api"]),
        model_settings=ModelSettings(temperature=0.0, max_tokens=given["max_tokens"]),
        tools=[function_tool(function) for function in desk.tools],
    )
    for line in sys.stdin:
        desk.clear()
        started = time.monotonic()
        outcome: dict[str, Any] = {"answer": "", "at_limit": False, "error": None}
        try:
            outcome["answer"], outcome["at_limit"] = await converse(agent, json.loads(line), given["max_steps"])
        except Exception as error:
            outcome["error"] = f"{type(error).__name__}: {error}"
        outcome |= {"executed": desk.executed, "seconds": time.monotonic() - started}
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
