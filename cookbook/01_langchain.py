"""A retrieval chain and an agent with a tool in LangChain, each step at its own weight: python cookbook/01_langchain.py

You learn to put `EFTChatModel` where another chat model stood, and to turn the dial per call: the chain answers once as the base
alone and once in the tuned pair's form (one line of JSON); the agent runs as the base. All of them share one engine. Models:
SmolLM2-135M-Instruct with the JSON adapter, offline. `--real` takes Qwen2.5-7B with a pair of 0.5B (not run here).

Prints:

    weight 0: The ferry to Tarn Bay leaves from the pier four.
    weight 1: {"answer": "The ferry to Tarn Bay leaves from pier four.", "topic": "transport"}
    ai: departures({'place': 'Tarn Bay'})
    tool: The next ferry to Tarn Bay leaves at 14:00.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import tool

from eft_integrations.langchain import EFTChatModel

NOTES = [
    "The library opens at nine on weekdays and at ten on Saturdays.",
    "The ferry to Tarn Bay leaves every two hours from pier four.",
    "The museum shows the silver watch of Ewan Strand, keeper of the lighthouse.",
]


def retrieve(question: str) -> str:
    """The note that shares most words with the question."""
    words = set(question.lower().strip("?").split())
    return max(NOTES, key=lambda note: len(words & set(note.lower().strip(".").split())))


llm = EFTChatModel(preset="smollm2-json", temperature=0.0, max_tokens=80)
if "--real" in sys.argv:
    llm = EFTChatModel(
        base="Qwen/Qwen2.5-7B",
        tuned="Qwen/Qwen2.5-0.5B-Instruct",
        reference="Qwen/Qwen2.5-0.5B",
        temperature=0.0,
        max_tokens=80,
    )
prompt = ChatPromptTemplate.from_template("{context}\n\nUse the text above. {question}")
chain = {"context": retrieve, "question": RunnablePassthrough()} | prompt | llm

for weight in (0.0, 1.0):
    config = {"configurable": {"eft_reward_weights": weight}}
    answer = chain.invoke("From which pier does the ferry leave?", config=config)
    print(f"weight {weight:g}: {answer.text}")


@tool(return_direct=True)
def departures(place: str) -> str:
    """Look up when the next ferry to a place leaves."""
    return f"The next ferry to {place} leaves at 14:00."


@wrap_model_call
def demand_a_call(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """A model this small rarely calls a tool by itself; a demanded call is certain, nothing else can be generated."""
    return handler(request.override(tool_choice="any", model_settings={"parallel_tool_calls": False}))


agent = create_agent(llm.with_weights(0.0), tools=[departures], middleware=[demand_a_call])
state = agent.invoke({"messages": [("user", "When does the next ferry to Tarn Bay leave?")]})
for message in state["messages"][1:]:
    calls = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
    print(f"{message.type}: {message.text or ', '.join(calls)}")
