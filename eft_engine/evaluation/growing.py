"""Files that survive the end of their process: lines that grow while work goes on, and files that are replaced in one piece."""

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


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is there as it was or as it is now, whatever happens."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
