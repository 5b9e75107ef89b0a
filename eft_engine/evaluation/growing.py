"""Files of lines that grow while work goes on: what a process that was killed left half written is cut off."""

from __future__ import annotations

import os
from pathlib import Path


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file without their ends; none where it is missing. A last line without an end is cut off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return content[:whole].split(b"\n")[:-1]
