"""The blocks of docs/server_clients.md, so that tests run what it says."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/server_clients.md"
ADDRESS = "http://127.0.0.1:8000/v1"


def block(heading: str, base_url: str, *, number: int = 0) -> str:
    """The source of a section's block, with the address of a running server."""
    section = re.split(rf"^## {re.escape(heading)}$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
    source = re.findall(r"```\w+\n(.*?)```", section, flags=re.DOTALL)[number]
    assert ADDRESS in source, f"the block of {heading} names no server"
    return source.replace(ADDRESS, base_url)


def run(heading: str, base_url: str, *, number: int = 0) -> dict[str, object]:
    """What a Python block defines when it is run as it stands."""
    names: dict[str, object] = {}
    exec(compile(block(heading, base_url, number=number), str(PAGE), "exec"), names)
    return names
