"""Examples in documents, as tests read them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path


def python_blocks(path: Path) -> list[str]:
    """The Python blocks of a Markdown file, in its order, without the indentation that they share."""
    found = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [textwrap.dedent(block) for block in found]
