"""Claude's Agent SDK, and Claude Code, which it brings and runs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ResultError,
    ResultMessage,
    ToolUseBlock,
    create_sdk_mcp_server,
    query,
    tool,
)

ran: list[str] = []


@tool("look", "Looks.", {"place": str})
async def look(given: dict[str, Any]) -> dict[str, Any]:
    """A tool of this process."""
    ran.append(given["place"])
    return {"content": [{"type": "text", "text": f"sunny in {given['place']}"}]}


def options(base_url: str, home: Path, model: str) -> ClaudeAgentOptions:
    """One tool, and nothing of the user's own."""
    ran.clear()
    return ClaudeAgentOptions(
        model=model,
        tools=[],
        mcp_servers={"own": create_sdk_mcp_server("own", tools=[look])},
        allowed_tools=["mcp__own__look"],
        setting_sources=[],
        max_turns=4,
        cwd=home,
        env={
            "ANTHROPIC_BASE_URL": base_url.removesuffix("/v1"),
            "ANTHROPIC_API_KEY": "none",
            "HOME": str(home),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_MAX_RETRIES": "0",
        },
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("model", ["tools", "thinker"])
async def test_tool_is_run_and_its_result_is_told(base_url: str, tmp_path: Path, model: str) -> None:
    messages = [message async for message in query(prompt="hello", options=options(base_url, tmp_path, model))]
    calls = [
        block
        for message in messages
        if isinstance(message, AssistantMessage)
        for block in message.content
        if isinstance(block, ToolUseBlock)
    ]
    assert [(call.name, call.input) for call in calls] == [("mcp__own__look", {"place": "Paris"})]
    assert ran == ["Paris"]
    result = messages[-1]
    assert isinstance(result, ResultMessage)
    assert (result.is_error, result.num_turns) == (False, 2)
    assert str(result.result).startswith("sunny in Paris")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("model", ["cut", "late", "unfit"])
async def test_calls_that_are_none_are_not_run(base_url: str, tmp_path: Path, model: str) -> None:
    with contextlib.nullcontext() if model == "unfit" else pytest.raises(ResultError, match="output token maximum"):
        async for _ in query(prompt="hello", options=options(base_url, tmp_path, model)):
            pass
    assert ran == []
