"""A retrieval chain and an agent with a tool, on the embedded trio: python cookbook/01_langchain.py

One model object serves both. The chain answers in the tuned pair's form (one line of JSON) because its step asks for weight 1; the
agent runs at weight 0, the base alone, without loading anything again.
"""

from __future__ import annotations

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

llm = EFTChatModel(preset="smollm2-json", temperature=0.0, max_tokens=80)


def retrieve(question: str) -> str:
    """The note that shares most words with the question."""
    words = set(question.lower().strip("?").split())
    return max(NOTES, key=lambda note: len(words & set(note.lower().strip(".").split())))


prompt = ChatPromptTemplate.from_template("{context}\n\nUse the text above. {question}")
chain = {"context": retrieve, "question": RunnablePassthrough()} | prompt | llm

question = "From which pier does the ferry leave?"
for weight in (0.0, 1.0):
    answer = chain.invoke(question, config={"configurable": {"eft_reward_weights": weight}})
    print(f"weight {weight:g}: {answer.text}")


@tool
def departures(place: str) -> str:
    """Look up when the next ferry to a place leaves."""
    return f"The next ferry to {place} leaves at 14:00."


@wrap_model_call
def look_up_first(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """A model of 135 million parameters rarely calls a tool by itself; a demanded call is certain."""
    looked_up = any(message.type == "tool" for message in request.messages)
    return handler(request.override(tool_choice="none" if looked_up else "any"))


agent = create_agent(llm.with_weights(0.0), tools=[departures], middleware=[look_up_first])
state = agent.invoke({"messages": [("user", "When does the next ferry to Tarn Bay leave?")]})
for message in state["messages"]:
    calls = [(call["name"], call["args"]) for call in getattr(message, "tool_calls", [])]
    print(f"{message.type}: {message.text or calls}")
