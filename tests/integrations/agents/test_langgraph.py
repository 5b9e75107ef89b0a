"""LangChain's `create_agent` on `EFTChatModel`: memory in SQLite that outlives the process's objects, interrupt and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.langchain import EFTChatModel

visited: list[str] = []


@tool
def visit(place: str) -> str:
    """Visit a place."""
    visited.append(place)
    return f"sunny in {place}"


def config(thread: str, **weights: float) -> Any:
    """A thread of memory, perhaps with weights of its own."""
    return {"configurable": {"thread_id": thread, **({"eft_reward_weights": weights} if weights else {})}}


def call(place: str) -> Message:
    """A call of the tool."""
    return Message("assistant", "", (ToolCall("1", "visit", f'{{"place": "{place}"}}'),))


def test_conversation_is_remembered_by_another_agent_over_the_same_file(tmp_path: Path) -> None:
    path = str(tmp_path / "memory.sqlite")
    backend = ScriptedBackend(["Hello Ann.", "You are Ann.", "Who are you?"])
    for question, thread in (("I am Ann.", "one"), ("Who am I?", "one"), ("Who am I?", "two")):
        with SqliteSaver.from_conn_string(path) as memory:
            agent: Any = create_agent(EFTChatModel(backend=backend), [visit], checkpointer=memory)
            agent.invoke({"messages": [HumanMessage(question)]}, config=config(thread, scripted=0.5))
    seen = [[message.content for message in request.messages] for request in backend.requests]
    assert seen == [["I am Ann."], ["I am Ann.", "Hello Ann.", "Who am I?"], ["Who am I?"]]
    assert all(request.reward_weights == {"scripted": 0.5} for request in backend.requests)


def test_agent_waits_for_a_human_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    visited.clear()
    path = str(tmp_path / "memory.sqlite")
    backend = ScriptedBackend([call("Paris"), "It is sunny."])

    def run(given: Any) -> Any:
        with SqliteSaver.from_conn_string(path) as memory:
            agent: Any = create_agent(
                EFTChatModel(backend=backend),
                [visit],
                checkpointer=memory,
                middleware=[HumanInTheLoopMiddleware(interrupt_on={"visit": True})],
            )
            return agent.invoke(given, config=config("one"))

    stopped = run({"messages": [HumanMessage("How is Paris?")]})
    assert stopped["__interrupt__"]
    assert visited == []
    resumed = run(Command(resume={"decisions": [{"type": "approve"}]}))
    assert visited == ["Paris"]
    assert resumed["messages"][-1].content == "It is sunny."
    assert [message.role for message in backend.requests[-1].messages] == ["user", "assistant", "tool"]


async def test_async_memory_and_an_edited_call(tmp_path: Path) -> None:
    visited.clear()
    backend = ScriptedBackend([call("Paris"), "It is sunny."])
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "memory.sqlite")) as memory:
        agent: Any = create_agent(
            EFTChatModel(backend=backend),
            [visit],
            checkpointer=memory,
            middleware=[HumanInTheLoopMiddleware(interrupt_on={"visit": True})],
        )
        await agent.ainvoke({"messages": [HumanMessage("How is Paris?")]}, config=config("one"))
        edit = {"type": "edit", "edited_action": {"name": "visit", "args": {"place": "Rome"}}}
        last = await agent.ainvoke(Command(resume={"decisions": [edit]}), config=config("one"))
    assert visited == ["Rome"]
    assert last["messages"][-1].content == "It is sunny."
