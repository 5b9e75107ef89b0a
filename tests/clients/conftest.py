"""Client libraries that cannot share the project's own environment, against a real server in that environment.

`make test-clients` makes the environments and runs each of these files in the one that has its library.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER_PYTHON = os.environ.get("EFT_SERVER_PYTHON", str(ROOT / ".venv/bin/python"))
LIBRARIES = {
    "test_anthropic.py": "langchain_anthropic",
    "test_autogen.py": "autogen_agentchat",
    "test_claude_agent.py": "claude_agent_sdk",
    "test_continue.py": "inspect_ai",
    "test_crewai.py": "crewai",
    "test_dspy.py": "dspy",
    "test_haystack.py": "haystack",
    "test_inspect.py": "inspect_ai",
    "test_langchain_anthropic.py": "langchain_anthropic",
    "test_langchain_openai.py": "langchain_openai",
    "test_litellm.py": "dspy",
    "test_node.py": "langchain_anthropic",
    "test_open_webui.py": "inspect_ai",
    "test_openai.py": "agents",
    "test_openai_agents.py": "agents",
    "test_pydantic_ai.py": "pydantic_ai",
    "test_stored_responses.py": "agents",
}
"""The library by which each file is told to belong to an environment; all others are not collected there."""

collect_ignore = [name for name, library in LIBRARIES.items() if importlib.util.find_spec(library) is None]
if importlib.util.find_spec("torch") is not None:  # the project's own environment
    collect_ignore = list(LIBRARIES)
else:  # tests tell nobody, and wait for no network
    os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("OTEL_SDK_DISABLED", "true")
    os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    """The address of a running server."""
    process = subprocess.Popen(
        [SERVER_PYTHON, "-m", "tests.clients.server"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://"), "the server did not start; its error is above"
    sys.stderr.write(f"server of the tests: {url}\n")
    yield f"{url}/v1"
    process.stdin.close()
    process.wait(60)
